// The CASSI ops: checks and outputs (cassi.cpp), backends (cassi_backends.cpp), gradients
// (cassi_autograd.cpp).
#pragma once

#include <ATen/ATen.h>

#include <array>
#include <string_view>
#include <tuple>

namespace lorun {

// Raw kernels: all shapes have been checked, the results are allocated, and autograd records nothing. mask
// and grad_mask are expanded to (B, C, H, W), scale to (B,); residual, grad_mask and grad_scale hold
// accumulators.
namespace cassi_backend {

void forward(std::string_view backend, const at::Tensor& x, const at::Tensor& mask, at::IntArrayRef offsets,
             const at::Tensor& y);
void adjoint(std::string_view backend, const at::Tensor& y, const at::Tensor& mask, at::IntArrayRef offsets,
             const at::Tensor& x);
void mask_grad(std::string_view backend, const at::Tensor& x, const at::Tensor& y, at::IntArrayRef offsets,
               const at::Tensor& grad_mask);
void step(std::string_view backend, const at::Tensor& x, const at::Tensor& y, const at::Tensor& mask,
          const at::Tensor& scale, at::IntArrayRef offsets, bool hqs, const at::Tensor& out,
          const at::Tensor& residual);
void step_backward(std::string_view backend, const at::Tensor& grad, const at::Tensor& residual,
                   const at::Tensor& x, const at::Tensor& mask, const at::Tensor& scale,
                   at::IntArrayRef offsets, bool hqs, const at::Tensor& grad_x, const at::Tensor& grad_y,
                   const at::Tensor& grad_mask, const at::Tensor& grad_scale);

}  // namespace cassi_backend

// The name that a user knows the op by.
inline const char* step_name(bool hqs, bool in_place = false) {
  return hqs ? (in_place ? "cassi_hqs_step_" : "cassi_hqs_step")
             : (in_place ? "cassi_pgd_step_" : "cassi_pgd_step");
}

using StepGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

at::Tensor cassi_forward(const at::Tensor& x, const at::Tensor& mask, at::IntArrayRef offsets,
                         std::string_view backend);
at::Tensor cassi_adjoint(const at::Tensor& y, const at::Tensor& mask, at::IntArrayRef offsets,
                         bool channels_last, std::string_view backend);
// The gradient of either with respect to its mask: x * shifted-back y, summed over the dimensions that the
// mask lacks.
at::Tensor cassi_mask_grad(const at::Tensor& x, const at::Tensor& y, int64_t mask_dim,
                           at::IntArrayRef offsets, std::string_view backend);
at::Tensor cassi_step(const at::Tensor& x, const at::Tensor& y, const at::Tensor& mask,
                      const at::Tensor& scale, at::IntArrayRef offsets, bool hqs, std::string_view backend);
// The same, and Phi x - y for the backward pass.
std::tuple<at::Tensor, at::Tensor> cassi_step_residual(const at::Tensor& x, const at::Tensor& y,
                                                       const at::Tensor& mask, const at::Tensor& scale,
                                                       at::IntArrayRef offsets, bool hqs,
                                                       std::string_view backend);
void cassi_step_(at::Tensor& x, const at::Tensor& y, const at::Tensor& mask, const at::Tensor& scale,
                 at::IntArrayRef offsets, bool hqs, std::string_view backend);
// output_mask is in the order of the results: x, y, mask, scale.
StepGradients cassi_step_backward(const at::Tensor& grad, const std::optional<at::Tensor>& residual,
                                  const std::optional<at::Tensor>& x, const at::Tensor& mask,
                                  const at::Tensor& scale, at::IntArrayRef offsets, bool hqs,
                                  std::array<bool, 4> output_mask, std::string_view backend);

}  // namespace lorun
