// How a convolution is divided into tiles, stages and slices: decided on the host, followed by the kernel.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/lora/axes.h"

namespace lorun::lora::cuda {

// Bytes of shared memory that every block takes in addition to its own.
constexpr int64_t kReserved = 1024;

struct Device {
  int64_t shared;  // bytes that a block may use
  int multiprocessors;
};

// Output channels of W whose elements a thread merges at once.
constexpr int kMergedOuts = 8;

// What is multiplied: pixels of in_channels by the weights of out_channels.
struct Sizes {
  Axis y, x;
  int64_t batch;
  int in_channels, out_channels;
  int element_bytes;
  // Rows of `up` for one output channel of W, and the floats of a staged row; 0 without an adapter.
  int up_rows, up_pitch;
};

// Columns of the epilogue's scratch, in floats, and the padding that puts its rows into different banks.
constexpr int kScratchPad = 4;
template <int kColumns>
constexpr int kScratchColumns = kColumns == 1 ? 16 : 32;

// A warp computes 32 pixels and `columns` * 16 output channels; a block computes `warps` times as many
// pixels, a tile, for one slice of the output channels. A stage of the pipeline holds `depth` channels of all
// pixels that a tile needs for one tap or, if `whole`, for all taps. The slice's weights stay in shared
// memory if they fit.
struct Plan {
  int warps, columns, slices;
  int tile_width, tile_width_log2, tile_height, tiles_y, tiles_x;
  int64_t tiles;
  bool whole, resident;
  int depth, padded_channels;
  int grid_h, grid_w, grid_step_y, grid_step_x;  // the pixels of a stage and their distance in the image
  int pixel_step_y, pixel_step_x, tap_step_y, tap_step_x;  // distances in a stage
  int taps_y, taps_x;                                      // in a stage
  int pixel_pitch, weight_pitch, tap_pitch;                // elements in shared memory
  int stages, stage_elements;
  int staged_outs;  // output channels of W whose rows of `up` are in the stages while W is merged
  int weight_offset, stage_offset, scratch_offset;  // bytes
  int64_t shared;
};

inline int divide_up(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// `elements` rounded up to an odd multiple of 16 bytes: 16 bytes of each of eight rows of that pitch are in
// different banks.
inline int odd_pitch(int elements, int element_bytes) {
  const int words = divide_up(int64_t{elements} * element_bytes, 16);
  return (words | 1) * 16 / element_bytes;
}

struct Choice {
  int warps, columns;
  bool whole, resident;
  int stages;
};

inline Plan lay_out(const Sizes& sizes, const Choice& choice) {
  const Axis &y = sizes.y, &x = sizes.x;
  const int bytes = sizes.element_bytes;
  Plan plan{};
  plan.warps = choice.warps;
  plan.columns = choice.columns;
  plan.slices = divide_up(sizes.out_channels, 16 * choice.columns);
  plan.tile_width_log2 = x.count > 8 ? 4 : 3;
  plan.tile_width = 1 << plan.tile_width_log2;
  plan.tile_height = 32 * choice.warps / plan.tile_width;
  plan.tiles_y = divide_up(y.count, plan.tile_height);
  plan.tiles_x = divide_up(x.count, plan.tile_width);
  plan.tiles = sizes.batch * plan.tiles_y * plan.tiles_x;

  const bool tapless = y.taps == 0 || x.taps == 0;
  plan.whole = choice.whole || tapless;
  plan.resident = choice.resident;
  plan.padded_channels = divide_up(sizes.in_channels, 32 / bytes) * (32 / bytes);
  plan.depth = std::min(plan.padded_channels, 64 / bytes);
  plan.taps_y = plan.whole ? y.taps : 1;
  plan.taps_x = plan.whole ? x.taps : 1;
  plan.grid_step_y = plan.whole ? 1 : y.in_step;
  plan.grid_step_x = plan.whole ? 1 : x.in_step;
  plan.pixel_step_y = plan.whole ? y.in_step : 1;
  plan.pixel_step_x = plan.whole ? x.in_step : 1;
  plan.tap_step_y = y.tap_step;
  plan.tap_step_x = x.tap_step;
  plan.grid_h = tapless ? 0 : (plan.tile_height - 1) * plan.pixel_step_y + (plan.taps_y - 1) * y.tap_step + 1;
  plan.grid_w = tapless ? 1 : (plan.tile_width - 1) * plan.pixel_step_x + (plan.taps_x - 1) * x.tap_step + 1;

  plan.pixel_pitch = odd_pitch(plan.depth, bytes);
  plan.tap_pitch = plan.resident ? plan.padded_channels : plan.depth;
  plan.weight_pitch = odd_pitch(plan.tap_pitch * (plan.resident ? y.taps * x.taps : 1), bytes);
  plan.stages = choice.stages;
  const int64_t stage = int64_t{plan.grid_h} * plan.grid_w * plan.pixel_pitch;
  const int64_t weights = int64_t{plan.columns} * 16 * plan.weight_pitch * bytes;
  const int scratch_columns = plan.columns == 1 ? kScratchColumns<1> : kScratchColumns<2>;
  const int64_t scratch = choice.warps * int64_t{16} * (scratch_columns + kScratchPad) * 4;
  plan.shared = weights + stage * bytes * plan.stages + scratch;
  const int64_t up_bytes = int64_t{sizes.up_rows} * sizes.up_pitch * 4;
  plan.staged_outs =
      plan.resident && up_bytes > 0
          ? static_cast<int>(stage * bytes * plan.stages / up_bytes / kMergedOuts * kMergedOuts)
          : 0;
  plan.stage_elements = static_cast<int>(stage);
  plan.stage_offset = static_cast<int>(weights);
  plan.scratch_offset = static_cast<int>(plan.shared - scratch);
  return plan;
}

// Two stages, or three if as many blocks then still run at the same time.
inline Plan with_stages(const Sizes& sizes, Choice choice, const Device& device) {
  choice.stages = 2;
  const Plan two = lay_out(sizes, choice);
  choice.stages = 3;
  const Plan three = lay_out(sizes, choice);
  const auto beside = [&](const Plan& plan) {
    return (device.shared + kReserved) / (plan.shared + kReserved);
  };
  return beside(three) == beside(two) ? three : two;
}

// The widest slices among those that waste the fewest columns.
inline int widest_columns(int out_channels) {
  if (out_channels <= 16) {
    return 1;
  }
  return divide_up(out_channels, 64) * 64 <= divide_up(out_channels, 32) * 32 ? 4 : 2;
}

// Slices narrow enough for their weights to stay in shared memory, at best together with all pixels of a
// tile; if there are none, weights are merged again for each stage.
inline Plan fit(const Sizes& sizes, Choice choice, const Device& device) {
  const int widest = choice.columns;
  choice.resident = true;
  for (; choice.columns > 0; choice.columns /= 2) {
    for (const bool whole : {true, false}) {
      choice.whole = whole;
      const Plan plan = with_stages(sizes, choice, device);
      const int64_t pixels = 32 * choice.warps;
      const bool worthwhile =
          !whole || int64_t{plan.grid_h} * plan.grid_w <= pixels * sizes.y.taps * sizes.x.taps;
      if (worthwhile && plan.shared <= device.shared) {
        return plan;
      }
    }
  }
  choice.columns = widest;
  choice.whole = choice.resident = false;
  choice.stages = 2;
  return lay_out(sizes, choice);
}

// Tiles no taller than the image; smaller tiles and narrower slices if multiprocessors would be idle.
inline Plan make_plan(const Sizes& sizes, const Device& device) {
  Choice choice{8, widest_columns(sizes.out_channels), true, true, 2};
  Plan plan = fit(sizes, choice, device);
  while (choice.warps > 1 && plan.tile_height / 2 >= sizes.y.count) {
    choice.warps /= 2;
    plan = fit(sizes, choice, device);
  }
  while (plan.tiles * plan.slices < device.multiprocessors && (choice.warps > 2 || choice.columns > 1)) {
    (choice.warps > 2 ? choice.warps : choice.columns) /= 2;
    plan = fit(sizes, choice, device);
  }
  return plan;
}

}  // namespace lorun::lora::cuda
