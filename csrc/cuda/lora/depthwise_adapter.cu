// The gradients of a depthwise convolution's adapter. dW has as many elements as W, so each split of the
// pixels leaves its part of dW in the workspace; these are summed, then multiplied by down and by up.
#include <algorithm>

#include "cuda/lora/alignment.h"
#include "cuda/lora/conv_stage.cuh"
#include "cuda/lora/depthwise.h"
#include "cuda/lora/parts.cuh"
#include "cuda/lora/vector.cuh"

namespace lorun::lora::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kChannels = 4;  // of a thread, if they can be read at once
constexpr int kMostLanes = 16;
constexpr int kTaps = 9;  // of a block
// The number of blocks if each has enough pixels.
constexpr int kBlocks = 512;
constexpr int kPixelsOfBlock = 64;

struct SumTask {
  Problem problem;
  Image grad;
  ImagePair in;
  float* parts;  // of dW, one for each split
  int lanes, channel_blocks, tap_blocks;
  int64_t pixels;
  int splits;
};

// dW of a thread's channels and of kTaps taps from first_tap on.
template <typename T, int kSize>
__device__ __forceinline__ void sum_pixels(const SumTask& task, int channel, int first_tap, int split,
                                           float (&sums)[kTaps][kSize]) {
  const Problem& problem = task.problem;
  const bool second = channel >= task.in.split;
  const Image& image = second ? task.in.second : task.in.first;
  const int in_channel = channel - (second ? task.in.split : 0);
  const int taps = problem.kernel_h * problem.kernel_w;
  int reach_y[kTaps], reach_x[kTaps];
#pragma unroll
  for (int t = 0; t < kTaps; ++t) {
    const int tap = first_tap + t < taps ? first_tap + t : taps - 1;
    reach_y[t] = tap / problem.kernel_w * problem.dilation_h - problem.padding_h;
    reach_x[t] = tap % problem.kernel_w * problem.dilation_w - problem.padding_w;
  }
  const int beside = kThreads / task.lanes;
  const int64_t step = int64_t{task.splits} * beside;
  for (int64_t pixel = int64_t{split} * beside + threadIdx.x / task.lanes; pixel < task.pixels;
       pixel += step) {
    const int64_t line = pixel / problem.out_width;
    const int x = static_cast<int>(pixel % problem.out_width);
    const int y = static_cast<int>(line % problem.out_height);
    const int64_t sample = line / problem.out_height;
    float slopes[kSize];
    load_vector(pixel_of<const T>(task.grad, sample, y, x) + channel, slopes);
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
      const int in_y = y * problem.stride_h + reach_y[t], in_x = x * problem.stride_w + reach_x[t];
      if (in_y >= 0 && in_y < problem.height && in_x >= 0 && in_x < problem.width) {
        float values[kSize];
        load_vector(pixel_of<const T>(image, sample, in_y, in_x) + in_channel, values);
#pragma unroll
        for (int c = 0; c < kSize; ++c) {
          sums[t][c] += slopes[c] * values[c];
        }
      }
    }
  }
}

// A block sums a few taps of dW of a few channels over one split of the pixels.
template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads) sum_kernel(const __grid_constant__ SumTask task) {
  float* const shared = shared_at<float>(0);
  const int channels = task.problem.out_channels;
  const int taps = task.problem.kernel_h * task.problem.kernel_w;
  const int width = task.lanes * kSize;
  const int block = blockIdx.x / task.splits, split = static_cast<int>(blockIdx.x) % task.splits;
  const int first_channel = block % task.channel_blocks * width;
  const int first_tap = block / task.channel_blocks * kTaps;
  const int lane = static_cast<int>(threadIdx.x) % task.lanes * kSize;
  float sums[kTaps][kSize] = {};
  if (first_channel + lane < channels) {
    sum_pixels<T, kSize>(task, first_channel + lane, first_tap, split, sums);
  }
#pragma unroll
  for (int t = 0; t < kTaps; ++t) {
    float* const row = shared + t * kThreads * kSize;
    store_vector(row + threadIdx.x / task.lanes * width + lane, sums[t]);
  }
  __syncthreads();
  float* const part = task.parts + int64_t{split} * channels * taps;
  for (int i = threadIdx.x; i < kTaps * width; i += kThreads) {
    const int channel = first_channel + i / kTaps, tap = first_tap + i % kTaps;
    if (channel < channels && tap < taps) {
      const float* const column = shared + i % kTaps * kThreads * kSize + i / kTaps;
      float sum = 0;
      for (int j = 0; j < kThreads / task.lanes; ++j) {
        sum += column[j * width];
      }
      part[channel * taps + tap] = sum;
    }
  }
}

struct FoldTask {
  const float* sums;  // dW
  Weight weight;
  int rows;
  float *grad_up, *grad_down;
};

// A thread multiplies one row of dW by down, or one column by up.
template <typename U>
__global__ void __launch_bounds__(kThreads) fold_kernel(FoldTask task) {
  const int inner = task.weight.inner, columns = task.weight.columns;
  const U* const up = static_cast<const U*>(task.weight.up);
  const U* const down = static_cast<const U*>(task.weight.down);
  const int ups = task.grad_up != nullptr ? task.rows * inner : 0;
  const int downs = task.grad_down != nullptr ? inner * columns : 0;
  const int index = blockIdx.x * kThreads + threadIdx.x;
  float sum = 0;
  if (index < ups) {
    const int row = index / inner, j = index % inner;
    for (int column = 0; column < columns; ++column) {
      sum += task.sums[row * columns + column] * widen(down[j * columns + column]);
    }
    task.grad_up[index] += task.weight.scaling * sum;
  } else if (index - ups < downs) {
    const int j = (index - ups) / columns, column = (index - ups) % columns;
    for (int row = 0; row < task.rows; ++row) {
      sum += task.sums[row * columns + column] * widen(up[row * inner + j]);
    }
    task.grad_down[index - ups] += task.weight.scaling * sum;
  }
}

int64_t weights_of(const Problem& problem) {
  return int64_t{problem.out_channels} * problem.kernel_h * problem.kernel_w;
}

int64_t pixels_of(const Problem& problem) {
  return int64_t{problem.batch} * problem.out_height * problem.out_width;
}

int splits_of(const Problem& problem) {
  const int tap_blocks = divide_up(problem.kernel_h * problem.kernel_w, kTaps);
  const int channel_blocks = divide_up(problem.out_channels, kMostLanes * kChannels);
  const int64_t most = std::max(1, kBlocks / (tap_blocks * channel_blocks));
  return static_cast<int>(std::clamp<int64_t>(pixels_of(problem) / kPixelsOfBlock, 1, most));
}

template <typename T, int kSize>
cudaError_t launch_sum(SumTask task, cudaStream_t stream) {
  const int vectors = divide_up(task.problem.out_channels, kSize);
  task.lanes = 1;
  while (task.lanes < std::min(vectors, kMostLanes)) {
    task.lanes *= 2;
  }
  task.channel_blocks = divide_up(vectors, task.lanes);
  const int64_t blocks = int64_t{task.channel_blocks} * task.tap_blocks * task.splits;
  return lorun::cuda::launch(sum_kernel<T, kSize>, blocks, kThreads, kTaps * kThreads * kSize * sizeof(float),
                             stream, task);
}

template <typename T>
cudaError_t launch_sum(const SumTask& task, cudaStream_t stream) {
  const int bytes = common_bytes(sizeof(T), {task.grad, task.in.first, task.in.second},
                                 {task.problem.out_channels, task.in.split});
  return bytes % (kChannels * sizeof(T)) == 0 ? launch_sum<T, kChannels>(task, stream)
                                              : launch_sum<T, 1>(task, stream);
}

cudaError_t launch_sum(const SumTask& task, cudaStream_t stream) {
  switch (task.problem.dtype) {
    case Dtype::kFloat32:
      return launch_sum<float>(task, stream);
    case Dtype::kFloat16:
      return launch_sum<__half>(task, stream);
    case Dtype::kBFloat16:
      return launch_sum<__nv_bfloat16>(task, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_fold(const FoldTask& task, cudaStream_t stream) {
  const int64_t threads =
      int64_t{task.weight.inner} *
      ((task.grad_up != nullptr ? task.rows : 0) + (task.grad_down != nullptr ? task.weight.columns : 0));
  const int64_t blocks = divide_up(threads, kThreads);
  switch (task.weight.dtype) {
    case Dtype::kFloat32:
      return lorun::cuda::launch(fold_kernel<float>, blocks, kThreads, 0, stream, task);
    case Dtype::kFloat16:
      return lorun::cuda::launch(fold_kernel<__half>, blocks, kThreads, 0, stream, task);
    case Dtype::kBFloat16:
      return lorun::cuda::launch(fold_kernel<__nv_bfloat16>, blocks, kThreads, 0, stream, task);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

int64_t depthwise_grad_adapter_workspace(const Problem& problem) {
  return (splits_of(problem) + 1) * weights_of(problem) * static_cast<int64_t>(sizeof(float));
}

cudaError_t depthwise_grad_adapter(const Problem& problem, Image grad, Image input, Image input2,
                                   const Weight& weight, float* grad_up, float* grad_down, void* workspace,
                                   cudaStream_t stream) {
  if (pixels_of(problem) == 0 || (grad_up == nullptr && grad_down == nullptr)) {
    return cudaSuccess;
  }
  float* const sums = static_cast<float*>(workspace);
  SumTask task{};
  task.problem = problem;
  task.grad = grad;
  task.in = {input, input2, problem.in_channels - problem.second_in_channels};
  task.parts = sums + weights_of(problem);
  task.tap_blocks = divide_up(problem.kernel_h * problem.kernel_w, kTaps);
  task.pixels = pixels_of(problem);
  task.splits = splits_of(problem);
  cudaError_t error = launch_sum(task, stream);
  if (error == cudaSuccess) {
    error = sum_parts<false>({task.parts, task.splits, weights_of(problem)}, sums, stream);
  }
  const int rows = static_cast<int>(weights_of(problem) / weight.columns);
  return error == cudaSuccess ? launch_fold({sums, weight, rows, grad_up, grad_down}, stream) : error;
}

}  // namespace lorun::lora::cuda
