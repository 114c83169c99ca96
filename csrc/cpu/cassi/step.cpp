// The data steps and their gradients: see Step in common/cassi.h.
#include "cpu/cassi/adjoint.h"
#include "cpu/cassi/gram.h"
#include "cpu/cassi/kernels.h"
#include "cpu/cassi/loops.h"
#include "cpu/cassi/projection.h"
#include "cpu/cassi/rows.h"

namespace lorun::cassi::cpu {
namespace {

// Multiplies rows by the factor of a step, pixel by pixel.
template <typename A>
class Factors {
 public:
  Factors(const Problem& problem, Step step, const Cube& mask, const void* scale, int64_t scale_stride,
          Scratch& scratch)
      : step_(step),
        scale_(static_cast<const A*>(scale)),
        scale_stride_(scale_stride),
        gram_(problem, mask, scratch) {}

  static size_t scratch_bytes(const Problem& problem) { return GramRow<A>::scratch_bytes(problem); }

  // The factors of a row.
  template <typename E>
  const A* compute(const Problem& problem, int64_t b, Bands<E> mask) const {
    const A scale = scale_[b * scale_stride_];
    if (step_ == Step::kPgd) {
      std::fill_n(gram_.row(), problem.measured, scale);
      return gram_.row();
    }
    A* const row = gram_.compute(problem, mask);
#pragma omp simd
    for (int64_t p = 0; p < problem.measured; ++p) {
      row[p] = step_factor(step_, row[p], scale);
    }
    return row;
  }

  // Multiplies `row` by the factors of a row; PGD's is the same everywhere.
  template <typename E>
  void apply(const Problem& problem, int64_t b, Bands<E> mask, A* row) const {
    if (step_ == Step::kHqs) {
      scale_by(row, compute(problem, b, mask), problem.measured);
      return;
    }
    const A scale = scale_[b * scale_stride_];
    for (int64_t p = 0; p < problem.measured; ++p) {
      row[p] *= scale;
    }
  }

 private:
  Step step_;
  const A* scale_;
  int64_t scale_stride_;
  GramRow<A> gram_;
};

// With kStep known at compile time, the sum is vectorised.
template <Step kStep, typename A>
A scale_gradient_sum(const Problem& problem, const A* factor, const A* residual, const A* u) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t p = 0; p < problem.measured; ++p) {
    sum += scale_gradient(kStep, factor[p], residual[p], u[p]);
  }
  return sum;
}

// Adds a row of d mask; t = factor * residual and v = factor * Phi grad.
template <typename E, typename A>
void add_mask_gradient(const Problem& problem, Step step, Bands<E> grad, Bands<E> x, Bands<E> mask,
                       const A* t, const A* v, Bands<A> sum) {
  for (int64_t c = 0; c < problem.bands; ++c) {
    const E* const gc = grad[c];
    const E* const xc = x[c];
    const E* const mc = mask[c];
    const A* const tc = t + problem.offsets[c];
    const A* const vc = v + problem.offsets[c];
    A* const sc = sum[c];
    along<A>(problem.width, [=]<typename V>(V, int64_t w) {
      const V gradient = mask_gradient<V>(step, read<V>(gc + w), read<V>(xc + w), read<V>(mc + w),
                                          read<V>(tc + w), read<V>(vc + w));
      write(sc + w, V(read<V>(sc + w) + gradient));
    });
  }
}

}  // namespace

void step(const Problem& problem, Step step, Cube x, Measurement y, Cube mask, const void* scale,
          int64_t scale_stride, Cube out, Measurement residual) {
  dispatch(problem, {x, mask, out}, [&]<typename T, typename E>() {
    using A = acc_t<T>;
    const size_t bytes = 3 * CubeRows<T, E>::scratch_bytes(problem) + Factors<A>::scratch_bytes(problem) +
                         lines_bytes<A>(problem);
    for_rows(problem, bytes, rows_at_once<T, E>({x, mask, out}), [&](Scratch& scratch) {
      const CubeRows<T, E> xs(problem, x, scratch);
      const CubeRows<T, E> masks(problem, mask, scratch);
      const CubeRows<T, E> outs(problem, out, xs, scratch);
      const Factors<A> factors(problem, step, mask, scale, scale_stride, scratch);
      const Lines<A> lines = take_lines<A>(problem, scratch);
      return [=, &problem](int64_t b, int64_t h, int64_t rows) {
        const Bands<E> estimate = xs.load(b, h);
        const Bands<E> coding = masks.load(b, h);
        load_rows<T>(problem, y, b, h, rows, lines);
        add_projection<-1>(problem, rows, estimate, coding, lines);
        for (int64_t r = 0; r < rows; ++r) {
          if (residual.data) {
            negate(lines[r], problem.measured);
            store_rows<A>(problem, residual, b, h + r, 1, lines.at(r));
            negate(lines[r], problem.measured);
          }
          factors.apply(problem, b, coding.at(r), lines[r]);
        }
        plus_adjoint(problem, rows, estimate, coding, lines, outs.target(b, h));
        outs.store(b, h);
      };
    });
  });
}

void step_backward(const Problem& problem, Step step, Cube grad, Measurement residual, Cube x, Cube mask,
                   const void* scale, int64_t scale_stride, Cube grad_x, Measurement grad_y, Cube grad_mask,
                   void* grad_scale) {
  dispatch(problem, {grad, x, mask, grad_x}, [&]<typename T, typename E>() {
    using A = acc_t<T>;
    const size_t bytes = 4 * CubeRows<T, E>::scratch_bytes(problem) + Factors<A>::scratch_bytes(problem) +
                         lines_bytes<A>(problem) + Scratch::bytes_of<A>(problem.measured);
    const auto make = [&](Scratch& scratch) {
      const CubeRows<T, E> grads(problem, grad, scratch);
      const CubeRows<T, E> xs(problem, x, scratch);
      const CubeRows<T, E> masks(problem, mask, scratch);
      const CubeRows<T, E> grad_xs(problem, grad_x, scratch);
      const Factors<A> factors(problem, step, mask, scale, scale_stride, scratch);
      const Lines<A> lines = take_lines<A>(problem, scratch);
      A* const t = scratch.take<A>(problem.measured);
      return [=, &problem](int64_t b, int64_t h, int64_t rows) {
        const Bands<E> incoming = grads.load(b, h);
        const Bands<E> coding = masks.load(b, h);
        std::fill_n(lines.data, rows * lines.row, A(0));
        add_projection<1>(problem, rows, incoming, coding, lines);
        for (int64_t r = 0; r < rows; ++r) {
          A* const u = lines[r];
          const A* const factor = factors.compute(problem, b, coding.at(r));
          if (residual.data) {
            load_rows<A>(problem, residual, b, h + r, 1, Lines<A>{t, 0});
          }
          if (grad_scale) {
            const auto sum =
                step == Step::kPgd ? scale_gradient_sum<Step::kPgd, A> : scale_gradient_sum<Step::kHqs, A>;
            static_cast<A*>(grad_scale)[b * problem.height + h + r] = sum(problem, factor, t, u);
          }
          scale_by(u, factor, problem.measured);
          if (grad_y.data) {
            store_rows<T>(problem, grad_y, b, h + r, 1, lines.at(r));
          }
          if (grad_mask.data) {
            scale_by(t, factor, problem.measured);
            add_mask_gradient(problem, step, incoming.at(r), xs.load(b, h + r), coding.at(r), t, u,
                              mask_gradient_row<A>(problem, grad_mask, b, h + r));
          }
          negate(u, problem.measured);
        }
        if (grad_x.data) {
          plus_adjoint(problem, rows, incoming, coding, lines, grad_xs.target(b, h));
          grad_xs.store(b, h);
        }
      };
    };
    if (sums_samples(grad_mask)) {
      for_rows_of_all_samples(problem, bytes, make);
    } else {
      for_rows(problem, bytes, rows_at_once<T, E>({grad, x, mask, grad_x}), make);
    }
  });
}

}  // namespace lorun::cassi::cpu
