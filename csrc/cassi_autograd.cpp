// forward, adjoint and mask_grad are bilinear and each other's gradients, so they can be differentiated any
// number of times. A data step can be differentiated twice with respect to the cube, the measurement and the
// incoming gradient: its backward is the step itself with another cube and measurement.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/library.h>

#include <algorithm>

#include "cassi.h"
#include "lora.h"

namespace lorun {
namespace {

using at::IntArrayRef;
using at::Tensor;
using std::string_view;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

template <auto op>
auto find(const char* name) {
  return find_op<std::remove_pointer_t<decltype(op)>>(name);
}

#define LORUN_OP(name)                                   \
  ([] {                                                  \
    static const auto op = find<&name>("lorun::" #name); \
    return op;                                           \
  }())

bool is_channels_last(const Tensor& x) { return x.suggest_memory_format() == at::MemoryFormat::ChannelsLast; }

// A tensor is kept only for the gradient that reads it.
Tensor kept_if(bool wanted, const Tensor& tensor) { return wanted ? tensor : Tensor(); }

// What every backward pass is given besides its own tensors and flags.
struct Saved {
  variable_list tensors;
  std::vector<int64_t> offsets;
  std::string backend;
};

void save(AutogradContext* ctx, variable_list tensors, IntArrayRef offsets, const std::string& backend) {
  ctx->save_for_backward(std::move(tensors));
  ctx->saved_data["offsets"] = offsets;
  ctx->saved_data["backend"] = backend;
}

Saved saved_by(AutogradContext* ctx) {
  return {ctx->get_saved_variables(), ctx->saved_data["offsets"].toIntVector(),
          ctx->saved_data["backend"].toStringRef()};
}

class CassiForward : public Function<CassiForward> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& mask, IntArrayRef offsets,
                        const std::string& backend) {
    at::AutoDispatchBelowAutograd below;
    save(ctx, {kept_if(mask.requires_grad(), x), kept_if(x.requires_grad(), mask)}, offsets, backend);
    ctx->saved_data["mask_dim"] = mask.dim();
    ctx->saved_data["channels_last"] = is_channels_last(x);
    return LORUN_OP(cassi_forward).call(x, mask, offsets, backend);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto [saved, offsets, backend] = saved_by(ctx);
    auto& data = ctx->saved_data;
    Tensor grad_x;
    Tensor grad_mask;
    if (ctx->needs_input_grad(0)) {
      grad_x =
          LORUN_OP(cassi_adjoint).call(grads[0], saved[1], offsets, data["channels_last"].toBool(), backend);
    }
    if (ctx->needs_input_grad(1)) {
      grad_mask =
          LORUN_OP(cassi_mask_grad).call(saved[0], grads[0], data["mask_dim"].toInt(), offsets, backend);
    }
    return {grad_x, grad_mask, Tensor(), Tensor()};
  }
};

class CassiAdjoint : public Function<CassiAdjoint> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& y, const Tensor& mask, IntArrayRef offsets,
                        bool channels_last, const std::string& backend) {
    at::AutoDispatchBelowAutograd below;
    save(ctx, {kept_if(mask.requires_grad(), y), kept_if(y.requires_grad(), mask)}, offsets, backend);
    ctx->saved_data["mask_dim"] = mask.dim();
    return LORUN_OP(cassi_adjoint).call(y, mask, offsets, channels_last, backend);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto [saved, offsets, backend] = saved_by(ctx);
    auto& data = ctx->saved_data;
    Tensor grad_y;
    Tensor grad_mask;
    if (ctx->needs_input_grad(0)) {
      grad_y = LORUN_OP(cassi_forward).call(grads[0], saved[1], offsets, backend);
    }
    if (ctx->needs_input_grad(1)) {
      grad_mask =
          LORUN_OP(cassi_mask_grad).call(grads[0], saved[0], data["mask_dim"].toInt(), offsets, backend);
    }
    return {grad_y, grad_mask, Tensor(), Tensor(), Tensor()};
  }
};

class CassiMaskGrad : public Function<CassiMaskGrad> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& y, int64_t mask_dim,
                        IntArrayRef offsets, const std::string& backend) {
    at::AutoDispatchBelowAutograd below;
    save(ctx, {kept_if(y.requires_grad(), x), kept_if(x.requires_grad(), y)}, offsets, backend);
    ctx->saved_data["channels_last"] = is_channels_last(x);
    return LORUN_OP(cassi_mask_grad).call(x, y, mask_dim, offsets, backend);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto [saved, offsets, backend] = saved_by(ctx);
    auto& data = ctx->saved_data;
    Tensor grad_x;
    Tensor grad_y;
    if (ctx->needs_input_grad(0)) {
      grad_x =
          LORUN_OP(cassi_adjoint).call(saved[1], grads[0], offsets, data["channels_last"].toBool(), backend);
    }
    if (ctx->needs_input_grad(1)) {
      grad_y = LORUN_OP(cassi_forward).call(saved[0], grads[0], offsets, backend);
    }
    return {grad_x, grad_y, Tensor(), Tensor(), Tensor()};
  }
};

class CassiStep : public Function<CassiStep> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& y, const Tensor& mask,
                        const Tensor& scale, IntArrayRef offsets, bool hqs, const std::string& backend) {
    at::AutoDispatchBelowAutograd below;
    ctx->saved_data["hqs"] = hqs;
    if (!mask.requires_grad() && !scale.requires_grad()) {
      save(ctx, {Tensor(), Tensor(), mask, scale}, offsets, backend);
      return LORUN_OP(cassi_step).call(x, y, mask, scale, offsets, hqs, backend);
    }
    const auto [out, residual] = LORUN_OP(cassi_step_residual).call(x, y, mask, scale, offsets, hqs, backend);
    save(ctx, {residual, kept_if(mask.requires_grad(), x), mask, scale}, offsets, backend);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto [saved, offsets, backend] = saved_by(ctx);
    const auto keep = [](const Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; };
    std::array<bool, 4> wanted{};
    for (size_t i = 0; i < wanted.size(); ++i) {
      wanted[i] = ctx->needs_input_grad(i);
    }
    const auto [x, y, mask, scale] = LORUN_OP(cassi_step_backward)
                                         .call(grads[0], keep(saved[0]), keep(saved[1]), saved[2], saved[3],
                                               offsets, ctx->saved_data["hqs"].toBool(), wanted, backend);
    return {x, y, mask, scale, Tensor(), Tensor(), Tensor()};
  }
};

// The gradients of a step, linear in `grad`; only grad_x and grad_y are differentiated again.
class CassiStepBackward : public Function<CassiStepBackward> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& grad,
                               const std::optional<Tensor>& residual, const std::optional<Tensor>& x,
                               const Tensor& mask, const Tensor& scale, IntArrayRef offsets, bool hqs,
                               std::array<bool, 4> output_mask, const std::string& backend) {
    at::AutoDispatchBelowAutograd below;
    save(ctx, {mask, scale}, offsets, backend);
    ctx->saved_data["cube"] = grad.sizes();
    ctx->saved_data["hqs"] = hqs;
    ctx->saved_data["tensors"] = 3 + int64_t{residual.has_value()} + int64_t{x.has_value()};
    ctx->saved_data["need_x"] = output_mask[0];
    ctx->saved_data["need_y"] = output_mask[1];
    ctx->set_materialize_grads(false);
    const auto [grad_x, grad_y, grad_mask, grad_scale] =
        LORUN_OP(cassi_step_backward)
            .call(grad, residual, x, mask, scale, offsets, hqs, output_mask, backend);
    // A Function cannot return an undefined tensor: gradients that are not wanted are not among the outputs.
    variable_list wanted;
    for (const Tensor& result : {grad_x, grad_y, grad_mask, grad_scale}) {
      if (result.defined()) {
        wanted.push_back(result);
      }
    }
    return wanted;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto [saved, offsets, backend] = saved_by(ctx);
    auto& data = ctx->saved_data;
    const bool hqs = data["hqs"].toBool();
    auto next = grads.begin();
    Tensor x = data["need_x"].toBool() ? *next++ : Tensor();
    Tensor y = data["need_y"].toBool() ? *next++ : Tensor();
    // needs_input_grad counts only the tensors that were given; gradients are returned for all arguments.
    const size_t tensors = data["tensors"].toInt();
    const bool in_mask_or_scale =
        std::any_of(next, grads.end(), [](const Tensor& grad) { return grad.defined(); }) ||
        ctx->needs_input_grad(tensors - 2) || ctx->needs_input_grad(tensors - 1);
    TORCH_CHECK(!in_mask_or_scale, step_name(hqs), ": second-order gradients in mask and ",
                hqs ? "mu" : "rho",
                " are not supported; detach them, or differentiate lorun_kernels.reference.", step_name(hqs),
                " instead");
    variable_list result(9);
    if (ctx->needs_input_grad(0) && (x.defined() || y.defined())) {
      const auto cube = data["cube"].toIntVector();
      const int64_t widest = *std::max_element(offsets.begin(), offsets.end());
      const auto options = (x.defined() ? x : y).options();
      x = x.defined() ? x : at::zeros(cube, options);
      y = y.defined() ? y : at::zeros({cube[0], cube[2], cube[3] + widest}, options);
      result[0] = LORUN_OP(cassi_step).call(x, y, saved[0], saved[1], offsets, hqs, backend);
    }
    return result;
  }
};

Tensor cassi_forward_autograd(const Tensor& x, const Tensor& mask, IntArrayRef offsets, string_view backend) {
  if (!needs_grad({x, mask})) {
    at::AutoDispatchBelowAutograd below;
    return LORUN_OP(cassi_forward).call(x, mask, offsets, backend);
  }
  return CassiForward::apply(x, mask, offsets, std::string(backend));
}

Tensor cassi_adjoint_autograd(const Tensor& y, const Tensor& mask, IntArrayRef offsets, bool channels_last,
                              string_view backend) {
  if (!needs_grad({y, mask})) {
    at::AutoDispatchBelowAutograd below;
    return LORUN_OP(cassi_adjoint).call(y, mask, offsets, channels_last, backend);
  }
  return CassiAdjoint::apply(y, mask, offsets, channels_last, std::string(backend));
}

Tensor cassi_mask_grad_autograd(const Tensor& x, const Tensor& y, int64_t mask_dim, IntArrayRef offsets,
                                string_view backend) {
  if (!needs_grad({x, y})) {
    at::AutoDispatchBelowAutograd below;
    return LORUN_OP(cassi_mask_grad).call(x, y, mask_dim, offsets, backend);
  }
  return CassiMaskGrad::apply(x, y, mask_dim, offsets, std::string(backend));
}

Tensor cassi_step_autograd(const Tensor& x, const Tensor& y, const Tensor& mask, const Tensor& scale,
                           IntArrayRef offsets, bool hqs, string_view backend) {
  if (!needs_grad({x, y, mask, scale})) {
    at::AutoDispatchBelowAutograd below;
    return LORUN_OP(cassi_step).call(x, y, mask, scale, offsets, hqs, backend);
  }
  return CassiStep::apply(x, y, mask, scale, offsets, hqs, std::string(backend));
}

void cassi_step_inplace_autograd(Tensor& x, const Tensor& y, const Tensor& mask, const Tensor& scale,
                                 IntArrayRef offsets, bool hqs, string_view backend) {
  TORCH_CHECK(!needs_grad({x, y, mask, scale}), step_name(hqs),
              "_: the in-place step is for inference; call it under torch.no_grad(), or use ",
              step_name(hqs));
  TORCH_CHECK(!x.is_inference(), step_name(hqs), "_: ", hqs ? "w" : "x",
              " was made in torch.inference_mode() and can be changed only there; use ", step_name(hqs));
  at::AutoDispatchBelowAutograd below;
  LORUN_OP(cassi_step_).call(x, y, mask, scale, offsets, hqs, backend);
}

// Inference mode comes here too, without the kernel above: autograd must notice the change of a tensor it
// kept.
void cassi_step_inplace_version(Tensor& x, const Tensor& y, const Tensor& mask, const Tensor& scale,
                                IntArrayRef offsets, bool hqs, string_view backend) {
  {
    at::AutoDispatchBelowADInplaceOrView below;
    LORUN_OP(cassi_step_).call(x, y, mask, scale, offsets, hqs, backend);
  }
  torch::autograd::impl::bump_version(x);
}

StepGradients cassi_step_backward_autograd(const Tensor& grad, const std::optional<Tensor>& residual,
                                           const std::optional<Tensor>& x, const Tensor& mask,
                                           const Tensor& scale, IntArrayRef offsets, bool hqs,
                                           std::array<bool, 4> output_mask, string_view backend) {
  if (!needs_grad({grad, residual.value_or(Tensor()), x.value_or(Tensor()), mask, scale})) {
    at::AutoDispatchBelowAutograd below;
    return LORUN_OP(cassi_step_backward)
        .call(grad, residual, x, mask, scale, offsets, hqs, output_mask, backend);
  }
  const auto wanted = CassiStepBackward::apply(grad, residual, x, mask, scale, offsets, hqs, output_mask,
                                               std::string(backend));
  std::array<Tensor, 4> results;
  auto next = wanted.begin();
  for (size_t i = 0; i < results.size(); ++i) {
    results[i] = output_mask[i] ? *next++ : Tensor();
  }
  return {results[0], results[1], results[2], results[3]};
}

}  // namespace

TORCH_LIBRARY_IMPL(lorun, ADInplaceOrView, m) { m.impl("cassi_step_", cassi_step_inplace_version); }

TORCH_LIBRARY_IMPL(lorun, Autograd, m) {
  m.impl("cassi_forward", cassi_forward_autograd);
  m.impl("cassi_adjoint", cassi_adjoint_autograd);
  m.impl("cassi_mask_grad", cassi_mask_grad_autograd);
  m.impl("cassi_step", cassi_step_autograd);
  m.impl("cassi_step_", cassi_step_inplace_autograd);
  m.impl("cassi_step_backward", cassi_step_backward_autograd);
}

}  // namespace lorun
