// One product of the tile interface, its operands stored as rows or as columns.
#include "cuda/lora/tile.cuh"

using namespace lorun::lora::cuda;

namespace {

constexpr int kPitch = 40;

template <typename Math>
__global__ void product(const typename Math::Element* left, const typename Math::Element* right,
                        bool transposed, float* out) {
  using T = typename Math::Element;
  T* const shared = reinterpret_cast<T*>(shared_memory);
  T* const shared_right = shared + kTile * kPitch;
  for (int i = threadIdx.x; i < kTile * kPitch; i += 32) {
    shared[i] = left[i];
    shared_right[i] = right[i];
  }
  __syncthreads();
  const auto offset_of = [](int line) { return line * kPitch; };
  Left<Math> a;
  Right<Math> b;
  if (transposed) {
    a.load_transposed(shared, offset_of);
    b.load_transposed(shared_right, offset_of);
  } else {
    a.load(shared, LeftRows<Math>(offset_of));
    b.load(shared_right, RightRows<Math>(offset_of));
  }
  Accumulator sum;
  mma<Math>(sum, a, b);
  for (int i = 0; i < Accumulator::kCount; ++i) {
    out[Accumulator::row(i) * kTile + Accumulator::column(i)] = sum.values[i];
  }
}

template <typename Math>
int run(const void* left, const void* right, bool transposed, float* out) {
  using T = typename Math::Element;
  return lorun::cuda::launch(product<Math>, 1, 32, 2 * kTile * kPitch * sizeof(T), nullptr,
                             static_cast<const T*>(left), static_cast<const T*>(right), transposed, out);
}

}  // namespace

extern "C" {

int product_float32(const void* left, const void* right, bool transposed, float* out) {
  return run<Fma>(left, right, transposed, out);
}

int product_tf32(const void* left, const void* right, bool transposed, float* out) {
  return run<TensorCores<float>>(left, right, transposed, out);
}

int product_float16(const void* left, const void* right, bool transposed, float* out) {
  return run<TensorCores<__half>>(left, right, transposed, out);
}

int product_bfloat16(const void* left, const void* right, bool transposed, float* out) {
  return run<TensorCores<__nv_bfloat16>>(left, right, transposed, out);
}
}
