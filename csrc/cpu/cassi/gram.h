// The diagonal of Phi Phi^T for one row: the squared mask values that meet in each measured pixel.
#pragma once

#include <algorithm>

#include "cpu/cassi/loops.h"
#include "cpu/cassi/projection.h"

namespace lorun::cassi::cpu {

// The step between the offsets of neighbouring bands, or -1 if it changes.
inline int64_t constant_step(const Problem& problem) {
  const int64_t step = problem.bands > 1 ? problem.offsets[1] : 0;
  for (int64_t c = 0; c < problem.bands; ++c) {
    if (problem.offsets[c] != c * step) {
      return -1;
    }
  }
  return step;
}

// A mask that all bands share and a constant step make the gram row a sum of equidistant squares. Sums of
// four are computed first, so that a pixel costs a quarter of the additions.
template <typename A>
class GramRow {
 public:
  GramRow(const Problem& problem, const Cube& mask, Scratch& scratch)
      : step_(mask.band == 0 ? constant_step(problem) : -1),
        padding_(step_ * (problem.bands - 1)),
        gram_(scratch.take<A>(projected_size<A>(problem))) {
    if (step_ >= 0) {
      // Zeros before and after the squares stand for the columns outside of the mask.
      squares_ = scratch.take<A>(padded(problem));
      fours_ = scratch.take<A>(padded(problem));
      std::fill_n(squares_, padded(problem), A(0));
      std::fill_n(fours_, padded(problem), A(0));
    }
  }

  static size_t scratch_bytes(const Problem& problem) {
    return 2 * Scratch::bytes_of<A>(padded(problem)) + Scratch::bytes_of<A>(projected_size<A>(problem));
  }

  // The memory that `compute` fills.
  A* row() const { return gram_; }

  template <typename E>
  A* compute(const Problem& problem, Bands<E> mask) const {
    if (step_ < 0) {
      std::fill_n(gram_, problem.measured, A(0));
      add_projection<1>(problem, 1, mask, mask, Lines<A>{gram_, 0});
      return gram_;
    }
    A* const squares = squares_ + padding_;
    A* const fours = fours_ + padding_;
    square(squares, mask[0], problem.width);
    const int64_t in_fours = problem.bands / 4 * 4;
    const auto at = [step = step_](const A* row, int64_t p, int64_t band) {
      return read<V>(row + p - band * step);
    };
    for (int64_t p = 0; in_fours > 0 && p < problem.measured; p += kSize) {
      write(fours + p, V(at(squares, p, 0) + at(squares, p, 1) + at(squares, p, 2) + at(squares, p, 3)));
    }
    for (int64_t p = 0; p < problem.measured; p += kSize) {
      V sum{};
      for (int64_t c = 0; c < in_fours; c += 4) {
        sum += at(fours, p, c);
      }
      for (int64_t c = in_fours; c < problem.bands; ++c) {
        sum += at(squares, p, c);
      }
      write(gram_ + p, sum);
    }
    return gram_;
  }

 private:
  using V = Vector<A>;
  static constexpr int64_t kSize = kVectorSize<A>;

  // Whole vectors are read and written up to the end of a measured row.
  static int64_t padded(const Problem& problem) { return 2 * problem.measured - problem.width + kSize; }

  int64_t step_;
  int64_t padding_;
  A* gram_;
  A* squares_ = nullptr;
  A* fours_ = nullptr;
};

}  // namespace lorun::cassi::cpu
