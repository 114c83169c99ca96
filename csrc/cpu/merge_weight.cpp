#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>

#include "lora.h"

namespace lorun::cpu {
namespace {

// One thread: a weight is merged in tens of microseconds, less than a busy machine takes to wake a second
// one.

// out[o, y, x, c] = weight[o, y, x, c] + scaling * delta[o, c, y, x]
template <typename T, typename Acc>
void add_channels_last(T* out, const T* weight, const Acc* delta, Acc scaling, int64_t out_channels,
                       int64_t channels, int64_t taps) {
  for (int64_t o = 0; o < out_channels; ++o, delta += channels * taps) {
    for (int64_t tap = 0; tap < taps; ++tap, out += channels, weight += channels) {
      for (int64_t c = 0; c < channels; ++c) {
        out[c] = static_cast<T>(static_cast<Acc>(weight[c]) + scaling * delta[c * taps + tap]);
      }
    }
  }
}

template <typename T, typename Acc>
void add_contiguous(T* out, const T* weight, const Acc* delta, Acc scaling, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<T>(static_cast<Acc>(weight[i]) + scaling * delta[i]);
  }
}

}  // namespace

at::Tensor merge(const at::Tensor& weight, const at::Tensor& up, const at::Tensor& down, double scaling,
                 at::MemoryFormat layout, at::ScalarType dtype) {
  // Half-precision adapters are multiplied in float, so that W is rounded once.
  const auto acc_type = at::toOpMathType(weight.scalar_type());
  const at::Tensor delta = at::mm(up.to(acc_type), down.to(acc_type));
  const at::Tensor base = weight.contiguous(layout);
  at::Tensor out = at::empty(weight.sizes(), weight.options(), layout);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, weight.scalar_type(), "merge_lora", [&] {
    using Acc = at::opmath_type<scalar_t>;
    auto* const to = out.mutable_data_ptr<scalar_t>();
    const auto* const from = base.const_data_ptr<scalar_t>();
    const auto* const add = delta.const_data_ptr<Acc>();
    if (layout == at::MemoryFormat::ChannelsLast) {
      add_channels_last<scalar_t, Acc>(to, from, add, scaling, weight.size(0), weight.size(1),
                                       weight.size(2) * weight.size(3));
    } else {
      add_contiguous<scalar_t, Acc>(to, from, add, scaling, weight.numel());
    }
  });
  return out.to(dtype);
}

}  // namespace lorun::cpu
