// Phi^T v for a few rows, in accumulators.
#pragma once

#include <algorithm>

#include "cpu/cassi_prefetch.h"
#include "cpu/cassi_rows.h"

namespace lorun::cassi::cpu {

template <typename A>
using Vector __attribute__((vector_size(32), aligned(sizeof(A)), may_alias)) = A;

template <typename V, typename A>
V& at(A* row, int64_t i) {
  return *reinterpret_cast<V*>(row + i);
}

// out[k] = x[k] + mask[k] * v[offsets[k]] for kBands bands and kCount elements of type V from column w on,
// without x where kPlus is false. out may be x itself. All of a band are read before the first is written,
// which is faster than by turns.
template <typename V, int kCount, int kBands, bool kPlus, bool kOneMask, typename A>
void adjoint_columns(Bands<A> out, Bands<A> x, Bands<A> mask, A* v, const int32_t* offsets, int64_t w) {
  constexpr int64_t kSize = sizeof(V) / sizeof(A);
  V open[kCount];
  for (int k = 0; k < kBands; ++k) {
    V sum[kCount];
    for (int i = 0; i < kCount; ++i) {
      const int64_t column = w + i * kSize;
      if (k == 0 || !kOneMask) {
        open[i] = at<V>(mask[k], column);
      }
      sum[i] = open[i] * at<V>(v + offsets[k], column);
      if constexpr (kPlus) {
        sum[i] += at<V>(x[k], column);
      }
    }
    for (int i = 0; i < kCount; ++i) {
      at<V>(out[k], w + i * kSize) = sum[i];
    }
  }
}

// Bands c to c + kBands - 1; a mask that they share is read once. All rows in one call, because a call costs
// as much as a few cache lines.
template <int kBands, bool kPlus, bool kOneMask, typename A>
[[gnu::noinline]] void write_bands(const Problem& problem, int64_t rows, const Bands<A>& x,
                                   const Bands<A>& mask, const Lines<A>& v, int64_t c, const Bands<A>& out) {
  constexpr int kVectors = kCacheLine / sizeof(Vector<A>);
  constexpr int64_t kRun = kCacheLine / sizeof(A);
  // Copies, because for all that the compiler knows a write to `out` changes what is referred to.
  int32_t offsets[kBands];
  std::copy_n(problem.offsets + c, kBands, offsets);
  const int64_t width = problem.width;
  for (int64_t r = 0; r < rows; ++r) {
    const Bands<A> to{out.at(r)[c], out.band};
    const Bands<A> from{x.at(r)[c], x.band};
    const Bands<A> coding{mask.at(r)[c], mask.band};
    A* const line = v[r];
    // What was read just now is in the cache.
    const A* const ahead = kPlus && out.data == x.data ? nullptr : band_ahead(problem, rows, out, c, r);
    int64_t w = 0;
    for (; w + kRun <= width; w += kRun) {
      for (int k = 0; ahead && k < kBands; ++k) {
        prefetch(ahead + k * out.band + w);
      }
      adjoint_columns<Vector<A>, kVectors, kBands, kPlus, kOneMask>(to, from, coding, line, offsets, w);
    }
    for (; w < width; ++w) {
      adjoint_columns<A, 1, kBands, kPlus, kOneMask>(to, from, coding, line, offsets, w);
    }
  }
}

template <bool kPlus, bool kOneMask, typename A>
void write_all_bands(const Problem& problem, int64_t rows, Bands<A> x, Bands<A> mask, Lines<A> v,
                     Bands<A> out) {
  int64_t c = 0;
  for (; c + 2 <= problem.bands; c += 2) {
    write_bands<2, kPlus, kOneMask>(problem, rows, x, mask, v, c, out);
  }
  if (c < problem.bands) {
    write_bands<1, kPlus, kOneMask>(problem, rows, x, mask, v, c, out);
  }
}

// out = Phi^T v
template <typename A>
void write_adjoint(const Problem& problem, int64_t rows, Bands<A> mask, Lines<A> v, Bands<A> out) {
  const auto write = mask.band == 0 ? write_all_bands<false, true, A> : write_all_bands<false, false, A>;
  write(problem, rows, {}, mask, v, out);
}

// out = x + Phi^T v, where x was read just now; out may be x itself.
template <typename A>
void plus_adjoint(const Problem& problem, int64_t rows, Bands<A> x, Bands<A> mask, Lines<A> v, Bands<A> out) {
  const auto write = mask.band == 0 ? write_all_bands<true, true, A> : write_all_bands<true, false, A>;
  write(problem, rows, x, mask, v, out);
}

}  // namespace lorun::cassi::cpu
