// The convolution with W = base + scaling * (up @ down) and its epilogue in one pass over the images, and the
// gradient of its inputs, which is the same with W transposed.
//
// A block keeps the weights of its slice of output channels, merged once, and walks over tiles of pixels:
// while it multiplies one stage, the next one is being
// copied.
#include "cuda/lora/launchers.h"

#include <algorithm>
#include <climits>
#include <type_traits>

#include "cuda/lora/alignment.h"
#include "cuda/lora/conv_epilogue.cuh"
#include "cuda/lora/conv_weights.cuh"
#include "cuda/lora/depthwise.h"

namespace lorun::lora::cuda {
namespace {

constexpr int kMaxThreads = 256;
// The number of 16-pixel tiles of a warp.
constexpr int kPixelTiles = 2;

// A position in the sequence of all stages of a block's tiles.
struct Cursor {
  int index;
  Tile tile;
  Part part;
};

// Starts to copy the next stage.
template <typename T>
__device__ __forceinline__ void fetch(const Task& task, Cursor& at, int tile_step, int buffer) {
  const Plan& plan = task.plan;
  if (at.index < plan.tiles) {
    T* const stage = shared_at<T>(plan.stage_offset) + buffer * plan.stage_elements;
    copy_part(task, at.tile, at.part, stage);
    if (!advance(task, at.part)) {
      at.index += tile_step;
      at.tile = tile_at(plan, at.index);
    }
  }
  __pipeline_commit();
}

// The place of pixel m within a tile.
__device__ __forceinline__ int row_in_tile(const Plan& plan, int m) { return m >> plan.tile_width_log2; }
__device__ __forceinline__ int column_in_tile(const Plan& plan, int m) { return m & (plan.tile_width - 1); }

template <typename Math>
__device__ __forceinline__ LeftRows<Math> pixel_rows(const Plan& plan, int first) {
  return LeftRows<Math>([&](int row) {
    const int y = row_in_tile(plan, first + row) * plan.pixel_step_y;
    const int x = column_in_tile(plan, first + row) * plan.pixel_step_x;
    return (y * plan.grid_w + x) * plan.pixel_pitch;
  });
}

// sums += the pixels of one stage times their weights.
template <typename Math, int kColumns>
__device__ __forceinline__ void multiply(const Plan& plan, const LeftRows<Math> (&pixels)[kPixelTiles],
                                         const RightRows<Math>& outs, int steps,
                                         const typename Math::Element* stage,
                                         const typename Math::Element* weights,
                                         Accumulator (&sums)[kPixelTiles][kColumns]) {
  using T = typename Math::Element;
  for (int tap_y = 0; tap_y < plan.taps_y; ++tap_y) {
    for (int tap_x = 0; tap_x < plan.taps_x; ++tap_x) {
      const int shift = tap_y * plan.tap_step_y * plan.grid_w + tap_x * plan.tap_step_x;
      const T* const from = stage + shift * plan.pixel_pitch;
      const T* const with = weights + (tap_y * plan.taps_x + tap_x) * plan.tap_pitch;
      for (int k = 0; k < steps; ++k) {
        Left<Math> left[kPixelTiles];
#pragma unroll
        for (int i = 0; i < kPixelTiles; ++i) {
          left[i].load(from + k * kDepth<Math>, pixels[i]);
        }
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          Right<Math> right;
          right.load(with + j * kTile * plan.weight_pitch + k * kDepth<Math>, outs);
#pragma unroll
          for (int i = 0; i < kPixelTiles; ++i) {
            mma<Math>(sums[i][j], left[i], right);
          }
        }
      }
    }
  }
}

template <typename T, int kColumns>
__device__ __forceinline__ void finish_tile(const Task& task, const Tile& tile, int first_pixel,
                                            int first_channel,
                                            const Accumulator (&sums)[kPixelTiles][kColumns]) {
  constexpr int kTiles = kColumns == 1 ? 1 : 2;
  constexpr int kScratch = kTile * (kScratchColumns<kColumns> + kScratchPad);
  const Plan& plan = task.plan;
  const Axis &y = task.sizes.y, &x = task.sizes.x;
  float* const scratch = shared_at<float>(plan.scratch_offset) + threadIdx.x / 32 * kScratch;
#pragma unroll
  for (int i = 0; i < kPixelTiles; ++i) {
    const auto pixel_at = [&](int row, Pixel& at) {
      const int m = first_pixel + i * kTile + row;
      const int tile_y = tile.y + row_in_tile(plan, m), tile_x = tile.x + column_in_tile(plan, m);
      at = {tile.sample, y.out_first + tile_y * y.out_step, x.out_first + tile_x * x.out_step};
      return tile_y < y.count && tile_x < x.count;
    };
#pragma unroll
    for (int j = 0; j < kColumns; j += kTiles) {
      finish<T, kTiles>(task, &sums[i][j], scratch, first_channel + j * kTile, pixel_at);
    }
  }
}

// Float needs more registers than two blocks at a time leave.
template <typename Math, int kColumns>
constexpr int kBlocksBeside =
    std::is_same_v<Math, Fma> || (sizeof(typename Math::Element) == 4 && kColumns == 4) ? 1 : 2;

template <typename Math, int kColumns>
__global__ void __launch_bounds__(kMaxThreads, kBlocksBeside<Math, kColumns>)
    conv_kernel(const __grid_constant__ Task task) {
  using T = typename Math::Element;
  const Plan& plan = task.plan;
  T* const weights = shared_at<T>(0);
  const int first_channel = static_cast<int>(blockIdx.x) % plan.slices * kColumns * kTile;
  const int first_tile = static_cast<int>(blockIdx.x) / plan.slices;
  const int tile_step = static_cast<int>(gridDim.x) / plan.slices;

  bool merged = plan.staged_outs > 0;
  if (merged) {
    merge_with_stages(task, whole_panel(task, weights, first_channel));
  }
  Cursor ahead{first_tile, tile_at(plan, first_tile), Part{}};
  for (int buffer = 0; buffer < plan.stages - 1; ++buffer) {
    fetch<T>(task, ahead, tile_step, buffer);
  }
  const int first_pixel = threadIdx.x / 32 * kPixelTiles * kTile;
  const LeftRows<Math> pixels[kPixelTiles] = {pixel_rows<Math>(plan, first_pixel),
                                              pixel_rows<Math>(plan, first_pixel + kTile)};
  const RightRows<Math> outs([&](int row) { return row * plan.weight_pitch; });
  int buffer = 0, next = plan.stages - 1;
  for (int index = first_tile; index < plan.tiles; index += tile_step) {
    Accumulator sums[kPixelTiles][kColumns];
    Part part{};
    do {
      plan.stages == 3 ? __pipeline_wait_prior(1) : __pipeline_wait_prior(0);
      // The stage has arrived for all threads, and all are done with the one before it.
      __syncthreads();
      fetch<T>(task, ahead, tile_step, next);
      if (!merged) {
        merge_directly(task, plan.resident ? whole_panel(task, weights, first_channel)
                                           : part_panel(task, part, weights, first_channel));
        merged = plan.resident;
        __syncthreads();
      }
      const int tap = part.tap_y * task.sizes.x.taps + part.tap_x;
      const int offset = plan.resident ? tap * plan.tap_pitch + part.first_channel : 0;
      multiply<Math, kColumns>(plan, pixels, outs, depth_of(plan, part) / kDepth<Math>,
                               shared_at<T>(plan.stage_offset) + buffer * plan.stage_elements,
                               weights + offset, sums);
      buffer = buffer + 1 == plan.stages ? 0 : buffer + 1;
      next = next + 1 == plan.stages ? 0 : next + 1;
    } while (advance(task, part));
    finish_tile<T, kColumns>(task, tile_at(plan, index), first_pixel, first_channel, sums);
  }
}

void plan_copies(Task& task) {
  const Sizes& sizes = task.sizes;
  const ImagePair &in = task.in, &out = task.out;
  task.copy_bytes = common_bytes(sizes.element_bytes, {in.first, in.second}, {sizes.in_channels, in.split});
  const int out_bytes =
      common_bytes(sizes.element_bytes, {out.first, out.second, task.preactivation, task.epilogue.residual},
                   {sizes.out_channels, out.split});
  task.quads = out_bytes >= kQuad * sizes.element_bytes;
}

template <typename Math, int kColumns>
cudaError_t launch(const Task& task, const Device& device, cudaStream_t stream) {
  const auto kernel = conv_kernel<Math, kColumns>;
  const Plan& plan = task.plan;
  int beside = 0;
  const cudaError_t error = lorun::cuda::blocks_beside(kernel, 32 * plan.warps, plan.shared, &beside);
  if (error != cudaSuccess) {
    return error;
  }
  const int64_t most = std::max(1, beside * device.multiprocessors / plan.slices);
  if (plan.tiles > INT_MAX - most) {
    return cudaErrorInvalidValue;
  }
  return lorun::cuda::launch(kernel, std::min(plan.tiles, most) * plan.slices, 32 * plan.warps, plan.shared,
                             stream, task);
}

template <typename Math>
cudaError_t launch(Task task, cudaStream_t stream) {
  Device device{};
  cudaError_t error = lorun::cuda::shared_limit(&device.shared);
  if (error == cudaSuccess) {
    error = lorun::cuda::multiprocessors(&device.multiprocessors);
  }
  if (error != cudaSuccess) {
    return error;
  }
  plan_copies(task);
  task.plan = make_plan(task.sizes, device);
  switch (task.plan.columns) {
    case 1:
      return launch<Math, 1>(task, device, stream);
    case 2:
      return launch<Math, 2>(task, device, stream);
    default:
      return launch<Math, 4>(task, device, stream);
  }
}

cudaError_t launch(const Problem& problem, Task task, cudaStream_t stream) {
  task.sizes.element_bytes = problem.dtype == Dtype::kFloat32 ? 4 : 2;
  if (task.sizes.batch == 0 || task.sizes.y.count == 0 || task.sizes.x.count == 0) {
    return cudaSuccess;
  }
  switch (problem.dtype) {
    case Dtype::kFloat32:
      return problem.tf32 ? launch<TensorCores<float>>(task, stream) : launch<Fma>(task, stream);
    case Dtype::kFloat16:
      return launch<TensorCores<__half>>(task, stream);
    case Dtype::kBFloat16:
      return launch<TensorCores<__nv_bfloat16>>(task, stream);
  }
  return cudaErrorInvalidValue;
}

Task task_for(const Problem& problem, const Weight& weight) {
  Task task{};
  task.sizes.batch = problem.batch;
  task.weight = weight;
  task.shape = {problem.out_channels, problem.in_channels, problem.kernel_h, problem.kernel_w};
  if (weight.up != nullptr) {
    task.sizes.up_rows = problem.in_channels * problem.kernel_h * problem.kernel_w / weight.columns;
    task.sizes.up_pitch = (weight.inner + 3) / 4 * 4;
  }
  return task;
}

}  // namespace

cudaError_t conv(const Problem& problem, Image input, Image input2, const Weight& weight,
                 const Epilogue& epilogue, Image output, Image preactivation, cudaStream_t stream) {
  if (problem.groups > 1) {
    return depthwise(problem, input, input2, weight, epilogue, output, preactivation, stream);
  }
  Task task = task_for(problem, weight);
  const Axes axes = forward_axes(problem);
  task.sizes.y = axes.y;
  task.sizes.x = axes.x;
  task.sizes.in_channels = problem.in_channels;
  task.sizes.out_channels = problem.out_channels;
  task.in = {input, input2, problem.in_channels - problem.second_in_channels};
  task.out = {output, Image{}, problem.out_channels};
  task.epilogue = epilogue;
  task.preactivation = preactivation;
  return launch(problem, task, stream);
}

cudaError_t conv_grad_input(const Problem& problem, Image grad, const Weight& weight, Image grad_input,
                            Image grad_input2, cudaStream_t stream) {
  if (problem.groups > 1) {
    return depthwise_grad_input(problem, grad, weight, grad_input, grad_input2, stream);
  }
  Task task = task_for(problem, weight);
  task.transposed = true;
  task.sizes.in_channels = problem.out_channels;
  task.sizes.out_channels = problem.in_channels;
  task.in = {grad, Image{}, problem.out_channels};
  task.out = {grad_input, grad_input2, problem.in_channels - problem.second_in_channels};
  return for_phases(problem, [&](const Axes& axes) {
    task.sizes.y = axes.y;
    task.sizes.x = axes.x;
    return launch(problem, task, stream);
  });
}

}  // namespace lorun::lora::cuda
