#include "cpu/cassi/kernels.h"

#include "cpu/cassi/adjoint.h"
#include "cpu/cassi/loops.h"
#include "cpu/cassi/projection.h"
#include "cpu/cassi/rows.h"

namespace lorun::cassi::cpu {

void forward(const Problem& problem, Cube x, Cube mask, Measurement y) {
  dispatch(problem, {x, mask}, [&]<typename T, typename E>() {
    using A = acc_t<T>;
    const size_t bytes = 2 * CubeRows<T, E>::scratch_bytes(problem) + lines_bytes<A>(problem);
    for_rows(problem, bytes, rows_at_once<T, E>({x, mask}), [&](Scratch& scratch) {
      const CubeRows<T, E> xs(problem, x, scratch);
      const CubeRows<T, E> masks(problem, mask, scratch);
      const Lines<A> sums = take_lines<A>(problem, scratch);
      return [=, &problem](int64_t b, int64_t h, int64_t rows) {
        std::fill_n(sums.data, rows * sums.row, A(0));
        add_projection<1>(problem, rows, xs.load(b, h), masks.load(b, h), sums);
        store_rows<T>(problem, y, b, h, rows, sums);
      };
    });
  });
}

void adjoint(const Problem& problem, Measurement y, Cube mask, Cube x) {
  dispatch(problem, {mask, x}, [&]<typename T, typename E>() {
    using A = acc_t<T>;
    const size_t bytes = 2 * CubeRows<T, E>::scratch_bytes(problem) + lines_bytes<A>(problem);
    for_rows(problem, bytes, rows_at_once<T, E>({mask, x}), [&](Scratch& scratch) {
      const CubeRows<T, E> masks(problem, mask, scratch);
      const CubeRows<T, E> xs(problem, x, scratch);
      const Lines<A> lines = take_lines<A>(problem, scratch);
      return [=, &problem](int64_t b, int64_t h, int64_t rows) {
        load_rows<T>(problem, y, b, h, rows, lines);
        write_adjoint(problem, rows, masks.load(b, h), lines, xs.target(b, h));
        xs.store(b, h);
      };
    });
  });
}

void mask_grad(const Problem& problem, Cube x, Measurement y, Cube grad_mask) {
  dispatch(problem, {x}, [&]<typename T, typename E>() {
    using A = acc_t<T>;
    const size_t bytes = CubeRows<T, E>::scratch_bytes(problem) + Scratch::bytes_of<A>(problem.measured);
    for_rows_of_all_samples(problem, bytes, [&](Scratch& scratch) {
      const CubeRows<T, E> xs(problem, x, scratch);
      A* const row = scratch.take<A>(problem.measured);
      return [=, &problem](int64_t b, int64_t h, int64_t) {
        load_rows<T>(problem, y, b, h, 1, Lines<A>{row, 0});
        const Bands<E> factor = xs.load(b, h);
        const Bands<A> sum = mask_gradient_row<A>(problem, grad_mask, b, h);
        for (int64_t c = 0; c < problem.bands; ++c) {
          add_product<1>(sum[c], factor[c], row + problem.offsets[c], problem.width);
        }
      };
    });
  });
}

}  // namespace lorun::cassi::cpu
