// How a block lays out one row of a problem in shared memory: decided on the host here, followed in row.cuh.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <climits>
#include <cstdint>

#include "common/cassi.h"
#include "cuda/launch.cuh"

namespace lorun::cassi::cuda {

constexpr int kMaxThreads = 320;

// Where the bands of a row are in shared memory; strides count elements.
struct Tile {
  int offset;  // bytes from the start of shared memory
  int band, column;
};

// How the rows of a cube are copied to or from their tile: as lines of words, one load or store per word. A
// line is a band or, if the bands of a column are contiguous, a column.
struct Staging {
  Tile tile;
  int word_bytes;
  int words;       // in the row
  int line_words;  // in a line
  uint64_t reciprocal;
  // Distances in words.
  int64_t global_line, global_word;
  int shared_line, shared_word;
};

// n / d is (n * reciprocal(d)) >> kReciprocalBits as long as n * d < 2^40: rows in shared memory are far
// smaller.
constexpr int kReciprocalBits = 40;
constexpr uint64_t reciprocal(int64_t d) { return ((uint64_t{1} << kReciprocalBits) + d - 1) / d; }

inline bool bands_side_by_side(const Cube& cube) { return cube.band == 1 && cube.column != 1; }

// Hands out shared memory from its start, in pieces aligned to the widest word.
class SharedMemory {
 public:
  int take(int64_t bytes) {
    const int64_t offset = bytes_;
    bytes_ += (bytes + 15) / 16 * 16;
    return static_cast<int>(offset);
  }

  // A tile in the memory order of `cube`, so that a row is copied in words.
  template <typename T>
  Tile take_tile(const Problem& problem, const Cube& cube) {
    if (!bands_side_by_side(cube)) {
      const int offset = take(problem.bands * problem.width * int64_t{sizeof(T)});
      return {offset, static_cast<int>(problem.width), 1};
    }
    // Columns that are an even number of 16-byte words apart share too few banks.
    const int64_t pad = problem.bands * sizeof(T) % 32 == 0 ? 16 / sizeof(T) : 0;
    const int64_t pitch = problem.bands + pad;
    return {take(problem.width * pitch * int64_t{sizeof(T)}), 1, static_cast<int>(pitch)};
  }

  // A row of a mask that all bands share.
  template <typename T>
  int take_flat(const Problem& problem, const Cube& mask) {
    return take(mask.band == 0 ? problem.width * int64_t{sizeof(T)} : 0);
  }

  // A measured row of accumulators.
  template <typename T>
  int take_measured(const Problem& problem) {
    return take(problem.measured * int64_t{sizeof(acc_t<T>)});
  }

  int64_t bytes() const { return bytes_; }

 private:
  int64_t bytes_ = 0;
};

template <typename T>
Staging plan_staging(const Problem& problem, const Cube& cube, const Tile& tile) {
  const bool columns = bands_side_by_side(cube);
  int64_t lines = columns ? problem.width : problem.bands;
  int64_t length = columns ? problem.bands : problem.width;
  int64_t global_line = columns ? cube.column : cube.band;
  int64_t shared_line = columns ? tile.column : tile.band;
  const int64_t global_element = columns ? cube.band : cube.column;
  const int64_t shared_element = columns ? tile.band : tile.column;
  int64_t word_bytes = sizeof(T);
  if (global_element == 1 && shared_element == 1) {
    // Contiguous lines are one long line.
    if (lines == 1 || (global_line == length && shared_line == length)) {
      length *= lines;
      lines = 1;
      global_line = shared_line = 0;
    }
    // The lowest set bit is the alignment that the starts of all lines have in common.
    const int64_t starts = cube.batch | cube.row | global_line | shared_line | length;
    const uint64_t bits = reinterpret_cast<uintptr_t>(cube.data) | static_cast<uint64_t>(starts) * sizeof(T);
    word_bytes = bits % 16 == 0 ? 16 : bits % 8 == 0 ? 8 : word_bytes;
  }
  const int64_t per_word = word_bytes / int64_t{sizeof(T)};
  const int64_t line_words = length / per_word;
  return {tile,
          static_cast<int>(word_bytes),
          static_cast<int>(lines * line_words),
          static_cast<int>(line_words),
          reciprocal(line_words),
          global_line / per_word,
          global_element,
          static_cast<int>(shared_line / per_word),
          static_cast<int>(shared_element)};
}

// Enough threads for as few passes over the measured columns as a block can make, with the columns spread
// evenly over the passes.
inline int threads_for(const Problem& problem) {
  const int64_t passes = (problem.measured + kMaxThreads - 1) / kMaxThreads;
  return static_cast<int>((problem.measured + 32 * passes - 1) / (32 * passes) * 32);
}

// Whether a block sums over the samples of its row, one after another, instead of working on one of them.
LORUN_HOST_DEVICE bool sums_batch(const Cube& grad_mask) {
  return grad_mask.data != nullptr && grad_mask.batch == 0;
}

// Calls `launch` with a value of the problem's element type and the bytes of shared memory that a block may
// use.
template <typename Launch>
cudaError_t dispatch(const Problem& problem, Launch launch) {
  if (problem.batch == 0 || problem.bands == 0 || problem.height == 0 || problem.width == 0) {
    return cudaSuccess;
  }
  if (problem.bands > kMaxBands || problem.measured > INT_MAX / 2) {
    return cudaErrorInvalidValue;
  }
  int64_t limit;
  const cudaError_t error = lorun::cuda::shared_limit(&limit);
  if (error != cudaSuccess) {
    return error;
  }
  switch (problem.dtype) {
    case Dtype::kFloat64:
      return launch(double{}, limit);
    case Dtype::kFloat32:
      return launch(float{}, limit);
    case Dtype::kFloat16:
      return launch(__half{}, limit);
    case Dtype::kBFloat16:
      return launch(__nv_bfloat16{}, limit);
  }
  return cudaErrorInvalidValue;
}

}  // namespace lorun::cassi::cuda
