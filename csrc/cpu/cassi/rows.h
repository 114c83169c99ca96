// A few rows of a cube or a measurement at a time, with contiguous columns.
//
// Rows that are already stored that way are used in place, several at once; others are staged in this
// thread's scratch, one by one, as accumulators.
#pragma once

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <memory>
#include <type_traits>

#include "common/cassi.h"
#include "cpu/lanes.h"

namespace lorun::cassi::cpu {

// Band c of row r begins at data + c * band + r * row; band is 0 if all bands are the same.
template <typename E>
struct Bands {
  E* data;
  int64_t band;
  int64_t row = 0;

  E* operator[](int64_t c) const { return data + c * band; }
  Bands at(int64_t r) const { return {data + r * row, band, row}; }
};

// Rows of a measurement in scratch: row r begins at data + r * row.
template <typename A>
struct Lines {
  A* data;
  int64_t row;

  A* operator[](int64_t r) const { return data + r * row; }
  Lines at(int64_t r) const { return {data + r * row, row}; }
};

// This thread's memory for the rows of one kernel call: it grows to the size of the largest call so far and
// is kept.
class Scratch {
 public:
  void reserve(size_t bytes) {
    if (capacity_ < bytes) {
      memory_.reset(static_cast<std::byte*>(::operator new(bytes, kAlignment)));
      capacity_ = bytes;
    }
    used_ = 0;
  }

  template <typename A>
  A* take(int64_t count) {
    A* const taken = reinterpret_cast<A*>(memory_.get() + used_);
    used_ += bytes_of<A>(count);
    return taken;
  }

  template <typename A>
  static size_t bytes_of(int64_t count) {
    const size_t line = static_cast<size_t>(kAlignment);
    return (count * sizeof(A) + line - 1) / line * line;
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(std::byte* memory) const { ::operator delete(memory, kAlignment); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  size_t capacity_ = 0;
  size_t used_ = 0;
};

// How to bring a row of a cube of T to loops over E and back: E is T, or T's accumulator if a row of some
// cube must be staged.
template <typename T, typename E>
class CubeRows {
 public:
  CubeRows(const Problem& problem, const Cube& cube, Scratch& scratch) : CubeRows(problem, cube) {
    if (!in_place(cube)) {
      staged_ = scratch.take<E>(bands_ * width_);
    }
  }

  // A result that may overwrite the staged row of `source`, pixel by pixel.
  CubeRows(const Problem& problem, const Cube& cube, const CubeRows& source, Scratch& scratch)
      : CubeRows(problem, cube) {
    if (!in_place(cube)) {
      const bool shared = source.staged_ && source.bands_ == bands_;
      staged_ = shared ? source.staged_ : scratch.take<E>(bands_ * width_);
    }
  }

  static size_t scratch_bytes(const Problem& problem) {
    return Scratch::bytes_of<E>(problem.bands * problem.width);
  }

  // Whether rows are used in place.
  static bool in_place(const Cube& cube) { return !cube.data || (std::is_same_v<T, E> && cube.column == 1); }

  // The row's values and, if it is used in place, those of the rows below; valid until the next call.
  Bands<E> load(int64_t b, int64_t h) const {
    T* const row = at(b, h);
    if (in_place(cube_)) {
      return {reinterpret_cast<E*>(row), cube_.band, cube_.row};
    }
    if (cube_.band == 1 && cube_.column != 1) {
      lorun::cpu::transpose(row, cube_.column, staged_, width_, width_, bands_);
    } else {
      for (int64_t c = 0; c < bands_; ++c) {
        lorun::cpu::convert(row + c * cube_.band, cube_.column, staged_ + c * width_, width_);
      }
    }
    return staged();
  }

  // Where to compute the row before `store` copies it to its place.
  Bands<E> target(int64_t b, int64_t h) const {
    return in_place(cube_) ? Bands<E>{reinterpret_cast<E*>(at(b, h)), cube_.band, cube_.row} : staged();
  }

  void store(int64_t b, int64_t h) const {
    T* const row = at(b, h);
    if (in_place(cube_)) {
      return;
    }
    if (cube_.band == 1 && cube_.column != 1) {
      lorun::cpu::transpose(staged_, width_, row, cube_.column, bands_, width_);
    } else {
      for (int64_t c = 0; c < bands_; ++c) {
        lorun::cpu::convert_to(staged_ + c * width_, row + c * cube_.band, cube_.column, width_);
      }
    }
  }

 private:
  CubeRows(const Problem& problem, const Cube& cube)
      : cube_(cube), width_(problem.width), bands_(cube.band == 0 ? 1 : problem.bands) {}

  T* at(int64_t b, int64_t h) const { return static_cast<T*>(cube_.data) + b * cube_.batch + h * cube_.row; }
  Bands<E> staged() const { return {staged_, cube_.band == 0 ? 0 : width_}; }

  Cube cube_;
  int64_t width_;
  int64_t bands_;
  E* staged_ = nullptr;
};

template <typename T>
T* row_of(const Measurement& y, int64_t b, int64_t h) {
  return static_cast<T*>(y.data) + b * y.batch + h * y.row;
}

template <typename T, typename A>
void load_rows(const Problem& problem, const Measurement& y, int64_t b, int64_t h, int64_t rows,
               Lines<A> to) {
  for (int64_t r = 0; r < rows; ++r) {
    lorun::cpu::convert(row_of<T>(y, b, h + r), y.column, to[r], problem.measured);
  }
}

template <typename T, typename A>
void store_rows(const Problem& problem, const Measurement& y, int64_t b, int64_t h, int64_t rows,
                Lines<A> from) {
  for (int64_t r = 0; r < rows; ++r) {
    lorun::cpu::convert_to(from[r], row_of<T>(y, b, h + r), y.column, problem.measured);
  }
}

inline Scratch& this_threads_scratch(size_t bytes) {
  thread_local Scratch scratch;
  scratch.reserve(bytes);
  return scratch;
}

// The number of pixels that is worth a thread: waking one costs microseconds.
constexpr int64_t kGrain = 1 << 14;

// Rows of one band are consecutive in memory: the processor predicts runs of a few of them, and the part of a
// cube that they belong to is still in its caches when it is read again.
constexpr int64_t kRows = 4;

// How many rows are visited at once: several if all cubes are used in place.
template <typename T, typename E>
int64_t rows_at_once(std::initializer_list<Cube> cubes) {
  return std::all_of(cubes.begin(), cubes.end(), CubeRows<T, E>::in_place) ? kRows : 1;
}

// Makes one body per thread, from its scratch, and calls body(b, h, count) for all rows, `rows` of them at
// once.
template <typename Make>
void for_rows(const Problem& problem, size_t scratch_bytes, int64_t rows, const Make& make) {
  const int64_t blocks = (problem.height + rows - 1) / rows;
  const int64_t pixels = problem.bands * problem.width * rows;
  at::parallel_for(0, problem.batch * blocks, std::max<int64_t>(1, kGrain / pixels),
                   [&](int64_t begin, int64_t end) {
                     const auto body = make(this_threads_scratch(scratch_bytes));
                     for (int64_t i = begin; i < end; ++i) {
                       const int64_t h = i % blocks * rows;
                       body(i / blocks, h, std::min(rows, problem.height - h));
                     }
                   });
}

// The same, row by row, with all samples of a row in one thread, in order: they may add to the same memory.
template <typename Make>
void for_rows_of_all_samples(const Problem& problem, size_t scratch_bytes, const Make& make) {
  const int64_t pixels = problem.bands * problem.width * problem.batch;
  at::parallel_for(0, problem.height, std::max<int64_t>(1, kGrain / pixels), [&](int64_t begin, int64_t end) {
    const auto body = make(this_threads_scratch(scratch_bytes));
    for (int64_t h = begin; h < end; ++h) {
      for (int64_t b = 0; b < problem.batch; ++b) {
        body(b, h, 1);
      }
    }
  });
}

// Calls kernel.operator()<T, E>() with the type T that the problem's tensors hold and the type E that loops
// see: T if no row of `cubes` must be staged, otherwise T's accumulator.
template <typename Kernel>
void dispatch(const Problem& problem, std::initializer_list<Cube> cubes, const Kernel& kernel) {
  const auto half = [&]<typename T>(T) {
    if (std::all_of(cubes.begin(), cubes.end(), CubeRows<T, T>::in_place)) {
      kernel.template operator()<T, T>();
    } else {
      kernel.template operator()<T, acc_t<T>>();
    }
  };
  switch (problem.dtype) {
    case Dtype::kFloat64:
      return kernel.template operator()<double, double>();
    case Dtype::kFloat32:
      return kernel.template operator()<float, float>();
    case Dtype::kFloat16:
      return half(c10::Half());
    case Dtype::kBFloat16:
      return half(c10::BFloat16());
  }
}

}  // namespace lorun::cassi::cpu
