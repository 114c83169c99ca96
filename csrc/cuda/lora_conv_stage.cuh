// What a block of the convolution brings into shared memory: pixels of the images, and merged weights.
#pragma once

#include <cuda_pipeline.h>

#include "cuda/lora_conv.h"
#include "cuda/lora_conv_plan.h"
#include "cuda/lora_weight.cuh"

namespace lorun::lora::cuda {

// Two images of the same pixels as one: channels from `split` on are those of the second.
struct ImagePair {
  Image first, second;
  int split;
};

struct Task {
  Sizes sizes;
  Plan plan;
  ImagePair in, out;
  int copy_bytes;  // of a copy into a stage
  Weight weight;
  WeightShape shape;
  bool transposed;  // whether W maps its output channels to its input channels
  Epilogue epilogue;
  Image preactivation;
  bool quads;  // whether four channels of a result can be stored at once
};

template <typename T>
__device__ __forceinline__ T* shared_at(int offset) {
  return reinterpret_cast<T*>(shared_memory + offset);
}

struct Tile {
  int64_t sample;
  int y, x;  // the first of its pixels, of those that the launch computes
};

__device__ __forceinline__ Tile tile_at(const Plan& plan, int index) {
  const int line = index / plan.tiles_x;
  return {line / plan.tiles_y, line % plan.tiles_y * plan.tile_height,
          index % plan.tiles_x * plan.tile_width};
}

// What a stage holds of a tile.
struct Part {
  int tap_y, tap_x, first_channel;
};

// On to the next stage of a tile; after the last, back to the first and false.
__device__ __forceinline__ bool advance(const Task& task, Part& part) {
  part.first_channel += task.plan.depth;
  if (part.first_channel < task.plan.padded_channels) {
    return true;
  }
  part.first_channel = 0;
  if (task.plan.whole) {
    return false;
  }
  if (++part.tap_x < task.sizes.x.taps) {
    return true;
  }
  part.tap_x = 0;
  if (++part.tap_y < task.sizes.y.taps) {
    return true;
  }
  part.tap_y = 0;
  return false;
}

template <typename T>
__device__ __forceinline__ T* pixel_of(const Image& image, int64_t sample, int64_t y, int64_t x) {
  return static_cast<T*>(image.data) + sample * image.batch + y * image.row + x * image.column;
}

// Copies kBytes, or writes 0 where `valid` is false. Words that no asynchronous copy exists for wait at once.
template <typename T, int kBytes>
__device__ __forceinline__ void copy_word(T* to, const T* from, bool valid) {
  if constexpr (kBytes >= 4) {
    __pipeline_memcpy_async(to, from, kBytes, valid ? 0 : kBytes);
  } else {
    *to = valid ? *from : T{};
  }
}

template <typename T, int kBytes>
__device__ __forceinline__ void copy_pixels(const Task& task, const Tile& tile, const Part& part, T* stage) {
  constexpr int kWord = kBytes / sizeof(T);
  const Plan& plan = task.plan;
  const Axis &y = task.sizes.y, &x = task.sizes.x;
  const int first_y = y.in_first + tile.y * y.in_step + part.tap_y * y.tap_step;
  const int first_x = x.in_first + tile.x * x.in_step + part.tap_x * x.tap_step;
  // A thread stays with its word of a pixel: the words of a pixel divide a warp.
  const int words = plan.depth / kWord;
  const int word = threadIdx.x % words * kWord;
  const int channel = part.first_channel + word;
  const bool second = channel >= task.in.split;
  const Image image = second ? task.in.second : task.in.first;
  const bool exists = channel < task.sizes.in_channels;
  const T* const sample =
      pixel_of<const T>(image, tile.sample, 0, 0) + channel - (second ? task.in.split : 0);
  const int step = blockDim.x / words;
  const int step_row = step / plan.grid_w, step_column = step % plan.grid_w;
  int pixel = threadIdx.x / words;
  int row = pixel / plan.grid_w, column = pixel % plan.grid_w;
  for (; row < plan.grid_h; pixel += step) {
    const int in_y = first_y + row * plan.grid_step_y;
    const int in_x = first_x + column * plan.grid_step_x;
    const bool valid = exists && in_y >= 0 && in_y < y.in_size && in_x >= 0 && in_x < x.in_size;
    copy_word<T, kBytes>(stage + pixel * plan.pixel_pitch + word,
                         sample + in_y * image.row + in_x * image.column, valid);
    row += step_row;
    column += step_column;
    if (column >= plan.grid_w) {
      column -= plan.grid_w;
      ++row;
    }
  }
}

template <typename T>
__device__ __forceinline__ void copy_part(const Task& task, const Tile& tile, const Part& part, T* stage) {
  switch (task.copy_bytes) {
    case 16:
      return copy_pixels<T, 16>(task, tile, part, stage);
    case 8:
      return copy_pixels<T, 8>(task, tile, part, stage);
    case 4:
      return copy_pixels<T, 4>(task, tile, part, stage);
    default:
      return copy_pixels<T, sizeof(T)>(task, tile, part, stage);
  }
}

// Some of the weights: `taps` from a first tap, `depth` channels of the image, and a slice.
struct Panel {
  int first_tap, taps, first_channel, depth;
};

__device__ __forceinline__ int depth_of(const Plan& plan, const Part& part) {
  const int left = plan.padded_channels - part.first_channel;
  return left < plan.depth ? left : plan.depth;
}

// All weights of the slice where they stay, and those that the part needs where not.
__device__ __forceinline__ Panel panel_of(const Task& task, const Part& part) {
  const int taps_x = task.sizes.x.taps;
  return task.plan.resident
             ? Panel{0, task.sizes.y.taps * taps_x, 0, task.plan.padded_channels}
             : Panel{part.tap_y * taps_x + part.tap_x, 1, part.first_channel, depth_of(task.plan, part)};
}

// Merges a panel into rows of `to`, one for each channel of the result, of taps of channels of the image.
// What W does not have is 0.
template <typename T, typename U>
__device__ __forceinline__ void merge_panel(const Task& task, const Panel& panel, int first_row, T* to) {
  constexpr int kOuts = 8;
  const Plan& plan = task.plan;
  const int rows = plan.columns * kTile;
  const int outs = task.transposed ? panel.depth : rows;
  const int ins = task.transposed ? rows : panel.depth;
  const int first_out = task.transposed ? panel.first_channel : first_row;
  const int first_in = task.transposed ? first_row : panel.first_channel;
  const int out_pitch = task.transposed ? 1 : plan.weight_pitch;
  const int in_pitch = task.transposed ? plan.weight_pitch : 1;
  const int count = outs / kOuts * ins * panel.taps;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const int tap = i % panel.taps;
    const int in = i / panel.taps % ins;
    const int out = i / panel.taps / ins * kOuts;
    const int tap_y = (panel.first_tap + tap) / task.sizes.x.taps;
    const int tap_x = (panel.first_tap + tap) % task.sizes.x.taps;
    const WeightIndex at{first_out + out, first_in + in,
                         task.sizes.y.kernel_first + tap_y * task.sizes.y.kernel_step,
                         task.sizes.x.kernel_first + tap_x * task.sizes.x.kernel_step};
    float values[kOuts] = {};
    if (at.in < task.shape.in_channels && at.out < task.shape.out_channels) {
      merge_outs<U>(task.weight, task.shape, at, values);
    }
    T* const first = to + tap * plan.tap_pitch + out * out_pitch + in * in_pitch;
#pragma unroll
    for (int j = 0; j < kOuts; ++j) {
      narrow(at.out + j < task.shape.out_channels ? values[j] : 0.0f, first[j * out_pitch]);
    }
  }
}

template <typename T>
__device__ __forceinline__ void merge_panel(const Task& task, const Panel& panel, int first_row, T* to) {
  if (task.weight.dtype == Dtype::kFloat32) {
    merge_panel<T, float>(task, panel, first_row, to);
  } else {
    merge_panel<T, T>(task, panel, first_row, to);
  }
}

}  // namespace lorun::lora::cuda
