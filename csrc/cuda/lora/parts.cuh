// Sums the parts that blocks have left in memory, always in the same order.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/launch.cuh"

namespace lorun::lora::cuda {

// `count` parts of `elements` numbers each, one after another.
struct Parts {
  const float* data;
  int64_t count, elements;
};

constexpr int kPartThreads = 128;
// Threads that share an element: each sums every kPartLanes-th part.
constexpr int kPartLanes = 8;
constexpr int kPartElements = kPartThreads / kPartLanes;

// to[i] = (or +=, if kAdd) the sum over all parts of their element i.
template <bool kAdd>
__global__ void __launch_bounds__(kPartThreads) sum_parts_kernel(Parts parts, float* to) {
  float* const sums = reinterpret_cast<float*>(shared_memory);
  const int lane = threadIdx.x / kPartElements;
  const int64_t element = int64_t{blockIdx.x} * kPartElements + threadIdx.x % kPartElements;
  float sum = 0;
  if (element < parts.elements) {
#pragma unroll 4
    for (int64_t part = lane; part < parts.count; part += kPartLanes) {
      sum += parts.data[part * parts.elements + element];
    }
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (lane == 0 && element < parts.elements) {
    float total = kAdd ? to[element] : 0.0f;
#pragma unroll
    for (int i = 0; i < kPartLanes; ++i) {
      total += sums[i * kPartElements + threadIdx.x];
    }
    to[element] = total;
  }
}

template <bool kAdd>
cudaError_t sum_parts(const Parts& parts, float* to, cudaStream_t stream) {
  const int64_t blocks = (parts.elements + kPartElements - 1) / kPartElements;
  return lorun::cuda::launch(sum_parts_kernel<kAdd>, blocks, kPartThreads, kPartThreads * sizeof(float),
                             stream, parts, to);
}

}  // namespace lorun::lora::cuda
