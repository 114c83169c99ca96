// Matrix products of one warp, from shared memory: 16 x 16 sums += left (16 x kDepth) * right (kDepth x 16).
//
// On the device, products of TensorCores<T> are mma instructions. Products of Fma, and all products on the
// host, are plain loops: there a lane reads everything that its own elements of the tile need, and no lane
// relies on another. The 32 lanes of a warp are consecutive threads of a one-dimensional block, and all of
// them make every call.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "cuda/launch.cuh"
#ifdef __CUDA_ARCH__
#include "cuda/lora/mma.cuh"
#endif

namespace lorun::lora::cuda {

// float, __half or __nv_bfloat16, with sums in float; products of float are rounded to TF32.
template <typename T>
struct TensorCores {
  using Element = T;
};

// Exact float.
struct Fma {
  using Element = float;
};

// How far one product extends along the dimension that is summed: 32 bytes of each row.
template <typename Math>
constexpr int kDepth = 32 / sizeof(typename Math::Element);

constexpr int kTile = 16;

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(__half value) { return __half2float(value); }
__device__ __forceinline__ float widen(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ __forceinline__ void narrow(float value, float& to) { to = value; }
__device__ __forceinline__ void narrow(float value, __half& to) { to = __float2half_rn(value); }
__device__ __forceinline__ void narrow(float value, __nv_bfloat16& to) { to = __float2bfloat16_rn(value); }

__device__ __forceinline__ int lane_id() { return threadIdx.x % 32; }

// The elements of a tile that a lane holds.
struct Accumulator {
  static constexpr int kCount = 8;
  float values[kCount] = {};

  // Where values[i] belongs; for i = 0, 2, 4, 6 the column is even, and i + 1 is the right neighbour.
  static __device__ __forceinline__ int row(int i) { return lane_id() / 4 + i / 2 % 2 * 8; }
  static __device__ __forceinline__ int column(int i) { return i / 4 * 8 + lane_id() % 4 * 2 + i % 2; }
};

// A row of the right operand is a column of the product.
enum class Side { kLeft, kRight };

// Which rows of its operands a lane needs for its elements of the tile.
template <Side kSide>
struct LaneRows {
  static constexpr int kCount = kSide == Side::kLeft ? 2 : 4;

  static __device__ __forceinline__ int row(int i) {
    return kSide == Side::kLeft ? lane_id() / 4 + i * 8 : i / 2 * 8 + lane_id() % 4 * 2 + i % 2;
  }
};

template <typename Math>
constexpr bool kPlain =
#ifdef __CUDA_ARCH__
    false;
#else
    true;
#endif
template <>
inline constexpr bool kPlain<Fma> = true;

// The value that enters a product: TF32 has 10 bits of mantissa, and ties are rounded away from zero.
template <typename Math>
__device__ __forceinline__ float factor(typename Math::Element value) {
  return widen(value);
}
template <>
__device__ __forceinline__ float factor<TensorCores<float>>(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  bits = (bits + 0x1000) & ~0x1fffu;
  memcpy(&value, &bits, sizeof(bits));
  return value;
}

// The rows of an operand that a lane loads from: offset_of(row) is where row 0..15 begins, in elements.
// Every row begins at a multiple of 16 bytes.
template <typename Math, Side kSide, bool kIsPlain = kPlain<Math>>
struct Rows {
  int offsets[LaneRows<kSide>::kCount];

  template <typename OffsetOf>
  __device__ __forceinline__ explicit Rows(OffsetOf offset_of) {
#pragma unroll
    for (int i = 0; i < LaneRows<kSide>::kCount; ++i) {
      offsets[i] = offset_of(LaneRows<kSide>::row(i));
    }
  }
};

template <typename Math, Side kSide>
struct Rows<Math, kSide, false> {
  int offset;

  template <typename OffsetOf>
  __device__ __forceinline__ explicit Rows(OffsetOf offset_of)
      : offset(offset_of(lane_id() % 16) + lane_id() / 16 * (kDepth<Math> / 2)) {}
};

// One operand of a product, in the registers of a warp.
template <typename Math, Side kSide, bool kIsPlain = kPlain<Math>>
struct Operand {
  using T = typename Math::Element;
  static constexpr int kRows = LaneRows<kSide>::kCount;
  float values[kRows][kDepth<Math>];

  // Element (row, k) lies at from[rows' offset of row + k].
  __device__ __forceinline__ void load(const T* from, const Rows<Math, kSide>& rows) {
    struct alignas(16) Word {
      T values[16 / sizeof(T)];
    };
    constexpr int kWord = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int k = 0; k < kDepth<Math>; k += kWord) {
        const Word word = *reinterpret_cast<const Word*>(from + rows.offsets[i] + k);
#pragma unroll
        for (int j = 0; j < kWord; ++j) {
          values[i][k + j] = factor<Math>(word.values[j]);
        }
      }
    }
  }

  // Element (row, k) lies at from[offset_of(k) + row].
  template <typename OffsetOf>
  __device__ __forceinline__ void load_transposed(const T* from, OffsetOf offset_of) {
#pragma unroll
    for (int k = 0; k < kDepth<Math>; ++k) {
      const T* const line = from + offset_of(k);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        values[i][k] = factor<Math>(line[LaneRows<kSide>::row(i)]);
      }
    }
  }
};

#ifdef __CUDA_ARCH__
// words[i] holds rows 8 * (i % 2) + lane / 4 and 32 bits of each 16 bytes i / 2: the layout of both operands.
template <typename Math, Side kSide>
struct Operand<Math, kSide, false> {
  using T = typename Math::Element;
  uint32_t words[4];

  __device__ __forceinline__ void load(const T* from, const Rows<Math, kSide>& rows) {
    load_matrices(words, from + rows.offset);
    round();
  }

  // 16-bit elements: every from + offset_of(k) is a multiple of 16 bytes.
  template <typename OffsetOf>
  __device__ __forceinline__ void load_transposed(const T* from, OffsetOf offset_of) {
    const int lane = lane_id();
    if constexpr (sizeof(T) == 2) {
      load_matrices_transposed(words, from + offset_of(lane % 8 + lane / 16 * 8) + lane / 8 % 2 * 8);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        words[i] = __float_as_uint(from[offset_of(lane % 4 + i / 2 * 4) + lane / 4 + i % 2 * 8]);
      }
      round();
    }
  }

 private:
  __device__ __forceinline__ void round() {
    if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (uint32_t& word : words) {
        word = to_tf32(word);
      }
    }
  }
};
#endif

template <typename Math>
using Left = Operand<Math, Side::kLeft>;
template <typename Math>
using Right = Operand<Math, Side::kRight>;
template <typename Math>
using LeftRows = Rows<Math, Side::kLeft>;
template <typename Math>
using RightRows = Rows<Math, Side::kRight>;

// tile += left * right, where row n of `right` is column n of the product.
template <typename Math>
__device__ __forceinline__ void mma(Accumulator& tile, const Left<Math>& left, const Right<Math>& right) {
  if constexpr (kPlain<Math>) {
#pragma unroll
    for (int k = 0; k < kDepth<Math>; ++k) {
#pragma unroll
      for (int i = 0; i < Accumulator::kCount; ++i) {
        tile.values[i] += left.values[i / 2 % 2][k] * right.values[i / 4 * 2 + i % 2][k];
      }
    }
  } else {
#ifdef __CUDA_ARCH__
    mma8(typename Math::Element{}, tile.values, left.words, right.words[0], right.words[2]);
    mma8(typename Math::Element{}, tile.values + 4, left.words, right.words[1], right.words[3]);
#endif
  }
}

}  // namespace lorun::lora::cuda
