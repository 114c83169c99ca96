// Which pixels of an image each pixel of a result is computed from, in a convolution and in the gradient of
// its input.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <numeric>

#include "common/lora_conv.h"

namespace lorun::lora::cuda {

// One dimension of the pixels that a launch computes. Their pixel i is pixel out_first + i * out_step of the
// result; its tap t multiplies pixel in_first + i * in_step + t * tap_step of the image, which is 0 outside
// of the image, by element kernel_first + t * kernel_step of the weight.
struct Axis {
  int count, out_first, out_step;
  int in_size, in_first, in_step;
  int taps, tap_step, kernel_first, kernel_step;
};

inline Axis forward_axis(int in_size, int out_size, int kernel, int stride, int padding, int dilation) {
  return {out_size, 0, 1, in_size, -padding, stride, kernel, dilation, 0, 1};
}

// Pixels phase, phase + stride, ... of the gradient of an image of `size` pixels: all of them use the same
// taps, those with (pixel + padding - tap * dilation) % stride = 0, so they are a convolution of stride 1.
inline Axis grad_axis(int phase, int size, int grad_size, int kernel, int stride, int padding, int dilation) {
  const int common = std::gcd(stride, dilation);
  const int kernel_step = stride / common;
  int first = 0;
  while (first < std::min(kernel, kernel_step) && (phase + padding - first * dilation) % stride != 0) {
    ++first;
  }
  const int taps = first < std::min(kernel, kernel_step) ? (kernel - first - 1) / kernel_step + 1 : 0;
  const int last = first + (taps - 1) * kernel_step;
  return {(size - phase - 1) / stride + 1,
          phase,
          stride,
          grad_size,
          (phase + padding - last * dilation) / stride,
          1,
          taps,
          dilation / common,
          last,
          -kernel_step};
}

struct Axes {
  Axis y, x;
};

inline Axes forward_axes(const Problem& problem) {
  return {forward_axis(problem.height, problem.out_height, problem.kernel_h, problem.stride_h,
                       problem.padding_h, problem.dilation_h),
          forward_axis(problem.width, problem.out_width, problem.kernel_w, problem.stride_w,
                       problem.padding_w, problem.dilation_w)};
}

// Calls `launch` with the axes of every phase of the gradient until a call fails.
template <typename Launch>
cudaError_t for_phases(const Problem& problem, const Launch& launch) {
  for (int y = 0; y < std::min(problem.stride_h, problem.height); ++y) {
    for (int x = 0; x < std::min(problem.stride_w, problem.width); ++x) {
      const Axes axes{grad_axis(y, problem.height, problem.out_height, problem.kernel_h, problem.stride_h,
                                problem.padding_h, problem.dilation_h),
                      grad_axis(x, problem.width, problem.out_width, problem.kernel_w, problem.stride_w,
                                problem.padding_w, problem.dilation_w)};
      const cudaError_t error = launch(axes);
      if (error != cudaSuccess) {
        return error;
      }
    }
  }
  return cudaSuccess;
}

}  // namespace lorun::lora::cuda
