// Runs CUDA kernels on the CPU, unchanged: the part of the CUDA runtime that kernels and launchers here use.
//
// The threads of a block are host threads, and blocks run one after another; __syncthreads and __syncwarp are
// real barriers, so a missing one is a race that ThreadSanitizer sees. All shared memory is dynamic: it is
// NaN before each block, and the bytes around what the launch asked for are checked after it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
// Allowed on a declaration `extern __shared__`, refused by the compiler on a variable inside a kernel.
#define __shared__ __attribute__((weak))

struct uint2 {
  uint32_t x, y;
} __attribute__((aligned(8)));

struct uint4 {
  uint32_t x, y, z, w;
} __attribute__((aligned(16)));

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern thread_local dim3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

void __syncthreads();
void __syncwarp();

inline float atomicAdd(float* to, float value) {
  return std::atomic_ref(*to).fetch_add(value, std::memory_order_relaxed);
}

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
};

using cudaStream_t = void*;

enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace cuda_on_host {

cudaError_t allow_shared(const void* kernel, int bytes);
cudaError_t run(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& body);

}  // namespace cuda_on_host

template <typename... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute, int value) {
  return cuda_on_host::allow_shared(reinterpret_cast<const void*>(kernel), value);
}

template <typename... Params>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(Params...), int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}

template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  static_assert((sizeof(Params) + ... + 0) <= 4096, "kernel parameters are limited to 4 KB");
  return cuda_on_host::run(*config, reinterpret_cast<const void*>(kernel), [&] { kernel(args...); });
}
