// The low-rank weight shared by lora_conv2d, lora_linear and merge_lora.
//
// Both forms are W = W0 + scaling * (up @ down).view_as(W0); they differ only in the shapes of up and down.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <array>
#include <string_view>
#include <tuple>

namespace lorun {

// Kernels have chosen their dtypes: autocast must not round the small products inside them.
struct NoAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::autocast_dispatch_keyset};
};

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Raises a ValueError or TypeError unless up and down adapt this convolution weight in this form.
void check_conv_adapter(const char* op, const at::Tensor& weight, const at::Tensor& up,
                        const at::Tensor& down, int64_t groups, std::string_view form);

// The same for a linear weight, where up is (out, r) and down is (r, in).
void check_linear_adapter(const char* op, const at::Tensor& weight, const at::Tensor& up,
                          const at::Tensor& down);

// Raises unless the layer's input is floating point, on the weight's device and in a dtype it can be run in,
// and the bias, if any, is one value per output channel in the input's dtype.
void check_layer_input(const char* op, const at::Tensor& input, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias);

// W in the given layout and dtype, for use inside one op: on CPU the thread's next merge overwrites it.
at::Tensor merge(const at::Tensor& weight, const at::Tensor& up, const at::Tensor& down, double scaling,
                 at::MemoryFormat layout, at::ScalarType dtype);

// (d up, d down) from dW; a gradient whose mask entry is false is left undefined.
std::tuple<at::Tensor, at::Tensor> adapter_grads(const at::Tensor& grad_weight, const at::Tensor& up,
                                                 const at::Tensor& down, double scaling,
                                                 std::array<bool, 2> mask);

// Whether autograd records an op on these tensors.
bool needs_grad(at::ArrayRef<at::Tensor> tensors);

// One error for every backward op: autograd may not differentiate it again.
void refuse_second_order(const char* op, at::ArrayRef<at::Tensor> tensors);

namespace cpu {

// W in this thread's scratch memory: the thread's next merge overwrites it.
at::Tensor merge(const at::Tensor& weight, const at::Tensor& up, const at::Tensor& down, double scaling,
                 at::MemoryFormat layout, at::ScalarType dtype);

}  // namespace cpu
}  // namespace lorun
