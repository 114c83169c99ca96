// The launchers that merge weights, for ctypes.
#include "cuda/lora/launchers.h"

using namespace lorun::lora;

extern "C" {

int lora_merge(const Weight& weight, const int32_t* shape, void* merged, const int64_t* strides,
               Dtype dtype) {
  return cuda::merge(weight, shape[0], shape[1], shape[2], shape[3], merged, strides[0], strides[1],
                     strides[2], strides[3], dtype, nullptr);
}

int lora_merge_stage(const cuda::StageLayer* layers, int32_t count, int64_t elements, const void* up,
                     const void* down, Dtype weight_dtype, void* merged, Dtype dtype) {
  return cuda::merge_stage(layers, count, elements, up, down, weight_dtype, merged, dtype, nullptr);
}

int lora_merge_stage_backward(const cuda::StageLayer* layers, int32_t count, const int64_t* matrix,
                              const void* up, const void* down, Dtype weight_dtype, const void* grad,
                              Dtype dtype, void* grad_up, void* grad_down) {
  return cuda::merge_stage_backward(layers, count, matrix[0], matrix[1], up, down, weight_dtype, grad, dtype,
                                    grad_up, grad_down, nullptr);
}
}
