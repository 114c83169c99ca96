// What the CASSI kernels share: one block works on one row of one sample.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/cassi/plan.h"

namespace lorun::cassi::cuda {

// The number of independent loads that a thread has in flight.
constexpr int kInFlight = 4;

__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void narrow(double value, double& to) { to = value; }
__device__ __forceinline__ void narrow(float value, float& to) { to = value; }
__device__ __forceinline__ void narrow(float value, __half& to) { to = __float2half_rn(value); }
__device__ __forceinline__ void narrow(float value, __nv_bfloat16& to) { to = __float2bfloat16_rn(value); }

template <typename A>
__device__ __forceinline__ A* shared_at(int offset) {
  return reinterpret_cast<A*>(shared_memory + offset);
}

// A row of a sample.
struct RowId {
  int64_t sample, row;
};

// There is one block per row: the number of blocks, and so every row index, is below 2^31.
__device__ __forceinline__ RowId row_of_block(const Problem& problem) {
  const unsigned height = static_cast<unsigned>(problem.height);
  return {blockIdx.x / height, blockIdx.x % height};
}

// A row of a cube with all its bands, in global memory (64-bit strides) or in shared memory (32-bit strides).
template <typename T, typename Index>
struct Row {
  T* data;
  Index band, column;

  __device__ __forceinline__ T& operator()(int c, int w) const { return data[c * band + w * column]; }
};

template <typename T>
__device__ __forceinline__ Row<T, int64_t> global_row(const Cube& cube, RowId at) {
  return {static_cast<T*>(cube.data) + at.sample * cube.batch + at.row * cube.row, cube.band, cube.column};
}

template <typename T>
__device__ __forceinline__ Row<T, int> tile_row(const Tile& tile) {
  return {shared_at<T>(tile.offset), tile.band, tile.column};
}

template <typename T>
__device__ __forceinline__ Row<T, int64_t> measured_row(const Measurement& y, RowId at) {
  return {static_cast<T*>(y.data) + at.sample * y.batch + at.row * y.row, 0, y.column};
}

// The i-th word of a row: where it is in global memory and in its tile.
struct Word {
  int64_t global;
  int shared;
};

__device__ __forceinline__ Word locate(const Staging& staging, int i) {
  const int line = static_cast<int>((static_cast<uint64_t>(i) * staging.reciprocal) >> kReciprocalBits);
  const int word = i - line * staging.line_words;
  return {line * staging.global_line + word * staging.global_word,
          line * staging.shared_line + word * staging.shared_word};
}

template <typename V>
__device__ __forceinline__ void load_words(V* tile, const V* row, const Staging& staging) {
  const int stride = blockDim.x;
  for (int first = threadIdx.x; first < staging.words; first += kInFlight * stride) {
    V words[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (first + k * stride < staging.words) {
        words[k] = row[locate(staging, first + k * stride).global];
      }
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      if (first + k * stride < staging.words) {
        tile[locate(staging, first + k * stride).shared] = words[k];
      }
    }
  }
}

template <typename V>
__device__ __forceinline__ void store_words(V* row, const V* tile, const Staging& staging) {
  for (int i = threadIdx.x; i < staging.words; i += blockDim.x) {
    const Word word = locate(staging, i);
    row[word.global] = tile[word.shared];
  }
}

template <typename T>
__device__ __forceinline__ void load_tile(T* tile, const T* row, const Staging& staging) {
  if (staging.word_bytes == 16) {
    load_words(reinterpret_cast<uint4*>(tile), reinterpret_cast<const uint4*>(row), staging);
  } else if (staging.word_bytes == 8) {
    load_words(reinterpret_cast<uint2*>(tile), reinterpret_cast<const uint2*>(row), staging);
  } else {
    load_words(tile, row, staging);
  }
}

template <typename T>
__device__ __forceinline__ void store_tile(T* row, const T* tile, const Staging& staging) {
  if (staging.word_bytes == 16) {
    store_words(reinterpret_cast<uint4*>(row), reinterpret_cast<const uint4*>(tile), staging);
  } else if (staging.word_bytes == 8) {
    store_words(reinterpret_cast<uint2*>(row), reinterpret_cast<const uint2*>(tile), staging);
  } else {
    store_words(row, tile, staging);
  }
}

// A row to read: copied into its tile, or left in global memory. The caller must synchronise before reading
// it.
template <typename T, bool kStaged>
__device__ __forceinline__ auto input_row(const Cube& cube, const Staging& staging, RowId at) {
  const auto row = global_row<T>(cube, at);
  if constexpr (kStaged) {
    load_tile(shared_at<T>(staging.tile.offset), row.data, staging);
    return tile_row<T>(staging.tile);
  } else {
    return row;
  }
}

// A row to write; call finish_row once it is complete.
template <typename T, bool kStaged>
__device__ __forceinline__ auto output_row(const Cube& cube, const Staging& staging, RowId at) {
  if constexpr (kStaged) {
    return tile_row<T>(staging.tile);
  } else {
    return global_row<T>(cube, at);
  }
}

template <typename T, bool kStaged>
__device__ __forceinline__ void finish_row(const Cube& cube, const Staging& staging, RowId at) {
  if constexpr (kStaged) {
    __syncthreads();
    store_tile(global_row<T>(cube, at).data, shared_at<T>(staging.tile.offset), staging);
  }
}

// A row of a mask. A flat mask (one row for all bands) is copied into shared memory at `offset`.
template <typename T, bool kFlat>
__device__ __forceinline__ auto mask_row(const Problem& problem, const Cube& mask, int offset, RowId at) {
  const auto row = global_row<T>(mask, at);
  if constexpr (kFlat) {
    const int width = static_cast<int>(problem.width);
    const Row<T, int> flat{shared_at<T>(offset), 0, 1};
    for (int w = threadIdx.x; w < width; w += blockDim.x) {
      flat(0, w) = row(0, w);
    }
    return flat;
  } else {
    return row;
  }
}

// The mask of one column, as a function of the band; a flat mask is read once.
template <bool kFlat, typename MaskRow>
__device__ __forceinline__ auto mask_column(const MaskRow& mask, int w) {
  if constexpr (kFlat) {
    return [open = widen(mask(0, w))](int) { return open; };
  } else {
    return [mask, w](int c) { return widen(mask(c, w)); };
  }
}

// A measured row as accumulators in shared memory.
template <typename T>
__device__ __forceinline__ const acc_t<T>* load_measured(const Problem& problem, const Measurement& y,
                                                         int offset, RowId at) {
  acc_t<T>* const tile = shared_at<acc_t<T>>(offset);
  const auto row = measured_row<const T>(y, at);
  const int measured = static_cast<int>(problem.measured);
  for (int p = threadIdx.x; p < measured; p += blockDim.x) {
    tile[p] = widen(row(0, p));
  }
  return tile;
}

// What the bands contribute to one measured pixel: their masked sum, and the sum of the squared masks.
template <typename A>
struct Gathered {
  A sum, gram;
};

template <typename A, typename CubeRow, typename MaskRow>
__device__ __forceinline__ Gathered<A> gather(const Problem& problem, const CubeRow& x, const MaskRow& mask,
                                              int p) {
  const int bands = static_cast<int>(problem.bands);
  const int width = static_cast<int>(problem.width);
  Gathered<A> gathered{0, 0};
  for (int first = 0; first < bands; first += kInFlight) {
    A open[kInFlight];
    A pixel[kInFlight];
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      const int c = first + k;
      const int w = c < bands ? p - problem.offsets[c] : -1;
      const bool inside = w >= 0 && w < width;
      open[k] = inside ? widen(mask(c, w)) : A(0);
      pixel[k] = inside ? widen(x(c, w)) : A(0);
    }
#pragma unroll
    for (int k = 0; k < kInFlight; ++k) {
      gathered.sum += open[k] * pixel[k];
      gathered.gram += open[k] * open[k];
    }
  }
  return gathered;
}

// row(c, w) = column(w)(c). column(w) may read the row, at column w.
template <typename CubeRow, typename Column>
__device__ __forceinline__ void fill_row(const Problem& problem, const CubeRow& row, Column column) {
  const int bands = static_cast<int>(problem.bands);
  const int width = static_cast<int>(problem.width);
  for (int w = threadIdx.x; w < width; w += blockDim.x) {
    const auto pixel = column(w);
    for (int first = 0; first < bands; first += kInFlight) {
      decltype(pixel(0)) pixels[kInFlight];
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) {
        if (first + k < bands) {
          pixels[k] = pixel(first + k);
        }
      }
#pragma unroll
      for (int k = 0; k < kInFlight; ++k) {
        if (first + k < bands) {
          narrow(pixels[k], row(first + k, w));
        }
      }
    }
  }
}

// The samples that a block sums into its row of a mask's gradient, in order, so that no two blocks write to
// the same row.
struct Samples {
  int64_t first, last, row;
};

__device__ __forceinline__ Samples samples_of_block(const Problem& problem, const Cube& grad_mask) {
  if (sums_batch(grad_mask)) {
    return {0, problem.batch, blockIdx.x};
  }
  const RowId at = row_of_block(problem);
  return {at.sample, at.sample + 1, at.row};
}

// Adds gradient(c, w) to a mask's gradient, summed over the bands if they share it; `first` starts
// the sum.
template <typename A, typename Gradient>
__device__ __forceinline__ void add_mask_gradient(const Problem& problem, const Cube& grad_mask, RowId at,
                                                  bool first, Gradient gradient) {
  const auto row = global_row<A>(grad_mask, at);
  const auto add = [&](A& to, A value) { to = first ? value : to + value; };
  const int bands = static_cast<int>(problem.bands);
  const int width = static_cast<int>(problem.width);
  for (int w = threadIdx.x; w < width; w += blockDim.x) {
    if (grad_mask.band == 0) {
      A sum = 0;
#pragma unroll 2
      for (int c = 0; c < bands; ++c) {
        sum += gradient(c, w);
      }
      add(row(0, w), sum);
    } else {
#pragma unroll 2
      for (int c = 0; c < bands; ++c) {
        add(row(c, w), gradient(c, w));
      }
    }
  }
}

}  // namespace lorun::cassi::cuda
