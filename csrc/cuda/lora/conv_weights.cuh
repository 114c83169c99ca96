// The weights of a block: merged into shared memory, one row for each channel of its slice of the result.
#pragma once

#include "cuda/lora/conv_stage.cuh"
#include "cuda/lora/vector.cuh"

namespace lorun::lora::cuda {

// Some of the weights: those of `taps` taps and `depth` channels of the image. `to` is where the weights of
// the slice's first channel begin.
template <typename T>
struct Panel {
  T* to;
  int first_row, first_tap, taps, first_channel, depth;
};

// Output channels of W that a panel needs.
struct Outs {
  int first, count;
};

template <typename T>
__device__ __forceinline__ Outs outs_of(const Task& task, const Panel<T>& panel) {
  return task.transposed ? Outs{panel.first_channel, panel.depth}
                         : Outs{panel.first_row, task.plan.columns * kTile};
}

// Fills `count` output channels of W, after the panel's first `skipped`, with what merge(index, values)
// computes. What lies outside of W is 0.
template <typename T, typename Merge>
__device__ __forceinline__ void fill_panel(const Task& task, const Panel<T>& panel, int skipped, int count,
                                           Merge merge) {
  const Plan& plan = task.plan;
  const int first_out = outs_of(task, panel).first;
  const int first_in = task.transposed ? panel.first_row : panel.first_channel;
  const int ins = task.transposed ? plan.columns * kTile : panel.depth;
  const int out_pitch = task.transposed ? 1 : plan.weight_pitch;
  const int in_pitch = task.transposed ? plan.weight_pitch : 1;
  // Neighbouring threads read neighbouring elements, of `down`, whose columns are the taps of a channel, or
  // of base.
  const bool ins_first = task.weight.up == nullptr && task.weight.in_stride < task.weight.column_stride;
  const int minor = ins_first ? ins : panel.taps, major = ins_first ? panel.taps : ins;
  const int items = count / kMergedOuts * ins * panel.taps;
  for (int i = threadIdx.x; i < items; i += blockDim.x) {
    const int inner = i % minor, outer = i / minor % major;
    const int tap = ins_first ? outer : inner, in = ins_first ? inner : outer;
    const int out = skipped + i / minor / major * kMergedOuts;
    const int tap_y = (panel.first_tap + tap) / task.sizes.x.taps;
    const int tap_x = (panel.first_tap + tap) % task.sizes.x.taps;
    const WeightIndex at{first_out + out, first_in + in,
                         task.sizes.y.kernel_first + tap_y * task.sizes.y.kernel_step,
                         task.sizes.x.kernel_first + tap_x * task.sizes.x.kernel_step};
    float values[kMergedOuts] = {};
    if (at.in < task.shape.in_channels && at.out < task.shape.out_channels) {
      merge(at, values);
    }
    T* const to = panel.to + tap * plan.tap_pitch + out * out_pitch + in * in_pitch;
#pragma unroll
    for (int j = 0; j < kMergedOuts; ++j) {
      narrow(at.out + j < task.shape.out_channels ? values[j] : 0.0f, to[j * out_pitch]);
    }
  }
}

// Rows of `up` in shared memory, as floats: those of some output channels, each padded with zeros to a
// multiple of four, so that a warp reads four at once.
struct StagedUp {
  float* rows;
  int first_out, outs, rows_per_out, pitch;
};

template <typename U>
__device__ __forceinline__ void stage_up(const Task& task, const StagedUp& staged) {
  const Weight& weight = task.weight;
  const U* const up = static_cast<const U*>(weight.up);
  for (int i = threadIdx.x; i < staged.outs * staged.rows_per_out * staged.pitch; i += blockDim.x) {
    const int row = i / staged.pitch + staged.first_out * staged.rows_per_out;
    const int j = i % staged.pitch;
    const bool exists = j < weight.inner && row < task.shape.out_channels * staged.rows_per_out;
    staged.rows[i] = exists ? widen(up[int64_t{row} * weight.inner + j]) : 0.0f;
  }
}

// merge_outs with the staged rows of `up`.
template <typename U>
__device__ __forceinline__ void merge_staged(const Task& task, const StagedUp& staged, const WeightIndex& at,
                                             float (&values)[kMergedOuts]) {
  constexpr int kTogether = 4;
  const Weight& weight = task.weight;
  const WeightShape& shape = task.shape;
  const int inside = (at.in * shape.kernel_h + at.row) * shape.kernel_w + at.column;
  const int row = inside / weight.columns;
  const int distance = staged.rows_per_out * staged.pitch;
  const float* const up = staged.rows + (at.out - staged.first_out) * distance + row * staged.pitch;
  const U* const down = static_cast<const U*>(weight.down) + (inside - row * weight.columns);
  for (int first = 0; first < weight.inner; first += kTogether) {
    float factors[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      factors[j] = first + j < weight.inner ? widen(down[int64_t{first + j} * weight.columns]) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kMergedOuts; ++i) {
      float ups[kTogether];
      load_vector(up + i * distance + first, ups);
#pragma unroll
      for (int j = 0; j < kTogether; ++j) {
        values[i] += ups[j] * factors[j];
      }
    }
  }
  add_base<U>(weight, shape, at, values);
}

template <typename U, typename T>
__device__ __forceinline__ void merge_with_stages(U, const Task& task, const Panel<T>& panel) {
  const Plan& plan = task.plan;
  const Outs outs = outs_of(task, panel);
  StagedUp staged{shared_at<float>(plan.stage_offset), 0, 0, task.sizes.up_rows, task.sizes.up_pitch};
  const int step = plan.staged_outs;
  for (int skipped = 0; skipped < outs.count; skipped += step) {
    const int left = outs.count - skipped;
    staged.first_out = outs.first + skipped;
    staged.outs = left < step ? left : step;
    stage_up<U>(task, staged);
    __syncthreads();
    fill_panel(task, panel, skipped, staged.outs, [&](const WeightIndex& at, float (&values)[kMergedOuts]) {
      merge_staged<U>(task, staged, at, values);
    });
    __syncthreads();
  }
}

template <typename U, typename T>
__device__ __forceinline__ void merge_directly(U, const Task& task, const Panel<T>& panel) {
  fill_panel(task, panel, 0, outs_of(task, panel).count,
             [&](const WeightIndex& at, float (&values)[kMergedOuts]) {
               merge_outs<U>(task.weight, task.shape, at, values);
             });
}

// Calls `merge` with a value of the type of base, up and down: T or float.
template <typename T, typename Merge>
__device__ __forceinline__ void with_weight_type(const Weight& weight, Merge merge) {
  if (weight.dtype == Dtype::kFloat32) {
    merge(float{});
  } else {
    merge(T{});
  }
}

// Merges a panel with the help of the stages' memory, to which no copy may have been started yet.
template <typename T>
__device__ __forceinline__ void merge_with_stages(const Task& task, const Panel<T>& panel) {
  with_weight_type<T>(task.weight, [&](auto type) { merge_with_stages(type, task, panel); });
}

template <typename T>
__device__ __forceinline__ void merge_directly(const Task& task, const Panel<T>& panel) {
  with_weight_type<T>(task.weight, [&](auto type) { merge_directly(type, task, panel); });
}

__device__ __forceinline__ int depth_of(const Plan& plan, const Part& part) {
  const int left = plan.padded_channels - part.first_channel;
  return left < plan.depth ? left : plan.depth;
}

// All weights of the slice.
template <typename T>
__device__ __forceinline__ Panel<T> whole_panel(const Task& task, T* to, int first_row) {
  return {to, first_row, 0, task.sizes.y.taps * task.sizes.x.taps, 0, task.plan.padded_channels};
}

// Those that a part needs.
template <typename T>
__device__ __forceinline__ Panel<T> part_panel(const Task& task, const Part& part, T* to, int first_row) {
  const int tap = part.tap_y * task.sizes.x.taps + part.tap_x;
  return {to, first_row, tap, 1, part.first_channel, depth_of(task.plan, part)};
}

}  // namespace lorun::lora::cuda
