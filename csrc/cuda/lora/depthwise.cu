// Depthwise convolutions and the gradient of their inputs, which is the same with the taps reversed.
//
// A thread computes a few channels of a strip of pixels, which share the weights that it reads; its block has
// merged them. Pixels are read through the caches, since neighbours need them at about the same time.
#include "cuda/lora/depthwise.h"

#include <algorithm>

#include "cuda/lora/alignment.h"
#include "cuda/lora/conv_epilogue.cuh"
#include "cuda/lora/vector.cuh"

namespace lorun::lora::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kStrip = 4;
constexpr int kBlocksBeside = 8;
constexpr int64_t kMostWeights = 32 * 1024;  // bytes

struct DepthwiseTask {
  Axis y, x;
  ImagePair in, out;
  Weight weight;
  WeightShape shape;
  Epilogue epilogue;
  Image preactivation;
  int lanes;           // threads that work on the same strip
  int channel_blocks;  // of `lanes` vectors
  int strips_x;
  unsigned strips;
};

// Rounded to T, since they stand for a tensor of that type.
template <typename T, typename U>
__device__ __forceinline__ void merge_taps(const DepthwiseTask& task, int first_channel, int channels,
                                           float* weights) {
  const int count = task.y.taps * task.x.taps * channels;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const int tap = i / channels;
    const WeightIndex at{first_channel + i % channels, 0,
                         task.y.kernel_first + tap / task.x.taps * task.y.kernel_step,
                         task.x.kernel_first + tap % task.x.taps * task.x.kernel_step};
    T rounded{};
    if (at.out < task.shape.out_channels) {
      narrow(merge_element<U>(task.weight, task.shape, at), rounded);
    }
    weights[i] = widen(rounded);
  }
}

template <typename T, int kSize>
__device__ __forceinline__ void sum_taps(const DepthwiseTask& task, const Image& image, int channel,
                                         const Pixel& at, const float* weights, int pitch,
                                         float (&sums)[kStrip][kSize]) {
  const Axis &y = task.y, &x = task.x;
  for (int tap_y = 0; tap_y < y.taps; ++tap_y) {
    const int in_y = y.in_first + at.y * y.in_step + tap_y * y.tap_step;
    if (in_y < 0 || in_y >= y.in_size) {
      continue;
    }
    const T* const row = pixel_of<const T>(image, at.sample, in_y, 0) + channel;
    for (int tap_x = 0; tap_x < x.taps; ++tap_x) {
      float weight[kSize];
      load_vector(weights + (tap_y * x.taps + tap_x) * pitch, weight);
#pragma unroll
      for (int i = 0; i < kStrip; ++i) {
        const int in_x = x.in_first + (at.x + i) * x.in_step + tap_x * x.tap_step;
        if (in_x >= 0 && in_x < x.in_size) {
          float values[kSize];
          load_vector(row + in_x * image.column, values);
#pragma unroll
          for (int c = 0; c < kSize; ++c) {
            sums[i][c] += weight[c] * values[c];
          }
        }
      }
    }
  }
}

template <typename T, int kSize>
__device__ __forceinline__ void finish_vector(const DepthwiseTask& task, const Image& out, int out_channel,
                                              const Pixel& at, int channel, float (&values)[kSize]) {
  const Epilogue& epilogue = task.epilogue;
  if (task.preactivation.data != nullptr) {
    store_vector(pixel_of<T>(task.preactivation, at.sample, at.y, at.x) + channel, values);
  }
#pragma unroll
  for (float& value : values) {
    value = activate(epilogue, value);
  }
  if (epilogue.residual.data != nullptr) {
    float residual[kSize];
    load_vector(pixel_of<const T>(epilogue.residual, at.sample, at.y, at.x) + channel, residual);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      values[i] += residual[i];
    }
  }
  store_vector(pixel_of<T>(out, at.sample, at.y, at.x) + out_channel, values);
}

template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads) depthwise_kernel(const __grid_constant__ DepthwiseTask task) {
  float* const weights = shared_at<float>(0);
  const int pitch = task.lanes * kSize;
  const int first_channel = static_cast<int>(blockIdx.x) % task.channel_blocks * pitch;
  if (task.weight.dtype == Dtype::kFloat32) {
    merge_taps<T, float>(task, first_channel, pitch, weights);
  } else {
    merge_taps<T, T>(task, first_channel, pitch, weights);
  }
  __syncthreads();
  const int lane = threadIdx.x % task.lanes * kSize;
  const int channel = first_channel + lane;
  if (channel >= task.shape.out_channels) {
    return;
  }
  float bias[kSize] = {};
  if (task.epilogue.bias != nullptr) {
    load_vector(static_cast<const T*>(task.epilogue.bias) + channel, bias);
  }
  const bool second_in = channel >= task.in.split, second_out = channel >= task.out.split;
  const Image& in = second_in ? task.in.second : task.in.first;
  const Image& out = second_out ? task.out.second : task.out.first;
  const int in_channel = channel - (second_in ? task.in.split : 0);
  const int out_channel = channel - (second_out ? task.out.split : 0);
  const unsigned beside = kThreads / task.lanes;
  const unsigned step = gridDim.x / task.channel_blocks * beside;
  for (unsigned strip = blockIdx.x / task.channel_blocks * beside + threadIdx.x / task.lanes;
       strip < task.strips; strip += step) {
    const unsigned line = strip / task.strips_x;
    const Pixel first{line / task.y.count, static_cast<int>(line % task.y.count),
                      static_cast<int>(strip % task.strips_x) * kStrip};
    float sums[kStrip][kSize] = {};
    sum_taps<T>(task, in, in_channel, first, weights + lane, pitch, sums);
#pragma unroll
    for (int i = 0; i < kStrip; ++i) {
      if (first.x + i < task.x.count) {
        const Pixel at{first.sample, task.y.out_first + first.y * task.y.out_step,
                       task.x.out_first + (first.x + i) * task.x.out_step};
#pragma unroll
        for (int c = 0; c < kSize; ++c) {
          sums[i][c] += bias[c];
        }
        finish_vector<T>(task, out, out_channel, at, channel, sums[i]);
      }
    }
  }
}

template <typename T, int kSize>
cudaError_t launch_vectors(DepthwiseTask task, int64_t batch, cudaStream_t stream) {
  const int vectors = divide_up(task.shape.out_channels, kSize);
  const int64_t tap_bytes = int64_t{task.y.taps} * task.x.taps * kSize * sizeof(float);
  task.lanes = 1;
  while (task.lanes < std::min(vectors, 32) && 2 * task.lanes * tap_bytes <= kMostWeights) {
    task.lanes *= 2;
  }
  task.channel_blocks = divide_up(vectors, task.lanes);
  task.strips_x = divide_up(task.x.count, kStrip);
  const int64_t strips = batch * task.y.count * task.strips_x;
  if (strips > INT_MAX) {
    return cudaErrorInvalidValue;
  }
  task.strips = static_cast<unsigned>(strips);
  int multiprocessors = 0;
  const cudaError_t error = lorun::cuda::multiprocessors(&multiprocessors);
  if (error != cudaSuccess) {
    return error;
  }
  const int64_t most = std::max(1, kBlocksBeside * multiprocessors / task.channel_blocks);
  const int64_t blocks = std::min<int64_t>(divide_up(strips, kThreads / task.lanes), most);
  return lorun::cuda::launch(depthwise_kernel<T, kSize>, blocks * task.channel_blocks, kThreads,
                             task.lanes * tap_bytes, stream, task);
}

template <typename T>
cudaError_t launch_type(const DepthwiseTask& task, int64_t batch, cudaStream_t stream) {
  constexpr int kBytes = sizeof(T);
  Image bias{};
  bias.data = const_cast<void*>(task.epilogue.bias);
  const int bytes = common_bytes(kBytes,
                                 {task.in.first, task.in.second, task.out.first, task.out.second,
                                  task.epilogue.residual, task.preactivation, bias},
                                 {task.shape.out_channels, task.in.split, task.out.split});
  if (bytes == 16) {
    return launch_vectors<T, 16 / kBytes>(task, batch, stream);
  }
  if (bytes == 8) {
    return launch_vectors<T, 8 / kBytes>(task, batch, stream);
  }
  return launch_vectors<T, 1>(task, batch, stream);
}

cudaError_t launch(const Problem& problem, const DepthwiseTask& task, cudaStream_t stream) {
  if (problem.batch == 0 || task.y.count == 0 || task.x.count == 0) {
    return cudaSuccess;
  }
  switch (problem.dtype) {
    case Dtype::kFloat32:
      return launch_type<float>(task, problem.batch, stream);
    case Dtype::kFloat16:
      return launch_type<__half>(task, problem.batch, stream);
    case Dtype::kBFloat16:
      return launch_type<__nv_bfloat16>(task, problem.batch, stream);
  }
  return cudaErrorInvalidValue;
}

DepthwiseTask task_for(const Problem& problem, const Weight& weight, const ImagePair& in,
                       const ImagePair& out) {
  DepthwiseTask task{};
  task.weight = weight;
  task.shape = {problem.out_channels, 1, problem.kernel_h, problem.kernel_w};
  task.in = in;
  task.out = out;
  return task;
}

}  // namespace

cudaError_t depthwise(const Problem& problem, Image input, Image input2, const Weight& weight,
                      const Epilogue& epilogue, Image output, Image preactivation, cudaStream_t stream) {
  DepthwiseTask task =
      task_for(problem, weight, {input, input2, problem.in_channels - problem.second_in_channels},
               {output, Image{}, problem.out_channels});
  task.epilogue = epilogue;
  task.preactivation = preactivation;
  const Axes axes = forward_axes(problem);
  task.y = axes.y;
  task.x = axes.x;
  return launch(problem, task, stream);
}

cudaError_t depthwise_grad_input(const Problem& problem, Image grad, const Weight& weight, Image grad_input,
                                 Image grad_input2, cudaStream_t stream) {
  DepthwiseTask task = task_for(problem, weight, {grad, Image{}, problem.out_channels},
                                {grad_input, grad_input2, problem.in_channels - problem.second_in_channels});
  return for_phases(problem, [&](const Axes& axes) {
    task.y = axes.y;
    task.x = axes.x;
    return launch(problem, task, stream);
  });
}

}  // namespace lorun::lora::cuda
