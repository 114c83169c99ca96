// The CASSI launchers, for ctypes.
#include "cuda/cassi/launchers.h"

using namespace lorun::cassi;

extern "C" {

int cassi_forward(const Problem& problem, const Cube& x, const Cube& mask, const Measurement& y) {
  return cuda::forward(problem, x, mask, y, nullptr);
}

int cassi_adjoint(const Problem& problem, const Measurement& y, const Cube& mask, const Cube& x) {
  return cuda::adjoint(problem, y, mask, x, nullptr);
}

int cassi_mask_grad(const Problem& problem, const Cube& x, const Measurement& y, const Cube& grad_mask) {
  return cuda::mask_grad(problem, x, y, grad_mask, nullptr);
}

int cassi_step(const Problem& problem, int step, const Cube& x, const Measurement& y, const Cube& mask,
               const void* scale, int64_t scale_stride, const Cube& out, const Measurement& residual) {
  return cuda::step(problem, Step{step}, x, y, mask, scale, scale_stride, out, residual, nullptr);
}

int cassi_step_backward(const Problem& problem, int step, const Cube& grad, const Measurement& residual,
                        const Cube& x, const Cube& mask, const void* scale, int64_t scale_stride,
                        const Cube& grad_x, const Measurement& grad_y, const Cube& grad_mask,
                        void* grad_scale) {
  return cuda::step_backward(problem, Step{step}, grad, residual, x, mask, scale, scale_stride, grad_x,
                             grad_y, grad_mask, grad_scale, nullptr);
}
}
