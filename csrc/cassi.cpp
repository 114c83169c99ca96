#include "cassi.h"

#include <ATen/MemoryOverlap.h>
#include <ATen/OpMathType.h>
#include <torch/library.h>

#include <algorithm>

#include "common/cassi.h"

namespace lorun {
namespace {

using at::IntArrayRef;
using at::Tensor;
using std::string_view;

int64_t widest(IntArrayRef offsets) { return *std::max_element(offsets.begin(), offsets.end()); }

void check_offsets(const char* op, IntArrayRef offsets) {
  TORCH_CHECK_VALUE(!offsets.empty() && offsets.size() <= cassi::kMaxBands, op, ": between 1 and ",
                    cassi::kMaxBands, " bands are supported, got ", offsets.size());
  for (const int64_t offset : offsets) {
    TORCH_CHECK_VALUE(0 <= offset && offset < (int64_t{1} << 30), op,
                      ": step must not move a band to the left, nor by 2^30 columns or more, got offset ",
                      offset);
  }
}

void check_values(const char* op, const char* name, const Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided, op, ": ", name, " must be a dense tensor, got layout ",
                    tensor.layout(), "; convert it with .to_dense()");
  const auto dtype = tensor.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kHalf || dtype == at::kBFloat16, op, ": ",
      name, " must be float32, float64, bfloat16 or float16, got ", dtype, "; convert it with .float()");
}

void check_cube(const char* op, const char* name, const Tensor& x, IntArrayRef offsets) {
  check_offsets(op, offsets);
  check_values(op, name, x);
  TORCH_CHECK_VALUE(x.dim() == 4, op, ": ", name, " must be (B, C, H, W), got shape ", x.sizes());
  TORCH_CHECK_VALUE(x.size(1) == static_cast<int64_t>(offsets.size()), op, ": ", name, " must have ",
                    offsets.size(), " bands, one for each offset of step, got shape ", x.sizes());
  TORCH_CHECK_VALUE(x.size(3) > 0, op, ": ", name, " must have at least one column, got shape ", x.sizes());
}

void check_like(const char* op, const char* name, const Tensor& tensor, const char* cube_name,
                const Tensor& cube) {
  TORCH_CHECK_VALUE(tensor.device() == cube.device(), op, ": ", name, " must be on the device of ", cube_name,
                    ", ", cube.device(), ", got ", tensor.device(), "; move one of them with .to(device)");
  TORCH_CHECK_TYPE(tensor.scalar_type() == cube.scalar_type(), op, ": ", name, " must have the dtype of ",
                   cube_name, ", ", cube.scalar_type(), ", got ", tensor.scalar_type(),
                   "; convert one of them with .to(dtype)");
  TORCH_CHECK_VALUE(tensor.layout() == at::kStrided, op, ": ", name, " must be a dense tensor, got layout ",
                    tensor.layout(), "; convert it with .to_dense()");
}

void check_measurement(const char* op, const char* cube_name, const Tensor& y, const Tensor& x,
                       IntArrayRef offsets) {
  const std::array<int64_t, 3> expected{x.size(0), x.size(2), x.size(3) + widest(offsets)};
  TORCH_CHECK_VALUE(y.sizes() == IntArrayRef(expected), op, ": y must have shape ", IntArrayRef(expected),
                    " (batch, height, width + largest offset) for ", cube_name, " ", x.sizes(), ", got ",
                    y.sizes());
  check_like(op, "y", y, cube_name, x);
}

// The mask as a view of the cube's shape.
Tensor check_mask(const char* op, const Tensor& mask, const char* cube_name, const Tensor& cube,
                  IntArrayRef shape) {
  const int64_t dim = mask.dim();
  TORCH_CHECK_VALUE((2 <= dim && dim <= 4) && mask.sizes() == shape.slice(4 - dim), op,
                    ": mask must be (H, W), (C, H, W) or (B, C, H, W) for (B, C, H, W) = ", shape,
                    ", in unshifted coordinates, got shape ", mask.sizes(),
                    mask.dim() >= 2 && mask.size(-1) > shape[3]
                        ? "; a stored shifted mask is brought back by lorun_kernels.unshift"
                        : "");
  check_like(op, "mask", mask, cube_name, cube);
  return mask.expand(shape);
}

// rho or mu as (B,).
Tensor check_scale(const char* op, bool hqs, const Tensor& scale, const Tensor& x) {
  const char* const name = hqs ? "mu" : "rho";
  TORCH_CHECK_VALUE(scale.dim() == 0 || (scale.dim() == 1 && scale.size(0) == x.size(0)), op, ": ", name,
                    " must be one value or one for each of the ", x.size(0), " samples, got shape ",
                    scale.sizes());
  TORCH_CHECK_VALUE(scale.device() == x.device(), op, ": ", name, " must be on device ", x.device(), ", got ",
                    scale.device(), "; move it with .to(device)");
  TORCH_CHECK_TYPE(scale.scalar_type() == at::toOpMathType(x.scalar_type()), op, ": ", name, " must be ",
                   at::toOpMathType(x.scalar_type()), " here, got ", scale.scalar_type());
  return scale.expand({x.size(0)});
}

// mask as (B, C, H, W) and scale as (B,).
std::tuple<Tensor, Tensor> check_step(const char* op, bool hqs, const Tensor& x, const Tensor& y,
                                      const Tensor& mask, const Tensor& scale, IntArrayRef offsets) {
  const char* const cube = hqs ? "w" : "x";
  check_cube(op, cube, x, offsets);
  check_measurement(op, cube, y, x, offsets);
  return {check_mask(op, mask, cube, x, x.sizes()), check_scale(op, hqs, scale, x)};
}

// The address of the first element, and the address just after the last.
std::pair<const char*, const char*> extent(const Tensor& tensor) {
  int64_t last = 0;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    last += (tensor.size(dim) - 1) * tensor.stride(dim);
  }
  const char* const begin = static_cast<const char*>(tensor.const_data_ptr());
  return {begin, tensor.numel() == 0 ? begin : begin + (last + 1) * tensor.itemsize()};
}

// A step reads a row of every operand after it has begun to write the row of the cube.
void check_apart(const char* op, const char* name, const Tensor& tensor, const char* cube_name,
                 const Tensor& cube) {
  const auto [begin, end] = extent(tensor);
  const auto [cube_begin, cube_end] = extent(cube);
  TORCH_CHECK_VALUE(tensor.device() != cube.device() || end <= cube_begin || cube_end <= begin, op, ": ",
                    name, " must not share memory with ", cube_name, ", which is written; call ", name,
                    ".clone() first");
}

struct AdjointShape {
  std::array<int64_t, 4> cube;
  Tensor mask;
};

AdjointShape check_adjoint(const Tensor& y, const Tensor& mask, IntArrayRef offsets) {
  constexpr auto op = "cassi_adjoint";
  check_offsets(op, offsets);
  check_values(op, "y", y);
  TORCH_CHECK_VALUE(y.dim() == 3, op, ": y must be (B, H, W'), got shape ", y.sizes());
  const int64_t width = y.size(2) - widest(offsets);
  TORCH_CHECK_VALUE(width > 0, op, ": y must be wider than the largest offset, ", widest(offsets),
                    ", got shape ", y.sizes());
  const std::array<int64_t, 4> shape{y.size(0), static_cast<int64_t>(offsets.size()), y.size(1), width};
  return {shape, check_mask(op, mask, "y", y, shape)};
}

Tensor new_measurement(const Tensor& x, IntArrayRef offsets, at::ScalarType dtype) {
  return at::empty({x.size(0), x.size(2), x.size(3) + widest(offsets)}, x.options().dtype(dtype));
}

// A gradient of the mask to be filled, with the mask's own shape; no kernel fills that of an empty cube.
Tensor new_mask_grad(const Tensor& x, int64_t mask_dim) {
  const IntArrayRef shape = x.sizes().slice(4 - mask_dim);
  const auto options = x.options().dtype(at::toOpMathType(x.scalar_type()));
  return x.numel() == 0 ? at::zeros(shape, options) : at::empty(shape, options);
}

}  // namespace

Tensor cassi_forward(const Tensor& x, const Tensor& mask, IntArrayRef offsets, string_view backend) {
  constexpr auto op = "cassi_forward";
  check_cube(op, "x", x, offsets);
  const Tensor full_mask = check_mask(op, mask, "x", x, x.sizes());
  Tensor y = new_measurement(x, offsets, x.scalar_type());
  cassi_backend::forward(backend, x, full_mask, offsets, y);
  return y;
}

Tensor cassi_adjoint(const Tensor& y, const Tensor& mask, IntArrayRef offsets, bool channels_last,
                     string_view backend) {
  const AdjointShape checked = check_adjoint(y, mask, offsets);
  const auto format = channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  Tensor x = at::empty(checked.cube, y.options(), format);
  cassi_backend::adjoint(backend, y, checked.mask, offsets, x);
  return x;
}

Tensor cassi_mask_grad(const Tensor& x, const Tensor& y, int64_t mask_dim, IntArrayRef offsets,
                       string_view backend) {
  constexpr auto op = "cassi_mask_grad";
  check_cube(op, "x", x, offsets);
  check_measurement(op, "x", y, x, offsets);
  TORCH_CHECK_VALUE(2 <= mask_dim && mask_dim <= 4, op, ": mask_dim must be 2, 3 or 4, got ", mask_dim);
  const Tensor grad = new_mask_grad(x, mask_dim);
  cassi_backend::mask_grad(backend, x, y, offsets, grad.expand(x.sizes()));
  return grad.to(x.scalar_type());
}

Tensor cassi_step(const Tensor& x, const Tensor& y, const Tensor& mask, const Tensor& scale,
                  IntArrayRef offsets, bool hqs, string_view backend) {
  const auto [full_mask, per_sample] = check_step(step_name(hqs), hqs, x, y, mask, scale, offsets);
  Tensor out = at::empty_like(x);
  cassi_backend::step(backend, x, y, full_mask, per_sample, offsets, hqs, out, {});
  return out;
}

std::tuple<Tensor, Tensor> cassi_step_residual(const Tensor& x, const Tensor& y, const Tensor& mask,
                                               const Tensor& scale, IntArrayRef offsets, bool hqs,
                                               string_view backend) {
  const auto [full_mask, per_sample] = check_step(step_name(hqs), hqs, x, y, mask, scale, offsets);
  Tensor out = at::empty_like(x);
  Tensor residual = new_measurement(x, offsets, at::toOpMathType(x.scalar_type()));
  cassi_backend::step(backend, x, y, full_mask, per_sample, offsets, hqs, out, residual);
  return {out, residual};
}

void cassi_step_(Tensor& x, const Tensor& y, const Tensor& mask, const Tensor& scale, IntArrayRef offsets,
                 bool hqs, string_view backend) {
  const char* const op = step_name(hqs, /*in_place=*/true);
  const char* const cube = hqs ? "w" : "x";
  const auto [full_mask, per_sample] = check_step(op, hqs, x, y, mask, scale, offsets);
  TORCH_CHECK_VALUE(at::has_internal_overlap(x) != at::MemOverlap::Yes, op, ": ", cube,
                    " must not be an expanded tensor; call .contiguous() first");
  check_apart(op, "y", y, cube, x);
  check_apart(op, "mask", mask, cube, x);
  check_apart(op, hqs ? "mu" : "rho", scale, cube, x);
  cassi_backend::step(backend, x, y, full_mask, per_sample, offsets, hqs, x, {});
}

// The checks alone, for a backend that has no kernels. Composite ops, so that torch.vmap sees a sample's
// shapes.
void cassi_check_forward(const Tensor& x, const Tensor& mask, IntArrayRef offsets) {
  check_cube("cassi_forward", "x", x, offsets);
  check_mask("cassi_forward", mask, "x", x, x.sizes());
}

void cassi_check_adjoint(const Tensor& y, const Tensor& mask, IntArrayRef offsets) {
  check_adjoint(y, mask, offsets);
}

void cassi_check_step(const Tensor& x, const Tensor& y, const Tensor& mask, const Tensor& scale,
                      IntArrayRef offsets, bool hqs, bool in_place) {
  check_step(step_name(hqs, in_place), hqs, x, y, mask, scale, offsets);
}

StepGradients cassi_step_backward(const Tensor& grad, const std::optional<Tensor>& residual,
                                  const std::optional<Tensor>& x, const Tensor& mask, const Tensor& scale,
                                  IntArrayRef offsets, bool hqs, std::array<bool, 4> output_mask,
                                  string_view backend) {
  const char* const op = step_name(hqs);
  const auto [need_x, need_y, need_mask, need_scale] = output_mask;
  check_cube(op, "the gradient", grad, offsets);
  const Tensor full_mask = check_mask(op, mask, "the gradient", grad, grad.sizes());
  const Tensor per_sample = check_scale(op, hqs, scale, grad);
  const auto acc_type = at::toOpMathType(grad.scalar_type());
  if (need_mask || need_scale) {
    TORCH_CHECK_VALUE(residual.has_value() && (x.has_value() || !need_mask), op,
                      ": the gradients of mask and scale need the residual, and the mask's needs x");
    const std::array<int64_t, 3> shape{grad.size(0), grad.size(2), grad.size(3) + widest(offsets)};
    TORCH_CHECK_VALUE(residual->sizes() == IntArrayRef(shape) && residual->scalar_type() == acc_type &&
                          residual->device() == grad.device(),
                      op, ": the residual must be ", acc_type, " of shape ", IntArrayRef(shape), ", got ",
                      residual->scalar_type(), " of shape ", residual->sizes());
  }
  if (need_mask) {
    TORCH_CHECK_VALUE(x->sizes() == grad.sizes(), op, ": x must have the gradient's shape ", grad.sizes(),
                      ", got ", x->sizes());
    check_like(op, "x", *x, "the gradient", grad);
  }
  Tensor grad_x = need_x ? at::empty_like(grad) : Tensor();
  Tensor grad_y = need_y ? new_measurement(grad, offsets, grad.scalar_type()) : Tensor();
  Tensor grad_mask = need_mask ? new_mask_grad(grad, mask.dim()) : Tensor();
  Tensor row_sums =
      need_scale ? at::empty({grad.size(0), grad.size(2)}, grad.options().dtype(acc_type)) : Tensor();
  cassi_backend::step_backward(backend, grad, residual.value_or(Tensor()), x.value_or(Tensor()), full_mask,
                               per_sample, offsets, hqs, grad_x, grad_y,
                               need_mask ? grad_mask.expand(grad.sizes()) : Tensor(), row_sums);
  return {grad_x, grad_y, need_mask ? grad_mask.to(mask.scalar_type()) : Tensor(),
          !need_scale        ? Tensor()
          : scale.dim() == 0 ? row_sums.sum()
                             : row_sums.sum(1)};
}

TORCH_LIBRARY_FRAGMENT(lorun, m) {
  m.def("cassi_check_forward(Tensor x, Tensor mask, int[] offsets) -> ()", cassi_check_forward);
  m.def("cassi_check_adjoint(Tensor y, Tensor mask, int[] offsets) -> ()", cassi_check_adjoint);
  m.def(
      "cassi_check_step(Tensor x, Tensor y, Tensor mask, Tensor scale, int[] offsets, bool hqs,"
      " bool in_place) -> ()",
      cassi_check_step);
  m.def("cassi_forward(Tensor x, Tensor mask, int[] offsets, str backend) -> Tensor");
  m.def("cassi_adjoint(Tensor y, Tensor mask, int[] offsets, bool channels_last, str backend) -> Tensor");
  m.def("cassi_mask_grad(Tensor x, Tensor y, int mask_dim, int[] offsets, str backend) -> Tensor");
  m.def(
      "cassi_step(Tensor x, Tensor y, Tensor mask, Tensor scale, int[] offsets, bool hqs, str backend)"
      " -> Tensor");
  m.def(
      "cassi_step_residual(Tensor x, Tensor y, Tensor mask, Tensor scale, int[] offsets, bool hqs,"
      " str backend) -> (Tensor, Tensor)");
  m.def(
      "cassi_step_(Tensor(a!) x, Tensor y, Tensor mask, Tensor scale, int[] offsets, bool hqs, str backend)"
      " -> ()");
  m.def(
      "cassi_step_backward(Tensor grad, Tensor? residual, Tensor? x, Tensor mask, Tensor scale,"
      " int[] offsets, bool hqs, bool[4] output_mask, str backend) -> (Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(lorun, CompositeExplicitAutograd, m) {
  m.impl("cassi_forward", cassi_forward);
  m.impl("cassi_adjoint", cassi_adjoint);
  m.impl("cassi_mask_grad", cassi_mask_grad);
  m.impl("cassi_step", cassi_step);
  m.impl("cassi_step_residual", cassi_step_residual);
  m.impl("cassi_step_", cassi_step_);
  m.impl("cassi_step_backward", cassi_step_backward);
}

}  // namespace lorun
