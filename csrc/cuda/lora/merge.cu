// W of one layer, or of all layers of a stage in one launch.
#include "cuda/lora/launchers.h"
#include "cuda/lora/weight.cuh"

namespace lorun::lora::cuda {
namespace {

constexpr int kThreads = 128;
// Output channels of a thread: they share what it reads of down.
constexpr int kOuts = 4;

struct Merged {
  void* data;
  int64_t out_stride, in_stride, row_stride, column_stride;
  Dtype dtype;
};

__device__ __forceinline__ void store(const Merged& merged, int64_t at, float value) {
  switch (merged.dtype) {
    case Dtype::kFloat32:
      return narrow(value, static_cast<float*>(merged.data)[at]);
    case Dtype::kFloat16:
      return narrow(value, static_cast<__half*>(merged.data)[at]);
    case Dtype::kBFloat16:
      return narrow(value, static_cast<__nv_bfloat16*>(merged.data)[at]);
  }
}

// The index-th element of the first output channel, in the order of the result's memory.
__device__ __forceinline__ WeightIndex element_at(const WeightShape& shape, const Merged& merged, int index) {
  if (merged.in_stride == 1) {
    const int tap = index / shape.in_channels;
    return {0, index % shape.in_channels, tap / shape.kernel_w, tap % shape.kernel_w};
  }
  const int line = index / shape.kernel_w;
  return {0, line / shape.kernel_h, line % shape.kernel_h, index % shape.kernel_w};
}

// One element of kOuts output channels from `first` on.
template <typename U>
__device__ __forceinline__ void merge_group(const Weight& weight, const WeightShape& shape,
                                            const Merged& merged, int first, int index) {
  const int size = shape.in_channels * shape.kernel_h * shape.kernel_w;
  WeightIndex at = element_at(shape, merged, index);
  at.out = first;
  float values[kOuts];
  if (weight.up == nullptr || size % weight.columns == 0) {
    merge_outs<U>(weight, shape, at, values);
  } else {
#pragma unroll
    for (int i = 0; i < kOuts; ++i) {
      at.out = first + i < shape.out_channels ? first + i : first;
      values[i] = merge_element<U>(weight, shape, at);
    }
  }
  const int64_t to = first * merged.out_stride + at.in * merged.in_stride + at.row * merged.row_stride +
                     at.column * merged.column_stride;
#pragma unroll
  for (int i = 0; i < kOuts; ++i) {
    if (first + i < shape.out_channels) {
      store(merged, to + i * merged.out_stride, values[i]);
    }
  }
}

// This block's part of W, one of `blocks`.
template <typename U>
__device__ __forceinline__ void merge_part(const Weight& weight, const WeightShape& shape,
                                           const Merged& merged, int block, int blocks) {
  const int size = shape.in_channels * shape.kernel_h * shape.kernel_w;
  const int count = (shape.out_channels + kOuts - 1) / kOuts * size;
  for (int i = block * kThreads + threadIdx.x; i < count; i += blocks * kThreads) {
    merge_group<U>(weight, shape, merged, i / size * kOuts, i % size);
  }
}

template <typename U>
__global__ void __launch_bounds__(kThreads)
    merge_kernel(const __grid_constant__ Weight weight, WeightShape shape, Merged merged) {
  merge_part<U>(weight, shape, merged, blockIdx.x, gridDim.x);
}

template <typename U>
__global__ void __launch_bounds__(kThreads)
    merge_stage_kernel(const StageLayer* layers, int blocks, const void* up, const void* down, void* merged,
                       Dtype weight_dtype, Dtype dtype) {
  const StageLayer layer = layers[blockIdx.x / blocks];
  const WeightShape shape{static_cast<int>(layer.out_channels), static_cast<int>(layer.in_channels),
                          static_cast<int>(layer.kernel_h), static_cast<int>(layer.kernel_w)};
  const Weight weight{layer.base,
                      layer.out_stride,
                      layer.in_stride,
                      layer.row_stride,
                      layer.column_stride,
                      static_cast<const U*>(up) + layer.up_offset,
                      static_cast<const U*>(down) + layer.down_offset,
                      static_cast<int>(layer.inner),
                      static_cast<int>(layer.columns),
                      layer.scaling,
                      weight_dtype};
  const int64_t row = layer.kernel_w * layer.in_channels;
  const int64_t element_bytes = dtype == Dtype::kFloat32 ? 4 : 2;
  const Merged to{static_cast<char*>(merged) + layer.merged_offset * element_bytes,
                  layer.kernel_h * row,
                  1,
                  row,
                  layer.in_channels,
                  dtype};
  merge_part<U>(weight, shape, to, blockIdx.x % blocks, blocks);
}

int64_t blocks_for(int64_t elements) { return (elements + kThreads * kOuts - 1) / (kThreads * kOuts); }

}  // namespace

cudaError_t merge(const Weight& weight, int32_t out_channels, int32_t in_channels, int32_t kernel_h,
                  int32_t kernel_w, void* merged, int64_t out_stride, int64_t in_stride, int64_t row_stride,
                  int64_t column_stride, Dtype dtype, cudaStream_t stream) {
  const WeightShape shape{out_channels, in_channels, kernel_h, kernel_w};
  const Merged to{merged, out_stride, in_stride, row_stride, column_stride, dtype};
  const int64_t elements = int64_t{out_channels} * in_channels * kernel_h * kernel_w;
  return dispatch(weight.dtype, [&](auto type) {
    return lorun::cuda::launch(merge_kernel<decltype(type)>, blocks_for(elements), kThreads, 0, stream,
                               weight, shape, to);
  });
}

cudaError_t merge_stage(const StageLayer* layers, int32_t count, int64_t elements, const void* up,
                        const void* down, Dtype weight_dtype, void* merged, Dtype dtype,
                        cudaStream_t stream) {
  const int64_t blocks = blocks_for(elements);
  return dispatch(weight_dtype, [&](auto type) {
    return lorun::cuda::launch(merge_stage_kernel<decltype(type)>, blocks * count, kThreads, 0, stream,
                               layers, static_cast<int>(blocks), up, down, merged, weight_dtype, dtype);
  });
}

}  // namespace lorun::lora::cuda
