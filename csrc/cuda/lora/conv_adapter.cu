// The gradients of the adapter of a convolution: each block sums its part of dW over its pixels in registers
// and multiplies it by its parts of down and up, so that dW is never in global memory.
#include <algorithm>

#include "cuda/lora/adapter_fold.cuh"
#include "cuda/lora/adapter_plan.h"
#include "cuda/lora/alignment.h"
#include "cuda/lora/conv_stage.cuh"
#include "cuda/lora/depthwise.h"
#include "cuda/lora/parts.cuh"

namespace lorun::lora::cuda {
namespace {

constexpr int kThreads = 32 * kAdapterWarps;
constexpr int kOutTiles = kAdapterOuts / kTile;
// The units of a warp if the kernel has one tap.
constexpr int kFewUnits = 2;

// How pixels are copied into shared memory: `bytes` in each copy, by `lanes` neighbouring threads.
struct Copies {
  int bytes, lanes;
};

struct AdapterTask {
  Problem problem;
  AdapterPlan plan;
  ImagePair in, grad;
  Copies in_copies, grad_copies;
  Weight weight;
  int chunks;        // rows of up for each output channel
  float *up, *down;  // gradients, or their parts; or null
  int64_t up_elements, down_elements;
  bool alone;  // whether they are parts
};

// Pixels of an image: every step-th from the first, `rows` by `columns` of them; those outside of
// the image are 0.
struct Window {
  int64_t sample;
  int first_y, first_x, step_y, step_x, rows, columns, height, width;
};

template <typename T, int kBytes>
__device__ __forceinline__ void copy_window(const ImagePair& images, const Window& window, int first_channel,
                                            int channels, int lanes, T* to, int pitch) {
  constexpr int kWord = kBytes / sizeof(T);
  const int step = kThreads / lanes;
  for (int offset = threadIdx.x % lanes * kWord; offset < channels; offset += lanes * kWord) {
    const int channel = first_channel + offset;
    const bool second = channel >= images.split;
    const Image& image = second ? images.second : images.first;
    const T* const from =
        pixel_of<const T>(image, window.sample, 0, 0) + channel - (second ? images.split : 0);
    const int first = threadIdx.x / lanes;
    int row = first / window.columns, column = first % window.columns;
    for (int pixel = first; pixel < window.rows * window.columns; pixel += step) {
      const int y = window.first_y + row * window.step_y, x = window.first_x + column * window.step_x;
      const bool inside = y >= 0 && y < window.height && x >= 0 && x < window.width;
      const T* const source = inside ? from + y * image.row + x * image.column : from;
      copy_word<T, kBytes>(to + pixel * pitch + offset, source, inside);
      for (column += step; column >= window.columns; column -= window.columns) {
        ++row;
      }
    }
  }
}

template <typename T>
__device__ __forceinline__ void copy_window(const ImagePair& images, const Window& window, int first_channel,
                                            int channels, const Copies& copies, T* to, int pitch) {
  switch (copies.bytes) {
    case 16:
      return copy_window<T, 16>(images, window, first_channel, channels, copies.lanes, to, pitch);
    case 8:
      return copy_window<T, 8>(images, window, first_channel, channels, copies.lanes, to, pitch);
    case 4:
      return copy_window<T, 4>(images, window, first_channel, channels, copies.lanes, to, pitch);
    default:
      return copy_window<T, sizeof(T)>(images, window, first_channel, channels, copies.lanes, to, pitch);
  }
}

// A tile of pixels and what its taps reach. Channels that do not exist are left as they were: they do not
// affect the others' sums.
template <typename T>
__device__ __forceinline__ void fetch(const AdapterTask& task, const WeightPart& part, int64_t tile,
                                      T* stage) {
  const Problem& problem = task.problem;
  const AdapterPlan& plan = task.plan;
  if (tile < plan.tiles) {
    const int64_t line = tile / plan.tiles_x;
    const int64_t sample = line / plan.tiles_y;
    const int y = static_cast<int>(line % plan.tiles_y) * kAdapterTileHeight;
    const int x = static_cast<int>(tile % plan.tiles_x) * kAdapterTileWidth;
    const Window pixels{
        sample, y, x, 1, 1, kAdapterTileHeight, kAdapterTileWidth, problem.out_height, problem.out_width};
    const Window reach{sample,
                       y * problem.stride_h - problem.padding_h + part.first_row * problem.dilation_h,
                       x * problem.stride_w - problem.padding_w + part.first_column * problem.dilation_w,
                       plan.step_y,
                       plan.step_x,
                       plan.window_h,
                       plan.window_w,
                       problem.height,
                       problem.width};
    copy_window(task.in, reach, part.first_channel, part.channels, task.in_copies, stage, plan.pitch);
    copy_window(task.grad, pixels, part.first_out, part.outs, task.grad_copies, stage + plan.window_elements,
                plan.out_pitch);
  }
  __pipeline_commit();
}

// A warp's unit of dW: where it begins in the window, and which part of dW it is.
struct Unit {
  int offset;
  int channel, row, column;  // of the part
  bool exists;
};

__device__ __forceinline__ Unit unit_at(const AdapterPlan& plan, const WeightPart& part, int index) {
  const int tiles = plan.channels / kTile;
  const int tap = index / tiles;
  Unit unit;
  unit.channel = index % tiles * kTile;
  unit.row = tap / plan.columns;
  unit.column = tap % plan.columns;
  unit.exists = unit.channel < part.channels && unit.row < part.rows && unit.column < part.columns;
  const int pixel = unit.row * plan.tap_step_y * plan.window_w + unit.column * plan.tap_step_x;
  unit.offset = unit.exists ? pixel * plan.pitch + unit.channel : 0;
  return unit;
}

// The first kUnits of a warp's units, even those that do not exist: without branches, the loads of one
// overlap the products of another.
template <typename Math, int kUnits>
__device__ __forceinline__ void multiply(const AdapterPlan& plan, const typename Math::Element* stage,
                                         const Unit (&units)[kAdapterUnits],
                                         Accumulator (&sums)[kAdapterUnits][kOutTiles]) {
  const auto* const grad = stage + plan.window_elements;
  const int pixel = plan.pixel_step_x * plan.pitch;
  for (int first = 0; first < kAdapterPixels; first += kDepth<Math>) {
    const int row = first / kAdapterTileWidth, column = first % kAdapterTileWidth;
    const auto* const from = stage + row * plan.pixel_step_y * plan.window_w * plan.pitch + column * pixel;
    Right<Math> right[kOutTiles];
#pragma unroll
    for (int j = 0; j < kOutTiles; ++j) {
      right[j].load_transposed(grad + first * plan.out_pitch + j * kTile,
                               [&](int k) { return k * plan.out_pitch; });
    }
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      Left<Math> left;
      left.load_transposed(from + units[i].offset, [&](int k) { return k * pixel; });
#pragma unroll
      for (int j = 0; j < kOutTiles; ++j) {
        mma<Math>(sums[i][j], left, right[j]);
      }
    }
  }
}

__device__ __forceinline__ void store_sums(const WeightPart& part, int pitch,
                                           const Unit (&units)[kAdapterUnits],
                                           const Accumulator (&sums)[kAdapterUnits][kOutTiles],
                                           float* weights) {
#pragma unroll
  for (int i = 0; i < kAdapterUnits; ++i) {
#pragma unroll
    for (int j = 0; j < kOutTiles; ++j) {
#pragma unroll
      for (int k = 0; k < Accumulator::kCount; ++k) {
        const int channel = units[i].channel + Accumulator::row(k);
        const int out = j * kTile + Accumulator::column(k);
        if (units[i].exists && channel < part.channels && out < part.outs) {
          const int place = (channel * part.rows + units[i].row) * part.columns + units[i].column;
          weights[out * pitch + place] = sums[i][j].values[k];
        }
      }
    }
  }
}

template <typename U>
__device__ __forceinline__ void fold(const AdapterTask& task, const FoldTable& table, const WeightPart& part,
                                     int block, int split, int out_block) {
  if (task.up != nullptr) {
    const int64_t slot = task.alone ? int64_t{split} * task.plan.parts + block : 0;
    fold_up<U>(table, task.weight, part, {task.up + slot * task.up_elements, task.alone});
  }
  if (task.down != nullptr) {
    const int64_t chunk_elements = task.alone ? task.down_elements : 0;
    const int64_t slot = (int64_t{split} * task.plan.out_blocks + out_block) * table.chunks;
    fold_down<U>(table, task.weight, part, {task.down + slot * chunk_elements, task.alone}, chunk_elements);
  }
}

__device__ __forceinline__ int at_most(int most, int value) { return value < most ? value : most; }

__device__ __forceinline__ WeightPart part_of_block(const AdapterTask& task, int block, int out_block) {
  const Problem& problem = task.problem;
  const AdapterPlan& plan = task.plan;
  WeightPart part;
  part.first_column = block % plan.column_blocks * plan.columns;
  part.first_row = block / plan.column_blocks % plan.row_blocks * plan.rows;
  part.first_channel = block / plan.column_blocks / plan.row_blocks * plan.channels;
  part.first_out = out_block * kAdapterOuts;
  part.columns = at_most(plan.columns, problem.kernel_w - part.first_column);
  part.rows = at_most(plan.rows, problem.kernel_h - part.first_row);
  part.channels = at_most(plan.channels, problem.in_channels - part.first_channel);
  part.outs = at_most(kAdapterOuts, problem.out_channels - part.first_out);
  return part;
}

template <typename Math>
__global__ void __launch_bounds__(kThreads) adapter_kernel(const __grid_constant__ AdapterTask task) {
  using T = typename Math::Element;
  const AdapterPlan& plan = task.plan;
  // Consecutive blocks read the same pixels.
  const int split = blockIdx.x / (plan.parts * plan.out_blocks);
  const int block = blockIdx.x / plan.out_blocks % plan.parts;
  const int out_block = static_cast<int>(blockIdx.x) % plan.out_blocks;
  const WeightPart part = part_of_block(task, block, out_block);
  Unit units[kAdapterUnits];
#pragma unroll
  for (int i = 0; i < kAdapterUnits; ++i) {
    units[i] = unit_at(plan, part, threadIdx.x / 32 + i * kAdapterWarps);
  }
  const bool few = plan.channels / kTile * plan.rows * plan.columns <= kAdapterWarps * kFewUnits;
  T* const stages = shared_at<T>(0);
  Accumulator sums[kAdapterUnits][kOutTiles];
  fetch(task, part, split, stages);
  int buffer = 0;
  for (int64_t tile = split; tile < plan.tiles; tile += plan.splits) {
    __pipeline_wait_prior(0);
    // The tile has arrived for all threads, and all are done with the one before it.
    __syncthreads();
    fetch(task, part, tile + plan.splits, stages + (1 - buffer) * plan.stage_elements);
    const T* const stage = stages + buffer * plan.stage_elements;
    if (few) {
      multiply<Math, kFewUnits>(plan, stage, units, sums);
    } else {
      multiply<Math, kAdapterUnits>(plan, stage, units, sums);
    }
    buffer = 1 - buffer;
  }
  __syncthreads();
  float* const weights = shared_at<float>(0);
  int* const chunk = reinterpret_cast<int*>(weights + kAdapterOuts * plan.weight_pitch);
  FoldTable table{weights, plan.weight_pitch, part.places(), task.chunks, chunk, chunk + part.places()};
  store_sums(part, plan.weight_pitch, units, sums, weights);
  table.fill(task.problem, task.weight, part);
  __syncthreads();
  if (task.weight.dtype == Dtype::kFloat32) {
    fold<float>(task, table, part, block, split, out_block);
  } else {
    fold<T>(task, table, part, block, split, out_block);
  }
}

// Neighbouring threads copy the channels of one pixel.
Copies plan_copies(const Problem& problem, const ImagePair& images, int channels, int channels_of_block) {
  const int bytes = problem.dtype == Dtype::kFloat32 ? 4 : 2;
  Copies copies{common_bytes(bytes, {images.first, images.second}, {channels, images.split}), 1};
  const int words = divide_up(int64_t{std::min(channels, channels_of_block)} * bytes, copies.bytes);
  while (copies.lanes < std::min(words, 32)) {
    copies.lanes *= 2;
  }
  return copies;
}

template <typename Math>
cudaError_t launch(const AdapterTask& task, cudaStream_t stream) {
  const AdapterPlan& plan = task.plan;
  return lorun::cuda::launch(adapter_kernel<Math>, int64_t{plan.splits} * plan.parts * plan.out_blocks,
                             kThreads, plan.shared, stream, task);
}

cudaError_t launch(const AdapterTask& task, cudaStream_t stream) {
  switch (task.problem.dtype) {
    case Dtype::kFloat32:
      return task.problem.tf32 ? launch<TensorCores<float>>(task, stream) : launch<Fma>(task, stream);
    case Dtype::kFloat16:
      return launch<TensorCores<__half>>(task, stream);
    case Dtype::kBFloat16:
      return launch<TensorCores<__nv_bfloat16>>(task, stream);
  }
  return cudaErrorInvalidValue;
}

int64_t weights_of_out(const Problem& problem) {
  return int64_t{problem.in_channels} * problem.kernel_h * problem.kernel_w;
}

AdapterTask task_for(const Problem& problem, const Weight& weight) {
  AdapterTask task{};
  task.problem = problem;
  task.plan = plan_adapter(problem);
  task.weight = weight;
  task.chunks = static_cast<int>(weights_of_out(problem) / weight.columns);
  task.up_elements = int64_t{problem.out_channels} * task.chunks * weight.inner;
  task.down_elements = int64_t{weight.inner} * weight.columns;
  return task;
}

cudaError_t sum_parts_to(float* result, const Parts& parts, cudaStream_t stream) {
  return result == nullptr ? cudaSuccess : sum_parts<true>(parts, result, stream);
}

bool is_empty(const Problem& problem) {
  return problem.batch == 0 || problem.out_height == 0 || problem.out_width == 0;
}

}  // namespace

int64_t conv_grad_adapter_workspace(const Problem& problem, const Weight& weight, bool deterministic) {
  if (is_depthwise(problem)) {
    return depthwise_grad_adapter_workspace(problem);
  }
  if (!deterministic || is_empty(problem)) {
    return 0;
  }
  const AdapterTask task = task_for(problem, weight);
  const int64_t elements =
      up_parts(task.plan) * task.up_elements + down_parts(task.plan, task.chunks) * task.down_elements;
  return elements * static_cast<int64_t>(sizeof(float));
}

cudaError_t conv_grad_adapter(const Problem& problem, Image grad, Image input, Image input2,
                              const Weight& weight, float* grad_up, float* grad_down, void* workspace,
                              bool deterministic, cudaStream_t stream) {
  if (is_depthwise(problem)) {
    return depthwise_grad_adapter(problem, grad, input, input2, weight, grad_up, grad_down, workspace,
                                  stream);
  }
  if (is_empty(problem) || (grad_up == nullptr && grad_down == nullptr)) {
    return cudaSuccess;
  }
  AdapterTask task = task_for(problem, weight);
  task.in = {input, input2, problem.in_channels - problem.second_in_channels};
  task.grad = {grad, Image{}, problem.out_channels};
  task.in_copies = plan_copies(problem, task.in, problem.in_channels, task.plan.channels);
  task.grad_copies = plan_copies(problem, task.grad, problem.out_channels, kAdapterOuts);
  task.alone = deterministic;
  const int64_t ups = up_parts(task.plan), downs = down_parts(task.plan, task.chunks);
  float* const parts = static_cast<float*>(workspace);
  float* const up_part = deterministic ? parts : grad_up;
  float* const down_part = deterministic ? parts + ups * task.up_elements : grad_down;
  task.up = grad_up != nullptr ? up_part : nullptr;
  task.down = grad_down != nullptr ? down_part : nullptr;
  cudaError_t error = launch(task, stream);
  if (error == cudaSuccess && deterministic) {
    error = sum_parts_to(grad_up, {up_part, ups, task.up_elements}, stream);
    if (error == cudaSuccess) {
      error = sum_parts_to(grad_down, {down_part, downs, task.down_elements}, stream);
    }
  }
  return error;
}

}  // namespace lorun::lora::cuda
