// One row of a cube or a measurement at a time, as contiguous accumulators.
//
// Rows that already lie so in memory are used where they are; others are staged in this thread's scratch.
#pragma once

#include <ATen/Parallel.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <type_traits>

#include "common/cassi.h"
#include "cpu/lanes.h"

namespace lorun::cassi::cpu {

// Band c of the row begins at data + c * band; band is 0 where all bands are one. The row below begins
// `below` further on where that may be fetched ahead, else 0.
template <typename A>
struct Bands {
  A* data;
  int64_t band;
  int64_t below = 0;

  A* operator[](int64_t c) const { return data + c * band; }
};

// Asks for a row of memory ahead of its use: dozens of short runs are more than the processor foresees.
template <typename T>
void prefetch(const T* row, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / sizeof(T)) {
    __builtin_prefetch(row + i, /*rw=*/0, /*locality=*/2);
  }
}

// This thread's memory for the rows of one kernel call: it grows to the largest call seen and is kept.
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

// How to bring a row of a cube into accumulators and back.
template <typename T>
class CubeRows {
 public:
  using A = acc_t<T>;

  CubeRows(const Problem& problem, const Cube& cube, Scratch& scratch) : CubeRows(problem, cube) {
    if (cube.data && !in_place()) {
      staged_ = scratch.take<A>(bands_ * width_);
    }
  }

  // A result that may overwrite the staged row of `source`, pixel by pixel.
  CubeRows(const Problem& problem, const Cube& cube, const CubeRows& source, Scratch& scratch)
      : CubeRows(problem, cube) {
    if (cube.data && !in_place()) {
      const bool shared = source.staged_ && source.bands_ == bands_;
      staged_ = shared ? source.staged_ : scratch.take<A>(bands_ * width_);
    }
  }

  static size_t scratch_bytes(const Problem& problem) {
    return Scratch::bytes_of<A>(problem.bands * problem.width);
  }

  // The row's values; valid until the next call.
  Bands<A> load(int64_t b, int64_t h) const {
    T* const row = at(b, h);
    if (in_place()) {
      return {reinterpret_cast<A*>(row), cube_.band, cube_.row};
    }
    if (cube_.band == 1 && cube_.column != 1) {
      lorun::cpu::transpose(row, cube_.column, staged_, width_, width_, bands_);
    } else {
      for (int64_t c = 0; c < bands_; ++c) {
        prefetch(row + c * cube_.band + cube_.row, width_);
        lorun::cpu::convert(row + c * cube_.band, cube_.column, staged_ + c * width_, width_);
      }
    }
    return staged();
  }

  // Where to compute the row before `store` brings it to its place.
  Bands<A> target(int64_t b, int64_t h) const {
    return in_place() ? Bands<A>{reinterpret_cast<A*>(at(b, h)), cube_.band} : staged();
  }

  void store(int64_t b, int64_t h) const {
    T* const row = at(b, h);
    if (in_place()) {
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

  bool in_place() const { return std::is_same_v<T, A> && cube_.column == 1; }
  T* at(int64_t b, int64_t h) const { return static_cast<T*>(cube_.data) + b * cube_.batch + h * cube_.row; }
  Bands<A> staged() const { return {staged_, cube_.band == 0 ? 0 : width_}; }

  Cube cube_;
  int64_t width_;
  int64_t bands_;
  A* staged_ = nullptr;
};

template <typename T>
T* row_of(const Measurement& y, int64_t b, int64_t h) {
  return static_cast<T*>(y.data) + b * y.batch + h * y.row;
}

template <typename T, typename A>
void load_row(const Problem& problem, const Measurement& y, int64_t b, int64_t h, A* row) {
  lorun::cpu::convert(row_of<T>(y, b, h), y.column, row, problem.measured);
}

template <typename T, typename A>
void store_row(const Problem& problem, const Measurement& y, int64_t b, int64_t h, const A* row) {
  lorun::cpu::convert_to(row, row_of<T>(y, b, h), y.column, problem.measured);
}

inline Scratch& this_threads_scratch(size_t bytes) {
  thread_local Scratch scratch;
  scratch.reserve(bytes);
  return scratch;
}

// Pixels that are worth a thread: waking one costs microseconds.
constexpr int64_t kGrain = 1 << 14;

// Makes one body a thread, from its scratch, and calls body(b, h) for every row. With by_row, all samples of
// a row run in one thread, in order, so that they may add to the same memory.
template <typename Make>
void for_rows(const Problem& problem, size_t scratch_bytes, bool by_row, const Make& make) {
  const int64_t samples = by_row ? problem.batch : 1;
  const int64_t items = problem.height * (by_row ? 1 : problem.batch);
  const int64_t pixels = problem.bands * problem.width * samples;
  at::parallel_for(0, items, std::max<int64_t>(1, kGrain / pixels), [&](int64_t begin, int64_t end) {
    const auto body = make(this_threads_scratch(scratch_bytes));
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t b = 0; b < samples; ++b) {
        body(by_row ? b : i / problem.height, i % problem.height);
      }
    }
  });
}

// Calls kernel.operator()<T>() with the type that the problem's tensors hold.
template <typename Kernel>
void dispatch(Dtype dtype, const Kernel& kernel) {
  switch (dtype) {
    case Dtype::kFloat64:
      return kernel.template operator()<double>();
    case Dtype::kFloat32:
      return kernel.template operator()<float>();
    case Dtype::kFloat16:
      return kernel.template operator()<c10::Half>();
    case Dtype::kBFloat16:
      return kernel.template operator()<c10::BFloat16>();
  }
}

}  // namespace lorun::cassi::cpu
