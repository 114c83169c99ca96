// The arithmetic of a row. Every loop runs along the columns, so that it vectorises.
#pragma once

#include <algorithm>

#include "cpu/cassi/rows.h"
#include "cpu/cassi/vectors.h"

namespace lorun::cassi::cpu {

template <typename A>
void negate(A* row, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    row[i] = -row[i];
  }
}

template <typename A>
void scale_by(A* row, const A* factor, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    row[i] *= factor[i];
  }
}

// out = a * a
template <typename A, typename E>
void square(A* out, const E* a, int64_t count) {
  along<A>(count, [=]<typename V>(V, int64_t i) {
    const V value = read<V>(a + i);
    write(out + i, V(value * value));
  });
}

// sum += kSign * a * b
template <int kSign, typename A, typename E, typename F>
[[gnu::noinline]] void add_product(A* sum, const E* a, const F* b, int64_t count) {
  along<A>(count, [=]<typename V>(V, int64_t i) {
    write(sum + i, V(read<V>(sum + i) + A(kSign) * read<V>(a + i) * read<V>(b + i)));
  });
}

// Whether every sample adds to the same gradient of the mask.
inline bool sums_samples(const Cube& grad_mask) { return grad_mask.data && grad_mask.batch == 0; }

// A row of the mask's gradient to add to, cleared before the first sample.
template <typename A>
Bands<A> mask_gradient_row(const Problem& problem, const Cube& cube, int64_t b, int64_t h) {
  const Bands<A> row{static_cast<A*>(cube.data) + b * cube.batch + h * cube.row, cube.band};
  if (b == 0 || cube.batch != 0) {
    for (int64_t c = 0; c < (cube.band == 0 ? 1 : problem.bands); ++c) {
      std::fill_n(row[c], problem.width, A(0));
    }
  }
  return row;
}

}  // namespace lorun::cassi::cpu
