// Phi x for a few rows, in accumulators.
#pragma once

#include <type_traits>

#include "cpu/cassi_prefetch.h"
#include "cpu/cassi_rows.h"
#include "cpu/lanes.h"

namespace lorun::cassi::cpu {

// sum += kSign * a * b
template <int kSign, typename A>
[[gnu::noinline]] void add_product(A* __restrict sum, const A* __restrict a, const A* __restrict b,
                                   int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    sum[i] += kSign * a[i] * b[i];
  }
}

// Whether four bands follow one another two columns apart: the field's step.
inline bool two_apart(const int32_t* offsets) {
  return offsets[1] - offsets[0] == 2 && offsets[2] - offsets[0] == 4 && offsets[3] - offsets[0] == 6;
}

// Four bands that are two columns apart, at once: y is read and written a quarter as often, and a mask that
// the bands share is read once. y has room for kLanes more columns; `ahead` is where the next four bands lie.
// Returns the columns done, a multiple of kLanes.
template <int kSign, bool kOneMask>
int64_t project_four(float* __restrict y, Bands<const float> x, Bands<const float> mask, int64_t width,
                     const float* ahead) {
  using lorun::cpu::kLanes;
  using lorun::cpu::Lanes;
  const int64_t whole = width / kLanes * kLanes;
  // The products of the last step: their last columns belong to y's next lanes.
  Lanes late[4] = {};
  const auto add = [&](int64_t w, const Lanes(&now)[4]) {
    const Lanes near = now[0] + __builtin_shufflevector(late[1], now[1], 6, 7, 8, 9, 10, 11, 12, 13);
    const Lanes far = __builtin_shufflevector(late[2], now[2], 4, 5, 6, 7, 8, 9, 10, 11) +
                      __builtin_shufflevector(late[3], now[3], 2, 3, 4, 5, 6, 7, 8, 9);
    Lanes& sum = *reinterpret_cast<Lanes*>(y + w);
    sum += static_cast<float>(kSign) * (near + far);
  };
#pragma GCC unroll 2
  for (int64_t w = 0; w < whole; w += kLanes) {
    if (ahead && w % (kCacheLine / sizeof(float)) == 0) {
      for (int k = 0; k < 4; ++k) {
        prefetch(ahead + k * x.band + w);
      }
    }
    const Lanes open = lorun::cpu::load_lanes(mask[0] + w);
    Lanes now[4];
    for (int k = 0; k < 4; ++k) {
      const Lanes weight = kOneMask ? open : lorun::cpu::load_lanes(mask[k] + w);
      now[k] = weight * lorun::cpu::load_lanes(x[k] + w);
    }
    add(w, now);
    std::copy_n(now, 4, late);
  }
  add(whole, {});
  return whole;
}

template <int kSign, typename A>
void add_band(const Problem& problem, Bands<A> x, Bands<A> mask, int64_t c, int64_t from, A* y) {
  add_product<kSign, A>(y + problem.offsets[c] + from, mask[c] + from, x[c] + from, problem.width - from);
}

// Bands c to c + 3. All rows in one call, because a call costs as much as a few cache lines.
template <int kSign, bool kOneMask>
[[gnu::noinline]] void add_four_bands(const Problem& problem, int64_t rows, const Bands<float>& x,
                                      const Bands<float>& mask, int64_t c, const Lines<float>& y) {
  for (int64_t r = 0; r < rows; ++r) {
    const Bands<float> xr = x.at(r);
    const Bands<float> mr = mask.at(r);
    const int64_t done =
        project_four<kSign, kOneMask>(y[r] + problem.offsets[c], {xr[c], xr.band}, {mr[c], mr.band},
                                      problem.width, band_ahead(problem, rows, x, c, r));
    for (int k = 0; done < problem.width && k < 4; ++k) {
      add_band<kSign>(problem, xr, mr, c + k, done, y[r]);
    }
  }
}

// y += kSign * Phi x; a row of y has room for kLanes more columns.
template <int kSign, typename A>
void add_projection(const Problem& problem, int64_t rows, Bands<A> x, Bands<A> mask, Lines<A> y) {
  int64_t c = 0;
  if constexpr (std::is_same_v<A, float>) {
    const auto add_four = mask.band == 0 ? add_four_bands<kSign, true> : add_four_bands<kSign, false>;
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

// The elements of a measured row to which a row of a cube is projected.
inline int64_t projected_size(const Problem& problem) { return problem.measured + lorun::cpu::kLanes; }

template <typename A>
Lines<A> take_lines(const Problem& problem, Scratch& scratch) {
  // Whole cache lines, so that every row is aligned alike.
  const int64_t size = Scratch::bytes_of<A>(projected_size(problem)) / sizeof(A);
  return {scratch.take<A>(kRows * size), size};
}

template <typename A>
size_t lines_bytes(const Problem& problem) {
  return kRows * Scratch::bytes_of<A>(projected_size(problem));
}

}  // namespace lorun::cassi::cpu
