// Asynchronous copies on the host. A copy may write its destination at any time until it has been waited for:
// these make it NaN at once, and fill it only in the wait.
#pragma once

#include <cstddef>
#include <cstring>
#include <deque>
#include <vector>

namespace cuda_on_host {

struct Copy {
  void* to;
  const void* from;
  size_t bytes, zeros;
};

inline thread_local std::vector<Copy> uncommitted;
inline thread_local std::deque<std::vector<Copy>> committed;

}  // namespace cuda_on_host

// The last `zeros` of the bytes become 0, and their sources are not read.
inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes, size_t zeros = 0) {
  std::memset(to, 0xff, bytes);
  cuda_on_host::uncommitted.push_back({to, from, bytes, zeros});
}

inline void __pipeline_commit() {
  cuda_on_host::committed.push_back(std::move(cuda_on_host::uncommitted));
  cuda_on_host::uncommitted.clear();
}

// All but the last `prior` groups have arrived.
inline void __pipeline_wait_prior(size_t prior) {
  while (cuda_on_host::committed.size() > prior) {
    for (const cuda_on_host::Copy& copy : cuda_on_host::committed.front()) {
      std::memcpy(copy.to, copy.from, copy.bytes - copy.zeros);
      std::memset(static_cast<char*>(copy.to) + copy.bytes - copy.zeros, 0, copy.zeros);
    }
    cuda_on_host::committed.pop_front();
  }
}
