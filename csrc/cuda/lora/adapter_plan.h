// How the gradient of an adapter is divided into blocks: decided on the host, followed by the kernel.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "common/lora_conv.h"
#include "cuda/lora/conv_plan.h"

namespace lorun::lora::cuda {

constexpr int kAdapterWarps = 4;
// A unit is dW of one tap and 16 input channels, by the output channels of the block; a warp has this many.
constexpr int kAdapterUnits = 5;
constexpr int kAdapterOuts = 32;
constexpr int kAdapterTileHeight = 8, kAdapterTileWidth = 16;
constexpr int kAdapterPixels = kAdapterTileHeight * kAdapterTileWidth;
constexpr int kAdapterStages = 2;
// Padding after each pixel in shared memory, in elements: 8 pixels of 16 bytes, or 4 of 32, are in different
// banks.
constexpr int kAdapterPad = 8;
// The number of blocks if each has at least two tiles: two for each multiprocessor of a large GPU.
constexpr int kAdapterBlocks = 256;
// Bytes that a block may use on every GPU from sm_80 on.
constexpr int64_t kAdapterShared = 99 * 1024;

// A block sums dW of `channels` input channels, `rows` by `columns` taps and kAdapterOuts output channels
// over every `splits`-th tile of pixels. The input pixels that it reads, those of a tile and those around it
// that the taps reach, are a window: every step-th pixel of the image.
struct AdapterPlan {
  int channels, rows, columns;
  int row_blocks, column_blocks, out_blocks;
  int parts;  // of W for the same output channels
  int tiles_y, tiles_x, splits;
  int64_t tiles;
  int step_y, step_x;
  int pixel_step_y, pixel_step_x, tap_step_y, tap_step_x;  // distances in the window
  int window_h, window_w;
  int pitch, out_pitch;  // elements from one pixel to the next
  int window_elements, stage_elements;
  int weight_pitch;  // floats from one output channel of dW to the next
  int64_t shared;
};

inline AdapterPlan lay_out_adapter(const Problem& problem, int channels, int rows, int columns) {
  const int bytes = problem.dtype == Dtype::kFloat32 ? 4 : 2;
  AdapterPlan plan{};
  plan.channels = channels;
  plan.rows = rows;
  plan.columns = columns;
  plan.row_blocks = divide_up(problem.kernel_h, rows);
  plan.column_blocks = divide_up(problem.kernel_w, columns);
  plan.out_blocks = divide_up(problem.out_channels, kAdapterOuts);
  plan.parts = divide_up(problem.in_channels, channels) * plan.row_blocks * plan.column_blocks;
  plan.tiles_y = divide_up(problem.out_height, kAdapterTileHeight);
  plan.tiles_x = divide_up(problem.out_width, kAdapterTileWidth);
  plan.tiles = int64_t{problem.batch} * plan.tiles_y * plan.tiles_x;
  const int64_t most = std::max(1, kAdapterBlocks / (plan.parts * plan.out_blocks));
  plan.splits = static_cast<int>(std::min((plan.tiles + 1) / 2, most));
  plan.step_y = rows > 1 ? std::gcd(problem.stride_h, problem.dilation_h) : problem.stride_h;
  plan.step_x = columns > 1 ? std::gcd(problem.stride_w, problem.dilation_w) : problem.stride_w;
  plan.pixel_step_y = problem.stride_h / plan.step_y;
  plan.pixel_step_x = problem.stride_w / plan.step_x;
  plan.tap_step_y = problem.dilation_h / plan.step_y;
  plan.tap_step_x = problem.dilation_w / plan.step_x;
  const int64_t height =
      int64_t{kAdapterTileHeight - 1} * plan.pixel_step_y + 1 + int64_t{rows - 1} * plan.tap_step_y;
  const int64_t width =
      int64_t{kAdapterTileWidth - 1} * plan.pixel_step_x + 1 + int64_t{columns - 1} * plan.tap_step_x;
  plan.window_h = static_cast<int>(height);
  plan.window_w = static_cast<int>(width);
  plan.pitch = channels + kAdapterPad;
  plan.out_pitch = kAdapterOuts + kAdapterPad;
  const int64_t window = height * width * plan.pitch;
  const int64_t stage = window + kAdapterPixels * plan.out_pitch;
  plan.window_elements = static_cast<int>(window);
  plan.stage_elements = static_cast<int>(stage);
  const int places = channels * rows * columns;
  plan.weight_pitch = places | 1;
  // In the end, dW and the table of its places take the stages' memory.
  const int64_t weights = (int64_t{kAdapterOuts} * plan.weight_pitch + 2 * places) * 4;
  plan.shared = std::max(kAdapterStages * stage * bytes, weights);
  return plan;
}

// A block has all taps, so that it reads the gradient once, if they fit with 32 channels.
inline AdapterPlan plan_adapter(const Problem& problem) {
  int tiles = std::min(divide_up(problem.in_channels, 16), 8);
  int rows = problem.kernel_h, columns = problem.kernel_w;
  for (;;) {
    const int blocks = divide_up(problem.in_channels, 16 * tiles);
    const int balanced = divide_up(divide_up(problem.in_channels, 16), blocks);
    const AdapterPlan plan = lay_out_adapter(problem, 16 * balanced, rows, columns);
    const bool few = balanced * rows * columns <= kAdapterWarps * kAdapterUnits;
    if (few && plan.shared <= kAdapterShared) {
      return plan;
    }
    (tiles > 2 ? tiles : rows > 1 ? rows : columns > 1 ? columns : tiles) -= 1;
  }
}

// The parts of a deterministic sum: each element of them is written once.
inline int64_t up_parts(const AdapterPlan& plan) { return int64_t{plan.splits} * plan.parts; }
inline int64_t down_parts(const AdapterPlan& plan, int chunks) {
  return int64_t{plan.splits} * plan.out_blocks * chunks;
}

}  // namespace lorun::lora::cuda
