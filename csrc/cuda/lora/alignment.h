// How many bytes of a pixel kernels may move at once.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "common/lora_conv.h"

namespace lorun::lora::cuda {

// The most bytes, up to 16, that the address of every pixel and each of these numbers of channels are
// multiples of. Images with null data do not count.
inline int common_bytes(int element_bytes, std::initializer_list<Image> images,
                        std::initializer_list<int64_t> channels) {
  uint64_t bits = 16;
  for (const Image& image : images) {
    if (image.data != nullptr) {
      bits |= reinterpret_cast<uintptr_t>(image.data);
      bits |= static_cast<uint64_t>(image.batch | image.row | image.column) * element_bytes;
    }
  }
  for (const int64_t count : channels) {
    bits |= static_cast<uint64_t>(count) * element_bytes;
  }
  return static_cast<int>(bits & -bits);
}

}  // namespace lorun::lora::cuda
