// The low-rank convolution's kernels for GPUs, called through the libraries lorun_cuda and lorun_triton.
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <string_view>
#include <utility>
#include <vector>

namespace lorun::lora_backend {

struct Convolution {
  Convolution(c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
              int64_t groups, double scaling);

  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;
  double scaling;
};

// Whether the backend has kernels for these; ATen's convolution takes everything else.
bool takes(std::string_view backend, const at::Tensor& input, const at::Tensor& weight, int64_t groups);

// A result in channels_last, to be filled.
at::Tensor new_output(const Convolution& conv, const at::Tensor& input, const at::Tensor& weight);

// Without up and down, weight is W itself.
void forward(std::string_view backend, const Convolution& conv, const at::Tensor& input,
             const std::optional<at::Tensor>& input2, const at::Tensor& weight,
             const std::optional<at::Tensor>& up, const std::optional<at::Tensor>& down,
             const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& residual,
             std::string_view activation, double slope, const at::Tensor& output,
             const at::Tensor& preactivation);

// The gradient of the inputs into given tensors; the second may be undefined.
void grad_input_into(std::string_view backend, const Convolution& conv, const at::Tensor& grad,
                     const at::Tensor& weight, const at::Tensor& up, const at::Tensor& down,
                     const at::Tensor& grad_input, const at::Tensor& grad_input2);

// New gradients of both inputs, in channels_last; the second is undefined if there is one input.
std::pair<at::Tensor, at::Tensor> grad_input(std::string_view backend, const Convolution& conv,
                                             const at::Tensor& grad, const at::Tensor& weight,
                                             const at::Tensor& up, const at::Tensor& down,
                                             const at::Tensor& input,
                                             const std::optional<at::Tensor>& input2);

std::pair<at::Tensor, at::Tensor> grad_adapter(std::string_view backend, const Convolution& conv,
                                               const at::Tensor& grad, const at::Tensor& input,
                                               const std::optional<at::Tensor>& input2,
                                               const at::Tensor& weight, const at::Tensor& up,
                                               const at::Tensor& down, std::array<bool, 2> mask);

// W on a GPU in one launch; undefined if no library has the kernel.
at::Tensor merge(const at::Tensor& weight, const at::Tensor& up, const at::Tensor& down, double scaling,
                 at::MemoryFormat layout, at::ScalarType dtype);

}  // namespace lorun::lora_backend
