// What a kernel asks memory for before it needs it.
//
// The processor foresees one long run of memory, but a few rows of a cube are a short run for every band, far
// apart. Asked for while earlier runs are computed, they come in time.
#pragma once

#include <cstdint>

#include "cpu/cassi/rows.h"

namespace lorun::cassi::cpu {

constexpr int64_t kCacheLine = 64;

// Into the second-level cache, whether to be read or written: the first is too small to look far ahead. An
// address outside of the tensor does no harm in practice.
inline void prefetch(const void* address) { __builtin_prefetch(address, 0, 2); }

// One band ahead came late where memory was in no near cache; two and four were alike.
constexpr int64_t kBandsAhead = 4;

// Row r of the band that is kBandsAhead after band c, where `rows` rows of all bands are visited, then the
// rows below them; null for rows that are staged or all the same, which are in the cache.
template <typename E>
const E* band_ahead(const Problem& problem, int64_t rows, Bands<E> of, int64_t c, int64_t r) {
  if (of.row == 0) {
    return nullptr;
  }
  const int64_t ahead = c + kBandsAhead;
  return ahead < problem.bands ? of.at(r)[ahead] : of.at(r + rows)[ahead - problem.bands];
}

}  // namespace lorun::cassi::cpu
