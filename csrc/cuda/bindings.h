// What the bindings of the CUDA kernels share: how tensors are checked, and the device and stream of a call.
// Torch's stable ABI only.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

// torch's headers declare it only if USE_CUDA is defined; a CUDA torch always has it.
extern "C" AOTI_TORCH_EXPORT AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                               void** ret_stream);

namespace lorun::cuda {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline std::string describe(IntHeaderOnlyArrayRef sizes, ScalarType dtype) {
  std::ostringstream text;
  text << dtype << " (";
  for (size_t i = 0; i < sizes.size(); ++i) {
    text << (i ? ", " : "") << sizes[i];
  }
  text << ")";
  return text.str();
}

// The device of a call's tensors, made current, and torch's stream there.
class DeviceCall {
 public:
  DeviceCall(const char* name, const Tensor& tensor)
      : device_(on_gpu(name, tensor).device()), guard_(device_.index()) {
    // The static CUDA runtime of this library keeps a current device of its own.
    check_launch(cudaSetDevice(device_.index()));
    void* stream_of_torch = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_.index(), &stream_of_torch));
    stream = static_cast<cudaStream_t>(stream_of_torch);
  }

  void check_device(const char* name, const Tensor& tensor) const {
    STD_TORCH_CHECK(tensor.device() == device_, name, " must be on GPU ", device_.index(),
                    " like the other arguments; move it there");
  }

  void check(const char* name, const Tensor& tensor, ScalarType dtype,
             std::initializer_list<int64_t> sizes) const {
    const auto got = tensor.sizes();
    STD_TORCH_CHECK(
        tensor.scalar_type() == dtype && std::equal(got.begin(), got.end(), sizes.begin(), sizes.end()), name,
        " must be ", describe(sizes, dtype), ", got ", describe(got, tensor.scalar_type()));
    check_device(name, tensor);
  }

  static void check_contiguous(const char* name, const Tensor& tensor) {
    STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous; call .contiguous() on it");
  }

  static void check_launch(cudaError_t error) {
    STD_TORCH_CHECK(error != cudaErrorNoKernelImageForDevice,
                    "lorun_kernels._C_cuda contains no code for this GPU; rebuild LoRun on this machine, or "
                    "with the GPU's compute capability in TORCH_CUDA_ARCH_LIST");
    STD_TORCH_CHECK(error == cudaSuccess,
                    "lorun_kernels._C_cuda cannot launch a kernel: ", cudaGetErrorString(error));
  }

  cudaStream_t stream;

 private:
  static const Tensor& on_gpu(const char* name, const Tensor& tensor) {
    STD_TORCH_CHECK(tensor.is_cuda(), name, " must be on a GPU like the other arguments; move it there");
    return tensor;
  }

  const torch::stable::Device device_;
  const torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace lorun::cuda
