// Runs the adapter's gradients, depthwise convolutions, merges and their gradients on small problems, for
// ThreadSanitizer to watch.
#include <vector>

#include "cuda/lora/depthwise.h"
#include "races.h"

using namespace lorun::lora;

namespace {

constexpr int kHeight = 9, kWidth = 17, kKernel = 3, kRank = 2, kInner = kRank * kKernel;

struct Picture {
  explicit Picture(int channels)
      : values(random_values(kHeight * kWidth * channels)),
        image{values.data(), 0, kWidth * channels, channels} {}

  std::vector<float> values;
  Image image;
};

struct Layer {
  Layer(int ins, int outs, int groups)
      : problem{1, kHeight, kWidth, kHeight, kWidth,          ins,  0, outs, groups, kKernel, kKernel, 1, 1,
                1, 1,       1,      1,       Dtype::kFloat32, false},
        base(random_values(outs * ins / groups * kKernel * kKernel)),
        up(random_values(outs / groups * kKernel * kInner)),
        down(random_values(kInner * ins * kKernel)),
        weight{base.data(),
               ins / groups * kKernel * kKernel,
               kKernel * kKernel,
               kKernel,
               1,
               up.data(),
               down.data(),
               kInner,
               ins * kKernel,
               1,
               Dtype::kFloat32} {}

  void add_gradients(const Picture& grad, const Picture& input, bool deterministic) {
    std::vector<float> grad_up(up.size()), grad_down(down.size());
    std::vector<char> workspace(cuda::conv_grad_adapter_workspace(problem, weight, deterministic));
    expect(cuda::conv_grad_adapter(problem, grad.image, input.image, Image{}, weight, grad_up.data(),
                                   grad_down.data(), workspace.data(), deterministic, nullptr));
  }

  // As the only layer of a stage.
  void add_gradients_of_merged() {
    const int64_t groups = problem.groups, ins = problem.in_channels / groups, outs = problem.out_channels;
    const cuda::StageLayer layer{base.data(),
                                 ins * kKernel * kKernel,
                                 kKernel * kKernel,
                                 kKernel,
                                 1,
                                 kInner,
                                 weight.columns,
                                 outs,
                                 ins,
                                 kKernel,
                                 kKernel,
                                 0,
                                 0,
                                 0,
                                 1,
                                 {}};
    std::vector<float> grad_up(up.size()), grad_down(down.size());
    expect(cuda::merge_stage_backward(&layer, 1, outs / groups * kKernel, weight.columns, up.data(),
                                      down.data(), Dtype::kFloat32, base.data(), Dtype::kFloat32,
                                      grad_up.data(), grad_down.data(), nullptr));
  }

  const Problem problem;
  std::vector<float> base, up, down;
  const Weight weight;
};

}  // namespace

int main() {
  // Kernels that read addresses from shared memory come last: without barriers these are wild.
  Layer depthwise(5, 5, 5);
  Picture input(5), output(5);
  expect(cuda::depthwise(depthwise.problem, input.image, Image{}, depthwise.weight, cuda::Epilogue{},
                         output.image, Image{}, nullptr));
  depthwise.add_gradients(output, input, false);
  expect(cuda::merge(depthwise.weight, 5, 1, kKernel, kKernel, input.values.data(), 9, 9, 3, 1,
                     Dtype::kFloat32, nullptr));
  Layer(12, 5, 1).add_gradients_of_merged();
  for (const bool deterministic : {false, true}) {
    Layer(20, 33, 1).add_gradients(Picture(33), Picture(20), deterministic);
  }
}
