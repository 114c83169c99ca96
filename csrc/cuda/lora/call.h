// The arguments of the low-rank convolution's ops, checked and converted to those of the launchers.
#pragma once

#include <climits>

#include "cuda/bindings.h"
#include "cuda/lora/launchers.h"

namespace lorun::lora::cuda {

using lorun::cuda::describe;
using lorun::cuda::DeviceCall;
using lorun::cuda::IntHeaderOnlyArrayRef;
using lorun::cuda::MaybeTensor;
using lorun::cuda::ScalarType;
using lorun::cuda::Tensor;
using Pair = std::vector<int64_t>;

inline Dtype kernel_dtype(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Half:
      return Dtype::kFloat16;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    default:
      STD_TORCH_CHECK(false, name, " must be Float, Half or BFloat16, got ", tensor.scalar_type(),
                      "; convert it to one of these");
  }
}

inline void check_dims(const char* name, const Tensor& tensor, int64_t dims) {
  STD_TORCH_CHECK(tensor.dim() == dims && tensor.numel() <= INT_MAX, name, " must have ", dims,
                  " dimensions and at most 2^31 - 1 elements, got ",
                  describe(tensor.sizes(), tensor.scalar_type()));
}

// The sizes of an image, which may have any number of elements.
inline IntHeaderOnlyArrayRef image_sizes(const char* name, const Tensor& image) {
  const auto sizes = image.sizes();
  STD_TORCH_CHECK(sizes.size() == 4 && *std::max_element(sizes.begin(), sizes.end()) <= INT_MAX, name,
                  " must be (B, C, H, W), each below 2^31, got ", describe(sizes, image.scalar_type()));
  return sizes;
}

struct Geometry {
  Pair kernel_size, stride, padding, dilation;
  int64_t groups;

  void check() const {
    check_pair("kernel_size", kernel_size, 1);
    check_pair("stride", stride, 1);
    check_pair("padding", padding, 0);
    check_pair("dilation", dilation, 1);
  }

  int64_t reach(int d) const { return dilation[d] * (kernel_size[d] - 1) + 1; }

  int64_t out_size(int d, int64_t size) const {
    const int64_t padded = size + 2 * padding[d];
    STD_TORCH_CHECK(padded >= reach(d) && padded <= INT_MAX, "the padded input must be from ", reach(d),
                    " (the reach of the dilated kernel) to 2^31 - 1 pixels high and wide, got ", padded);
    return (padded - reach(d)) / stride[d] + 1;
  }

 private:
  static void check_pair(const char* name, const Pair& pair, int64_t least) {
    STD_TORCH_CHECK(
        pair.size() == 2 && std::min(pair[0], pair[1]) >= least && std::max(pair[0], pair[1]) <= SHRT_MAX,
        name, " must be two numbers from ", least, " to 2^15 - 1, got ",
        describe({pair.data(), pair.size()}, ScalarType::Long));
  }
};

// One convolution: the properties that its tensors must share.
class ConvCall : public DeviceCall {
 public:
  // `image` has the input's batch and size; the last in_channels2 of in_channels are in a second input.
  ConvCall(const char* name, const Tensor& image, int64_t in_channels, int64_t in_channels2,
           int64_t out_channels, const Geometry& geometry, bool tf32)
      : DeviceCall(name, image),
        problem(make_problem(name, image, in_channels, in_channels2, out_channels, geometry, tf32)),
        dtype_(image.scalar_type()) {}

  Image input(const char* name, const MaybeTensor& tensor, int64_t channels) const {
    return view(name, tensor, channels, problem.height, problem.width);
  }

  Image output(const char* name, const MaybeTensor& tensor) const {
    return view(name, tensor, problem.out_channels, problem.out_height, problem.out_width);
  }

  // W consists of `base`, if given, and of the adapter, if given.
  Weight weight(const MaybeTensor& base, const MaybeTensor& up, const MaybeTensor& down,
                double scaling) const {
    STD_TORCH_CHECK(up.has_value() == down.has_value(), "lora_up and lora_down must be given together");
    const Tensor& first = base ? *base : *up;
    STD_TORCH_CHECK(first.scalar_type() == dtype_ || first.scalar_type() == ScalarType::Float,
                    base ? "weight" : "lora_up", " must be ", dtype_,
                    dtype_ == ScalarType::Float ? "" : " or Float", ", got ", first.scalar_type());
    Weight weight{};
    weight.dtype = kernel_dtype("weight", first);
    if (base) {
      check("weight", *base, first.scalar_type(),
            {problem.out_channels, in_group(), problem.kernel_h, problem.kernel_w});
      set_base(weight, *base);
    }
    if (up) {
      set_adapter(weight, *this, *up, *down, first.scalar_type(), scaling,
                  {problem.out_channels, in_group(), problem.kernel_h, problem.kernel_w});
      STD_TORCH_CHECK(problem.groups > 1 || row_of_out() % weight.columns == 0,
                      "the columns of lora_down must divide an output channel's ", row_of_out(),
                      " weights, got ", weight.columns);
    }
    return weight;
  }

  const void* bias(const MaybeTensor& tensor) const {
    if (!tensor) {
      return nullptr;
    }
    check("bias", *tensor, dtype_, {problem.out_channels});
    check_contiguous("bias", *tensor);
    return tensor->data_ptr();
  }

  static void set_base(Weight& weight, const Tensor& base) {
    const auto strides = base.strides();
    weight.base = base.data_ptr();
    weight.out_stride = strides[0];
    weight.in_stride = strides[1];
    weight.row_stride = strides[2];
    weight.column_stride = strides[3];
  }

  // `shape` is that of W; each of its elements belongs to one of up @ down.
  static void set_adapter(Weight& weight, const DeviceCall& call, const Tensor& up, const Tensor& down,
                          ScalarType dtype, double scaling, std::initializer_list<int64_t> shape) {
    int64_t elements = 1;
    for (const int64_t size : shape) {
      elements *= size;
    }
    check_dims("lora_up", up, 2);
    check_dims("lora_down", down, 2);
    const int64_t inner = down.size(0), columns = down.size(1);
    STD_TORCH_CHECK(inner > 0 && columns > 0 && elements % columns == 0,
                    "lora_down must not be empty, and its columns must divide W's ", elements,
                    " elements, got ", describe(down.sizes(), down.scalar_type()));
    call.check("lora_up", up, dtype, {elements / columns, inner});
    call.check("lora_down", down, dtype, {inner, columns});
    check_contiguous("lora_up", up);
    check_contiguous("lora_down", down);
    weight.up = up.data_ptr();
    weight.down = down.data_ptr();
    weight.inner = static_cast<int32_t>(inner);
    weight.columns = static_cast<int32_t>(columns);
    weight.scaling = static_cast<float>(scaling);
  }

  const Problem problem;

 private:
  static Problem make_problem(const char* name, const Tensor& image, int64_t in_channels,
                              int64_t in_channels2, int64_t out_channels, const Geometry& geometry,
                              bool tf32) {
    const auto sizes = image_sizes(name, image);
    geometry.check();
    const int64_t groups = geometry.groups;
    STD_TORCH_CHECK(groups == 1 || (groups == in_channels && groups == out_channels),
                    "groups must be 1, or equal both the ", in_channels, " input and the ", out_channels,
                    " output channels, got ", groups);
    const int64_t elements =
        out_channels * (in_channels / groups) * geometry.kernel_size[0] * geometry.kernel_size[1];
    STD_TORCH_CHECK(in_channels > 0 && out_channels > 0 && elements <= INT_MAX,
                    "W must have from 1 to 2^31 - 1 elements, got ", elements);
    Problem problem{};
    problem.batch = static_cast<int32_t>(sizes[0]);
    problem.height = static_cast<int32_t>(sizes[2]);
    problem.width = static_cast<int32_t>(sizes[3]);
    problem.out_height = static_cast<int32_t>(geometry.out_size(0, sizes[2]));
    problem.out_width = static_cast<int32_t>(geometry.out_size(1, sizes[3]));
    problem.in_channels = static_cast<int32_t>(in_channels);
    problem.second_in_channels = static_cast<int32_t>(in_channels2);
    problem.out_channels = static_cast<int32_t>(out_channels);
    problem.groups = static_cast<int32_t>(groups);
    problem.kernel_h = static_cast<int32_t>(geometry.kernel_size[0]);
    problem.kernel_w = static_cast<int32_t>(geometry.kernel_size[1]);
    problem.stride_h = static_cast<int32_t>(geometry.stride[0]);
    problem.stride_w = static_cast<int32_t>(geometry.stride[1]);
    problem.padding_h = static_cast<int32_t>(geometry.padding[0]);
    problem.padding_w = static_cast<int32_t>(geometry.padding[1]);
    problem.dilation_h = static_cast<int32_t>(geometry.dilation[0]);
    problem.dilation_w = static_cast<int32_t>(geometry.dilation[1]);
    problem.dtype = kernel_dtype(name, image);
    problem.tf32 = tf32;
    return problem;
  }

  int64_t in_group() const { return problem.in_channels / problem.groups; }
  int64_t row_of_out() const { return in_group() * problem.kernel_h * problem.kernel_w; }

  Image view(const char* name, const MaybeTensor& tensor, int64_t channels, int64_t height,
             int64_t width) const {
    if (!tensor) {
      return {};
    }
    check(name, *tensor, dtype_, {problem.batch, channels, height, width});
    const auto strides = tensor->strides();
    STD_TORCH_CHECK(channels == 1 || strides[1] == 1, name, " must have contiguous channels, stride 1, got ",
                    strides[1], "; call .contiguous(memory_format=torch.channels_last) on it");
    return {tensor->data_ptr(), strides[0], strides[2], strides[3]};
  }

  const ScalarType dtype_;
};

}  // namespace lorun::lora::cuda
