// The low-rank convolution's kernels as torch ops, lorun_cuda::*, bound as in cuda/cassi/bindings.cpp.
#include <torch/csrc/stable/ops.h>

#include <array>

#include "cuda/lora/call.h"

namespace lorun::lora::cuda {
namespace {

Activation activation_named(const std::string& name) {
  constexpr std::array kNames{"none", "relu", "gelu", "leaky_relu"};
  const auto found = std::find(kNames.begin(), kNames.end(), name);
  STD_TORCH_CHECK(found != kNames.end(), "activation must be none, relu, gelu or leaky_relu, got ", name);
  return static_cast<Activation>(found - kNames.begin());
}

int64_t channels_of(const char* name, const Tensor& image) { return image_sizes(name, image)[1]; }

int64_t channels_of(const char* name, const MaybeTensor& image) {
  return image ? channels_of(name, *image) : 0;
}

Pair kernel_of(const Tensor& weight) {
  check_dims("weight", weight, 4);
  return {weight.size(2), weight.size(3)};
}

void lora_conv2d(const Tensor& input, const MaybeTensor& input2, const Tensor& weight,
                 const MaybeTensor& lora_up, const MaybeTensor& lora_down, const MaybeTensor& bias,
                 const MaybeTensor& residual, const Pair& stride, const Pair& padding, const Pair& dilation,
                 int64_t groups, double scaling, const std::string& activation, double slope, bool tf32,
                 const Tensor& output, const MaybeTensor& preactivation) {
  const int64_t first = channels_of("input", input), second = channels_of("input2", input2);
  const Pair kernel = kernel_of(weight);
  const ConvCall call("input", input, first + second, second, weight.size(0),
                      Geometry{kernel, stride, padding, dilation, groups}, tf32);
  const Epilogue epilogue{call.bias(bias), activation_named(activation), static_cast<float>(slope),
                          call.output("residual", residual)};
  call.check_launch(
      conv(call.problem, call.input("input", input, first), call.input("input2", input2, second),
           call.weight(weight, lora_up, lora_down, scaling), epilogue, call.output("output", output),
           call.output("preactivation", preactivation), call.stream));
}

void lora_conv2d_grad_input(const Tensor& grad, const Tensor& weight, const MaybeTensor& lora_up,
                            const MaybeTensor& lora_down, const Pair& stride, const Pair& padding,
                            const Pair& dilation, int64_t groups, double scaling, bool tf32,
                            const Tensor& grad_input, const MaybeTensor& grad_input2) {
  const int64_t first = channels_of("grad_input", grad_input);
  const int64_t second = channels_of("grad_input2", grad_input2);
  const Pair kernel = kernel_of(weight);
  const ConvCall call("grad_input", grad_input, first + second, second, weight.size(0),
                      Geometry{kernel, stride, padding, dilation, groups}, tf32);
  call.check_launch(conv_grad_input(call.problem, call.output("grad", grad),
                                    call.weight(weight, lora_up, lora_down, scaling),
                                    call.input("grad_input", grad_input, first),
                                    call.input("grad_input2", grad_input2, second), call.stream));
}

// A gradient's float sums, or null.
float* sums_for(const DeviceCall& call, const char* name, const MaybeTensor& sums, const Tensor& like) {
  if (!sums) {
    return nullptr;
  }
  call.check(name, *sums, ScalarType::Float, {like.size(0), like.size(1)});
  DeviceCall::check_contiguous(name, *sums);
  return static_cast<float*>(sums->data_ptr());
}

void lora_conv2d_grad_adapter(const Tensor& grad, const Tensor& input, const MaybeTensor& input2,
                              const Tensor& lora_up, const Tensor& lora_down, const Pair& kernel_size,
                              const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups,
                              double scaling, bool tf32, bool deterministic, const MaybeTensor& grad_up,
                              const MaybeTensor& grad_down) {
  const int64_t first = channels_of("input", input), second = channels_of("input2", input2);
  const ConvCall call("input", input, first + second, second, channels_of("grad", grad),
                      Geometry{kernel_size, stride, padding, dilation, groups}, tf32);
  const Weight weight = call.weight({}, lora_up, lora_down, scaling);
  float* const up = sums_for(call, "grad_up", grad_up, lora_up);
  float* const down = sums_for(call, "grad_down", grad_down, lora_down);
  const int64_t bytes = conv_grad_adapter_workspace(call.problem, weight, deterministic);
  MaybeTensor workspace;
  if (bytes > 0) {
    workspace = torch::stable::new_empty(input, {bytes}, ScalarType::Byte);
  }
  call.check_launch(conv_grad_adapter(call.problem, call.output("grad", grad),
                                      call.input("input", input, first), call.input("input2", input2, second),
                                      weight, up, down, workspace ? workspace->data_ptr() : nullptr,
                                      deterministic, call.stream));
}

void lora_merge(const Tensor& weight, const Tensor& lora_up, const Tensor& lora_down, double scaling,
                const Tensor& merged) {
  const DeviceCall call("weight", weight);
  check_dims("weight", weight, 4);
  const auto sizes = weight.sizes();
  Weight given{};
  given.dtype = kernel_dtype("weight", weight);
  ConvCall::set_base(given, weight);
  ConvCall::set_adapter(given, call, lora_up, lora_down, weight.scalar_type(), scaling,
                        {sizes[0], sizes[1], sizes[2], sizes[3]});
  const Dtype dtype = kernel_dtype("merged", merged);
  call.check("merged", merged, merged.scalar_type(), {sizes[0], sizes[1], sizes[2], sizes[3]});
  const auto to = merged.strides();
  call.check_launch(merge(given, static_cast<int32_t>(sizes[0]), static_cast<int32_t>(sizes[1]),
                          static_cast<int32_t>(sizes[2]), static_cast<int32_t>(sizes[3]), merged.data_ptr(),
                          to[0], to[1], to[2], to[3], dtype, call.stream));
}

void check_stack(const DeviceCall& call, const char* name, const Tensor& stack) {
  STD_TORCH_CHECK(stack.dim() == 1, name, " must have one dimension, got ",
                  describe(stack.sizes(), stack.scalar_type()));
  call.check_device(name, stack);
  DeviceCall::check_contiguous(name, stack);
}

// The contents of the table are not checked, because they are on the GPU.
void check_stage(const DeviceCall& call, const Tensor& table, const Tensor& ups, const Tensor& downs) {
  STD_TORCH_CHECK(table.dim() == 2, "table must be (layers, 16), got ",
                  describe(table.sizes(), table.scalar_type()));
  call.check("table", table, ScalarType::Long, {table.size(0), 16});
  DeviceCall::check_contiguous("table", table);
  STD_TORCH_CHECK(table.size(0) > 0 && table.size(0) <= INT_MAX, "table must have a row for each layer, got ",
                  table.size(0));
  check_stack(call, "ups", ups);
  check_stack(call, "downs", downs);
  STD_TORCH_CHECK(downs.scalar_type() == ups.scalar_type(), "downs must be ", ups.scalar_type(),
                  " like ups, got ", downs.scalar_type());
}

void lora_merge_stage(const Tensor& table, const Tensor& ups, const Tensor& downs, int64_t elements,
                      const Tensor& merged) {
  const DeviceCall call("table", table);
  check_stage(call, table, ups, downs);
  check_stack(call, "merged", merged);
  STD_TORCH_CHECK(elements > 0 && elements <= std::min<int64_t>(merged.numel(), INT_MAX),
                  "elements must be from 1 to the number of elements of merged, got ", elements);
  call.check_launch(merge_stage(static_cast<const StageLayer*>(table.data_ptr()),
                                static_cast<int32_t>(table.size(0)), elements, ups.data_ptr(),
                                downs.data_ptr(), kernel_dtype("ups", ups), merged.data_ptr(),
                                kernel_dtype("merged", merged), call.stream));
}

void lora_merge_stage_backward(const Tensor& table, const Tensor& ups, const Tensor& downs, int64_t rows,
                               int64_t columns, const Tensor& grad, const Tensor& grad_ups,
                               const Tensor& grad_downs) {
  const DeviceCall call("table", table);
  check_stage(call, table, ups, downs);
  check_stack(call, "grad", grad);
  call.check("grad_ups", grad_ups, ups.scalar_type(), {ups.numel()});
  call.check("grad_downs", grad_downs, ups.scalar_type(), {downs.numel()});
  DeviceCall::check_contiguous("grad_ups", grad_ups);
  DeviceCall::check_contiguous("grad_downs", grad_downs);
  const int64_t most = std::min<int64_t>(grad.numel(), INT_MAX);
  STD_TORCH_CHECK(rows > 0 && rows <= most && columns > 0 && columns <= most,
                  "rows and columns must be from 1 to the number of elements of grad, got ", rows, " and ",
                  columns);
  call.check_launch(merge_stage_backward(
      static_cast<const StageLayer*>(table.data_ptr()), static_cast<int32_t>(table.size(0)), rows, columns,
      ups.data_ptr(), downs.data_ptr(), kernel_dtype("ups", ups), grad.data_ptr(), kernel_dtype("grad", grad),
      grad_ups.data_ptr(), grad_downs.data_ptr(), call.stream));
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(lorun_cuda, library) {
  library.def(
      "lora_conv2d(Tensor input, Tensor? input2, Tensor weight, Tensor? lora_up, Tensor? lora_down, "
      "Tensor? bias, Tensor? residual, int[] stride, int[] padding, int[] dilation, int groups, "
      "float scaling, str activation, float slope, bool tf32, Tensor(a!) output, "
      "Tensor(b!)? preactivation) -> ()");
  library.def(
      "lora_conv2d_grad_input(Tensor grad, Tensor weight, Tensor? lora_up, Tensor? lora_down, int[] stride, "
      "int[] padding, int[] dilation, int groups, float scaling, bool tf32, Tensor(a!) grad_input, "
      "Tensor(b!)? grad_input2) -> ()");
  library.def(
      "lora_conv2d_grad_adapter(Tensor grad, Tensor input, Tensor? input2, Tensor lora_up, "
      "Tensor lora_down, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, "
      "float scaling, bool tf32, bool deterministic, Tensor(a!)? grad_up, Tensor(b!)? grad_down) -> ()");
  library.def(
      "lora_merge(Tensor weight, Tensor lora_up, Tensor lora_down, float scaling, Tensor(a!) merged) -> ()");
  library.def(
      "lora_merge_stage(Tensor table, Tensor ups, Tensor downs, int elements, Tensor(a!) merged) -> ()");
  library.def(
      "lora_merge_stage_backward(Tensor table, Tensor ups, Tensor downs, int rows, int columns, Tensor grad, "
      "Tensor(a!) grad_ups, Tensor(b!) grad_downs) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lorun_cuda, CUDA, library) {
  library.impl("lora_conv2d", TORCH_BOX(&lora_conv2d));
  library.impl("lora_conv2d_grad_input", TORCH_BOX(&lora_conv2d_grad_input));
  library.impl("lora_conv2d_grad_adapter", TORCH_BOX(&lora_conv2d_grad_adapter));
  library.impl("lora_merge", TORCH_BOX(&lora_merge));
  library.impl("lora_merge_stage", TORCH_BOX(&lora_merge_stage));
  library.impl("lora_merge_stage_backward", TORCH_BOX(&lora_merge_stage_backward));
}

}  // namespace lorun::lora::cuda
