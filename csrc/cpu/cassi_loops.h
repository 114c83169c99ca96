// The arithmetic of a few rows, in accumulators. Every loop runs along the columns, so that it vectorises.
#pragma once

#include <algorithm>

#include "cpu/cassi_rows.h"

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

// out = a * b
template <typename A>
void multiply(A* out, const A* a, const A* b, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    out[i] = a[i] * b[i];
  }
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
