#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "lora.h"

namespace lorun {
namespace {

using at::Tensor;
using c10::SymInt;
using c10::SymIntArrayRef;
using std::string_view;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr const char* kName = "lora_conv2d";

void check_arguments(const Tensor& input, const Tensor& weight, const Tensor& up, const Tensor& down,
                     const std::optional<Tensor>& bias, int64_t groups, string_view form) {
  check_conv_adapter(kName, weight, up, down, groups, form);
  check_layer_input(kName, input, weight, bias);
  TORCH_CHECK_VALUE(input.dim() == 3 || input.dim() == 4, kName,
                    ": input must be (C, H, W) or (N, C, H, W), got shape ", input.sizes());
  const int64_t in_channels = weight.size(1) * groups;
  TORCH_CHECK_VALUE(input.size(-3) == in_channels, kName, ": input must have ", in_channels,
                    " channels for weight ", weight.sizes(), " and groups ", groups, ", got shape ",
                    input.sizes());
}

// The layout that ATen's convolution converts its weight to.
at::MemoryFormat convolution_layout(const Tensor& input, const Tensor& weight) {
  const auto channels_last = at::MemoryFormat::ChannelsLast;
  const bool either =
      input.suggest_memory_format() == channels_last || weight.suggest_memory_format() == channels_last;
  return either ? channels_last : at::MemoryFormat::Contiguous;
}

Tensor merge_for(const Tensor& input, const Tensor& weight, const Tensor& up, const Tensor& down,
                 double scaling) {
  return merge(weight, up, down, scaling, convolution_layout(input, weight), input.scalar_type());
}

Tensor lora_conv2d(const Tensor& input, const Tensor& weight, const Tensor& up, const Tensor& down,
                   const std::optional<Tensor>& bias, SymIntArrayRef stride, SymIntArrayRef padding,
                   SymIntArrayRef dilation, SymInt groups, double scaling, string_view form) {
  check_arguments(input, weight, up, down, bias, groups.expect_int(), form);
  const Tensor batch = input.dim() == 3 ? input.unsqueeze(0) : input;
  const Tensor output = at::convolution_symint(batch, merge_for(batch, weight, up, down, scaling), bias,
                                               stride, padding, dilation,
                                               /*transposed=*/false, /*output_padding=*/{0, 0}, groups);
  return input.dim() == 3 ? output.squeeze(0) : output;
}

// output_mask is in the order of the results: input, weight, lora_up, lora_down, bias.
Gradients lora_conv2d_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                               const Tensor& up, const Tensor& down, SymIntArrayRef stride,
                               SymIntArrayRef padding, SymIntArrayRef dilation, SymInt groups, double scaling,
                               string_view form, std::array<bool, 5> output_mask) {
  check_arguments(input, weight, up, down, std::nullopt, groups.expect_int(), form);
  const bool unbatched = input.dim() == 3;
  const Tensor batch = unbatched ? input.unsqueeze(0) : input;
  const auto [need_input, need_weight, need_up, need_down, need_bias] = output_mask;
  Tensor grad_input;
  Tensor grad_merged;
  Tensor grad_bias;
  {
    // Only the input's gradient reads the weight's values.
    const Tensor merged =
        need_input ? merge_for(batch, weight, up, down, scaling) : weight.to(input.scalar_type());
    std::tie(grad_input, grad_merged, grad_bias) = at::convolution_backward_symint(
        unbatched ? grad.unsqueeze(0) : grad, batch, merged, SymIntArrayRef({weight.sym_size(0)}), stride,
        padding, dilation, /*transposed=*/false, /*output_padding=*/{0, 0}, groups,
        {need_input, need_weight || need_up || need_down, need_bias});
  }
  const auto [grad_up, grad_down] = adapter_grads(grad_merged, up, down, scaling, {need_up, need_down});
  return {need_input && unbatched ? grad_input.squeeze(0) : grad_input,
          need_weight ? grad_merged.to(weight.scalar_type()) : Tensor(), grad_up, grad_down, grad_bias};
}

template <c10::DeviceType device>
Tensor lora_conv2d_autocast(const Tensor& input, const Tensor& weight, const Tensor& up, const Tensor& down,
                            const std::optional<Tensor>& bias, SymIntArrayRef stride, SymIntArrayRef padding,
                            SymIntArrayRef dilation, SymInt groups, double scaling, string_view form) {
  static const auto op = find_op<decltype(lora_conv2d)>("lorun::lora_conv2d");
  const NoAutocast guard;
  const auto dtype = at::autocast::get_autocast_dtype(device);
  // The parameters stay as they are: W is merged in their precision and rounded once, and no copy is saved.
  return op.call(at::autocast::cached_cast(dtype, input, device), weight, up, down,
                 at::autocast::cached_cast(dtype, bias, device), stride, padding, dilation, std::move(groups),
                 scaling, form);
}

class LoRAConv2d : public torch::autograd::Function<LoRAConv2d> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, const Tensor& up,
                        const Tensor& down, const std::optional<Tensor>& bias, SymIntArrayRef stride,
                        SymIntArrayRef padding, SymIntArrayRef dilation, const SymInt& groups, double scaling,
                        const std::string& form) {
    static const auto op = find_op<decltype(lora_conv2d)>("lorun::lora_conv2d");
    at::AutoDispatchBelowAutograd below;
    Tensor output = op.call(input, weight, up, down, bias, stride, padding, dilation, groups, scaling, form);
    ctx->save_for_backward({input, weight, up, down});
    ctx->saved_data["stride"] = stride;
    ctx->saved_data["padding"] = padding;
    ctx->saved_data["dilation"] = dilation;
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["scaling"] = scaling;
    ctx->saved_data["has_bias"] = bias.has_value();
    ctx->saved_data["form"] = form;
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = find_op<decltype(lora_conv2d_backward)>("lorun::lora_conv2d_backward");
    const auto saved = ctx->get_saved_variables();
    auto& data = ctx->saved_data;
    // An absent bias has no place among the inputs.
    const size_t inputs = ctx->saved_data["has_bias"].toBool() ? 5 : 4;
    std::array<bool, 5> mask{};
    for (size_t i = 0; i < inputs; ++i) {
      mask[i] = ctx->needs_input_grad(i);
    }
    auto [input, weight, up, down, bias] =
        op.call(grads[0], saved[0], saved[1], saved[2], saved[3], data["stride"].toSymIntVector(),
                data["padding"].toSymIntVector(), data["dilation"].toSymIntVector(),
                data["groups"].toSymInt(), data["scaling"].toDouble(), data["form"].toStringView(), mask);
    return {input, weight, up, down, bias, Tensor(), Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Tensor lora_conv2d_autograd(const Tensor& input, const Tensor& weight, const Tensor& up, const Tensor& down,
                            const std::optional<Tensor>& bias, SymIntArrayRef stride, SymIntArrayRef padding,
                            SymIntArrayRef dilation, SymInt groups, double scaling, string_view form) {
  static const auto op = find_op<decltype(lora_conv2d)>("lorun::lora_conv2d");
  if (!needs_grad({input, weight, up, down, bias.value_or(Tensor())})) {
    at::AutoDispatchBelowAutograd below;
    return op.call(input, weight, up, down, bias, stride, padding, dilation, std::move(groups), scaling,
                   form);
  }
  return LoRAConv2d::apply(input, weight, up, down, bias, stride, padding, dilation, groups, scaling,
                           std::string(form));
}

Gradients lora_conv2d_backward_autograd(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                        const Tensor& up, const Tensor& down, SymIntArrayRef stride,
                                        SymIntArrayRef padding, SymIntArrayRef dilation, SymInt groups,
                                        double scaling, string_view form, std::array<bool, 5> output_mask) {
  static const auto op = find_op<decltype(lora_conv2d_backward)>("lorun::lora_conv2d_backward");
  refuse_second_order(kName, {grad, input, weight, up, down});
  at::AutoDispatchBelowAutograd below;
  return op.call(grad, input, weight, up, down, stride, padding, dilation, std::move(groups), scaling, form,
                 output_mask);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lorun, m) {
  m.def(
      "lora_conv2d(Tensor input, Tensor weight, Tensor lora_up, Tensor lora_down, Tensor? bias, SymInt[2] "
      "stride,"
      " SymInt[2] padding, SymInt[2] dilation, SymInt groups, float scaling, str form) -> Tensor");
  m.def(
      "lora_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor lora_up, Tensor lora_down,"
      " SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups, float scaling, str form,"
      " bool[5] output_mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(lorun, CompositeExplicitAutograd, m) {
  m.impl("lora_conv2d", lora_conv2d);
  m.impl("lora_conv2d_backward", lora_conv2d_backward);
}

TORCH_LIBRARY_IMPL(lorun, AutocastCPU, m) { m.impl("lora_conv2d", lora_conv2d_autocast<c10::kCPU>); }

TORCH_LIBRARY_IMPL(lorun, AutocastCUDA, m) { m.impl("lora_conv2d", lora_conv2d_autocast<c10::kCUDA>); }

TORCH_LIBRARY_IMPL(lorun, Autograd, m) {
  m.impl("lora_conv2d", lora_conv2d_autograd);
  m.impl("lora_conv2d_backward", lora_conv2d_backward_autograd);
}

}  // namespace lorun
