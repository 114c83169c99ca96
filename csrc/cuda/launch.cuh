// What every kernel is launched with.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cstddef>
#include <cstdint>

// All the shared memory of a kernel; its size is chosen at the launch.
extern __shared__ __align__(16) unsigned char shared_memory[];

namespace lorun::cuda {

// More than this many bytes must be asked for kernel by kernel.
constexpr int64_t kSharedUnasked = 48 * 1024;

// How many bytes of shared memory one block may use on the current device.
inline cudaError_t shared_limit(int64_t* bytes) {
  int device = 0;
  int limit = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  *bytes = limit;
  return error;
}

template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), int64_t blocks, int threads, int64_t shared,
                   cudaStream_t stream, const Args&... args) {
  if (blocks > INT_MAX) {
    return cudaErrorInvalidValue;
  }
  if (shared > kSharedUnasked) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) {
      return error;
    }
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

}  // namespace lorun::cuda
