// The bindings of the CASSI kernels, registered for CPU tensors, with launchers that record their arguments:
// what a GPU would be asked to do, on a machine without one.
#include "bindings_on_cpu.h"

#include "cuda/cassi/bindings.cpp"

namespace lorun::cassi {

std::ostream& operator<<(std::ostream& out, const Problem& p) {
  out << p.batch << ' ' << p.bands << ' ' << p.height << ' ' << p.width << ' ' << p.measured << ' '
      << static_cast<int>(p.dtype);
  for (int64_t band = 0; band < p.bands; ++band) {
    out << ' ' << p.offsets[band];
  }
  return out;
}

std::ostream& operator<<(std::ostream& out, const Cube& c) {
  return out << reinterpret_cast<intptr_t>(c.data) << ' ' << c.batch << ' ' << c.band << ' ' << c.row << ' '
             << c.column;
}

std::ostream& operator<<(std::ostream& out, const Measurement& m) {
  return out << reinterpret_cast<intptr_t>(m.data) << ' ' << m.batch << ' ' << m.row << ' ' << m.column;
}

std::ostream& operator<<(std::ostream& out, Step step) { return out << static_cast<int>(step); }

namespace cuda {

using on_cpu::address;
using on_cpu::record;

cudaError_t forward(const Problem& problem, Cube x, Cube mask, Measurement y, cudaStream_t stream) {
  return record(stream, problem, x, mask, y);
}

cudaError_t adjoint(const Problem& problem, Measurement y, Cube mask, Cube x, cudaStream_t stream) {
  return record(stream, problem, y, mask, x);
}

cudaError_t mask_grad(const Problem& problem, Cube x, Measurement y, Cube grad_mask, cudaStream_t stream) {
  return record(stream, problem, x, y, grad_mask);
}

cudaError_t step(const Problem& problem, Step step, Cube x, Measurement y, Cube mask, const void* scale,
                 int64_t scale_stride, Cube out, Measurement residual, cudaStream_t stream) {
  return record(stream, problem, step, x, y, mask, address(scale), scale_stride, out, residual);
}

cudaError_t step_backward(const Problem& problem, Step step, Cube grad, Measurement residual, Cube x,
                          Cube mask, const void* scale, int64_t scale_stride, Cube grad_x, Measurement grad_y,
                          Cube grad_mask, void* grad_scale, cudaStream_t stream) {
  return record(stream, problem, step, grad, residual, x, mask, address(scale), scale_stride, grad_x, grad_y,
                grad_mask, address(grad_scale));
}

}  // namespace cuda
}  // namespace lorun::cassi
