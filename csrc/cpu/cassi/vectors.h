// Elements as accumulators, one by one or as many as a register holds.
#pragma once

#include <type_traits>

#include "common/cassi.h"
#include "cpu/lanes.h"

namespace lorun::cassi::cpu {

template <typename A>
using Vector __attribute__((vector_size(32), aligned(sizeof(A)), may_alias)) = A;

// Accumulators in a vector.
template <typename A>
constexpr int64_t kVectorSize = sizeof(Vector<A>) / sizeof(A);
static_assert(kVectorSize<float> == lorun::cpu::kLanes);

// The elements from `row` on as V: an accumulator or a vector of them.
template <typename V, typename E>
V read(const E* row) {
  using A = acc_t<E>;
  if constexpr (std::is_same_v<V, A>) {
    return static_cast<A>(*row);
  } else if constexpr (std::is_same_v<E, A>) {
    // clang forgets the alignment of V, because it is a template's argument, but not that of a local alias.
    using Here __attribute__((vector_size(sizeof(V)), aligned(sizeof(A)), may_alias)) = A;
    return *reinterpret_cast<const Here*>(row);
  } else {
    return lorun::cpu::load_lanes(row);
  }
}

template <typename V, typename E>
void write(E* row, const V& value) {
  using A = acc_t<E>;
  if constexpr (std::is_same_v<V, A>) {
    *row = static_cast<E>(value);
  } else if constexpr (std::is_same_v<E, A>) {
    using Here __attribute__((vector_size(sizeof(V)), aligned(sizeof(A)), may_alias)) = A;
    *reinterpret_cast<Here*>(row) = value;
  } else {
    lorun::cpu::store_lanes(row, value);
  }
}

// Calls of(V{}, i) along a row: for whole vectors, then for single elements.
template <typename A, typename Of>
void along(int64_t count, const Of& of) {
  int64_t i = 0;
  for (; i + kVectorSize<A> <= count; i += kVectorSize<A>) {
    of(Vector<A>{}, i);
  }
  for (; i < count; ++i) {
    of(A{}, i);
  }
}

}  // namespace lorun::cassi::cpu
