// Kernels with one planted error each, to show that the emulation catches them.
#include <cuda_pipeline.h>

#include "cuda/launch.cuh"

namespace {

__global__ void write_shared(int index) { shared_memory[index] = 1; }

__global__ void write_global(float* data, int index) { data[index] = 1; }

__global__ void read_unwritten(float* out) { *out = reinterpret_cast<const float*>(shared_memory)[0]; }

__global__ void leave_early() {
  if (threadIdx.x > 0) {
    __syncthreads();
  }
}

__global__ void leave_warp_early() {
  if (threadIdx.x > 0) {
    __syncwarp();
  }
}

// out: before the wait, and after it.
__global__ void copy_async(const float* from, float* out) {
  float* const copied = reinterpret_cast<float*>(shared_memory);
  copied[0] = 1;
  __pipeline_memcpy_async(copied, from, sizeof(float));
  __pipeline_commit();
  out[0] = copied[0];
  __pipeline_wait_prior(0);
  out[1] = copied[0];
}

}  // namespace

extern "C" {

int planted_write_shared(int64_t shared, int index) {
  return lorun::cuda::launch(write_shared, 1, 1, shared, nullptr, index);
}

int planted_write_global(float* data, int index) {
  return lorun::cuda::launch(write_global, 1, 1, 0, nullptr, data, index);
}

int planted_read_unwritten(float* out) { return lorun::cuda::launch(read_unwritten, 1, 1, 64, nullptr, out); }

int planted_leave_early() { return lorun::cuda::launch(leave_early, 1, 4, 0, nullptr); }

int planted_leave_warp_early() { return lorun::cuda::launch(leave_warp_early, 1, 64, 0, nullptr); }

int planted_copy_async(const float* from, float* out) {
  return lorun::cuda::launch(copy_async, 1, 1, 4, nullptr, from, out);
}
}
