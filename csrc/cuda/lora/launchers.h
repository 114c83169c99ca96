// Launchers of the low-rank convolution's CUDA kernels: raw device pointers and a stream, no torch headers.
#pragma once

#include <cuda_runtime.h>

#include "common/lora_conv.h"

namespace lorun::lora::cuda {

struct Epilogue {
  const void* bias;  // or null
  Activation activation;
  float slope;  // of the leaky ReLU
  Image residual;
};

// output = activation(conv(cat(input, input2), W) + bias) + residual; preactivation, if wanted, receives what
// the activation was given.
cudaError_t conv(const Problem& problem, Image input, Image input2, const Weight& weight,
                 const Epilogue& epilogue, Image output, Image preactivation, cudaStream_t stream);

// The gradient of the convolution's inputs from that of its output.
cudaError_t conv_grad_input(const Problem& problem, Image grad, const Weight& weight, Image grad_input,
                            Image grad_input2, cudaStream_t stream);

// Bytes of memory that conv_grad_adapter needs in addition to its results if it is to be deterministic, or if
// the convolution is depthwise; otherwise 0.
int64_t conv_grad_adapter_workspace(const Problem& problem, const Weight& weight, bool deterministic);

// Adds the gradients of up and down to grad_up and grad_down, which are float and have their shapes; either
// may be null. weight.base is not read.
cudaError_t conv_grad_adapter(const Problem& problem, Image grad, Image input, Image input2,
                              const Weight& weight, float* grad_up, float* grad_down, void* workspace,
                              bool deterministic, cudaStream_t stream);

// One layer of a grouped merge, a row of 16 numbers of 64 bits in device memory. The offsets say where the
// layer begins in the stage's stacked up, down and merged memory, in elements. W is written to merged in the
// order out, row, column, in (channels_last).
struct StageLayer {
  const void* base;
  int64_t out_stride, in_stride, row_stride, column_stride;  // of base, in elements
  int64_t inner, columns;
  int64_t out_channels, in_channels, kernel_h, kernel_w;  // in_channels of one group
  int64_t up_offset, down_offset, merged_offset;
  float scaling;  // in the lower half of its number
  int32_t unused[3];
};
static_assert(sizeof(StageLayer) == 16 * sizeof(int64_t));

// Merges every layer in one launch. base, up and down have the weights' dtype. elements: the most elements
// that the W of any layer has.
cudaError_t merge_stage(const StageLayer* layers, int32_t count, int64_t elements, const void* up,
                        const void* down, Dtype weight_dtype, void* merged, Dtype dtype, cudaStream_t stream);

// The gradients of every layer's up and down in one launch, from `grad`, the gradient of merge_stage's
// result, in the same layout. They have the weights' dtype and are written, not added to. rows, columns: the
// most that the up @ down of any layer has.
cudaError_t merge_stage_backward(const StageLayer* layers, int32_t count, int64_t rows, int64_t columns,
                                 const void* up, const void* down, Dtype weight_dtype, const void* grad,
                                 Dtype dtype, void* grad_up, void* grad_down, cudaStream_t stream);

// Merges one layer; merged has the strides given, in elements.
cudaError_t merge(const Weight& weight, int32_t out_channels, int32_t in_channels, int32_t kernel_h,
                  int32_t kernel_w, void* merged, int64_t out_stride, int64_t in_stride, int64_t row_stride,
                  int64_t column_stride, Dtype dtype, cudaStream_t stream);

}  // namespace lorun::lora::cuda
