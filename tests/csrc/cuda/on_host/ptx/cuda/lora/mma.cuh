// What the instructions of csrc/cuda/lora/mma.cuh do, according to the tables of the PTX ISA ("Matrix
// Fragments for mma", "ldmatrix").
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "cuda_runtime.h"

namespace lorun::lora::cuda {

// What the lanes of a warp show each other.
struct Shown {
  const void* rows[32];
  uint32_t left[32][4], right[32][2];
};
inline Shown shown[32];

inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// Lanes 8 * i ... 8 * i + 7 name the rows of matrix i, 16 bytes each.
inline void load_matrices(uint32_t (&words)[4], const void* row) {
  const int lane = threadIdx.x % 32;
  Shown& warp = shown[threadIdx.x / 32];
  warp.rows[lane] = row;
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    words[i] = static_cast<const uint32_t*>(warp.rows[8 * i + lane / 4])[lane % 4];
  }
  __syncwarp();
}

inline void load_matrices_transposed(uint32_t (&words)[4], const void* row) {
  const int lane = threadIdx.x % 32;
  Shown& warp = shown[threadIdx.x / 32];
  warp.rows[lane] = row;
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    const void* const* rows = warp.rows + 8 * i + lane % 4 * 2;
    const uint32_t low = static_cast<const uint16_t*>(rows[0])[lane / 4];
    const uint32_t high = static_cast<const uint16_t*>(rows[1])[lane / 4];
    words[i] = low | high << 16;
  }
  __syncwarp();
}

inline uint32_t to_tf32(uint32_t bits) { return (bits + 0x1000) & ~0x1fffu; }

// One element of what a lane holds: of a word, where a word holds two.
inline float element(float, uint32_t word, int) {
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}
inline float element(__half, uint32_t word, int k) {
  return __half2float({static_cast<uint16_t>(word >> k % 2 * 16)});
}
inline float element(__nv_bfloat16, uint32_t word, int k) {
  return __bfloat162float({static_cast<uint16_t>(word >> k % 2 * 16)});
}

template <typename T>
void mma8(T type, float* sum, const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
  constexpr int kPerWord = 4 / sizeof(T), kHalf = 4 * kPerWord;
  const int lane = threadIdx.x % 32;
  Shown& warp = shown[threadIdx.x / 32];
  std::memcpy(warp.left[lane], left, sizeof(left));
  warp.right[lane][0] = right0;
  warp.right[lane][1] = right1;
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 2 * kHalf; ++k) {
      const int holder = k % kHalf / kPerWord;
      const uint32_t a = warp.left[row % 8 * 4 + holder][row / 8 + k / kHalf * 2];
      const uint32_t b = warp.right[column * 4 + holder][k / kHalf];
      sum[i] += element(type, a, k) * element(type, b, k);
    }
  }
  __syncwarp();
}

}  // namespace lorun::lora::cuda
