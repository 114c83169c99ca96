// From the sums of a warp to the results: bias, activation, residual, and stores of whole pixels.
#pragma once

#include <cmath>

#include "cuda/lora/conv_stage.cuh"
#include "cuda/lora/vector.cuh"

namespace lorun::lora::cuda {

// The number of channels of a pixel that a lane stores at once.
constexpr int kQuad = 4;

__device__ __forceinline__ float activate(const Epilogue& epilogue, float z) {
  switch (epilogue.activation) {
    case Activation::kRelu:
      return z > 0 || z != z ? z : 0.0f;
    case Activation::kGelu:
      return 0.5f * z * (1 + erff(z * 0.70710678f));
    case Activation::kLeakyRelu:
      return z > 0 ? z : epilogue.slope * z;
    default:
      return z;
  }
}

// The first `count` of four channels of a pixel.
template <typename T>
__device__ __forceinline__ void load_channels(const T* from, bool quads, int count, float (&values)[kQuad]) {
  if (quads) {
    load_vector(from, values);
  } else {
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      values[i] = i < count ? widen(from[i]) : 0.0f;
    }
  }
}

template <typename T>
__device__ __forceinline__ void store_channels(T* to, bool quads, int count, const float (&values)[kQuad]) {
  if (quads) {
    store_vector(to, values);
  } else {
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      if (i < count) {
        narrow(values[i], to[i]);
      }
    }
  }
}

struct Pixel {
  int64_t sample;
  int y, x;
};

// `count` channels of a pixel of the result, from `channel` on.
template <typename T>
__device__ __forceinline__ void finish_channels(const Task& task, const Pixel& at, int channel, int count,
                                                const float (&bias)[kQuad], float (&values)[kQuad]) {
  const Epilogue& epilogue = task.epilogue;
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    values[i] += bias[i];
  }
  if (task.preactivation.data != nullptr) {
    T* const to = pixel_of<T>(task.preactivation, at.sample, at.y, at.x) + channel;
    store_channels(to, task.quads, count, values);
  }
#pragma unroll
  for (int i = 0; i < kQuad; ++i) {
    values[i] = activate(epilogue, values[i]);
  }
  if (epilogue.residual.data != nullptr) {
    float residual[kQuad];
    const T* const from = pixel_of<const T>(epilogue.residual, at.sample, at.y, at.x) + channel;
    load_channels(from, task.quads, count, residual);
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      values[i] += residual[i];
    }
  }
  const ImagePair& out = task.out;
  const bool second = channel >= out.split;
  T* const to = pixel_of<T>(second ? out.second : out.first, at.sample, at.y, at.x);
  const int first = second ? channel - out.split : channel;
  const int here = !second && out.split - channel < count ? out.split - channel : count;
  store_channels(to + first, task.quads, here, values);
  if (here < count) {
    // These four channels lie on both sides of the split.
    T* const next = pixel_of<T>(out.second, at.sample, at.y, at.x);
#pragma unroll
    for (int i = 0; i < kQuad; ++i) {
      if (i >= here && i < count) {
        narrow(values[i], next[i - here]);
      }
    }
  }
}

// The sums of 16 pixels and one or two tiles of channels; `scratch` belongs to the warp. pixel_at says where
// one of the 16 pixels lies, and whether it exists.
template <typename T, int kTiles, typename PixelAt>
__device__ __forceinline__ void finish(const Task& task, const Accumulator* sums, float* scratch,
                                       int first_channel, PixelAt pixel_at) {
  constexpr int kPitch = kTiles * kTile + kScratchPad;
  constexpr int kQuads = kTiles * kTile / kQuad;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < Accumulator::kCount; i += 2) {
      const float pair[2] = {sums[tile].values[i], sums[tile].values[i + 1]};
      store_vector(scratch + Accumulator::row(i) * kPitch + tile * kTile + Accumulator::column(i), pair);
    }
  }
  __syncwarp();
  const int quad = lane_id() % kQuads * kQuad;
  const int channel = first_channel + quad;
  const int left = task.sizes.out_channels - channel;
  const int count = left < kQuad ? left : kQuad;
  if (count > 0) {
    float bias[kQuad] = {};
    if (task.epilogue.bias != nullptr) {
      load_channels(static_cast<const T*>(task.epilogue.bias) + channel, false, count, bias);
    }
    for (int row = lane_id() / kQuads; row < kTile; row += 32 / kQuads) {
      Pixel at;
      if (pixel_at(row, at)) {
        float values[kQuad];
        load_vector(scratch + row * kPitch + quad, values);
        finish_channels<T>(task, at, channel, count, bias, values);
      }
    }
  }
  __syncwarp();
}

}  // namespace lorun::lora::cuda
