// Launchers of the CASSI kernels: raw device pointers and a stream, no torch headers.
#pragma once

#include <cuda_runtime.h>

#include "common/cassi.h"

namespace lorun::cassi::cuda {

// y = Phi x.
cudaError_t forward(const Problem& problem, Cube x, Cube mask, Measurement y, cudaStream_t stream);

// x = Phi^T y.
cudaError_t adjoint(const Problem& problem, Measurement y, Cube mask, Cube x, cudaStream_t stream);

// grad_mask[b, c, h, w] = x[b, c, h, w] * y[b, h, w + o_c], summed over the dimensions where grad_mask has
// stride 0 (batch, band or both). grad_mask holds accumulators.
cudaError_t mask_grad(const Problem& problem, Cube x, Measurement y, Cube grad_mask, cudaStream_t stream);

// out = x - Phi^T (factor * residual), residual = Phi x - y. out may be x itself. scale holds one accumulator
// per sample, scale_stride elements apart. residual, if wanted, holds accumulators.
cudaError_t step(const Problem& problem, Step step, Cube x, Measurement y, Cube mask, const void* scale,
                 int64_t scale_stride, Cube out, Measurement residual, cudaStream_t stream);

// The gradients of `step` from the gradient of its output and from the residual that it stored. With u = Phi
// grad and v = factor * u: grad_x = grad - Phi^T v, grad_y = v, grad_mask is summed as in mask_grad, in
// accumulators (it needs x), and grad_scale is (B, H) contiguous accumulators, one sum per row. Every output
// may have null data; so may residual and x, if no output needs them.
cudaError_t step_backward(const Problem& problem, Step step, Cube grad, Measurement residual, Cube x,
                          Cube mask, const void* scale, int64_t scale_stride, Cube grad_x, Measurement grad_y,
                          Cube grad_mask, void* grad_scale, cudaStream_t stream);

}  // namespace lorun::cassi::cuda
