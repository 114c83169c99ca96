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

// output = activation(conv(cat(input, input2), W) + bias) + residual; preactivation, where wanted, gets what
// the activation was given.
cudaError_t conv(const Problem& problem, Image input, Image input2, const Weight& weight,
                 const Epilogue& epilogue, Image output, Image preactivation, cudaStream_t stream);

// The gradient of the convolution's inputs from that of its output.
cudaError_t conv_grad_input(const Problem& problem, Image grad, const Weight& weight, Image grad_input,
                            Image grad_input2, cudaStream_t stream);

// Bytes of memory that conv_grad_adapter needs beside its results when it is to be deterministic; 0
// otherwise.
int64_t conv_grad_adapter_workspace(const Problem& problem, const Weight& weight, bool deterministic);

// Adds the gradients of up and down, float, shaped as these; either may be null. weight.base is not read.
cudaError_t conv_grad_adapter(const Problem& problem, Image grad, Image input, Image input2,
                              const Weight& weight, float* grad_up, float* grad_down, void* workspace,
                              bool deterministic, cudaStream_t stream);

// One layer of a grouped merge: where it begins in the stage's stacked up, down and merged memory, in
// elements. merged[f'] gets W in the order out, row, column, in (channels_last).
struct StageLayer {
  Weight weight;  // up and down are null: they lie in the stack
  int32_t out_channels, in_channels, kernel_h, kernel_w;
  int64_t up_offset, down_offset, merged_offset;
};

// Merges every layer in one launch. `layers` lies in device memory; up and down have the layers'
// weight.dtype, merged has `dtype`. elements: the most elements that W of any layer has.
cudaError_t merge_stage(const StageLayer* layers, int32_t count, int64_t elements, const void* up,
                        const void* down, void* merged, Dtype dtype, cudaStream_t stream);

// Merges one layer; merged has the strides given, in elements.
cudaError_t merge(const Weight& weight, int32_t out_channels, int32_t in_channels, int32_t kernel_h,
                  int32_t kernel_w, void* merged, int64_t out_stride, int64_t in_stride, int64_t row_stride,
                  int64_t column_stride, Dtype dtype, cudaStream_t stream);

}  // namespace lorun::lora::cuda
