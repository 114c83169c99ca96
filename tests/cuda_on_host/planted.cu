// Kernels with one planted error each, to show that the emulation catches it.
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
}
