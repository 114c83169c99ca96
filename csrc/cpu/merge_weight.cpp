#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>

#include "lora.h"

namespace lorun::cpu {
namespace {

// The number of elements that is worth a thread: waking one costs microseconds.
constexpr int64_t kGrain = 1 << 14;

// out[o, y, x, c] = weight[o, y, x, c] + scaling * delta[o, c, y, x]
template <typename T>
void add_channels_last(T* out, const T* weight, const T* delta, T scaling, int64_t out_channels,
                       int64_t channels, int64_t taps) {
  const int64_t size = channels * taps;
  at::parallel_for(0, out_channels, std::max<int64_t>(1, kGrain / size), [=](int64_t begin, int64_t end) {
    for (int64_t o = begin * size; o < end * size; o += size) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        for (int64_t c = 0; c < channels; ++c) {
          const int64_t at = o + tap * channels + c;
          out[at] = weight[at] + scaling * delta[o + c * taps + tap];
        }
      }
    }
  });
}

// A matrix of this thread's buffer number `slot`; the next call for the slot overwrites it.
//
// Otherwise W would be freed between outputs that live on, and glibc's aligned allocation never puts a block
// into a hole of its own size: the heap would grow by one weight per call, as if every W were kept.
at::Tensor scratch(int slot, int64_t rows, int64_t columns, const at::TensorOptions& options) {
  struct Buffer {
    c10::DataPtr data;
    size_t bytes = 0;
  };
  thread_local std::array<Buffer, 2> buffers;
  Buffer& buffer = buffers[slot];
  const size_t bytes = rows * columns * options.dtype().itemsize();
  if (buffer.bytes < bytes) {
    buffer.data = c10::GetAllocator(c10::kCPU)->allocate(bytes);
    buffer.bytes = bytes;
  }
  return at::from_blob(buffer.data.get(), {rows, columns}, options);
}

}  // namespace

at::Tensor merge(const at::Tensor& weight, const at::Tensor& up, const at::Tensor& down, double scaling,
                 at::MemoryFormat layout, at::ScalarType dtype) {
  // Half precision is merged in float, so that W is rounded once.
  const auto acc_type = at::toOpMathType(weight.scalar_type());
  const at::Tensor base = weight.to(acc_type).contiguous(layout);
  const at::Tensor left = up.to(acc_type);
  const at::Tensor right = down.to(acc_type);
  at::Tensor merged = scratch(0, up.size(0), down.size(1), base.options());
  if (layout != at::MemoryFormat::ChannelsLast) {
    at::addmm_out(merged, base.view(merged.sizes()), left, right, /*beta=*/1, /*alpha=*/scaling);
    return merged.view(weight.sizes()).to(dtype);
  }
  at::Tensor delta = scratch(1, up.size(0), down.size(1), base.options());
  at::mm_out(delta, left, right);
  AT_DISPATCH_FLOATING_TYPES(acc_type, "merge_lora", [&] {
    add_channels_last<scalar_t>(merged.mutable_data_ptr<scalar_t>(), base.const_data_ptr<scalar_t>(),
                                delta.const_data_ptr<scalar_t>(), scaling, weight.size(0), weight.size(1),
                                weight.size(2) * weight.size(3));
  });
  return merged.as_strided(weight.sizes(), c10::get_channels_last_strides_2d(weight.sizes())).to(dtype);
}

}  // namespace lorun::cpu
