// Phi x for a few rows.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/cassi/loops.h"
#include "cpu/cassi/prefetch.h"
#include "cpu/cassi/rows.h"
#include "cpu/cassi/vectors.h"

namespace lorun::cassi::cpu {

// Whether each of four bands is two columns from the one before it: the usual step of the field.
inline bool two_apart(const int32_t* offsets) {
  return offsets[1] - offsets[0] == 2 && offsets[2] - offsets[0] == 4 && offsets[3] - offsets[0] == 6;
}

// Four bands that are two columns apart, at once: y is read and written a quarter as often, and a mask that
// the bands share is read once. y must have room for one more vector; `ahead` is where the next four bands
// are. Returns the number of columns done, a multiple of a vector's size.
template <int kSign, bool kOneMask, typename E>
int64_t project_four(float* __restrict y, Bands<E> x, Bands<E> mask, int64_t width, const E* ahead) {
  using V = Vector<float>;
  constexpr int64_t kSize = kVectorSize<float>;
  const int64_t whole = width / kSize * kSize;
  // The products of the previous step: their last columns belong to y's next vector.
  V late[4] = {};
  const auto add = [&](int64_t w, const V(&now)[4]) {
    const V near = now[0] + __builtin_shufflevector(late[1], now[1], 6, 7, 8, 9, 10, 11, 12, 13);
    const V far = __builtin_shufflevector(late[2], now[2], 4, 5, 6, 7, 8, 9, 10, 11) +
                  __builtin_shufflevector(late[3], now[3], 2, 3, 4, 5, 6, 7, 8, 9);
    write(y + w, V(read<V>(y + w) + static_cast<float>(kSign) * (near + far)));
  };
#pragma GCC unroll 2
  for (int64_t w = 0; w < whole; w += kSize) {
    if (ahead && w % (kCacheLine / sizeof(E)) == 0) {
      for (int k = 0; k < 4; ++k) {
        prefetch(ahead + k * x.band + w);
      }
    }
    const V open = read<V>(mask[0] + w);
    V now[4];
    for (int k = 0; k < 4; ++k) {
      const V weight = kOneMask ? open : read<V>(mask[k] + w);
      now[k] = weight * read<V>(x[k] + w);
    }
    add(w, now);
    std::copy_n(now, 4, late);
  }
  add(whole, {});
  return whole;
}

template <int kSign, typename E>
void add_band(const Problem& problem, Bands<E> x, Bands<E> mask, int64_t c, int64_t from, acc_t<E>* y) {
  add_product<kSign>(y + problem.offsets[c] + from, mask[c] + from, x[c] + from, problem.width - from);
}

// Bands c to c + 3. All rows are in one call, because a call costs as much as a few cache lines.
template <int kSign, bool kOneMask, typename E>
[[gnu::noinline]] void add_four_bands(const Problem& problem, int64_t rows, const Bands<E>& x,
                                      const Bands<E>& mask, int64_t c, const Lines<float>& y) {
  for (int64_t r = 0; r < rows; ++r) {
    const Bands<E> xr = x.at(r);
    const Bands<E> mr = mask.at(r);
    const int64_t done =
        project_four<kSign, kOneMask, E>(y[r] + problem.offsets[c], {xr[c], xr.band}, {mr[c], mr.band},
                                         problem.width, band_ahead(problem, rows, x, c, r));
    for (int k = 0; done < problem.width && k < 4; ++k) {
      add_band<kSign>(problem, xr, mr, c + k, done, y[r]);
    }
  }
}

// y += kSign * Phi x; a row of y must have room for one more vector.
template <int kSign, typename E>
void add_projection(const Problem& problem, int64_t rows, Bands<E> x, Bands<E> mask, Lines<acc_t<E>> y) {
  int64_t c = 0;
  if constexpr (std::is_same_v<acc_t<E>, float>) {
    const auto add_four = mask.band == 0 ? add_four_bands<kSign, true, E> : add_four_bands<kSign, false, E>;
    for (; c + 4 <= problem.bands && two_apart(problem.offsets + c); c += 4) {
      add_four(problem, rows, x, mask, c, y);
    }
  }
  for (; c < problem.bands; ++c) {
    for (int64_t r = 0; r < rows; ++r) {
      add_band<kSign>(problem, x.at(r), mask.at(r), c, 0, y[r]);
    }
  }
}

// The number of accumulators of a measured row onto which a row of a cube is projected.
template <typename A>
int64_t projected_size(const Problem& problem) {
  return problem.measured + kVectorSize<A>;
}

template <typename A>
Lines<A> take_lines(const Problem& problem, Scratch& scratch) {
  // Whole cache lines, so that all rows are aligned in the same way.
  const int64_t size = Scratch::bytes_of<A>(projected_size<A>(problem)) / sizeof(A);
  return {scratch.take<A>(kRows * size), size};
}

template <typename A>
size_t lines_bytes(const Problem& problem) {
  return kRows * Scratch::bytes_of<A>(projected_size<A>(problem));
}

}  // namespace lorun::cassi::cpu
