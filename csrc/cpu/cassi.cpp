#include "cpu/cassi.h"

#include "cpu/cassi_loops.h"
#include "cpu/cassi_projection.h"
#include "cpu/cassi_rows.h"

namespace lorun::cassi::cpu {

void forward(const Problem& problem, Cube x, Cube mask, Measurement y) {
  dispatch(problem.dtype, [&]<typename T>() {
    using A = acc_t<T>;
    const size_t bytes =
        2 * CubeRows<T>::scratch_bytes(problem) + Scratch::bytes_of<A>(projected_size(problem));
    for_rows(problem, bytes, /*by_row=*/false, [&](Scratch& scratch) {
      const CubeRows<T> xs(problem, x, scratch);
      const CubeRows<T> masks(problem, mask, scratch);
      A* const sum = scratch.take<A>(projected_size(problem));
      return [=, &problem](int64_t b, int64_t h) {
        std::fill_n(sum, problem.measured, A(0));
        add_projection<1>(problem, xs.load(b, h), masks.load(b, h), sum);
        store_row<T>(problem, y, b, h, sum);
      };
    });
  });
}

void adjoint(const Problem& problem, Measurement y, Cube mask, Cube x) {
  dispatch(problem.dtype, [&]<typename T>() {
    using A = acc_t<T>;
    const size_t bytes = 2 * CubeRows<T>::scratch_bytes(problem) + Scratch::bytes_of<A>(problem.measured);
    for_rows(problem, bytes, /*by_row=*/false, [&](Scratch& scratch) {
      const CubeRows<T> masks(problem, mask, scratch);
      const CubeRows<T> xs(problem, x, scratch);
      A* const row = scratch.take<A>(problem.measured);
      return [=, &problem](int64_t b, int64_t h) {
        load_row<T>(problem, y, b, h, row);
        const Bands<A> coded = masks.load(b, h);
        const Bands<A> out = xs.target(b, h);
        for (int64_t c = 0; c < problem.bands; ++c) {
          multiply<A>(out[c], coded[c], row + problem.offsets[c], problem.width);
        }
        xs.store(b, h);
      };
    });
  });
}

void mask_grad(const Problem& problem, Cube x, Measurement y, Cube grad_mask) {
  dispatch(problem.dtype, [&]<typename T>() {
    using A = acc_t<T>;
    const size_t bytes = CubeRows<T>::scratch_bytes(problem) + Scratch::bytes_of<A>(problem.measured);
    for_rows(problem, bytes, sums_samples(grad_mask), [&](Scratch& scratch) {
      const CubeRows<T> xs(problem, x, scratch);
      A* const row = scratch.take<A>(problem.measured);
      return [=, &problem](int64_t b, int64_t h) {
        load_row<T>(problem, y, b, h, row);
        const Bands<A> factor = xs.load(b, h);
        const Bands<A> sum = mask_gradient_row<A>(problem, grad_mask, b, h);
        for (int64_t c = 0; c < problem.bands; ++c) {
          add_product<1, A>(sum[c], factor[c], row + problem.offsets[c], problem.width);
        }
      };
    });
  });
}

}  // namespace lorun::cassi::cpu
