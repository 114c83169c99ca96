// The activations of the epilogue, in float.
#pragma once

#include <cmath>

#include "common/lora_conv.h"
#include "cuda/launch.cuh"

namespace lorun::lora::cuda {

__device__ __forceinline__ float activate(Activation activation, float slope, float z) {
  switch (activation) {
    case Activation::kRelu:
      // A NaN passes, as in torch.
      return z < 0 ? 0 : z;
    case Activation::kGelu:
      return 0.5f * z * (1 + erff(z * 0.70710678f));
    case Activation::kLeakyRelu:
      return z < 0 ? slope * z : z;
    default:
      return z;
  }
}

}  // namespace lorun::lora::cuda
