#include <torch/library.h>

#include <algorithm>
#include <string>

#include "backends.h"
#include "cassi.h"
#include "cpu/cassi/kernels.h"

namespace lorun::cassi_backend {
namespace {

using at::IntArrayRef;
using at::Tensor;
using std::string_view;

cassi::Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return cassi::Dtype::kFloat64;
    case at::kHalf:
      return cassi::Dtype::kFloat16;
    case at::kBFloat16:
      return cassi::Dtype::kBFloat16;
    default:
      return cassi::Dtype::kFloat32;
  }
}

cassi::Problem problem_of(const Tensor& cube, IntArrayRef offsets) {
  cassi::Problem problem{cube.size(0), cube.size(1), cube.size(2), cube.size(3), 0, dtype_of(cube), {}};
  std::copy(offsets.begin(), offsets.end(), problem.offsets);
  problem.measured = cube.size(3) + *std::max_element(offsets.begin(), offsets.end());
  return problem;
}

// Kernels do not write to what is given as an operand; Cube and Measurement have no const form.
void* operand(const Tensor& t) { return const_cast<void*>(t.const_data_ptr()); }

// Memory to write to: a tensor that shared its memory until the first write has its own from now on.
void* result(const Tensor& t) { return t.mutable_data_ptr(); }

cassi::Cube cube_of(const Tensor& t, void* (*data)(const Tensor&) = operand) {
  if (!t.defined()) {
    return {};
  }
  return {data(t), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

cassi::Measurement measurement_of(const Tensor& t, void* (*data)(const Tensor&) = operand) {
  if (!t.defined()) {
    return {};
  }
  return {data(t), t.stride(0), t.stride(1), t.stride(2)};
}

cassi::Step step_of(bool hqs) { return hqs ? cassi::Step::kHqs : cassi::Step::kPgd; }

void check_cpu(const Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.is_cpu(), "backend \"cpu\" needs tensors on the CPU, got ", tensor.device(),
                    "; choose another backend or move them with .cpu()");
}

}  // namespace

void forward(string_view backend, const Tensor& x, const Tensor& mask, IntArrayRef offsets, const Tensor& y) {
  if (x.numel() == 0) {
    y.zero_();
  } else if (backend == "cpu") {
    check_cpu(x);
    cassi::cpu::forward(problem_of(x, offsets), cube_of(x), cube_of(mask), measurement_of(y, result));
  } else {
    call_raw_op(backend, "cassi_forward", x, mask, offsets, y);
  }
}

void adjoint(string_view backend, const Tensor& y, const Tensor& mask, IntArrayRef offsets, const Tensor& x) {
  if (x.numel() == 0) {
    return;
  }
  if (backend == "cpu") {
    check_cpu(y);
    cassi::cpu::adjoint(problem_of(x, offsets), measurement_of(y), cube_of(mask), cube_of(x, result));
  } else {
    call_raw_op(backend, "cassi_adjoint", y, mask, offsets, x);
  }
}

void mask_grad(string_view backend, const Tensor& x, const Tensor& y, IntArrayRef offsets,
               const Tensor& grad_mask) {
  if (x.numel() == 0) {
    return;
  }
  if (backend == "cpu") {
    check_cpu(x);
    cassi::cpu::mask_grad(problem_of(x, offsets), cube_of(x), measurement_of(y), cube_of(grad_mask, result));
  } else {
    call_raw_op(backend, "cassi_mask_grad", x, y, offsets, grad_mask);
  }
}

void step(string_view backend, const Tensor& x, const Tensor& y, const Tensor& mask, const Tensor& scale,
          IntArrayRef offsets, bool hqs, const Tensor& out, const Tensor& residual) {
  if (x.numel() == 0) {
    return;
  }
  if (backend == "cpu") {
    check_cpu(x);
    cassi::cpu::step(problem_of(x, offsets), step_of(hqs), cube_of(x), measurement_of(y), cube_of(mask),
                     operand(scale), scale.stride(0), cube_of(out, result), measurement_of(residual, result));
  } else {
    call_raw_op(backend, "cassi_step", x, y, mask, scale, offsets, hqs, out, optional(residual));
  }
}

void step_backward(string_view backend, const Tensor& grad, const Tensor& residual, const Tensor& x,
                   const Tensor& mask, const Tensor& scale, IntArrayRef offsets, bool hqs,
                   const Tensor& grad_x, const Tensor& grad_y, const Tensor& grad_mask,
                   const Tensor& grad_scale) {
  if (grad.numel() == 0) {
    return;
  }
  if (backend == "cpu") {
    check_cpu(grad);
    cassi::cpu::step_backward(problem_of(grad, offsets), step_of(hqs), cube_of(grad),
                              measurement_of(residual), cube_of(x), cube_of(mask), operand(scale),
                              scale.stride(0), cube_of(grad_x, result), measurement_of(grad_y, result),
                              cube_of(grad_mask, result),
                              grad_scale.defined() ? result(grad_scale) : nullptr);
  } else {
    call_raw_op(backend, "cassi_step_backward", grad, optional(residual), optional(x), mask, scale, offsets,
                hqs, optional(grad_x), optional(grad_y), optional(grad_mask), optional(grad_scale));
  }
}

}  // namespace lorun::cassi_backend
