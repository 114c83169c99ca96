// From a block's part of dW to gradients: grad_up += scaling * dW @ down^T, grad_down += scaling * up^T @ dW.
#pragma once

#include "cuda/lora/adapter_plan.h"
#include "cuda/lora/launchers.h"
#include "cuda/lora/tile.cuh"

namespace lorun::lora::cuda {

// Elements of `inner` that a thread sums at once.
constexpr int kFoldInner = 4;

// A block's part of dW, clipped to W. Place i of an output channel is input channel i / (rows * columns), row
// i / columns % rows, column i % columns of the part.
struct WeightPart {
  int first_channel, channels, first_row, rows, first_column, columns, first_out, outs;

  __device__ __forceinline__ int places() const { return channels * rows * columns; }
};

// Where sums go: all blocks add to the same memory, or each writes alone to its own.
struct FoldResult {
  float* data;
  bool alone;

  __device__ __forceinline__ void put(int64_t at, float value) const {
    if (alone) {
      data[at] = value;
    } else {
      atomicAdd(data + at, value);
    }
  }
};

// dW in shared memory, and where its places belong: place i of output channel o to row o * chunks + chunk[i]
// of up and to column[i] of down.
struct FoldTable {
  const float* weights;
  int pitch, places, chunks;
  int *chunk, *column;

  __device__ __forceinline__ void fill(const Problem& problem, const Weight& weight, const WeightPart& part) {
    for (int i = threadIdx.x; i < places; i += blockDim.x) {
      const int line = i / part.columns;
      const int channel = part.first_channel + line / part.rows;
      const int row = channel * problem.kernel_h + part.first_row + line % part.rows;
      const int place = row * problem.kernel_w + part.first_column + i % part.columns;
      chunk[i] = place / weight.columns;
      column[i] = place % weight.columns;
    }
  }

  // The first place whose chunk is not below `bound`; chunks never decrease.
  __device__ __forceinline__ int first_of(int bound) const {
    int low = 0, high = places;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (chunk[middle] < bound) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

// Each lane has one output channel and sums over the places of each chunk.
template <typename U>
__device__ __forceinline__ void fold_up(const FoldTable& table, const Weight& weight, const WeightPart& part,
                                        const FoldResult& result) {
  const U* const down = static_cast<const U*>(weight.down);
  const int warp = threadIdx.x / 32, out = lane_id();
  if (out >= part.outs) {
    return;
  }
  const float* const weights = table.weights + out * table.pitch;
  for (int first = warp * kFoldInner; first < weight.inner; first += kAdapterWarps * kFoldInner) {
    const U* rows[kFoldInner];
#pragma unroll
    for (int j = 0; j < kFoldInner; ++j) {
      const int row = first + j < weight.inner ? first + j : first;
      rows[j] = down + int64_t{row} * weight.columns;
    }
    int i = 0;
    for (int chunk = 0; chunk < table.chunks; ++chunk) {
      const int end = table.first_of(chunk + 1);
      if (i == end && !result.alone) {
        continue;
      }
      float sums[kFoldInner] = {};
#pragma unroll 4
      for (; i < end; ++i) {
        const float value = weights[i];
        const int column = table.column[i];
#pragma unroll
        for (int j = 0; j < kFoldInner; ++j) {
          sums[j] += value * widen(rows[j][column]);
        }
      }
      const int64_t row = int64_t{part.first_out + out} * table.chunks + chunk;
#pragma unroll
      for (int j = 0; j < kFoldInner; ++j) {
        if (first + j < weight.inner) {
          result.put(row * weight.inner + first + j, weight.scaling * sums[j]);
        }
      }
    }
  }
}

// Each lane has one place and sums over the output channels. If each block writes alone, the results of
// different chunks are chunk_elements apart.
template <typename U>
__device__ __forceinline__ void fold_down(const FoldTable& table, const Weight& weight,
                                          const WeightPart& part, const FoldResult& result,
                                          int64_t chunk_elements) {
  const int warp = threadIdx.x / 32;
  const int place_blocks = (table.places + 31) / 32;
  const int inner_blocks = (weight.inner + kFoldInner - 1) / kFoldInner;
  for (int block = warp; block < place_blocks * inner_blocks; block += kAdapterWarps) {
    const int i = block % place_blocks * 32 + lane_id();
    const int first = block / place_blocks * kFoldInner;
    if (i >= table.places) {
      continue;
    }
    const int inner_left = weight.inner - first;
    const int64_t first_row = int64_t{part.first_out} * table.chunks + table.chunk[i];
    const U* up = static_cast<const U*>(weight.up) + first_row * weight.inner + first;
    float sums[kFoldInner] = {};
#pragma unroll 4
    for (int out = 0; out < part.outs; ++out) {
      const float value = table.weights[out * table.pitch + i];
#pragma unroll
      for (int j = 0; j < kFoldInner; ++j) {
        sums[j] += value * widen(up[j < inner_left ? j : 0]);
      }
      up += table.chunks * weight.inner;
    }
    const int64_t to = table.chunk[i] * chunk_elements + table.column[i];
#pragma unroll
    for (int j = 0; j < kFoldInner; ++j) {
      if (j < inner_left) {
        result.put(to + int64_t{first + j} * weight.columns, weight.scaling * sums[j]);
      }
    }
  }
}

}  // namespace lorun::lora::cuda
