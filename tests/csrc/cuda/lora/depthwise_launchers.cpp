// The launchers of depthwise convolutions, for ctypes, as the convolution's launchers would call them.
#include "cuda/lora/depthwise.h"

using namespace lorun::lora;

extern "C" {

int lora_depthwise(const Problem& problem, const Image& input, const Image& input2, const Weight& weight,
                   const cuda::Epilogue& epilogue, const Image& output, const Image& preactivation) {
  return cuda::depthwise(problem, input, input2, weight, epilogue, output, preactivation, nullptr);
}

int lora_depthwise_grad_input(const Problem& problem, const Image& grad, const Weight& weight,
                              const Image& grad_input, const Image& grad_input2) {
  return cuda::depthwise_grad_input(problem, grad, weight, grad_input, grad_input2, nullptr);
}
}
