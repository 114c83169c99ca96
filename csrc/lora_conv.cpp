// The low-rank convolution: checks, the path through ATen's convolution, and the choice between it and
// kernels.
#include "lora_conv.h"

#include <torch/library.h>

#include "lora_backends.h"

namespace lorun {
namespace {

using at::Tensor;
using c10::SymInt;
using c10::SymIntArrayRef;
using std::string_view;
using MaybeTensor = std::optional<Tensor>;

constexpr const char* kName = "lora_conv2d";

void check_second_input(const Tensor& input, const Tensor& second) {
  bool same = second.dim() == input.dim();
  for (int64_t d = 0; same && d < input.dim(); ++d) {
    same = d == input.dim() - 3 || second.size(d) == input.size(d);
  }
  TORCH_CHECK_VALUE(same, kName, ": input2 must have the shape of input except in its channels, ",
                    input.sizes(), ", got ", second.sizes());
  TORCH_CHECK_VALUE(second.device() == input.device(), kName, ": input2 must be on the device of input, ",
                    input.device(), ", got ", second.device(), "; move one of them with .to(device)");
  TORCH_CHECK_TYPE(second.scalar_type() == input.scalar_type(), kName,
                   ": input2 must have the dtype of input, ", input.scalar_type(), ", got ",
                   second.scalar_type(), "; convert one of them with .to(dtype)");
}

void check_arguments(const Tensor& input, const MaybeTensor& input2, const Tensor& weight, const Tensor& up,
                     const Tensor& down, const MaybeTensor& bias, int64_t groups, string_view form) {
  check_conv_adapter(kName, weight, up, down, groups, form);
  check_layer_input(kName, input, weight, bias);
  TORCH_CHECK_VALUE(input.dim() == 3 || input.dim() == 4, kName,
                    ": input must be (C, H, W) or (N, C, H, W), got shape ", input.sizes());
  int64_t channels = input.size(-3);
  if (input2) {
    check_second_input(input, *input2);
    channels += input2->size(-3);
  }
  const int64_t in_channels = weight.size(1) * groups;
  TORCH_CHECK_VALUE(channels == in_channels, kName, ": input must have ", in_channels,
                    " channels for weight ", weight.sizes(), " and groups ", groups, ", got shape ",
                    input.sizes(), input2 ? " and input2 of shape " : "",
                    input2 ? input2->sizes() : at::IntArrayRef());
}

void check_epilogue(const Tensor& input, const MaybeTensor& residual, string_view activation) {
  TORCH_CHECK_VALUE(
      activation == "none" || activation == "relu" || activation == "gelu" || activation == "leaky_relu",
      kName, ": activation must be None, \"relu\", \"gelu\" or \"leaky_relu\", got \"", activation, "\"");
  if (residual) {
    TORCH_CHECK_VALUE(residual->dim() == input.dim(), kName, ": residual must have ", input.dim(),
                      " dimensions like the output, got shape ", residual->sizes());
    TORCH_CHECK_VALUE(residual->device() == input.device(), kName,
                      ": residual must be on the device of input, ", input.device(), ", got ",
                      residual->device(), "; move one of them with .to(device)");
    TORCH_CHECK_TYPE(residual->scalar_type() == input.scalar_type(), kName,
                     ": residual must have the dtype of input, ", input.scalar_type(), ", got ",
                     residual->scalar_type(), "; convert one of them with .to(dtype)");
  }
}

void check_residual_shape(const Tensor& residual, const Tensor& output) {
  TORCH_CHECK_VALUE(residual.sizes() == output.sizes(), kName, ": residual must have the output's shape, ",
                    output.sizes(), ", got ", residual.sizes());
}

void check_merged(const Tensor& merged, const Tensor& input, const Tensor& weight) {
  TORCH_CHECK_VALUE(merged.sizes() == weight.sizes() && merged.scalar_type() == input.scalar_type() &&
                        merged.device() == input.device(),
                    kName, ": a merged weight must have shape ", weight.sizes(), " and be ",
                    input.scalar_type(), " on ", input.device(), " like the input, got ",
                    merged.scalar_type(), " of shape ", merged.sizes(), " on ", merged.device(),
                    "; give StageWeights the dtype that its layers are called in");
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

Tensor batched(const Tensor& image) { return image.dim() == 3 ? image.unsqueeze(0) : image; }

MaybeTensor batched(const MaybeTensor& image) {
  return image ? std::optional(batched(*image)) : std::nullopt;
}

Tensor joined(const Tensor& input, const MaybeTensor& input2) {
  return input2 ? at::cat({input, *input2}, 1) : input;
}

// to = activation(z); to may be z itself.
void activate(const Tensor& z, string_view activation, double slope, Tensor& to) {
  if (activation == "relu") {
    at::clamp_min_out(to, z, 0);
  } else if (activation == "gelu") {
    at::gelu_out(to, z);
  } else if (activation == "leaky_relu") {
    at::leaky_relu_out(to, z, slope);
  }
}

// The convolution itself through ATen; arguments are batched.
Tensor convolved(const Tensor& input, const MaybeTensor& input2, const Tensor& merged,
                 const MaybeTensor& bias, SymIntArrayRef stride, SymIntArrayRef padding,
                 SymIntArrayRef dilation, const SymInt& groups) {
  return at::convolution_symint(joined(input, input2), merged, bias, stride, padding, dilation,
                                /*transposed=*/false, /*output_padding=*/{0, 0}, groups);
}

struct Result {
  Tensor output, preactivation;
};

Result forward(const Tensor& input, const Tensor& weight, const Tensor& up, const Tensor& down,
               const MaybeTensor& bias, SymIntArrayRef stride, SymIntArrayRef padding,
               SymIntArrayRef dilation, const SymInt& groups, double scaling, string_view form,
               const MaybeTensor& input2, const MaybeTensor& residual, string_view activation, double slope,
               string_view backend, const MaybeTensor& merged, bool keep_preactivation) {
  check_arguments(input, input2, weight, up, down, bias, groups.expect_int(), form);
  check_epilogue(input, residual, activation);
  if (merged) {
    check_merged(*merged, input, weight);
  }
  const Tensor batch = batched(input);
  const MaybeTensor batch2 = batched(input2);
  const MaybeTensor residual4 = batched(residual);
  Result result;
  if (lora_backend::takes(backend, batch, weight, groups.expect_int())) {
    const lora_backend::Convolution conv{stride, padding, dilation, groups.expect_int(), scaling};
    result.output = lora_backend::new_output(conv, batch, weight);
    if (residual4) {
      check_residual_shape(*residual4, result.output);
    }
    if (keep_preactivation) {
      result.preactivation = at::empty_like(result.output);
    }
    lora_backend::forward(backend, conv, batch, batch2, merged.value_or(weight), merged ? MaybeTensor() : up,
                          merged ? MaybeTensor() : down, bias, residual4, activation, slope, result.output,
                          result.preactivation);
    const auto layout = convolution_layout(batch, weight);
    result.output = result.output.contiguous(layout);
    result.preactivation = keep_preactivation ? result.preactivation.contiguous(layout) : Tensor();
  } else {
    // The weight's layout decides that of the result.
    const Tensor full = merged ? merged->contiguous(convolution_layout(batch, weight))
                               : merge_for(batch, weight, up, down, scaling);
    result.output = convolved(batch, batch2, full, bias, stride, padding, dilation, groups);
    const Tensor z = result.output;
    if (keep_preactivation) {
      result.preactivation = z;
      result.output = at::empty_like(z);
    }
    activate(z, activation, slope, result.output);
    if (residual4) {
      check_residual_shape(*residual4, result.output);
      result.output.add_(*residual4);
    }
  }
  if (input.dim() == 3) {
    result.output = result.output.squeeze(0);
    result.preactivation = keep_preactivation ? result.preactivation.squeeze(0) : Tensor();
  }
  return result;
}

}  // namespace

Tensor lora_conv2d(const Tensor& input, const Tensor& weight, const Tensor& up, const Tensor& down,
                   const MaybeTensor& bias, SymIntArrayRef stride, SymIntArrayRef padding,
                   SymIntArrayRef dilation, SymInt groups, double scaling, string_view form,
                   const MaybeTensor& input2, const MaybeTensor& residual, string_view activation,
                   double slope, string_view backend, const MaybeTensor& merged) {
  return forward(input, weight, up, down, bias, stride, padding, dilation, groups, scaling, form, input2,
                 residual, activation, slope, backend, merged, /*keep_preactivation=*/false)
      .output;
}

std::tuple<Tensor, Tensor> lora_conv2d_preactivation(
    const Tensor& input, const Tensor& weight, const Tensor& up, const Tensor& down, const MaybeTensor& bias,
    SymIntArrayRef stride, SymIntArrayRef padding, SymIntArrayRef dilation, SymInt groups, double scaling,
    string_view form, const MaybeTensor& input2, const MaybeTensor& residual, string_view activation,
    double slope, string_view backend, const MaybeTensor& merged) {
  TORCH_CHECK_VALUE(activation != "none", kName, ": a preactivation is kept only for an activation");
  const Result result = forward(input, weight, up, down, bias, stride, padding, dilation, groups, scaling,
                                form, input2, residual, activation, slope, backend, merged,
                                /*keep_preactivation=*/true);
  return {result.output, result.preactivation};
}

namespace {

// The parts of the joined inputs' gradient, as tensors of their own.
std::pair<Tensor, Tensor> split(const Tensor& grad, const Tensor& input, const MaybeTensor& input2) {
  if (!input2) {
    return {grad, Tensor()};
  }
  const auto parts = at::split_with_sizes(grad, {input.size(1), input2->size(1)}, 1);
  return {parts[0].clone(at::MemoryFormat::Preserve), parts[1].clone(at::MemoryFormat::Preserve)};
}

}  // namespace

ConvGradients lora_conv2d_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                   const Tensor& up, const Tensor& down, SymIntArrayRef stride,
                                   SymIntArrayRef padding, SymIntArrayRef dilation, SymInt groups,
                                   double scaling, string_view form, std::array<bool, 6> output_mask,
                                   const MaybeTensor& input2, string_view backend) {
  check_arguments(input, input2, weight, up, down, std::nullopt, groups.expect_int(), form);
  const auto [need_input, need_weight, need_up, need_down, need_bias, need_input2] = output_mask;
  const Tensor batch = batched(input);
  const MaybeTensor batch2 = batched(input2);
  const Tensor grad4 = batched(grad);
  Tensor grad_input, grad_input2, grad_weight, grad_up, grad_down, grad_bias;
  // dW itself is computed only if the base is trained too, or if ATen computes the gradients.
  if (lora_backend::takes(backend, batch, weight, groups.expect_int()) && !need_weight) {
    const lora_backend::Convolution conv{stride, padding, dilation, groups.expect_int(), scaling};
    if (need_input || need_input2) {
      std::tie(grad_input, grad_input2) =
          lora_backend::grad_input(backend, conv, grad4, weight, up, down, batch, batch2);
      const auto layout = convolution_layout(batch, weight);
      grad_input = grad_input.contiguous(layout);
      grad_input2 = batch2 ? grad_input2.contiguous(layout) : Tensor();
    }
    if (need_up || need_down) {
      std::tie(grad_up, grad_down) = lora_backend::grad_adapter(backend, conv, grad4, batch, batch2, weight,
                                                                up, down, {need_up, need_down});
    }
    grad_bias = need_bias ? grad4.sum({0, 2, 3}) : Tensor();
  } else {
    const Tensor both = joined(batch, batch2);
    // Only the input's gradient reads the weight's values.
    const bool need_inputs = need_input || need_input2;
    const Tensor merged =
        need_inputs ? merge_for(batch, weight, up, down, scaling) : weight.to(input.scalar_type());
    Tensor grad_both, grad_merged;
    std::tie(grad_both, grad_merged, grad_bias) = at::convolution_backward_symint(
        grad4, both, merged, SymIntArrayRef({weight.sym_size(0)}), stride, padding, dilation,
        /*transposed=*/false, /*output_padding=*/{0, 0}, groups,
        {need_inputs, need_weight || need_up || need_down, need_bias});
    if (need_inputs) {
      std::tie(grad_input, grad_input2) = split(grad_both, batch, batch2);
    }
    std::tie(grad_up, grad_down) = adapter_grads(grad_merged, up, down, scaling, {need_up, need_down});
    grad_weight = need_weight ? grad_merged : Tensor();
  }
  const auto given = [&](const Tensor& image, bool wanted) {
    return !wanted ? Tensor() : input.dim() == 3 ? image.squeeze(0) : image;
  };
  return {given(grad_input, need_input),  grad_weight, grad_up, grad_down, grad_bias,
          given(grad_input2, need_input2)};
}

TORCH_LIBRARY_FRAGMENT(lorun, m) {
  const std::string arguments =
      "(Tensor input, Tensor weight, Tensor lora_up, Tensor lora_down, Tensor? bias, SymInt[2] stride,"
      " SymInt[2] padding, SymInt[2] dilation, SymInt groups, float scaling, str form, Tensor? input2=None,"
      " Tensor? residual=None, str activation=\"none\", float slope=0.01, str backend=\"aten\","
      " Tensor? merged=None) -> ";
  m.def(("lora_conv2d" + arguments + "Tensor").c_str());
  m.def(("lora_conv2d_preactivation" + arguments + "(Tensor, Tensor)").c_str());
  m.def(
      "lora_conv2d_backward(Tensor grad, Tensor input, Tensor weight, Tensor lora_up, Tensor lora_down,"
      " SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation, SymInt groups, float scaling, str form,"
      " bool[6] output_mask, Tensor? input2=None, str backend=\"aten\")"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(lorun, CompositeExplicitAutograd, m) {
  m.impl("lora_conv2d", lora_conv2d);
  m.impl("lora_conv2d_preactivation", lora_conv2d_preactivation);
  m.impl("lora_conv2d_backward", lora_conv2d_backward);
}

}  // namespace lorun
