// The data steps PGD and HQS, x - Phi^T (factor * (Phi x - y)), in one read and one write of the cube, and
// their gradients. What the two differ in, the factor, is step_factor in common/cassi.h.
#include "cuda/cassi/launchers.h"

#include "cuda/cassi/row.cuh"

namespace lorun::cassi::cuda {
namespace {

struct Scale {
  const void* data;
  int64_t stride;
};

template <typename A>
__device__ __forceinline__ A scale_of(const Scale& scale, RowId at) {
  return static_cast<const A*>(scale.data)[at.sample * scale.stride];
}

// to = from - Phi^T v.
template <bool kFlat, typename FromRow, typename MaskRow, typename A, typename ToRow>
__device__ __forceinline__ void subtract_adjoint(const Problem& problem, const FromRow& from,
                                                 const MaskRow& mask, const A* v, const ToRow& to) {
  fill_row(problem, to, [&](int w) {
    return [&problem, from, v, w, open = mask_column<kFlat>(mask, w)](int c) {
      return widen(from(c, w)) - open(c) * v[w + problem.offsets[c]];
    };
  });
}

template <typename T, bool kStaged, bool kFlat>
__global__ void __launch_bounds__(kMaxThreads)
    step_kernel(const __grid_constant__ Problem problem, Step step, Cube x_cube, Staging x_staging,
                Measurement measurement, Cube mask_cube, int mask_offset, Scale scales, Cube out_cube,
                Staging out_staging, Measurement residual, int v_offset) {
  using A = acc_t<T>;
  const RowId at = row_of_block(problem);
  const auto x = input_row<T, kStaged>(x_cube, x_staging, at);
  const auto mask = mask_row<T, kFlat>(problem, mask_cube, mask_offset, at);
  __syncthreads();
  A* const v = shared_at<A>(v_offset);
  const A scale = scale_of<A>(scales, at);
  const auto y = measured_row<const T>(measurement, at);
  const int measured = static_cast<int>(problem.measured);
  for (int p = threadIdx.x; p < measured; p += blockDim.x) {
    const A target = widen(y(0, p));
    const Gathered<A> gathered = gather<A>(problem, x, mask, p);
    const A difference = gathered.sum - target;
    if (residual.data != nullptr) {
      measured_row<A>(residual, at)(0, p) = difference;
    }
    v[p] = step_factor(step, gathered.gram, scale) * difference;
  }
  __syncthreads();
  subtract_adjoint<kFlat>(problem, x, mask, v, output_row<T, kStaged>(out_cube, out_staging, at));
  finish_row<T, kStaged>(out_cube, out_staging, at);
}

// The sum over the block, always in the same order; only thread 0 receives it.
template <typename A>
__device__ __forceinline__ A block_sum(A value, A* scratch) {
  const int thread = threadIdx.x;
  scratch[thread] = value;
  for (int left = blockDim.x; left > 1;) {
    __syncthreads();
    const int half = (left + 1) / 2;
    if (thread < left - half) {
      scratch[thread] += scratch[thread + half];
    }
    left = half;
  }
  return thread == 0 ? scratch[0] : A(0);
}

// The operands of the backward pass; a result whose pointer is null is not wanted.
struct Backward {
  Cube grad, x, mask, grad_x, grad_mask;
  Measurement residual, grad_y;
  Scale scale;
  void* grad_scale;
  Staging grad_staging, x_staging, grad_x_staging;
  int mask_offset, t_offset, v_offset, scratch_offset;
};

// Fills t = factor * residual and v = factor * u of a row, and writes grad_y and grad_scale.
template <typename T, typename GradRow, typename MaskRow>
__device__ __forceinline__ void measure_gradient(const Problem& problem, Step step, const Backward& task,
                                                 RowId at, const GradRow& grad, const MaskRow& mask) {
  using A = acc_t<T>;
  A* const t = shared_at<A>(task.t_offset);
  A* const v = shared_at<A>(task.v_offset);
  const A scale = scale_of<A>(task.scale, at);
  const int measured = static_cast<int>(problem.measured);
  A grad_scale = 0;
  for (int p = threadIdx.x; p < measured; p += blockDim.x) {
    const Gathered<A> gathered = gather<A>(problem, grad, mask, p);
    const A factor = step_factor(step, gathered.gram, scale);
    v[p] = factor * gathered.sum;
    if (task.residual.data != nullptr) {
      const A residual = measured_row<const A>(task.residual, at)(0, p);
      t[p] = factor * residual;
      grad_scale += scale_gradient(step, factor, residual, gathered.sum);
    }
    if (task.grad_y.data != nullptr) {
      narrow(v[p], measured_row<T>(task.grad_y, at)(0, p));
    }
  }
  if (task.grad_scale != nullptr) {
    const A sum = block_sum(grad_scale, shared_at<A>(task.scratch_offset));
    if (threadIdx.x == 0) {
      static_cast<A*>(task.grad_scale)[at.sample * problem.height + at.row] = sum;
    }
  }
}

template <typename T, bool kStaged, bool kFlat, bool kMaskGrad>
__device__ __forceinline__ void backward_row(const Problem& problem, Step step, const Backward& task,
                                             RowId at, bool first) {
  using A = acc_t<T>;
  constexpr bool kStagedX = kStaged && kMaskGrad;
  const A* const t = shared_at<A>(task.t_offset);
  const A* const v = shared_at<A>(task.v_offset);
  const auto grad = input_row<T, kStaged>(task.grad, task.grad_staging, at);
  const auto x = input_row<T, kStagedX>(task.x, task.x_staging, at);
  const auto mask = mask_row<T, kFlat>(problem, task.mask, task.mask_offset, at);
  __syncthreads();
  measure_gradient<T>(problem, step, task, at, grad, mask);
  __syncthreads();
  if constexpr (kMaskGrad) {
    add_mask_gradient<A>(problem, task.grad_mask, at, first, [&](int c, int w) {
      const int p = w + problem.offsets[c];
      return mask_gradient<A>(step, widen(grad(c, w)), widen(x(c, w)), widen(mask(c, w)), t[p], v[p]);
    });
  }
  if (task.grad_x.data != nullptr) {
    const auto grad_x = output_row<T, kStaged>(task.grad_x, task.grad_x_staging, at);
    subtract_adjoint<kFlat>(problem, grad, mask, v, grad_x);
    finish_row<T, kStaged>(task.grad_x, task.grad_x_staging, at);
  }
}

// Without a gradient of the mask there is nothing to sum over samples, and fewer registers are needed.
template <typename T, bool kStaged, bool kFlat, bool kMaskGrad>
__global__ void __launch_bounds__(kMaxThreads, kMaskGrad ? 1 : 4)
    step_backward_kernel(const __grid_constant__ Problem problem, Step step,
                         const __grid_constant__ Backward task) {
  if constexpr (kMaskGrad) {
    const Samples samples = samples_of_block(problem, task.grad_mask);
    for (int64_t sample = samples.first; sample < samples.last; ++sample) {
      const RowId at{sample, samples.row};
      backward_row<T, kStaged, kFlat, true>(problem, step, task, at, sample == samples.first);
      __syncthreads();
    }
  } else {
    backward_row<T, kStaged, kFlat, false>(problem, step, task, row_of_block(problem), true);
  }
}

template <typename T, bool kMaskGrad>
auto backward_kernel(bool staged, const Cube& mask) {
  return !staged          ? step_backward_kernel<T, false, false, kMaskGrad>
         : mask.band == 0 ? step_backward_kernel<T, true, true, kMaskGrad>
                          : step_backward_kernel<T, true, false, kMaskGrad>;
}

}  // namespace

cudaError_t step(const Problem& problem, Step step, Cube x, Measurement y, Cube mask, const void* scale,
                 int64_t scale_stride, Cube out, Measurement residual, cudaStream_t stream) {
  return dispatch(problem, [&](auto type, int64_t limit) {
    using T = decltype(type);
    SharedMemory least;
    const int v_offset = least.take_measured<T>(problem);
    SharedMemory shared = least;
    const Tile tile = shared.take_tile<T>(problem, x);
    const int mask_offset = shared.take_flat<T>(problem, mask);
    const bool staged = shared.bytes() <= limit;
    const auto kernel = !staged          ? step_kernel<T, false, false>
                        : mask.band == 0 ? step_kernel<T, true, true>
                                         : step_kernel<T, true, false>;
    return lorun::cuda::launch(
        kernel, problem.batch * problem.height, threads_for(problem), (staged ? shared : least).bytes(),
        stream, problem, step, x, plan_staging<T>(problem, x, tile), y, mask, mask_offset,
        Scale{scale, scale_stride}, out, plan_staging<T>(problem, out, tile), residual, v_offset);
  });
}

cudaError_t step_backward(const Problem& problem, Step step, Cube grad, Measurement residual, Cube x,
                          Cube mask, const void* scale, int64_t scale_stride, Cube grad_x, Measurement grad_y,
                          Cube grad_mask, void* grad_scale, cudaStream_t stream) {
  return dispatch(problem, [&](auto type, int64_t limit) {
    using T = decltype(type);
    const int threads = threads_for(problem);
    Backward task{};
    task.grad = grad;
    task.x = x;
    task.mask = mask;
    task.grad_x = grad_x;
    task.grad_mask = grad_mask;
    task.residual = residual;
    task.grad_y = grad_y;
    task.scale = {scale, scale_stride};
    task.grad_scale = grad_scale;
    SharedMemory least;
    task.v_offset = least.take_measured<T>(problem);
    task.t_offset = residual.data ? least.take_measured<T>(problem) : 0;
    task.scratch_offset = grad_scale ? least.take(threads * int64_t{sizeof(acc_t<T>)}) : 0;
    SharedMemory shared = least;
    const Tile tile = shared.take_tile<T>(problem, grad);
    task.grad_staging = plan_staging<T>(problem, grad, tile);
    task.grad_x_staging = plan_staging<T>(problem, grad_x, tile);
    if (grad_mask.data) {
      task.x_staging = plan_staging<T>(problem, x, shared.take_tile<T>(problem, x));
    }
    task.mask_offset = shared.take_flat<T>(problem, mask);
    const bool staged = shared.bytes() <= limit;
    const auto kernel =
        grad_mask.data ? backward_kernel<T, true>(staged, mask) : backward_kernel<T, false>(staged, mask);
    const int64_t samples = sums_batch(grad_mask) ? 1 : problem.batch;
    return lorun::cuda::launch(kernel, samples * problem.height, threads, (staged ? shared : least).bytes(),
                               stream, problem, step, task);
  });
}

}  // namespace lorun::cassi::cuda
