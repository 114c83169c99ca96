// The arithmetic of a few rows, in accumulators. Every loop runs along the columns, so that it vectorises.
#pragma once

#include <algorithm>

#include "cpu/cassi_prefetch.h"
#include "cpu/cassi_rows.h"

namespace lorun::cassi::cpu {

template <typename A>
using Vector __attribute__((vector_size(32), aligned(sizeof(A)), may_alias)) = A;

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

// Calls of(tag, i) for runs of count elements: whole vectors in pairs, a cache line, then single elements. of
// reads and writes the elements from i on as the tag's type. As many elements from `ahead` on are prefetched.
template <typename A, typename Of>
void along(int64_t count, const A* ahead, const Of& of) {
  constexpr int64_t kSize = sizeof(Vector<A>) / sizeof(A);
  static_assert(2 * sizeof(Vector<A>) == kCacheLine);
  int64_t i = 0;
  for (; i + 2 * kSize <= count; i += 2 * kSize) {
    if (ahead) {
      prefetch(ahead + i);
    }
    of(Vector<A>{}, i);
    of(Vector<A>{}, i + kSize);
  }
  for (; i < count; ++i) {
    of(A{}, i);
  }
}

template <typename V, typename A>
V get(const A* row, int64_t i) {
  return *reinterpret_cast<const V*>(row + i);
}

// out = a * b
template <typename A>
void multiply(A* out, const A* a, const A* b, int64_t count, const A* ahead = nullptr) {
  along(count, ahead,
        [=]<typename V>(V, int64_t i) { *reinterpret_cast<V*>(out + i) = get<V>(a, i) * get<V>(b, i); });
}

// out = x + a * b; out may be x itself.
template <typename A>
void plus_product(A* out, const A* x, const A* a, const A* b, int64_t count, const A* ahead) {
  along(count, ahead, [=]<typename V>(V, int64_t i) {
    *reinterpret_cast<V*>(out + i) = get<V>(x, i) + get<V>(a, i) * get<V>(b, i);
  });
}

// out = Phi^T v
template <typename A>
void write_adjoint(const Problem& problem, int64_t rows, Bands<A> mask, Lines<A> v, Bands<A> out) {
  for (int64_t c = 0; c < problem.bands; ++c) {
    for (int64_t r = 0; r < rows; ++r) {
      multiply<A>(out.at(r)[c], mask.at(r)[c], v[r] + problem.offsets[c], problem.width,
                  band_ahead(problem, rows, out, c, r));
    }
  }
}

// out = x + Phi^T v, where x was read just now.
template <typename A>
void plus_adjoint(const Problem& problem, int64_t rows, Bands<A> x, Bands<A> mask, Lines<A> v, Bands<A> out) {
  const bool in_cache = out.data == x.data;
  for (int64_t c = 0; c < problem.bands; ++c) {
    for (int64_t r = 0; r < rows; ++r) {
      plus_product<A>(out.at(r)[c], x.at(r)[c], mask.at(r)[c], v[r] + problem.offsets[c], problem.width,
                      in_cache ? nullptr : band_ahead(problem, rows, out, c, r));
    }
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
