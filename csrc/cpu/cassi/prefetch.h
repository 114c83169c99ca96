// What a kernel requests from memory before it needs it.
//
// The processor predicts one long run of memory, but a few rows of a cube are a short run for every band, far
// apart. Requested while earlier runs are computed, they arrive in time.
#pragma once

#include <cstdint>

#include "cpu/cassi/rows.h"

namespace lorun::cassi::cpu {

constexpr int64_t kCacheLine = 64;

// Fetches into the second-level cache, for reading or writing: the first is too small to look far ahead. An
// address outside of the tensor does no harm in practice.
inline void prefetch(const void* address) { __builtin_prefetch(address, 0, 2); }

// One band ahead came too late if memory was in no near cache; two and four were equally fast.
constexpr int64_t kBandsAhead = 4;

// Row r of the band that is kBandsAhead after band c, if `rows` rows of all bands are visited before the rows
// below them; null for rows that are staged or all the same, which are in the cache.
template <typename E>
const E* band_ahead(const Problem& problem, int64_t rows, Bands<E> of, int64_t c, int64_t r) {
  if (of.row == 0) {
    return nullptr;
  }
  const int64_t ahead = c + kBandsAhead;
  return ahead < problem.bands ? of.at(r)[ahead] : of.at(r + rows)[ahead - problem.bands];
}

}  // namespace lorun::cassi::cpu
