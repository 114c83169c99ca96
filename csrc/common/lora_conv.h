// The arguments of the low-rank convolution's kernels. No torch headers.
//
//   q          = p * stride + (ky, kx) * dilation - padding
//   z[n, p, o] = bias[o] + sum_{c, ky, kx} W[o, c, ky, kx] * x[n, q, c]
//   output     = activation(z) + residual
//   W[f]       = base[f] + scaling * sum_j up[f / columns, j] * down[j, f % columns]
//
// where f = ((o * in_channels / groups + c) * kernel_h + ky) * kernel_w + kx is W's row-major index: Eq. 4 of
// arXiv 2602.18697 and the factored form differ only in columns and inner.
#pragma once

#include <cstdint>

namespace lorun::lora {

// Sums are kept in float for all of them.
enum class Dtype : int32_t { kFloat32, kFloat16, kBFloat16 };

enum class Activation : int32_t { kNone, kRelu, kGelu, kLeakyRelu };  // GELU is the exact one, with erf

// An image whose channels are contiguous: pixel (n, y, x) begins at data + n * batch + y * row + x * column
// elements. Null data: there is no image.
struct Image {
  void* data;
  int64_t batch, row, column;
};

struct Problem {
  int32_t batch, height, width;  // of the input
  int32_t out_height, out_width;
  int32_t in_channels;         // of both inputs together
  int32_t second_in_channels;  // how many of them, the last ones, are in the second input
  int32_t out_channels;
  int32_t groups;  // 1, or in_channels = out_channels: depthwise
  int32_t kernel_h, kernel_w;
  int32_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  Dtype dtype;  // of images and bias
  bool tf32;    // whether float32 products may be rounded to TF32
};

// W0 and its adapter. If up and down are null, W is the base.
struct Weight {
  const void* base;
  int64_t out_stride, in_stride, row_stride, column_stride;  // of base, in elements
  const void* up;                                            // row-major, inner columns
  const void* down;                                          // row-major, `columns` columns
  int32_t inner, columns;
  float scaling;
  Dtype dtype;  // of base, up and down: the images', or float32
};

}  // namespace lorun::lora
