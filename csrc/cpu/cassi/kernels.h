// CASSI kernels on CPU: what cuda/cassi/launchers.h declares, without a stream.
#pragma once

#include "common/cassi.h"

namespace lorun::cassi::cpu {

void forward(const Problem& problem, Cube x, Cube mask, Measurement y);
void adjoint(const Problem& problem, Measurement y, Cube mask, Cube x);
void mask_grad(const Problem& problem, Cube x, Measurement y, Cube grad_mask);
void step(const Problem& problem, Step step, Cube x, Measurement y, Cube mask, const void* scale,
          int64_t scale_stride, Cube out, Measurement residual);
void step_backward(const Problem& problem, Step step, Cube grad, Measurement residual, Cube x, Cube mask,
                   const void* scale, int64_t scale_stride, Cube grad_x, Measurement grad_y, Cube grad_mask,
                   void* grad_scale);

}  // namespace lorun::cassi::cpu
