// Phi^T v for a few rows.
#pragma once

#include <algorithm>

#include "cpu/cassi/prefetch.h"
#include "cpu/cassi/rows.h"
#include "cpu/cassi/vectors.h"

namespace lorun::cassi::cpu {

// out[k] = x[k] + mask[k] * v[offsets[k]] for kBands bands and kCount accumulators V from column w on,
// without x if kPlus is false. out may be x itself. All columns of a band are read before the first is
// written, which is faster than alternating.
template <typename V, int kCount, int kBands, bool kPlus, bool kOneMask, typename E>
void adjoint_columns(Bands<E> out, Bands<E> x, Bands<E> mask, const acc_t<E>* v, const int32_t* offsets,
                     int64_t w) {
  constexpr int64_t kSize = sizeof(V) / sizeof(acc_t<E>);
  V open[kCount];
  for (int k = 0; k < kBands; ++k) {
    V sum[kCount];
    for (int i = 0; i < kCount; ++i) {
      const int64_t column = w + i * kSize;
      if (k == 0 || !kOneMask) {
        open[i] = read<V>(mask[k] + column);
      }
      const V product = open[i] * read<V>(v + offsets[k] + column);
      if constexpr (kPlus) {
        sum[i] = read<V>(x[k] + column) + product;
      } else {
        sum[i] = product;
      }
    }
    for (int i = 0; i < kCount; ++i) {
      write(out[k] + w + i * kSize, sum[i]);
    }
  }
}

// Bands c to c + kBands - 1; a mask that they share is read once. All rows are in one call, because a call
// costs as much as a few cache lines.
template <int kBands, bool kPlus, bool kOneMask, typename E>
[[gnu::noinline]] void write_bands(const Problem& problem, int64_t rows, const Bands<E>& x,
                                   const Bands<E>& mask, const Lines<acc_t<E>>& v, int64_t c,
                                   const Bands<E>& out) {
  using A = acc_t<E>;
  constexpr int kVectors = 2;
  constexpr int64_t kRun = kVectors * kVectorSize<A>;
  // Copies, because for all the compiler knows, a write to `out` changes what a reference refers to.
  int32_t offsets[kBands];
  std::copy_n(problem.offsets + c, kBands, offsets);
  const int64_t width = problem.width;
  for (int64_t r = 0; r < rows; ++r) {
    const Bands<E> to{out.at(r)[c], out.band};
    const Bands<E> from{x.at(r)[c], x.band};
    const Bands<E> coding{mask.at(r)[c], mask.band};
    const A* const line = v[r];
    // What has just been read is in the cache.
    const E* const ahead = kPlus && out.data == x.data ? nullptr : band_ahead(problem, rows, out, c, r);
    int64_t w = 0;
    for (; w + kRun <= width; w += kRun) {
      for (int k = 0; ahead && w % (kCacheLine / sizeof(E)) == 0 && k < kBands; ++k) {
        prefetch(ahead + k * to.band + w);
      }
      adjoint_columns<Vector<A>, kVectors, kBands, kPlus, kOneMask>(to, from, coding, line, offsets, w);
    }
    for (; w + kVectorSize<A> <= width; w += kVectorSize<A>) {
      adjoint_columns<Vector<A>, 1, kBands, kPlus, kOneMask>(to, from, coding, line, offsets, w);
    }
    for (; w < width; ++w) {
      adjoint_columns<A, 1, kBands, kPlus, kOneMask>(to, from, coding, line, offsets, w);
    }
  }
}

template <bool kPlus, bool kOneMask, typename E>
void write_all_bands(const Problem& problem, int64_t rows, Bands<E> x, Bands<E> mask, Lines<acc_t<E>> v,
                     Bands<E> out) {
  int64_t c = 0;
  for (; c + 2 <= problem.bands; c += 2) {
    write_bands<2, kPlus, kOneMask>(problem, rows, x, mask, v, c, out);
  }
  if (c < problem.bands) {
    write_bands<1, kPlus, kOneMask>(problem, rows, x, mask, v, c, out);
  }
}

// out = Phi^T v
template <typename E>
void write_adjoint(const Problem& problem, int64_t rows, Bands<E> mask, Lines<acc_t<E>> v, Bands<E> out) {
  const auto write_all = mask.band == 0 ? write_all_bands<false, true, E> : write_all_bands<false, false, E>;
  write_all(problem, rows, {}, mask, v, out);
}

// out = x + Phi^T v, where x has just been read; out may be x itself.
template <typename E>
void plus_adjoint(const Problem& problem, int64_t rows, Bands<E> x, Bands<E> mask, Lines<acc_t<E>> v,
                  Bands<E> out) {
  const auto write_all = mask.band == 0 ? write_all_bands<true, true, E> : write_all_bands<true, false, E>;
  write_all(problem, rows, x, mask, v, out);
}

}  // namespace lorun::cassi::cpu
