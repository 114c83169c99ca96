// What stands in for a GPU and for torch's CUDA functions if bindings are registered for CPU tensors, and how
// a launcher records its arguments. Include it first.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <string>

#include "cuda/bindings.h"

#define CUDA CPU
#define lorun_cuda lorun_cuda_on_cpu

namespace on_cpu {

inline std::string recorded;
inline cudaError_t result = cudaSuccess;

template <typename... Args>
cudaError_t record(cudaStream_t stream, const Args&... args) {
  std::ostringstream text;
  ((text << args << ' '), ...);
  text << reinterpret_cast<intptr_t>(stream);
  recorded = text.str();
  return result;
}

inline intptr_t address(const void* data) { return reinterpret_cast<intptr_t>(data); }

}  // namespace on_cpu

extern "C" {

const char* last_call() { return on_cpu::recorded.c_str(); }

void fail_with(int error) { on_cpu::result = static_cast<cudaError_t>(error); }

// A CPU torch has no streams, and no tensor of it counts as one of a GPU.
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = reinterpret_cast<void*>(77);
  return AOTI_TORCH_SUCCESS;
}

int32_t aoti_torch_device_type_cuda() { return aoti_torch_device_type_cpu(); }

AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle*) { return AOTI_TORCH_SUCCESS; }

AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }

cudaError_t cudaSetDevice(int) { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t) { return "the launcher's error"; }
}
