#include "lora_backends.h"

#include <algorithm>

#include "backends.h"

namespace lorun::lora_backend {
namespace {

using at::Tensor;
using std::string_view;
using MaybeTensor = std::optional<Tensor>;

std::vector<int64_t> numbers(c10::SymIntArrayRef values) {
  std::vector<int64_t> result;
  for (const auto& value : values) {
    result.push_back(value.expect_int());
  }
  return result;
}

bool kernels_know(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16;
}

// Kernels read whole pixels: the channels of an image must be contiguous.
Tensor channels_together(const Tensor& image) {
  return image.stride(1) == 1 ? image : image.contiguous(at::MemoryFormat::ChannelsLast);
}

MaybeTensor channels_together(const MaybeTensor& image) {
  return image ? std::optional(channels_together(*image)) : std::nullopt;
}

MaybeTensor contiguous(const MaybeTensor& tensor) {
  return tensor ? std::optional(tensor->contiguous()) : std::nullopt;
}

// Whether not even a slice of W of 16 channels fits in a multiprocessor: a block of lorun_cuda would have to
// merge it again for every tile of pixels.
bool outgrows_a_block(const Tensor& weight, at::ScalarType dtype) {
  constexpr int64_t kSlice = 16;
  constexpr int64_t kBytes = 96 * 1024;
  const int64_t taps = weight.size(2) * weight.size(3);
  return std::max(weight.size(0), weight.size(1)) * taps * kSlice * at::elementSize(dtype) > kBytes;
}

// W as it is passed to a kernel: in parts, or merged.
struct Given {
  Tensor weight;
  MaybeTensor up, down;
};

Given given(string_view backend, const Convolution& conv, const Tensor& weight, const MaybeTensor& up,
            const MaybeTensor& down, at::ScalarType dtype) {
  if (backend == "cuda" && up && conv.groups == 1 && outgrows_a_block(weight, dtype)) {
    const Tensor merged = merge(weight, *up, *down, conv.scaling, at::MemoryFormat::ChannelsLast, dtype);
    if (merged.defined()) {
      return {merged, std::nullopt, std::nullopt};
    }
  }
  return {weight, contiguous(up), contiguous(down)};
}

bool tf32_allowed() { return at::globalContext().allowTF32CuBLAS(); }

}  // namespace

Convolution::Convolution(c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
                         c10::SymIntArrayRef dilation, int64_t groups, double scaling)
    : stride(numbers(stride)),
      padding(numbers(padding)),
      dilation(numbers(dilation)),
      groups(groups),
      scaling(scaling) {}

bool takes(string_view backend, const Tensor& input, const Tensor& weight, int64_t groups) {
  if (backend == "aten") {
    return false;
  }
  const bool depthwise = weight.size(1) == 1 && weight.size(0) == groups;
  return kernels_know(input.scalar_type()) && (groups == 1 || depthwise) && input.numel() > 0;
}

Tensor new_output(const Convolution& conv, const Tensor& input, const Tensor& weight) {
  std::array<int64_t, 2> size;
  for (int d = 0; d < 2; ++d) {
    const int64_t reach = conv.dilation[d] * (weight.size(2 + d) - 1) + 1;
    const int64_t padded = input.size(2 + d) + 2 * conv.padding[d];
    TORCH_CHECK(padded >= reach, "lora_conv2d: the padded input (", padded,
                ") must not be smaller than the dilated kernel (", reach, "); pad more");
    size[d] = (padded - reach) / conv.stride[d] + 1;
  }
  return at::empty({input.size(0), weight.size(0), size[0], size[1]}, input.options(),
                   at::MemoryFormat::ChannelsLast);
}

void forward(string_view backend, const Convolution& conv, const Tensor& input, const MaybeTensor& input2,
             const Tensor& weight, const MaybeTensor& up, const MaybeTensor& down, const MaybeTensor& bias,
             const MaybeTensor& residual, string_view activation, double slope, const Tensor& output,
             const Tensor& preactivation) {
  const Given w = given(backend, conv, weight, up, down, input.scalar_type());
  call_raw_op(backend, "lora_conv2d", channels_together(input), channels_together(input2), w.weight, w.up,
              w.down, contiguous(bias), channels_together(residual), conv.stride, conv.padding, conv.dilation,
              conv.groups, conv.scaling, std::string(activation), slope, tf32_allowed(), output,
              optional(preactivation));
}

void grad_input_into(string_view backend, const Convolution& conv, const Tensor& grad, const Tensor& weight,
                     const Tensor& up, const Tensor& down, const Tensor& grad_input,
                     const Tensor& grad_input2) {
  const Given w = given(backend, conv, weight, up, down, grad.scalar_type());
  call_raw_op(backend, "lora_conv2d_grad_input", channels_together(grad), w.weight, w.up, w.down, conv.stride,
              conv.padding, conv.dilation, conv.groups, conv.scaling, tf32_allowed(), grad_input,
              optional(grad_input2));
}

std::pair<Tensor, Tensor> grad_input(string_view backend, const Convolution& conv, const Tensor& grad,
                                     const Tensor& weight, const Tensor& up, const Tensor& down,
                                     const Tensor& input, const MaybeTensor& input2) {
  const auto like = [](const Tensor& image) {
    return at::empty(image.sizes(), image.options(), at::MemoryFormat::ChannelsLast);
  };
  const Tensor first = like(input);
  const Tensor second = input2 ? like(*input2) : Tensor();
  grad_input_into(backend, conv, grad, weight, up, down, first, second);
  return {first, second};
}

std::pair<Tensor, Tensor> grad_adapter(string_view backend, const Convolution& conv, const Tensor& grad,
                                       const Tensor& input, const MaybeTensor& input2, const Tensor& weight,
                                       const Tensor& up, const Tensor& down, std::array<bool, 2> mask) {
  const auto sum_for = [](const Tensor& factor, bool wanted) {
    return wanted ? at::zeros(factor.sizes(), factor.options().dtype(at::kFloat)) : Tensor();
  };
  const Tensor grad_up = sum_for(up, mask[0]);
  const Tensor grad_down = sum_for(down, mask[1]);
  const std::vector<int64_t> kernel_size{weight.size(2), weight.size(3)};
  call_raw_op(backend, "lora_conv2d_grad_adapter", channels_together(grad), channels_together(input),
              channels_together(input2), up.contiguous(), down.contiguous(), kernel_size, conv.stride,
              conv.padding, conv.dilation, conv.groups, conv.scaling, tf32_allowed(),
              at::globalContext().deterministicAlgorithms(), optional(grad_up), optional(grad_down));
  return {mask[0] ? grad_up.to(up.scalar_type()) : Tensor(),
          mask[1] ? grad_down.to(down.scalar_type()) : Tensor()};
}

Tensor merge(const Tensor& weight, const Tensor& up, const Tensor& down, double scaling,
             at::MemoryFormat layout, at::ScalarType dtype) {
  if (!kernels_know(weight.scalar_type()) || !kernels_know(dtype)) {
    return {};
  }
  for (const char* const backend : {"cuda", "triton"}) {
    if (find_raw_op(backend, "lora_merge")) {
      const Tensor merged = at::empty(weight.sizes(), weight.options().dtype(dtype), layout);
      // A linear layer's weight is that of a 1 x 1 convolution.
      const auto as_kernel = [](const Tensor& t) { return t.dim() == 2 ? t.unsqueeze(-1).unsqueeze(-1) : t; };
      call_raw_op(backend, "lora_merge", as_kernel(weight), up.contiguous(), down.contiguous(), scaling,
                  as_kernel(merged));
      return merged;
    }
  }
  return {};
}

}  // namespace lorun::lora_backend
