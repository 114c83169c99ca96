// The ops of the low-rank convolution, as they are called through the dispatcher.
#pragma once

#include "lora.h"

namespace lorun {

// output = activation(conv(cat(input, input2), W) + bias) + residual. merged, if given, is W itself.
at::Tensor lora_conv2d(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& up,
                       const at::Tensor& down, const std::optional<at::Tensor>& bias,
                       c10::SymIntArrayRef stride, c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                       c10::SymInt groups, double scaling, std::string_view form,
                       const std::optional<at::Tensor>& input2, const std::optional<at::Tensor>& residual,
                       std::string_view activation, double slope, std::string_view backend,
                       const std::optional<at::Tensor>& merged);

// The same, and what the activation was given, which its gradient reads.
std::tuple<at::Tensor, at::Tensor> lora_conv2d_preactivation(
    const at::Tensor& input, const at::Tensor& weight, const at::Tensor& up, const at::Tensor& down,
    const std::optional<at::Tensor>& bias, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
    c10::SymIntArrayRef dilation, c10::SymInt groups, double scaling, std::string_view form,
    const std::optional<at::Tensor>& input2, const std::optional<at::Tensor>& residual,
    std::string_view activation, double slope, std::string_view backend,
    const std::optional<at::Tensor>& merged);

// In the order input, weight, lora_up, lora_down, bias, input2; what the mask leaves out is undefined. grad
// is that of the convolution's own result: before residual and activation.
using ConvGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
ConvGradients lora_conv2d_backward(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight,
                                   const at::Tensor& up, const at::Tensor& down, c10::SymIntArrayRef stride,
                                   c10::SymIntArrayRef padding, c10::SymIntArrayRef dilation,
                                   c10::SymInt groups, double scaling, std::string_view form,
                                   std::array<bool, 6> output_mask, const std::optional<at::Tensor>& input2,
                                   std::string_view backend);

}  // namespace lorun
