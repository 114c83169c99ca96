// The launchers of the adapter's gradients, for ctypes.
#include "cuda/lora/adapter_plan.h"
#include "cuda/lora/launchers.h"

using namespace lorun::lora;

extern "C" {

void lora_adapter_plan(const Problem& problem, int32_t* numbers) {
  const cuda::AdapterPlan plan = cuda::plan_adapter(problem);
  numbers[0] = plan.channels;
  numbers[1] = plan.rows;
  numbers[2] = plan.columns;
  numbers[3] = plan.parts;
  numbers[4] = plan.splits;
  numbers[5] = static_cast<int32_t>(plan.shared);
}

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
