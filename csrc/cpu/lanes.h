// Copies that convert the element type, in the order of memory or transposed.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <type_traits>

#ifdef __F16C__
#include <immintrin.h>
#endif

namespace lorun::cpu {

constexpr int64_t kLanes = 8;
// Aligned like their elements. The attributes follow the name, where clang respects them too.
using Lanes __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias)) = float;
using Words __attribute__((vector_size(kLanes * sizeof(uint32_t)), aligned(sizeof(uint32_t)))) = uint32_t;
using Halves __attribute__((vector_size(kLanes * sizeof(uint16_t)), aligned(sizeof(uint16_t)), may_alias)) =
    uint16_t;

template <typename From>
inline Lanes load_lanes(const From* src) {
  if constexpr (std::is_same_v<From, float>) {
    return *reinterpret_cast<const Lanes*>(src);
#ifdef __F16C__
  } else if constexpr (std::is_same_v<From, c10::Half>) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src)));
#endif
  } else if constexpr (std::is_same_v<From, c10::BFloat16>) {
    Words bits;
    for (int i = 0; i < kLanes; ++i) {
      bits[i] = static_cast<uint32_t>(src[i].x) << 16;
    }
    return std::bit_cast<Lanes>(bits);
  } else {
    Lanes lanes;
    for (int i = 0; i < kLanes; ++i) {
      lanes[i] = static_cast<float>(src[i]);
    }
    return lanes;
  }
}

template <typename To>
inline void store_lanes(To* dst, const Lanes& lanes) {
  if constexpr (std::is_same_v<To, float>) {
    *reinterpret_cast<Lanes*>(dst) = lanes;
#ifdef __F16C__
  } else if constexpr (std::is_same_v<To, c10::Half>) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), _mm256_cvtps_ph(lanes, _MM_FROUND_TO_NEAREST_INT));
#endif
  } else if constexpr (std::is_same_v<To, c10::BFloat16>) {
    const Words bits = std::bit_cast<Words>(lanes);
    // Round to nearest, ties to even; adding to a NaN could make it infinite.
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Words words = lanes == lanes ? rounded : Words{} + 0x7fc0;
    // A loop over the lanes is not vectorised everywhere.
    *reinterpret_cast<Halves*>(dst) = __builtin_convertvector(words, Halves);
  } else {
    for (int i = 0; i < kLanes; ++i) {
      dst[i] = static_cast<To>(lanes[i]);
    }
  }
}

// dst[i] = src[i * stride]
template <typename To, typename From>
void convert(const From* src, int64_t stride, To* dst, int64_t count) {
  int64_t i = 0;
  if constexpr (!std::is_same_v<To, double>) {
    for (; stride == 1 && i + kLanes <= count; i += kLanes) {
      store_lanes(dst + i, load_lanes(src + i));
    }
  }
  for (; i < count; ++i) {
    dst[i] = static_cast<To>(src[i * stride]);
  }
}

// dst[i * stride] = src[i]
template <typename To, typename From>
void convert_to(const From* src, To* dst, int64_t stride, int64_t count) {
  if (stride == 1) {
    convert(src, 1, dst, count);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    dst[i * stride] = static_cast<To>(src[i]);
  }
}

// Eight rows of eight, in registers: three rounds of pairwise shuffles.
inline void transpose_tile(Lanes (&t)[kLanes]) {
  Lanes a[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    a[i] = __builtin_shufflevector(t[i], t[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
    a[i + 1] = __builtin_shufflevector(t[i], t[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
  }
  Lanes b[kLanes];
  for (const int i : {0, 1, 4, 5}) {
    b[i] = __builtin_shufflevector(a[i], a[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    b[i + 2] = __builtin_shufflevector(a[i], a[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = __builtin_shufflevector(b[i], b[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    t[i + 4] = __builtin_shufflevector(b[i], b[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// dst[c * dst_stride + r] = src[r * src_stride + c]; src and dst do not overlap.
template <typename To, typename From>
void transpose(const From* src, int64_t src_stride, To* dst, int64_t dst_stride, int64_t rows,
               int64_t columns) {
  if (rows < kLanes || columns < kLanes || std::is_same_v<To, double>) {
    for (int64_t r = 0; r < rows; ++r) {
      convert_to(src + r * src_stride, dst + r, dst_stride, columns);
    }
    return;
  }
  // The last tile overlaps the one before it, so that none is ragged.
  for (int64_t r = 0; r < rows; r += kLanes) {
    const int64_t row = std::min(r, rows - kLanes);
    for (int64_t c = 0; c < columns; c += kLanes) {
      const int64_t column = std::min(c, columns - kLanes);
      Lanes tile[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        tile[i] = load_lanes(src + (row + i) * src_stride + column);
      }
      transpose_tile(tile);
      for (int i = 0; i < kLanes; ++i) {
        store_lanes(dst + (column + i) * dst_stride + row, tile[i]);
      }
    }
  }
}

}  // namespace lorun::cpu
