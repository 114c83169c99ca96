// The data steps and their gradients: see Step in common/cassi.h.
#include "cpu/cassi.h"
#include "cpu/cassi_gram.h"
#include "cpu/cassi_loops.h"
#include "cpu/cassi_projection.h"
#include "cpu/cassi_rows.h"

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
  const A* compute(const Problem& problem, int64_t b, Bands<A> mask) const {
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
  void apply(const Problem& problem, int64_t b, Bands<A> mask, A* row) const {
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

template <typename A>
A scale_gradient_sum(const Problem& problem, Step step, const A* factor, const A* residual, const A* u) {
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t p = 0; p < problem.measured; ++p) {
    sum += scale_gradient(step, factor[p], residual[p], u[p]);
  }
  return sum;
}

// Adds a row of d mask; t = factor * residual and v = factor * Phi grad.
template <typename A>
void add_mask_gradient(const Problem& problem, Step step, Bands<A> grad, Bands<A> x, Bands<A> mask,
                       const A* t, const A* v, Bands<A> sum) {
  for (int64_t c = 0; c < problem.bands; ++c) {
    const A* const gc = grad[c];
    const A* const xc = x[c];
    const A* const mc = mask[c];
    const A* const tc = t + problem.offsets[c];
    const A* const vc = v + problem.offsets[c];
    A* const sc = sum[c];
#pragma omp simd
    for (int64_t w = 0; w < problem.width; ++w) {
      sc[w] += mask_gradient(step, gc[w], xc[w], mc[w], tc[w], vc[w]);
    }
  }
}

}  // namespace

void step(const Problem& problem, Step step, Cube x, Measurement y, Cube mask, const void* scale,
          int64_t scale_stride, Cube out, Measurement residual) {
  dispatch(problem.dtype, [&]<typename T>() {
    using A = acc_t<T>;
    const size_t bytes = 3 * CubeRows<T>::scratch_bytes(problem) + Factors<A>::scratch_bytes(problem) +
                         Scratch::bytes_of<A>(projected_size(problem));
    for_rows(problem, bytes, /*by_row=*/false, [&](Scratch& scratch) {
      const CubeRows<T> xs(problem, x, scratch);
      const CubeRows<T> masks(problem, mask, scratch);
      const CubeRows<T> outs(problem, out, xs, scratch);
      const Factors<A> factors(problem, step, mask, scale, scale_stride, scratch);
      A* const row = scratch.take<A>(projected_size(problem));
      return [=, &problem](int64_t b, int64_t h) {
        const Bands<A> estimate = xs.load(b, h);
        const Bands<A> coding = masks.load(b, h);
        load_row<T>(problem, y, b, h, row);
        add_projection<-1>(problem, estimate, coding, row);
        if (residual.data) {
          negate(row, problem.measured);
          store_row<A>(problem, residual, b, h, row);
          negate(row, problem.measured);
        }
        factors.apply(problem, b, coding, row);
        plus_adjoint(problem, estimate, coding, row, outs.target(b, h));
        outs.store(b, h);
      };
    });
  });
}

void step_backward(const Problem& problem, Step step, Cube grad, Measurement residual, Cube x, Cube mask,
                   const void* scale, int64_t scale_stride, Cube grad_x, Measurement grad_y, Cube grad_mask,
                   void* grad_scale) {
  dispatch(problem.dtype, [&]<typename T>() {
    using A = acc_t<T>;
    const size_t bytes = 4 * CubeRows<T>::scratch_bytes(problem) + Factors<A>::scratch_bytes(problem) +
                         2 * Scratch::bytes_of<A>(projected_size(problem));
    for_rows(problem, bytes, sums_samples(grad_mask), [&](Scratch& scratch) {
      const CubeRows<T> grads(problem, grad, scratch);
      const CubeRows<T> xs(problem, x, scratch);
      const CubeRows<T> masks(problem, mask, scratch);
      const CubeRows<T> grad_xs(problem, grad_x, scratch);
      const Factors<A> factors(problem, step, mask, scale, scale_stride, scratch);
      A* const u = scratch.take<A>(projected_size(problem));
      A* const t = scratch.take<A>(projected_size(problem));
      return [=, &problem](int64_t b, int64_t h) {
        const Bands<A> incoming = grads.load(b, h);
        const Bands<A> coding = masks.load(b, h);
        std::fill_n(u, problem.measured, A(0));
        add_projection<1>(problem, incoming, coding, u);
        const A* const factor = factors.compute(problem, b, coding);
        if (residual.data) {
          load_row<A>(problem, residual, b, h, t);
        }
        if (grad_scale) {
          static_cast<A*>(grad_scale)[b * problem.height + h] =
              scale_gradient_sum(problem, step, factor, t, u);
        }
        scale_by(u, factor, problem.measured);
        if (grad_y.data) {
          store_row<T>(problem, grad_y, b, h, u);
        }
        if (grad_mask.data) {
          scale_by(t, factor, problem.measured);
          add_mask_gradient(problem, step, incoming, xs.load(b, h), coding, t, u,
                            mask_gradient_row<A>(problem, grad_mask, b, h));
        }
        if (grad_x.data) {
          negate(u, problem.measured);
          plus_adjoint(problem, incoming, coding, u, grad_xs.target(b, h));
          grad_xs.store(b, h);
        }
      };
    });
  });
}

}  // namespace lorun::cassi::cpu
