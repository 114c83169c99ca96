// The CASSI kernels as torch ops, lorun_cuda::*, bound through torch's stable ABI only: one build serves
// every torch from 2.11 on.
//
// _C checks arguments in the user's terms before it calls these. The checks here keep a direct call from
// reading or writing outside a tensor.
#include <algorithm>
#include <limits>

#include "cuda/bindings.h"
#include "cuda/cassi/launchers.h"

namespace lorun::cassi::cuda {
namespace {

using lorun::cuda::describe;
using lorun::cuda::DeviceCall;
using lorun::cuda::MaybeTensor;
using lorun::cuda::ScalarType;
using lorun::cuda::Tensor;
using Offsets = std::vector<int64_t>;

Dtype kernel_dtype(const char* name, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Half:
      return Dtype::kFloat16;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    default:
      STD_TORCH_CHECK(false, name, " must be Double, Float, Half or BFloat16, got ", dtype,
                      "; convert it to one of these");
  }
}

Problem make_problem(const char* name, const Tensor& cube, const Offsets& offsets) {
  const auto sizes = cube.sizes();
  STD_TORCH_CHECK(sizes.size() == 4 && cube.numel() > 0 && sizes[1] <= kMaxBands, name,
                  " must be (B, C, H, W), not empty, with at most ", kMaxBands, " bands, got ",
                  describe(sizes, cube.scalar_type()));
  STD_TORCH_CHECK(static_cast<int64_t>(offsets.size()) == sizes[1], "offsets must hold one offset per band, ",
                  sizes[1], ", got ", offsets.size());
  const auto [least, most] = std::minmax_element(offsets.begin(), offsets.end());
  STD_TORCH_CHECK(*least >= 0 && *most <= std::numeric_limits<int32_t>::max(),
                  "offsets must be from 0 to 2^31 - 1, got from ", *least, " to ", *most);
  Problem problem;
  problem.batch = sizes[0];
  problem.bands = sizes[1];
  problem.height = sizes[2];
  problem.width = sizes[3];
  problem.measured = sizes[3] + *most;
  problem.dtype = kernel_dtype(name, cube.scalar_type());
  std::copy(offsets.begin(), offsets.end(), problem.offsets);
  return problem;
}

// One call of an op: the properties that its tensors must share. An absent tensor becomes a view with null
// data.
class Call : public DeviceCall {
 public:
  Call(const char* name, const Tensor& cube, const Offsets& offsets)
      : DeviceCall(name, cube), problem(make_problem(name, cube, offsets)), dtype_(cube.scalar_type()) {}

  Cube cube(const char* name, const MaybeTensor& tensor) const { return view(name, tensor, dtype_); }

  Cube cube_of_sums(const char* name, const MaybeTensor& tensor) const { return view(name, tensor, sums()); }

  Measurement measurement(const char* name, const MaybeTensor& tensor) const {
    return measured_view(name, tensor, dtype_);
  }

  Measurement measurement_of_sums(const char* name, const MaybeTensor& tensor) const {
    return measured_view(name, tensor, sums());
  }

  const void* scale(const Tensor& tensor) const {
    check("scale", tensor, sums(), {problem.batch});
    return tensor.data_ptr();
  }

  void* row_sums(const char* name, const MaybeTensor& tensor) const {
    if (!tensor) {
      return nullptr;
    }
    check(name, *tensor, sums(), {problem.batch, problem.height});
    check_contiguous(name, *tensor);
    return tensor->data_ptr();
  }

  const Problem problem;

 private:
  ScalarType sums() const { return dtype_ == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

  Cube view(const char* name, const MaybeTensor& tensor, ScalarType dtype) const {
    if (!tensor) {
      return {};
    }
    check(name, *tensor, dtype, {problem.batch, problem.bands, problem.height, problem.width});
    const auto strides = tensor->strides();
    return {tensor->data_ptr(), strides[0], strides[1], strides[2], strides[3]};
  }

  Measurement measured_view(const char* name, const MaybeTensor& tensor, ScalarType dtype) const {
    if (!tensor) {
      return {};
    }
    check(name, *tensor, dtype, {problem.batch, problem.height, problem.measured});
    const auto strides = tensor->strides();
    return {tensor->data_ptr(), strides[0], strides[1], strides[2]};
  }

  const ScalarType dtype_;
};

void cassi_forward(const Tensor& x, const Tensor& mask, const Offsets& offsets, const Tensor& y) {
  const Call call("x", x, offsets);
  call.check_launch(forward(call.problem, call.cube("x", x), call.cube("mask", mask),
                            call.measurement("y", y), call.stream));
}

void cassi_adjoint(const Tensor& y, const Tensor& mask, const Offsets& offsets, const Tensor& x) {
  const Call call("x", x, offsets);
  call.check_launch(adjoint(call.problem, call.measurement("y", y), call.cube("mask", mask),
                            call.cube("x", x), call.stream));
}

void cassi_mask_grad(const Tensor& x, const Tensor& y, const Offsets& offsets, const Tensor& grad_mask) {
  const Call call("x", x, offsets);
  call.check_launch(mask_grad(call.problem, call.cube("x", x), call.measurement("y", y),
                              call.cube_of_sums("grad_mask", grad_mask), call.stream));
}

void cassi_step(const Tensor& x, const Tensor& y, const Tensor& mask, const Tensor& scale,
                const Offsets& offsets, bool hqs, const Tensor& out, const MaybeTensor& residual) {
  const Call call("x", x, offsets);
  call.check_launch(step(call.problem, hqs ? Step::kHqs : Step::kPgd, call.cube("x", x),
                         call.measurement("y", y), call.cube("mask", mask), call.scale(scale),
                         scale.stride(0), call.cube("out", out),
                         call.measurement_of_sums("residual", residual), call.stream));
}

void cassi_step_backward(const Tensor& grad, const MaybeTensor& residual, const MaybeTensor& x,
                         const Tensor& mask, const Tensor& scale, const Offsets& offsets, bool hqs,
                         const MaybeTensor& grad_x, const MaybeTensor& grad_y, const MaybeTensor& grad_mask,
                         const MaybeTensor& grad_scale) {
  STD_TORCH_CHECK(residual || !(grad_mask || grad_scale),
                  "residual must be given if grad_mask or grad_scale is wanted, got None");
  STD_TORCH_CHECK(x || !grad_mask, "x must be given if grad_mask is wanted, got None");
  const Call call("grad", grad, offsets);
  call.check_launch(step_backward(
      call.problem, hqs ? Step::kHqs : Step::kPgd, call.cube("grad", grad),
      call.measurement_of_sums("residual", residual), call.cube("x", x), call.cube("mask", mask),
      call.scale(scale), scale.stride(0), call.cube("grad_x", grad_x), call.measurement("grad_y", grad_y),
      call.cube_of_sums("grad_mask", grad_mask), call.row_sums("grad_scale", grad_scale), call.stream));
}

}  // namespace

STABLE_TORCH_LIBRARY(lorun_cuda, library) {
  library.def("cassi_forward(Tensor x, Tensor mask, int[] offsets, Tensor(a!) y) -> ()");
  library.def("cassi_adjoint(Tensor y, Tensor mask, int[] offsets, Tensor(a!) x) -> ()");
  library.def("cassi_mask_grad(Tensor x, Tensor y, int[] offsets, Tensor(a!) grad_mask) -> ()");
  library.def(
      "cassi_step(Tensor x, Tensor y, Tensor mask, Tensor scale, int[] offsets, bool hqs, Tensor(a!) out, "
      "Tensor(b!)? residual) -> ()");
  library.def(
      "cassi_step_backward(Tensor grad, Tensor? residual, Tensor? x, Tensor mask, Tensor scale, "
      "int[] offsets, bool hqs, Tensor(a!)? grad_x, Tensor(b!)? grad_y, Tensor(c!)? grad_mask, "
      "Tensor(d!)? grad_scale) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lorun_cuda, CUDA, library) {
  library.impl("cassi_forward", TORCH_BOX(&cassi_forward));
  library.impl("cassi_adjoint", TORCH_BOX(&cassi_adjoint));
  library.impl("cassi_mask_grad", TORCH_BOX(&cassi_mask_grad));
  library.impl("cassi_step", TORCH_BOX(&cassi_step));
  library.impl("cassi_step_backward", TORCH_BOX(&cassi_step_backward));
}

}  // namespace lorun::cassi::cuda
