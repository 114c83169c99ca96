// The bindings of the low-rank convolution's kernels, with launchers that record their arguments.
#include "bindings_on_cpu.h"

#include "cuda/lora/bindings.cpp"

namespace lorun::lora {

std::ostream& operator<<(std::ostream& out, const Problem& p) {
  for (const int value : {p.batch, p.height, p.width, p.out_height, p.out_width, p.in_channels,
                          p.second_in_channels, p.out_channels, p.groups, p.kernel_h, p.kernel_w, p.stride_h,
                          p.stride_w, p.padding_h, p.padding_w, p.dilation_h, p.dilation_w}) {
    out << value << ' ';
  }
  return out << static_cast<int>(p.dtype) << ' ' << p.tf32;
}

std::ostream& operator<<(std::ostream& out, const Image& image) {
  return out << on_cpu::address(image.data) << ' ' << image.batch << ' ' << image.row << ' ' << image.column;
}

std::ostream& operator<<(std::ostream& out, const Weight& w) {
  return out << on_cpu::address(w.base) << ' ' << w.out_stride << ' ' << w.in_stride << ' ' << w.row_stride
             << ' ' << w.column_stride << ' ' << on_cpu::address(w.up) << ' ' << on_cpu::address(w.down)
             << ' ' << w.inner << ' ' << w.columns << ' ' << w.scaling << ' ' << static_cast<int>(w.dtype);
}

std::ostream& operator<<(std::ostream& out, Dtype dtype) { return out << static_cast<int>(dtype); }

namespace cuda {

std::ostream& operator<<(std::ostream& out, const Epilogue& e) {
  return out << on_cpu::address(e.bias) << ' ' << static_cast<int>(e.activation) << ' ' << e.slope << ' '
             << e.residual;
}

using on_cpu::address;
using on_cpu::record;

cudaError_t conv(const Problem& problem, Image input, Image input2, const Weight& weight,
                 const Epilogue& epilogue, Image output, Image preactivation, cudaStream_t stream) {
  return record(stream, problem, input, input2, weight, epilogue, output, preactivation);
}

cudaError_t conv_grad_input(const Problem& problem, Image grad, const Weight& weight, Image grad_input,
                            Image grad_input2, cudaStream_t stream) {
  return record(stream, problem, grad, weight, grad_input, grad_input2);
}

int64_t conv_grad_adapter_workspace(const Problem&, const Weight&, bool deterministic) {
  return deterministic ? 64 : 0;
}

cudaError_t conv_grad_adapter(const Problem& problem, Image grad, Image input, Image input2,
                              const Weight& weight, float* grad_up, float* grad_down, void* workspace,
                              bool deterministic, cudaStream_t stream) {
  return record(stream, problem, grad, input, input2, weight, address(grad_up), address(grad_down),
                workspace != nullptr, deterministic);
}

cudaError_t merge_stage(const StageLayer* layers, int32_t count, int64_t elements, const void* up,
                        const void* down, Dtype weight_dtype, void* merged, Dtype dtype,
                        cudaStream_t stream) {
  return record(stream, address(layers), count, elements, address(up), address(down), weight_dtype,
                address(merged), dtype);
}

cudaError_t merge_stage_backward(const StageLayer* layers, int32_t count, int64_t rows, int64_t columns,
                                 const void* up, const void* down, Dtype weight_dtype, const void* grad,
                                 Dtype dtype, void* grad_up, void* grad_down, cudaStream_t stream) {
  return record(stream, address(layers), count, rows, columns, address(up), address(down), weight_dtype,
                address(grad), dtype, address(grad_up), address(grad_down));
}

cudaError_t merge(const Weight& weight, int32_t out_channels, int32_t in_channels, int32_t kernel_h,
                  int32_t kernel_w, void* merged, int64_t out_stride, int64_t in_stride, int64_t row_stride,
                  int64_t column_stride, Dtype dtype, cudaStream_t stream) {
  return record(stream, weight, out_channels, in_channels, kernel_h, kernel_w, address(merged), out_stride,
                in_stride, row_stride, column_stride, dtype);
}

}  // namespace cuda
}  // namespace lorun::lora
