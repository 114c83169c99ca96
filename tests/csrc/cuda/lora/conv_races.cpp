// Runs the convolution and its input gradient on small problems, for ThreadSanitizer to watch.
#include <vector>

#include "cuda/lora/launchers.h"
#include "races.h"

using namespace lorun::lora;

namespace {

constexpr int kBatch = 2, kHeight = 5, kWidth = 7, kIns = 20, kSecond = 8, kOuts = 12, kKernel = 3, kRank = 1;

struct Picture {
  explicit Picture(int channels)
      : values(random_values(kBatch * kHeight * kWidth * channels)),
        image{values.data(), kHeight * kWidth * channels, kWidth * channels, channels} {}

  std::vector<float> values;
  Image image;
};

void run(bool tf32) {
  std::vector<float> base = random_values(kOuts * kIns * kKernel * kKernel), bias = random_values(kOuts);
  std::vector<float> up = random_values(kOuts * kKernel * kRank * kKernel);
  std::vector<float> down = random_values(kRank * kKernel * kIns * kKernel);
  Picture first(kIns - kSecond), second(kSecond), residual(kOuts), output(kOuts), preactivation(kOuts);
  const Problem problem{kBatch, kHeight, kWidth,  kHeight,         kWidth, kIns, kSecond,
                        kOuts,  1,       kKernel, kKernel,         1,      1,    1,
                        1,      1,       1,       Dtype::kFloat32, tf32};
  const Weight weight{base.data(),
                      kIns * kKernel * kKernel,
                      kKernel * kKernel,
                      kKernel,
                      1,
                      up.data(),
                      down.data(),
                      kRank * kKernel,
                      kIns * kKernel,
                      1,
                      Dtype::kFloat32};
  const cuda::Epilogue epilogue{bias.data(), Activation::kGelu, 0, residual.image};
  expect(cuda::conv(problem, first.image, second.image, weight, epilogue, output.image, preactivation.image,
                    nullptr));
  expect(cuda::conv_grad_input(problem, output.image, weight, first.image, second.image, nullptr));
}

}  // namespace

int main() {
  run(false);
  run(true);
  // Too little shared memory for the weights to stay.
  cuda_on_host_set_shared_limit(20 * 1024);
  run(false);
}
