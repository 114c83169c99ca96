// What a block of the convolution works on, and how it copies pixels into shared memory.
#pragma once

#include <cuda_pipeline.h>

#include "cuda/lora/conv_plan.h"
#include "cuda/lora/launchers.h"
#include "cuda/lora/weight.cuh"

namespace lorun::lora::cuda {

// Two images of the same size as one: channels from `split` on are those of the second.
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
  int y, x;  // its first pixel, among those that the launch computes
};

__device__ __forceinline__ Tile tile_at(const Plan& plan, int index) {
  const int line = index / plan.tiles_x;
  return {line / plan.tiles_y, line % plan.tiles_y * plan.tile_height,
          index % plan.tiles_x * plan.tile_width};
}

// The part of a tile that a stage holds.
struct Part {
  int tap_y, tap_x, first_channel;
};

// Moves to the next stage of a tile and returns true; after the last, moves to the first and returns false.
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

// Copies kBytes, or writes 0 if `valid` is false. Words too short for an asynchronous copy are copied at
// once.
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
  // A thread keeps to its word of a pixel: the number of words in a pixel divides that of threads.
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

}  // namespace lorun::lora::cuda
