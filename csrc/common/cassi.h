// The arguments of a CASSI kernel on every backend, and the arithmetic of one pixel. No torch headers.
//
// A cube x is (B, C, H, W), a measurement y is (B, H, W') with W' = width + the largest offset, and
//   (Phi x)[b, h, p] = sum_c mask[b, c, h, p - o_c] * x[b, c, h, p - o_c]
//   (Phi^T y)[b, c, h, w] = mask[b, c, h, w] * y[b, h, w + o_c]
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define LORUN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define LORUN_HOST_DEVICE inline
#endif

namespace lorun::cassi {

// Offsets are passed to the GPU by value, inside the kernel's parameters.
constexpr int kMaxBands = 256;

enum class Dtype : int32_t { kFloat64, kFloat32, kFloat16, kBFloat16 };

// Sums are kept in this type; so are scale, residuals, and the gradients of mask and scale.
template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <typename T>
using acc_t = typename Accumulator<T>::type;

// A strided view of a (B, C, H, W) tensor; strides count elements, and a stride of 0 repeats. Null data:
// absent, or not wanted.
struct Cube {
  void* data;
  int64_t batch, band, row, column;
};

// A strided view of a (B, H, W') tensor.
struct Measurement {
  void* data;
  int64_t batch, row, column;
};

struct Problem {
  int64_t batch, bands, height, width;
  int64_t measured;  // W'
  Dtype dtype;       // of cubes, masks and measurements, unless stated otherwise
  int32_t offsets[kMaxBands];
};

// Both data steps are x - Phi^T v with v = factor * (Phi x - y).
enum class Step : int32_t {
  kPgd,  // factor = rho
  kHqs,  // factor = 1 / (diag(Phi Phi^T) + mu), by Woodbury from (Phi^T Phi + mu I)^-1 (Phi^T y + mu w)
};

// gram is the sum of squared mask values that meet in a measured pixel; if it is 0, nothing was measured.
template <typename A>
LORUN_HOST_DEVICE A step_factor(Step step, A gram, A scale) {
  if (step == Step::kPgd) {
    return scale;
  }
  return gram > A(0) ? A(1) / (gram + scale) : A(0);
}

// What one measured pixel adds to d rho or d mu, with u = Phi grad: rho enters linearly, mu through 1 / (gram
// + mu).
template <typename A>
LORUN_HOST_DEVICE A scale_gradient(Step step, A factor, A residual, A u) {
  return step == Step::kPgd ? -residual * u : (factor * residual) * (factor * u);
}

// d mask at one pixel of the cube, with t = factor * residual and v = factor * u at its measured pixel. A may
// be a vector of pixels.
template <typename A>
LORUN_HOST_DEVICE A mask_gradient(Step step, A grad, A x, A mask, A t, A v) {
  const A both = grad * t + x * v;
  return step == Step::kPgd ? -both : (mask + mask) * t * v - both;
}

}  // namespace lorun::cassi
