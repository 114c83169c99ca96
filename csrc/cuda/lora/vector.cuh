// The channels of a pixel that a thread loads or stores at once.
#pragma once

#include "cuda/lora/tile.cuh"

namespace lorun::lora::cuda {

template <typename T, int kSize>
struct alignas(kSize * sizeof(T)) Vector {
  T values[kSize];
};

template <typename T, int kSize>
__device__ __forceinline__ void load_vector(const T* from, float (&values)[kSize]) {
  const auto vector = *reinterpret_cast<const Vector<T, kSize>*>(from);
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    values[i] = widen(vector.values[i]);
  }
}

template <typename T, int kSize>
__device__ __forceinline__ void store_vector(T* to, const float (&values)[kSize]) {
  Vector<T, kSize> vector;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    narrow(values[i], vector.values[i]);
  }
  *reinterpret_cast<Vector<T, kSize>*>(to) = vector;
}

}  // namespace lorun::lora::cuda
