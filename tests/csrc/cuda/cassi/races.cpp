// Runs every CASSI kernel once on a small problem, for ThreadSanitizer to watch.
#include <vector>

#include "cuda/cassi/launchers.h"
#include "races.h"

using namespace lorun::cassi;

namespace {

constexpr int64_t kBatch = 2, kBands = 5, kHeight = 2, kWidth = 36, kMeasured = kWidth + 2 * (kBands - 1);

Cube planar(std::vector<float>& values) {
  return {values.data(), kBands * kHeight * kWidth, kHeight * kWidth, kWidth, 1};
}

Cube channels_last(std::vector<float>& values) {
  return {values.data(), kBands * kHeight * kWidth, 1, kWidth * kBands, kBands};
}

Cube flat(std::vector<float>& values) { return {values.data(), 0, 0, kWidth, 1}; }

using Layout = Cube (*)(std::vector<float>&);

void run(Layout layout, Layout out_layout, bool flat_mask) {
  constexpr int64_t kPixels = kBatch * kBands * kHeight * kWidth;
  std::vector<float> x = random_values(kPixels), mask = random_values(kPixels), out(kPixels), sums(kPixels);
  std::vector<float> y = random_values(kBatch * kHeight * kMeasured), residual(y.size()), grad_y(y.size());
  std::vector<float> scale = random_values(kBatch), grad_scale(kBatch * kHeight);
  const auto measurement = [](std::vector<float>& values) {
    return Measurement{values.data(), kHeight * kMeasured, kMeasured, 1};
  };
  Problem problem{kBatch, kBands, kHeight, kWidth, kMeasured, Dtype::kFloat32, {}};
  for (int c = 0; c < kBands; ++c) {
    problem.offsets[c] = 2 * c;
  }
  const Cube mask_view = flat_mask ? flat(mask) : planar(mask);
  const Cube grad_mask = flat_mask ? flat(sums) : planar(sums);
  expect(cuda::forward(problem, layout(x), mask_view, measurement(y), nullptr));
  expect(cuda::adjoint(problem, measurement(y), mask_view, out_layout(out), nullptr));
  expect(cuda::mask_grad(problem, layout(x), measurement(y), grad_mask, nullptr));
  for (const Step step : {Step::kPgd, Step::kHqs}) {
    const auto backward = [&](Cube grad_x, Cube grad_mask, float* grad_scale) {
      expect(cuda::step_backward(problem, step, layout(x), measurement(residual), layout(x), mask_view,
                                 scale.data(), 1, grad_x, measurement(grad_y), grad_mask, grad_scale,
                                 nullptr));
    };
    expect(cuda::step(problem, step, layout(x), measurement(y), mask_view, scale.data(), 1, out_layout(out),
                      measurement(residual), nullptr));
    // A result that is not wanted adds no barrier that would hide the lack of another.
    backward(out_layout(out), grad_mask, grad_scale.data());
    backward(out_layout(out), Cube{}, nullptr);
    backward(Cube{}, grad_mask, nullptr);
  }
}

}  // namespace

int main() {
  run(planar, planar, true);
  run(channels_last, planar, true);
  run(planar, channels_last, false);
  cuda_on_host_set_shared_limit(1024);
  run(planar, planar, true);
}
