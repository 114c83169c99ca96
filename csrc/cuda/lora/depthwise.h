// Launchers of the depthwise kernels: groups = in_channels = out_channels. Their parameters are those of
// launchers.h, whose launchers call these.
#pragma once

#include "cuda/lora/launchers.h"

namespace lorun::lora::cuda {

inline bool is_depthwise(const Problem& problem) { return problem.groups > 1; }

cudaError_t depthwise(const Problem& problem, Image input, Image input2, const Weight& weight,
                      const Epilogue& epilogue, Image output, Image preactivation, cudaStream_t stream);

cudaError_t depthwise_grad_input(const Problem& problem, Image grad, const Weight& weight, Image grad_input,
                                 Image grad_input2, cudaStream_t stream);

// Bytes of memory that depthwise_grad_adapter needs in addition to its results.
int64_t depthwise_grad_adapter_workspace(const Problem& problem);

// Always deterministic.
cudaError_t depthwise_grad_adapter(const Problem& problem, Image grad, Image input, Image input2,
                                   const Weight& weight, float* grad_up, float* grad_down, void* workspace,
                                   cudaStream_t stream);

}  // namespace lorun::lora::cuda
