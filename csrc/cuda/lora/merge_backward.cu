// The gradients of all adapters of a stage from those of its merged weights, in one launch. With dW as the
// matrix that up @ down is, a layer has grad_up = scaling * dW @ down^T and grad_down = scaling * up^T @ dW.
// Every sum has one owner and one order: nothing is cleared first, and the same gradients give the same bits.
#include "cuda/lora/launchers.h"
#include "cuda/lora/weight.cuh"

namespace lorun::lora::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
// Columns of up, or rows of down, that a thread sums at once: they share what it reads of dW.
constexpr int kInner = 8;

struct Stacks {
  const void *up, *down, *grad;
  void *grad_up, *grad_down;
  Dtype grad_dtype;
};

// What the warps of a block have summed; one column more than there are lanes, so that a lane can sum a row.
using Parts = float[kWarps][kInner][33];

__device__ __forceinline__ float read(const void* data, int at, Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return static_cast<const float*>(data)[at];
    case Dtype::kFloat16:
      return widen(static_cast<const __half*>(data)[at]);
    case Dtype::kBFloat16:
      return widen(static_cast<const __nv_bfloat16*>(data)[at]);
  }
  return 0;
}

// A layer's part of the stacks.
template <typename U>
struct Layer {
  const U *up, *down;
  U *grad_up, *grad_down;
  const void* grad;
  Dtype grad_dtype;
  int rows, columns, inner, taps, channels;
  float scaling;

  __device__ __forceinline__ Layer(const StageLayer& layer, const Stacks& stacks)
      : up(static_cast<const U*>(stacks.up) + layer.up_offset),
        down(static_cast<const U*>(stacks.down) + layer.down_offset),
        grad_up(static_cast<U*>(stacks.grad_up) + layer.up_offset),
        grad_down(static_cast<U*>(stacks.grad_down) + layer.down_offset),
        grad(static_cast<const char*>(stacks.grad) +
             layer.merged_offset * (stacks.grad_dtype == Dtype::kFloat32 ? 4 : 2)),
        grad_dtype(stacks.grad_dtype),
        columns(static_cast<int>(layer.columns)),
        inner(static_cast<int>(layer.inner)),
        taps(static_cast<int>(layer.kernel_h * layer.kernel_w)),
        channels(static_cast<int>(layer.in_channels)),
        scaling(layer.scaling) {
    rows = static_cast<int>(layer.out_channels) * channels * taps / columns;
  }

  // dW is in channels_last; the matrix counts its elements in the order out, in, row, column.
  __device__ __forceinline__ float weight_grad(int row, int column) const {
    const int index = row * columns + column;
    const int line = index / taps;
    const int tap = index - line * taps;
    const int out = line / channels;
    return read(grad, (out * taps + tap) * channels + line - out * channels, grad_dtype);
  }
};

// Each warp has one row of dW, and each of its lanes every 32nd column.
template <typename U>
__device__ __forceinline__ void write_up_rows(const Layer<U>& layer, int block, Parts& parts) {
  const int warp = threadIdx.x / 32, lane = lane_id();
  const int row = block * kWarps + warp;
  for (int first = 0; first < layer.inner; first += kInner) {
    const int last = layer.inner - 1 - first;
    float sums[kInner] = {};
    if (row < layer.rows) {
      for (int column = lane; column < layer.columns; column += 32) {
        const float value = layer.weight_grad(row, column);
#pragma unroll
        for (int j = 0; j < kInner; ++j) {
          sums[j] += value * widen(layer.down[(first + (j < last ? j : last)) * layer.columns + column]);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kInner; ++j) {
      parts[warp][j][lane] = sums[j];
    }
    __syncthreads();
    if (row < layer.rows && lane < kInner && lane <= last) {
      float sum = 0;
      for (int i = 0; i < 32; ++i) {
        sum += parts[warp][lane][i];
      }
      narrow(layer.scaling * sum, layer.grad_up[row * layer.inner + first + lane]);
    }
    __syncthreads();
  }
}

// Each lane has one column of dW, and each warp every kWarps-th row.
template <typename U>
__device__ __forceinline__ void write_down_columns(const Layer<U>& layer, int block, Parts& parts) {
  const int warp = threadIdx.x / 32, lane = lane_id();
  const int column = block * 32 + lane;
  for (int first = 0; first < layer.inner; first += kInner) {
    const int last = layer.inner - 1 - first;
    float sums[kInner] = {};
    if (column < layer.columns) {
      for (int row = warp; row < layer.rows; row += kWarps) {
        const float value = layer.weight_grad(row, column);
        const U* const up = layer.up + row * layer.inner + first;
#pragma unroll
        for (int j = 0; j < kInner; ++j) {
          sums[j] += value * widen(up[j < last ? j : last]);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kInner; ++j) {
      parts[warp][j][lane] = sums[j];
    }
    __syncthreads();
    for (int j = warp; j < kInner && j <= last; j += kWarps) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kWarps; ++i) {
        sum += parts[i][j][lane];
      }
      if (column < layer.columns) {
        narrow(layer.scaling * sum, layer.grad_down[(first + j) * layer.columns + column]);
      }
    }
    __syncthreads();
  }
}

// Each layer has `blocks` blocks: the first for rows of up, the others for columns of down.
template <typename U>
__global__ void __launch_bounds__(kThreads)
    merge_stage_backward_kernel(const StageLayer* layers, int blocks, Stacks stacks) {
  Parts& parts = *reinterpret_cast<Parts*>(shared_memory);
  const Layer<U> layer(layers[blockIdx.x / blocks], stacks);
  const int block = blockIdx.x % blocks;
  const int up_blocks = (layer.rows + kWarps - 1) / kWarps;
  if (block < up_blocks) {
    write_up_rows(layer, block, parts);
  } else if ((block - up_blocks) * 32 < layer.columns) {
    write_down_columns(layer, block - up_blocks, parts);
  }
}

}  // namespace

cudaError_t merge_stage_backward(const StageLayer* layers, int32_t count, int64_t rows, int64_t columns,
                                 const void* up, const void* down, Dtype weight_dtype, const void* grad,
                                 Dtype dtype, void* grad_up, void* grad_down, cudaStream_t stream) {
  const int64_t blocks = (rows + kWarps - 1) / kWarps + (columns + 31) / 32;
  const Stacks stacks{up, down, grad, grad_up, grad_down, dtype};
  return dispatch(weight_dtype, [&](auto type) {
    return lorun::cuda::launch(merge_stage_backward_kernel<decltype(type)>, blocks * count, kThreads,
                               sizeof(Parts), stream, layers, static_cast<int>(blocks), stacks);
  });
}

}  // namespace lorun::lora::cuda
