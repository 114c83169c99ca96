// W = base + scaling * (up @ down), element by element, in float.
#pragma once

#include "common/lora_conv.h"
#include "cuda/lora/tile.cuh"

namespace lorun::lora::cuda {

// Calls `launch` with a value of the weights' type.
template <typename Launch>
cudaError_t dispatch(Dtype dtype, Launch launch) {
  switch (dtype) {
    case Dtype::kFloat32:
      return launch(float{});
    case Dtype::kFloat16:
      return launch(__half{});
    case Dtype::kBFloat16:
      return launch(__nv_bfloat16{});
  }
  return cudaErrorInvalidValue;
}

// The shape of W; in_channels are those of one group.
struct WeightShape {
  int out_channels, in_channels, kernel_h, kernel_w;
};

// An element of W.
struct WeightIndex {
  int out, in, row, column;
};

// values = base + scaling * values for output channels at.out, at.out + 1, ...; channels beyond the
// last repeat it.
template <typename U, int kOuts>
__device__ __forceinline__ void add_base(const Weight& weight, const WeightShape& shape,
                                         const WeightIndex& at, float (&values)[kOuts]) {
  const U* const base = static_cast<const U*>(weight.base) + at.in * weight.in_stride +
                        at.row * weight.row_stride + at.column * weight.column_stride;
  const int last = shape.out_channels - 1 - at.out;
#pragma unroll
  for (int i = 0; i < kOuts; ++i) {
    const int out = at.out + (i < last ? i : last);
    values[i] = widen(base[out * weight.out_stride]) + weight.scaling * values[i];
  }
}

// W[at] of kOuts output channels, the first of them at.out; channels beyond the last repeat it. U is the type
// of base, up and down. If kOuts > 1, each output channel must be whole rows of up @ down: groups = 1.
template <typename U, int kOuts>
__device__ __forceinline__ void merge_outs(const Weight& weight, const WeightShape& shape, WeightIndex at,
                                           float (&values)[kOuts]) {
#pragma unroll
  for (int i = 0; i < kOuts; ++i) {
    values[i] = 0;
  }
  if (weight.up != nullptr) {
    const int size = shape.in_channels * shape.kernel_h * shape.kernel_w;
    const int index = at.out * size + (at.in * shape.kernel_h + at.row) * shape.kernel_w + at.column;
    const int row = index / weight.columns;
    const int distance = size / weight.columns * weight.inner;
    const int last = shape.out_channels - 1 - at.out;
    const U* const up = static_cast<const U*>(weight.up) + int64_t{row} * weight.inner;
    const U* const down = static_cast<const U*>(weight.down) + (index - row * weight.columns);
    for (int j = 0; j < weight.inner; ++j) {
      const float factor = widen(down[int64_t{j} * weight.columns]);
#pragma unroll
      for (int i = 0; i < kOuts; ++i) {
        values[i] += widen(up[(i < last ? i : last) * distance + j]) * factor;
      }
    }
  }
  add_base<U>(weight, shape, at, values);
}

// One element of W, any groups.
template <typename U>
__device__ __forceinline__ float merge_element(const Weight& weight, const WeightShape& shape,
                                               WeightIndex at) {
  float values[1];
  merge_outs<U>(weight, shape, at, values);
  return values[0];
}

}  // namespace lorun::lora::cuda
