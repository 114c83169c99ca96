// The instructions of tensor cores, and the loads made for them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace lorun::lora::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ uint32_t to_tf32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "r"(bits));
  return rounded;
}

#define LORUN_MMA(SHAPE, TYPE)                                                        \
  asm volatile("mma.sync.aligned." SHAPE ".row.col.f32." TYPE "." TYPE                \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])               \
               : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1))

// Eight columns of a tile: the first argument only selects the type.
__device__ __forceinline__ void mma8(__half, float* sum, const uint32_t (&left)[4], uint32_t right0,
                                     uint32_t right1) {
  LORUN_MMA("m16n8k16", "f16");
}
__device__ __forceinline__ void mma8(__nv_bfloat16, float* sum, const uint32_t (&left)[4], uint32_t right0,
                                     uint32_t right1) {
  LORUN_MMA("m16n8k16", "bf16");
}
__device__ __forceinline__ void mma8(float, float* sum, const uint32_t (&left)[4], uint32_t right0,
                                     uint32_t right1) {
  LORUN_MMA("m16n8k8", "tf32");
}

#undef LORUN_MMA

}  // namespace lorun::lora::cuda
