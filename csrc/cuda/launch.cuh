// What every kernel is launched with.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cstddef>
#include <cstdint>

// All the shared memory of a kernel; its size is chosen at the launch.
extern __shared__ __align__(16) unsigned char shared_memory[];

namespace lorun::cuda {

// More shared memory than this many bytes must be requested for each kernel.
constexpr int64_t kSharedUnasked = 48 * 1024;

inline cudaError_t device_attribute(cudaDeviceAttr attribute, int* value) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error == cudaSuccess ? cudaDeviceGetAttribute(value, attribute, device) : error;
}

// How many bytes of shared memory one block may use on the current device.
inline cudaError_t shared_limit(int64_t* bytes) {
  int limit = 0;
  const cudaError_t error = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, &limit);
  *bytes = limit;
  return error;
}

inline cudaError_t multiprocessors(int* count) {
  return device_attribute(cudaDevAttrMultiProcessorCount, count);
}

// Always requests the maximum: a call that requested less would take it away from another thread's launch.
template <typename... Params>
cudaError_t allow_shared(void (*kernel)(Params...), int64_t shared) {
  if (shared <= kSharedUnasked) {
    return cudaSuccess;
  }
  int64_t limit = 0;
  const cudaError_t error = shared_limit(&limit);
  if (error != cudaSuccess || shared > limit) {
    return error != cudaSuccess ? error : cudaErrorInvalidValue;
  }
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(limit));
}

// How many blocks run at the same time on a multiprocessor.
template <typename... Params>
cudaError_t blocks_beside(void (*kernel)(Params...), int threads, int64_t shared, int* blocks) {
  const cudaError_t error = allow_shared(kernel, shared);
  return error != cudaSuccess
             ? error
             : cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, threads, shared);
}

template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), int64_t blocks, int threads, int64_t shared,
                   cudaStream_t stream, const Args&... args) {
  if (blocks > INT_MAX) {
    return cudaErrorInvalidValue;
  }
  const cudaError_t error = allow_shared(kernel, shared);
  if (error != cudaSuccess) {
    return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

}  // namespace lorun::cuda
