// What the programs that ThreadSanitizer watches share.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

extern "C" void cuda_on_host_set_shared_limit(int bytes);

inline std::vector<float> random_values(int64_t count) {
  std::vector<float> values(count);
  for (float& value : values) {
    value = static_cast<float>(std::rand()) / RAND_MAX;
  }
  return values;
}

inline void expect(cudaError_t error) {
  if (error != cudaSuccess) {
    std::printf("a launch failed with error %d\n", error);
    std::exit(1);
  }
}
