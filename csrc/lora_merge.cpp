#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "lora.h"
#include "lora_backends.h"

namespace lorun {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void check_operands(const char* op, const Tensor& weight, const Tensor& up, const Tensor& down,
                    int64_t weight_dim) {
  TORCH_CHECK_VALUE(weight.dim() == weight_dim, op, ": weight must have ", weight_dim,
                    " dimensions, got shape ", weight.sizes());
  TORCH_CHECK_TYPE(weight.is_floating_point(), op, ": weight must be floating point, got ",
                   weight.scalar_type(), "; convert it with .float()");
  for (const auto& [name, factor] : {std::pair{"lora_up", &up}, std::pair{"lora_down", &down}}) {
    TORCH_CHECK_VALUE(factor->dim() == 2, op, ": ", name, " must be a matrix, got shape ", factor->sizes());
    TORCH_CHECK_TYPE(factor->scalar_type() == weight.scalar_type(), op, ": ", name,
                     " must have the dtype of weight, ", weight.scalar_type(), ", got ",
                     factor->scalar_type(), "; convert the whole module with .to(dtype)");
    TORCH_CHECK_VALUE(factor->device() == weight.device(), op, ": ", name,
                      " must be on the device of weight, ", weight.device(), ", got ", factor->device(),
                      "; move the whole module with .to(device)");
  }
}

void check_rank(const char* op, int64_t rank, int64_t largest) {
  TORCH_CHECK_VALUE(rank >= 1 && rank <= largest, op, ": the adapter's rank must be between 1 and ", largest,
                    " for this layer, got ", rank, "; choose a smaller rank or gamma");
}

void check_factor(const char* op, const char* name, const Tensor& factor, int64_t rows, int64_t columns,
                  const Tensor& weight, std::string_view form) {
  TORCH_CHECK_VALUE(factor.size(0) == rows && factor.size(1) == columns, op, ": ", name, " must have shape [",
                    rows, ", ", columns, "] for weight ", weight.sizes(), " in form \"", form, "\", got ",
                    factor.sizes());
}

}  // namespace

void check_conv_adapter(const char* op, const Tensor& weight, const Tensor& up, const Tensor& down,
                        int64_t groups, std::string_view form) {
  check_operands(op, weight, up, down, 4);
  TORCH_CHECK_VALUE(form == "reshape" || form == "factored", op,
                    ": form must be \"reshape\" (Eq. 4) or \"factored\", got \"", form, "\"");
  TORCH_CHECK_VALUE(groups >= 1 && weight.size(0) % groups == 0, op, ": groups must divide the ",
                    weight.size(0), " output channels of weight, got ", groups);
  TORCH_CHECK_VALUE(weight.numel() > 0, op, ": weight must not be empty, got shape ", weight.sizes());
  const int64_t out_channels = weight.size(0);
  const int64_t in_channels = weight.size(1) * groups;
  const int64_t kh = weight.size(2);
  const int64_t kw = weight.size(3);
  const int64_t inner = up.size(1);
  const bool reshape = form == "reshape";
  const int64_t inner_per_rank = reshape ? std::min(kh, kw) : 1;
  TORCH_CHECK_VALUE(inner % inner_per_rank == 0, op, ": lora_up must have rank * ", inner_per_rank,
                    " columns for weight ", weight.sizes(), " in form \"", form, "\", got shape ",
                    up.sizes());
  // Eq. 12's bound; a factored adapter may have any rank that its matrix can have.
  check_rank(op, inner / inner_per_rank,
             reshape ? std::min(out_channels / groups, in_channels)
                     : std::min(out_channels, weight.size(1) * kh * kw));
  check_factor(op, "lora_up", up, reshape ? out_channels / groups * kh : out_channels, inner, weight, form);
  check_factor(op, "lora_down", down, inner, reshape ? in_channels * kw : weight.size(1) * kh * kw, weight,
               form);
}

void check_linear_adapter(const char* op, const Tensor& weight, const Tensor& up, const Tensor& down) {
  check_operands(op, weight, up, down, 2);
  const int64_t rank = up.size(1);
  check_rank(op, rank, std::min(weight.size(0), weight.size(1)));
  check_factor(op, "lora_up", up, weight.size(0), rank, weight, "linear");
  check_factor(op, "lora_down", down, rank, weight.size(1), weight, "linear");
}

void check_layer_input(const char* op, const Tensor& input, const Tensor& weight,
                       const std::optional<Tensor>& bias) {
  TORCH_CHECK_VALUE(input.device() == weight.device(), op, ": input must be on the device of weight, ",
                    weight.device(), ", got ", input.device(), "; move one of them with .to(device)");
  // Under autocast the input is rounded, and the float32 parameters are merged before they are rounded.
  const bool rounded_input = weight.scalar_type() == at::kFloat &&
                             (input.scalar_type() == at::kHalf || input.scalar_type() == at::kBFloat16);
  TORCH_CHECK_TYPE(input.scalar_type() == weight.scalar_type() || rounded_input, op,
                   ": input must have the dtype of weight, ", weight.scalar_type(), ", got ",
                   input.scalar_type(), "; convert one of them with .to(dtype) or run under torch.autocast");
  if (!bias.has_value()) {
    return;
  }
  TORCH_CHECK_VALUE(bias->dim() == 1 && bias->size(0) == weight.size(0), op, ": bias must have shape [",
                    weight.size(0), "], got ", bias->sizes());
  TORCH_CHECK_VALUE(bias->device() == weight.device(), op, ": bias must be on the device of weight, ",
                    weight.device(), ", got ", bias->device(), "; move the whole module with .to(device)");
  TORCH_CHECK_TYPE(bias->scalar_type() == input.scalar_type(), op, ": bias must have the dtype of input, ",
                   input.scalar_type(), ", got ", bias->scalar_type(), "; convert it with .to(dtype)");
}

Tensor merge(const Tensor& weight, const Tensor& up, const Tensor& down, double scaling,
             at::MemoryFormat layout, at::ScalarType dtype) {
  const NoAutocast guard;
  if (weight.is_cpu()) {
    return cpu::merge(weight, up, down, scaling, layout, dtype);
  }
  const Tensor merged = lora_backend::merge(weight, up, down, scaling, layout, dtype);
  if (merged.defined()) {
    return merged;
  }
  const Tensor delta = at::mm(up, down).view(weight.sizes());
  return at::add(weight, delta, scaling)
      .to(weight.options().dtype(dtype), /*non_blocking=*/false, /*copy=*/false, layout);
}

std::tuple<Tensor, Tensor> adapter_grads(const Tensor& grad_weight, const Tensor& up, const Tensor& down,
                                         double scaling, std::array<bool, 2> mask) {
  const NoAutocast guard;
  Tensor grad_up;
  Tensor grad_down;
  if (mask[0] || mask[1]) {
    const Tensor grad = grad_weight.to(up.scalar_type()).reshape({up.size(0), down.size(1)});
    if (mask[0]) {
      grad_up = at::addmm(up, grad, down.t(), /*beta=*/0, /*alpha=*/scaling);
    }
    if (mask[1]) {
      grad_down = at::addmm(down, up.t(), grad, /*beta=*/0, /*alpha=*/scaling);
    }
  }
  return {grad_up, grad_down};
}

bool needs_grad(at::ArrayRef<Tensor> tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [](const Tensor& t) {
    // A forward-mode tangent exists in every grad mode; autograd::Function refuses it with an error.
    return (t.requires_grad() && at::GradMode::is_enabled()) || t._fw_grad(/*level=*/0).defined();
  });
}

void refuse_second_order(const char* op, at::ArrayRef<Tensor> tensors) {
  TORCH_CHECK(!needs_grad(tensors), op,
              ": second-order gradients are not supported; call backward without create_graph=True, or "
              "differentiate lorun_kernels.reference.",
              op, " instead");
}

namespace {

void check_merge(const Tensor& weight, const Tensor& up, const Tensor& down, std::string_view form) {
  if (weight.dim() == 2) {
    check_linear_adapter("merge_lora", weight, up, down);
    return;
  }
  TORCH_CHECK_VALUE(weight.dim() == 4, "merge_lora: weight must have 2 or 4 dimensions, got shape ",
                    weight.sizes());
  // Only Eq. 4's down shows the number of groups: it has in_channels * kw columns.
  const int64_t per_group = weight.size(1) * weight.size(3);
  const bool grouped = form == "reshape" && down.dim() == 2 && per_group > 0 && down.size(1) % per_group == 0;
  check_conv_adapter("merge_lora", weight, up, down,
                     grouped ? std::max<int64_t>(1, down.size(1) / per_group) : 1, form);
}

Tensor merge_lora(const Tensor& weight, const Tensor& up, const Tensor& down, double scaling,
                  std::string_view form) {
  check_merge(weight, up, down, form);
  return merge(weight, up, down, scaling, weight.suggest_memory_format(), weight.scalar_type()).clone();
}

std::tuple<Tensor, Tensor> merge_lora_backward(const Tensor& grad, const Tensor& up, const Tensor& down,
                                               double scaling, std::array<bool, 2> mask) {
  TORCH_CHECK_VALUE(up.dim() == 2 && down.dim() == 2 && up.size(1) == down.size(0) &&
                        grad.numel() == up.size(0) * down.size(1),
                    "merge_lora_backward: grad, lora_up and lora_down do not match: ", grad.sizes(), ", ",
                    up.sizes(), ", ", down.sizes());
  return adapter_grads(grad, up, down, scaling, mask);
}

std::tuple<Tensor, Tensor> call_backward(const Tensor& grad, const Tensor& up, const Tensor& down,
                                         double scaling, std::array<bool, 2> mask) {
  static const auto op = find_op<decltype(merge_lora_backward)>("lorun::merge_lora_backward");
  return op.call(grad, up, down, scaling, mask);
}

class MergeLora : public torch::autograd::Function<MergeLora> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& weight, const Tensor& up, const Tensor& down,
                        double scaling, const std::string& form) {
    static const auto op = find_op<decltype(merge_lora)>("lorun::merge_lora");
    at::AutoDispatchBelowAutograd below;
    ctx->save_for_backward({up, down});
    ctx->saved_data["scaling"] = scaling;
    return op.call(weight, up, down, scaling, form);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const std::array<bool, 2> mask{ctx->needs_input_grad(1), ctx->needs_input_grad(2)};
    const auto [grad_up, grad_down] =
        call_backward(grads[0], saved[0], saved[1], ctx->saved_data["scaling"].toDouble(), mask);
    return {ctx->needs_input_grad(0) ? grads[0] : Tensor(), grad_up, grad_down, Tensor(), Tensor()};
  }
};

Tensor merge_lora_autograd(const Tensor& weight, const Tensor& up, const Tensor& down, double scaling,
                           std::string_view form) {
  return MergeLora::apply(weight, up, down, scaling, std::string(form));
}

std::tuple<Tensor, Tensor> merge_lora_backward_autograd(const Tensor& grad, const Tensor& up,
                                                        const Tensor& down, double scaling,
                                                        std::array<bool, 2> mask) {
  refuse_second_order("merge_lora", {grad, up, down});
  at::AutoDispatchBelowAutograd below;
  return call_backward(grad, up, down, scaling, mask);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(lorun, m) {
  m.def("merge_lora(Tensor weight, Tensor lora_up, Tensor lora_down, float scaling, str form) -> Tensor");
  m.def(
      "merge_lora_backward(Tensor grad, Tensor lora_up, Tensor lora_down, float scaling, bool[2] output_mask)"
      " -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(lorun, CompositeExplicitAutograd, m) {
  m.impl("merge_lora", merge_lora);
  m.impl("merge_lora_backward", merge_lora_backward);
}

TORCH_LIBRARY_IMPL(lorun, Autograd, m) {
  m.impl("merge_lora", merge_lora_autograd);
  m.impl("merge_lora_backward", merge_lora_backward_autograd);
}

}  // namespace lorun
