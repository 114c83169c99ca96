#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "lora.h"
#include "lora_backends.h"

namespace lorun {
namespace {

using at::Tensor;
using std::string_view;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr const char* kName = "lora_linear";

void check_arguments(const Tensor& input, const Tensor& weight, const Tensor& up, const Tensor& down,
                     const std::optional<Tensor>& bias) {
  check_linear_adapter(kName, weight, up, down);
  check_layer_input(kName, input, weight, bias);
  TORCH_CHECK_VALUE(input.dim() >= 1 && input.size(-1) == weight.size(1), kName, ": input must have ",
                    weight.size(1), " features in its last dimension for weight ", weight.sizes(),
                    ", got shape ", input.sizes());
}

Tensor merge_for(const Tensor& input, const Tensor& weight, const Tensor& up, const Tensor& down,
                 double scaling) {
  return merge(weight, up, down, scaling, at::MemoryFormat::Contiguous, input.scalar_type());
}

// (M, C) as an image of one row in channels_last: to the kernels a linear layer is a 1 x 1 convolution.
Tensor image_of(const Tensor& rows) { return rows.t().unsqueeze(1).unsqueeze(0); }

lora_backend::Convolution pointwise(double scaling) {
  using Pair = c10::SymIntArrayRef;
  return {Pair({1, 1}), Pair({0, 0}), Pair({1, 1}), /*groups=*/1, scaling};
}

Tensor kernel_of(const Tensor& weight) { return weight.unsqueeze(-1).unsqueeze(-1); }

bool kernels_take(string_view backend, const Tensor& input, const Tensor& weight) {
  return backend != "aten" && lora_backend::takes(backend, input, kernel_of(weight), /*groups=*/1);
}

Tensor lora_linear(const Tensor& input, const Tensor& weight, const Tensor& up, const Tensor& down,
                   const std::optional<Tensor>& bias, double scaling, string_view backend) {
  check_arguments(input, weight, up, down, bias);
  if (kernels_take(backend, input, weight)) {
    const Tensor rows = input.reshape({-1, weight.size(1)}).contiguous();
    const Tensor output = at::empty({rows.size(0), weight.size(0)}, input.options());
    lora_backend::forward(backend, pointwise(scaling), image_of(rows), std::nullopt, kernel_of(weight), up,
                          down, bias, std::nullopt, "none", 0, image_of(output), {});
    auto sizes = input.sizes().vec();
    sizes.back() = weight.size(0);
    return output.view(sizes);
  }
  // at::linear folds the batch into rows if the weight is being trained, and adds in another order if not:
  // the result is to be that of a plain layer in training.
  Tensor merged = merge_for(input, weight, up, down, scaling).detach();
  merged.set_requires_grad(weight.requires_grad() || up.requires_grad() || down.requires_grad());
  return at::linear(input, merged, bias);
}

// output_mask is in the order of the results: input, weight, lora_up, lora_down, bias.
Gradients lora_linear_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                               const Tensor& up, const Tensor& down, double scaling,
                               std::array<bool, 5> output_mask, string_view backend) {
  check_arguments(input, weight, up, down, std::nullopt);
  const NoAutocast guard;
  const auto [need_input, need_weight, need_up, need_down, need_bias] = output_mask;
  const Tensor rows = input.reshape({-1, weight.size(1)}).contiguous();
  const Tensor grad_rows = grad.reshape({-1, weight.size(0)}).contiguous();
  const auto dtype = weight.scalar_type();
  Tensor grad_input, grad_weight, grad_up, grad_down, grad_bias;
  if (need_input && kernels_take(backend, input, weight)) {
    grad_input = at::empty_like(rows);
    lora_backend::grad_input_into(backend, pointwise(scaling), image_of(grad_rows), kernel_of(weight), up,
                                  down, image_of(grad_input), {});
    grad_input = grad_input.view(input.sizes());
  } else if (need_input) {
    grad_input = at::mm(grad_rows, merge_for(input, weight, up, down, scaling)).view(input.sizes());
  }
  if (need_weight) {
    grad_weight = at::mm(grad_rows.t(), rows).to(dtype);
  }
  // The adapter's gradients pass through its rank: dW itself is never formed for them.
  if (need_up) {
    const Tensor lowered = at::mm(rows, down.to(rows.scalar_type()).t());
    grad_up = at::mm(grad_rows.t(), lowered).to(dtype).mul_(scaling);
  }
  if (need_down) {
    const Tensor lowered = at::mm(grad_rows, up.to(rows.scalar_type()));
    grad_down = at::mm(lowered.t(), rows).to(dtype).mul_(scaling);
  }
  if (need_bias) {
    grad_bias = grad_rows.sum(0);
  }
  return {grad_input, grad_weight, grad_up, grad_down, grad_bias};
}

template <c10::DeviceType device>
Tensor lora_linear_autocast(const Tensor& input, const Tensor& weight, const Tensor& up, const Tensor& down,
                            const std::optional<Tensor>& bias, double scaling, string_view backend) {
  static const auto op = find_op<decltype(lora_linear)>("lorun::lora_linear");
  const NoAutocast guard;
  const auto dtype = at::autocast::get_autocast_dtype(device);
  // The parameters stay as they are: W is merged in their precision and rounded once, and no copy is saved.
  return op.call(at::autocast::cached_cast(dtype, input, device), weight, up, down,
                 at::autocast::cached_cast(dtype, bias, device), scaling, backend);
}

class LoRALinear : public torch::autograd::Function<LoRALinear> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, const Tensor& up,
                        const Tensor& down, const std::optional<Tensor>& bias, double scaling,
                        const std::string& backend) {
    static const auto op = find_op<decltype(lora_linear)>("lorun::lora_linear");
    at::AutoDispatchBelowAutograd below;
    Tensor output = op.call(input, weight, up, down, bias, scaling, backend);
    ctx->saved_data["backend"] = backend;
    ctx->save_for_backward({input, weight, up, down});
    ctx->saved_data["scaling"] = scaling;
    ctx->saved_data["has_bias"] = bias.has_value();
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    static const auto op = find_op<decltype(lora_linear_backward)>("lorun::lora_linear_backward");
    const auto saved = ctx->get_saved_variables();
    // An absent bias is not counted among the inputs.
    const size_t inputs = ctx->saved_data["has_bias"].toBool() ? 5 : 4;
    std::array<bool, 5> mask{};
    for (size_t i = 0; i < inputs; ++i) {
      mask[i] = ctx->needs_input_grad(i);
    }
    auto [input, weight, up, down, bias] =
        op.call(grads[0], saved[0], saved[1], saved[2], saved[3], ctx->saved_data["scaling"].toDouble(), mask,
                ctx->saved_data["backend"].toStringView());
    return {input, weight, up, down, bias, Tensor(), Tensor()};
  }
};

Tensor lora_linear_autograd(const Tensor& input, const Tensor& weight, const Tensor& up, const Tensor& down,
                            const std::optional<Tensor>& bias, double scaling, string_view backend) {
  static const auto op = find_op<decltype(lora_linear)>("lorun::lora_linear");
  if (!needs_grad({input, weight, up, down, bias.value_or(Tensor())})) {
    at::AutoDispatchBelowAutograd below;
    return op.call(input, weight, up, down, bias, scaling, backend);
  }
  return LoRALinear::apply(input, weight, up, down, bias, scaling, std::string(backend));
}

Gradients lora_linear_backward_autograd(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                        const Tensor& up, const Tensor& down, double scaling,
                                        std::array<bool, 5> output_mask, string_view backend) {
  static const auto op = find_op<decltype(lora_linear_backward)>("lorun::lora_linear_backward");
  refuse_second_order(kName, {grad, input, weight, up, down});
  at::AutoDispatchBelowAutograd below;
  return op.call(grad, input, weight, up, down, scaling, output_mask, backend);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lorun, m) {
  m.def(
      "lora_linear(Tensor input, Tensor weight, Tensor lora_up, Tensor lora_down, Tensor? bias,"
      " float scaling, str backend=\"aten\") -> Tensor");
  m.def(
      "lora_linear_backward(Tensor grad, Tensor input, Tensor weight, Tensor lora_up, Tensor lora_down,"
      " float scaling, bool[5] output_mask, str backend=\"aten\")"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(lorun, CompositeExplicitAutograd, m) {
  m.impl("lora_linear", lora_linear);
  m.impl("lora_linear_backward", lora_linear_backward);
}

TORCH_LIBRARY_IMPL(lorun, AutocastCPU, m) { m.impl("lora_linear", lora_linear_autocast<c10::kCPU>); }

TORCH_LIBRARY_IMPL(lorun, AutocastCUDA, m) { m.impl("lora_linear", lora_linear_autocast<c10::kCUDA>); }

TORCH_LIBRARY_IMPL(lorun, Autograd, m) {
  m.impl("lora_linear", lora_linear_autograd);
  m.impl("lora_linear_backward", lora_linear_backward_autograd);
}

}  // namespace lorun
