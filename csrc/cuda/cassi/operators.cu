// Phi, its adjoint, and the gradient of both with respect to their mask.
#include "cuda/cassi/launchers.h"

#include "cuda/cassi/row.cuh"

namespace lorun::cassi::cuda {
namespace {

template <typename T, bool kStaged, bool kFlat>
__global__ void __launch_bounds__(kMaxThreads)
    forward_kernel(const __grid_constant__ Problem problem, Cube x_cube, Staging staging, Cube mask_cube,
                   int mask_offset, Measurement measurement) {
  const RowId at = row_of_block(problem);
  const auto x = input_row<T, kStaged>(x_cube, staging, at);
  const auto mask = mask_row<T, kFlat>(problem, mask_cube, mask_offset, at);
  __syncthreads();
  const auto y = measured_row<T>(measurement, at);
  const int measured = static_cast<int>(problem.measured);
  for (int p = threadIdx.x; p < measured; p += blockDim.x) {
    narrow(gather<acc_t<T>>(problem, x, mask, p).sum, y(0, p));
  }
}

template <typename T, bool kStaged, bool kFlat>
__global__ void __launch_bounds__(kMaxThreads)
    adjoint_kernel(const __grid_constant__ Problem problem, Measurement measurement, int y_offset,
                   Cube mask_cube, int mask_offset, Cube x_cube, Staging staging) {
  const RowId at = row_of_block(problem);
  const auto* const y = load_measured<T>(problem, measurement, y_offset, at);
  const auto mask = mask_row<T, kFlat>(problem, mask_cube, mask_offset, at);
  __syncthreads();
  fill_row(problem, output_row<T, kStaged>(x_cube, staging, at), [&](int w) {
    return [&problem, y, w, open = mask_column<kFlat>(mask, w)](int c) {
      return open(c) * y[w + problem.offsets[c]];
    };
  });
  finish_row<T, kStaged>(x_cube, staging, at);
}

template <typename T, bool kStaged>
__global__ void __launch_bounds__(kMaxThreads)
    mask_grad_kernel(const __grid_constant__ Problem problem, Cube x_cube, Staging staging,
                     Measurement measurement, int y_offset, Cube grad_mask) {
  const Samples samples = samples_of_block(problem, grad_mask);
  for (int64_t sample = samples.first; sample < samples.last; ++sample) {
    const RowId at{sample, samples.row};
    const auto x = input_row<T, kStaged>(x_cube, staging, at);
    const auto* const y = load_measured<T>(problem, measurement, y_offset, at);
    __syncthreads();
    add_mask_gradient<acc_t<T>>(problem, grad_mask, at, sample == samples.first,
                                [&](int c, int w) { return widen(x(c, w)) * y[w + problem.offsets[c]]; });
    __syncthreads();
  }
}

}  // namespace

cudaError_t forward(const Problem& problem, Cube x, Cube mask, Measurement y, cudaStream_t stream) {
  return dispatch(problem, [&](auto type, int64_t limit) {
    using T = decltype(type);
    SharedMemory shared;
    const Tile tile = shared.take_tile<T>(problem, x);
    const int mask_offset = shared.take_flat<T>(problem, mask);
    const bool staged = shared.bytes() <= limit;
    const auto kernel = !staged          ? forward_kernel<T, false, false>
                        : mask.band == 0 ? forward_kernel<T, true, true>
                                         : forward_kernel<T, true, false>;
    return lorun::cuda::launch(kernel, problem.batch * problem.height, threads_for(problem),
                               staged ? shared.bytes() : 0, stream, problem, x,
                               plan_staging<T>(problem, x, tile), mask, mask_offset, y);
  });
}

cudaError_t adjoint(const Problem& problem, Measurement y, Cube mask, Cube x, cudaStream_t stream) {
  return dispatch(problem, [&](auto type, int64_t limit) {
    using T = decltype(type);
    SharedMemory least;
    const int y_offset = least.take_measured<T>(problem);
    SharedMemory shared = least;
    const Tile tile = shared.take_tile<T>(problem, x);
    const int mask_offset = shared.take_flat<T>(problem, mask);
    const bool staged = shared.bytes() <= limit;
    const auto kernel = !staged          ? adjoint_kernel<T, false, false>
                        : mask.band == 0 ? adjoint_kernel<T, true, true>
                                         : adjoint_kernel<T, true, false>;
    return lorun::cuda::launch(kernel, problem.batch * problem.height, threads_for(problem),
                               (staged ? shared : least).bytes(), stream, problem, y, y_offset, mask,
                               mask_offset, x, plan_staging<T>(problem, x, tile));
  });
}

cudaError_t mask_grad(const Problem& problem, Cube x, Measurement y, Cube grad_mask, cudaStream_t stream) {
  return dispatch(problem, [&](auto type, int64_t limit) {
    using T = decltype(type);
    SharedMemory least;
    const int y_offset = least.take_measured<T>(problem);
    SharedMemory shared = least;
    const Tile tile = shared.take_tile<T>(problem, x);
    const bool staged = shared.bytes() <= limit;
    return lorun::cuda::launch(staged ? mask_grad_kernel<T, true> : mask_grad_kernel<T, false>,
                               (sums_batch(grad_mask) ? 1 : problem.batch) * problem.height,
                               threads_for(problem), (staged ? shared : least).bytes(), stream, problem, x,
                               plan_staging<T>(problem, x, tile), y, y_offset, grad_mask);
  });
}

}  // namespace lorun::cassi::cuda
