// The launchers of the adapter's gradients for ctypes.
#include "cuda/lora_conv.h"

using namespace lorun::lora;

extern "C" {

int64_t lora_grad_adapter_workspace(const Problem& problem, const Weight& weight, bool deterministic) {
  return cuda::conv_grad_adapter_workspace(problem, weight, deterministic);
}

int lora_grad_adapter(const Problem& problem, const Image& grad, const Image& input, const Image& input2,
                      const Weight& weight, float* grad_up, float* grad_down, void* workspace,
                      bool deterministic) {
  return cuda::conv_grad_adapter(problem, grad, input, input2, weight, grad_up, grad_down, workspace,
                                 deterministic, nullptr);
}
}
