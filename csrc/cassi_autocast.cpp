// Autocast must not round a measurement: operands of different precision are converted to the widest of them.
#include <ATen/OpMathType.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "cassi.h"
#include "lora.h"

namespace lorun {
namespace {

using at::IntArrayRef;
using at::Tensor;
using std::string_view;

at::ScalarType widest_type(at::ArrayRef<Tensor> tensors) {
  at::ScalarType type = tensors[0].scalar_type();
  for (const Tensor& tensor : tensors) {
    // What is not floating point is left for the op to refuse.
    type = tensor.is_floating_point() ? at::promoteTypes(type, tensor.scalar_type()) : type;
  }
  return type;
}

Tensor widened(const Tensor& tensor, at::ScalarType type) {
  return tensor.is_floating_point() ? tensor.to(type) : tensor;
}

Tensor cassi_forward_autocast(const Tensor& x, const Tensor& mask, IntArrayRef offsets, string_view backend) {
  static const auto op = find_op<decltype(cassi_forward)>("lorun::cassi_forward");
  const NoAutocast guard;
  const auto type = widest_type({x, mask});
  return op.call(widened(x, type), widened(mask, type), offsets, backend);
}

Tensor cassi_adjoint_autocast(const Tensor& y, const Tensor& mask, IntArrayRef offsets, bool channels_last,
                              string_view backend) {
  static const auto op = find_op<decltype(cassi_adjoint)>("lorun::cassi_adjoint");
  const NoAutocast guard;
  const auto type = widest_type({y, mask});
  return op.call(widened(y, type), widened(mask, type), offsets, channels_last, backend);
}

Tensor cassi_step_autocast(const Tensor& x, const Tensor& y, const Tensor& mask, const Tensor& scale,
                           IntArrayRef offsets, bool hqs, string_view backend) {
  static const auto op = find_op<decltype(cassi_step)>("lorun::cassi_step");
  const NoAutocast guard;
  const auto type = widest_type({x, y, mask});
  return op.call(widened(x, type), widened(y, type), widened(mask, type), scale.to(at::toOpMathType(type)),
                 offsets, hqs, backend);
}

}  // namespace

TORCH_LIBRARY_IMPL(lorun, AutocastCPU, m) {
  m.impl("cassi_forward", cassi_forward_autocast);
  m.impl("cassi_adjoint", cassi_adjoint_autocast);
  m.impl("cassi_step", cassi_step_autocast);
}

TORCH_LIBRARY_IMPL(lorun, AutocastCUDA, m) {
  m.impl("cassi_forward", cassi_forward_autocast);
  m.impl("cassi_adjoint", cassi_adjoint_autocast);
  m.impl("cassi_step", cassi_step_autocast);
}

}  // namespace lorun
