// The launchers of the low-rank convolution, for ctypes.
#include "cuda/lora/launchers.h"

#include "cuda/lora/conv_plan.h"

using namespace lorun::lora;

extern "C" {

int lora_conv(const Problem& problem, const Image& input, const Image& input2, const Weight& weight,
              const cuda::Epilogue& epilogue, const Image& output, const Image& preactivation) {
  return cuda::conv(problem, input, input2, weight, epilogue, output, preactivation, nullptr);
}

int lora_conv_grad_input(const Problem& problem, const Image& grad, const Weight& weight,
                         const Image& grad_input, const Image& grad_input2) {
  return cuda::conv_grad_input(problem, grad, weight, grad_input, grad_input2, nullptr);
}

// The parts of the forward pass's plan that tests check.
struct PlanView {
  int32_t warps, columns, slices, whole, resident, stages, staged_outs, shared;
};

void lora_conv_plan(const Problem& problem, int64_t shared, int32_t multiprocessors, int32_t up_rows,
                    int32_t up_pitch, PlanView& view) {
  const cuda::Sizes sizes{cuda::forward_axis(problem.height, problem.out_height, problem.kernel_h,
                                             problem.stride_h, problem.padding_h, problem.dilation_h),
                          cuda::forward_axis(problem.width, problem.out_width, problem.kernel_w,
                                             problem.stride_w, problem.padding_w, problem.dilation_w),
                          problem.batch,
                          problem.in_channels,
                          problem.out_channels,
                          problem.dtype == Dtype::kFloat32 ? 4 : 2,
                          up_rows,
                          up_pitch};
  const cuda::Plan plan = cuda::make_plan(sizes, {shared, multiprocessors});
  view = {plan.warps,    plan.columns, plan.slices,      plan.whole,
          plan.resident, plan.stages,  plan.staged_outs, static_cast<int32_t>(plan.shared)};
}
}
