// Autograd and autocast of the low-rank convolution.
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "lora_conv.h"

namespace lorun {
namespace {

using at::Tensor;
using c10::SymInt;
using c10::SymIntArrayRef;
using std::string_view;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using MaybeTensor = std::optional<Tensor>;

template <c10::DeviceType device>
Tensor lora_conv2d_autocast(const Tensor& input, const Tensor& weight, const Tensor& up, const Tensor& down,
                            const MaybeTensor& bias, SymIntArrayRef stride, SymIntArrayRef padding,
                            SymIntArrayRef dilation, SymInt groups, double scaling, string_view form,
                            const MaybeTensor& input2, const MaybeTensor& residual, string_view activation,
                            double slope, string_view backend, const MaybeTensor& merged) {
  static const auto op = find_op<decltype(lora_conv2d)>("lorun::lora_conv2d");
  const NoAutocast guard;
  const auto dtype = at::autocast::get_autocast_dtype(device);
  const auto cast = [&](const auto& tensor) { return at::autocast::cached_cast(dtype, tensor, device); };
  // The parameters stay as they are: W is merged in their precision and rounded once, and no copy is saved.
  return op.call(cast(input), weight, up, down, cast(bias), stride, padding, dilation, std::move(groups),
                 scaling, form, cast(input2), cast(residual), activation, slope, backend, merged);
}

Tensor activation_backward(const Tensor& grad, const Tensor& z, string_view activation, double slope) {
  if (activation == "relu") {
    return at::threshold_backward(grad, z, 0);
  }
  if (activation == "gelu") {
    return at::gelu_backward(grad, z);
  }
  return at::leaky_relu_backward(grad, z, slope, /*self_is_result=*/false);
}

class LoRAConv2d : public torch::autograd::Function<LoRAConv2d> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, const Tensor& up,
                        const Tensor& down, const MaybeTensor& bias, SymIntArrayRef stride,
                        SymIntArrayRef padding, SymIntArrayRef dilation, const SymInt& groups, double scaling,
                        const std::string& form, const MaybeTensor& input2, const MaybeTensor& residual,
                        const std::string& activation, double slope, const std::string& backend,
                        const MaybeTensor& merged) {
    at::AutoDispatchBelowAutograd below;
    Tensor output, preactivation;
    if (activation == "none") {
      static const auto op = find_op<decltype(lora_conv2d)>("lorun::lora_conv2d");
      output = op.call(input, weight, up, down, bias, stride, padding, dilation, groups, scaling, form,
                       input2, residual, activation, slope, backend, merged);
    } else {
      static const auto op = find_op<decltype(lora_conv2d_preactivation)>("lorun::lora_conv2d_preactivation");
      std::tie(output, preactivation) =
          op.call(input, weight, up, down, bias, stride, padding, dilation, groups, scaling, form, input2,
                  residual, activation, slope, backend, merged);
    }
    ctx->save_for_backward({input, weight, up, down, input2.value_or(Tensor()), preactivation});
    ctx->saved_data["stride"] = stride;
    ctx->saved_data["padding"] = padding;
    ctx->saved_data["dilation"] = dilation;
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["scaling"] = scaling;
    ctx->saved_data["form"] = form;
    ctx->saved_data["activation"] = activation;
    ctx->saved_data["slope"] = slope;
    ctx->saved_data["backend"] = backend;
    ctx->saved_data["has_bias"] = bias.has_value();
    ctx->saved_data["has_residual"] = residual.has_value();
    ctx->saved_data["has_merged"] = merged.has_value();
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = find_op<decltype(lora_conv2d_backward)>("lorun::lora_conv2d_backward");
    const auto saved = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    const MaybeTensor input2 = saved[4].defined() ? std::optional(saved[4]) : std::nullopt;
    // An absent tensor is not counted among the inputs.
    size_t next = 4;
    const auto needed = [&](bool there) { return there && ctx->needs_input_grad(next++); };
    std::array<bool, 6> mask{};
    for (size_t i = 0; i < 4; ++i) {
      mask[i] = ctx->needs_input_grad(i);
    }
    mask[4] = needed(data["has_bias"].toBool());
    mask[5] = needed(input2.has_value());
    const bool need_residual = needed(data["has_residual"].toBool());
    // The merge of a whole stage returns the adapters' gradients; it is given dW, which is also the weight's
    // gradient. Backends that form no dW sum the adapter's gradients themselves.
    const bool need_merged =
        needed(data["has_merged"].toBool()) && data["backend"].toStringRef() == std::string("aten");
    const bool need_weight = mask[1];
    if (need_merged) {
      mask[1] = true;
      mask[2] = mask[3] = false;
    }
    const std::string activation = data["activation"].toStringRef();
    const Tensor grad_z = activation == "none"
                              ? grads[0]
                              : activation_backward(grads[0], saved[5], activation, data["slope"].toDouble());
    auto [input, weight, up, down, bias, second] =
        op.call(grad_z, saved[0], saved[1], saved[2], saved[3], data["stride"].toSymIntVector(),
                data["padding"].toSymIntVector(), data["dilation"].toSymIntVector(),
                data["groups"].toSymInt(), data["scaling"].toDouble(), data["form"].toStringView(), mask,
                input2, data["backend"].toStringView());
    const Tensor none;
    return {input,
            need_weight ? weight : none,
            up,
            down,
            bias,
            none,
            none,
            none,
            none,
            none,
            none,
            second,
            need_residual ? grads[0] : none,
            none,
            none,
            none,
            need_merged ? weight : none};
  }
};

Tensor lora_conv2d_autograd(const Tensor& input, const Tensor& weight, const Tensor& up, const Tensor& down,
                            const MaybeTensor& bias, SymIntArrayRef stride, SymIntArrayRef padding,
                            SymIntArrayRef dilation, SymInt groups, double scaling, string_view form,
                            const MaybeTensor& input2, const MaybeTensor& residual, string_view activation,
                            double slope, string_view backend, const MaybeTensor& merged) {
  static const auto op = find_op<decltype(lora_conv2d)>("lorun::lora_conv2d");
  if (!needs_grad({input, weight, up, down, bias.value_or(Tensor()), input2.value_or(Tensor()),
                   residual.value_or(Tensor()), merged.value_or(Tensor())})) {
    at::AutoDispatchBelowAutograd below;
    return op.call(input, weight, up, down, bias, stride, padding, dilation, std::move(groups), scaling, form,
                   input2, residual, activation, slope, backend, merged);
  }
  return LoRAConv2d::apply(input, weight, up, down, bias, stride, padding, dilation, groups, scaling,
                           std::string(form), input2, residual, std::string(activation), slope,
                           std::string(backend), merged);
}

ConvGradients lora_conv2d_backward_autograd(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                            const Tensor& up, const Tensor& down, SymIntArrayRef stride,
                                            SymIntArrayRef padding, SymIntArrayRef dilation, SymInt groups,
                                            double scaling, string_view form, std::array<bool, 6> output_mask,
                                            const MaybeTensor& input2, string_view backend) {
  static const auto op = find_op<decltype(lora_conv2d_backward)>("lorun::lora_conv2d_backward");
  refuse_second_order("lora_conv2d", {grad, input, weight, up, down, input2.value_or(Tensor())});
  at::AutoDispatchBelowAutograd below;
  return op.call(grad, input, weight, up, down, stride, padding, dilation, std::move(groups), scaling, form,
                 output_mask, input2, backend);
}

}  // namespace

TORCH_LIBRARY_IMPL(lorun, AutocastCPU, m) { m.impl("lora_conv2d", lora_conv2d_autocast<c10::kCPU>); }

TORCH_LIBRARY_IMPL(lorun, AutocastCUDA, m) { m.impl("lora_conv2d", lora_conv2d_autocast<c10::kCUDA>); }

TORCH_LIBRARY_IMPL(lorun, Autograd, m) {
  m.impl("lora_conv2d", lora_conv2d_autograd);
  m.impl("lora_conv2d_backward", lora_conv2d_backward_autograd);
}

}  // namespace lorun
