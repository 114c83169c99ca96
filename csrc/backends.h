// Ops of the libraries lorun_cuda and lorun_triton, whose results are among their arguments.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <string>
#include <string_view>

namespace lorun {

inline std::optional<at::Tensor> optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

inline std::optional<c10::OperatorHandle> find_raw_op(std::string_view backend, const char* name) {
  return c10::Dispatcher::singleton().findSchema({"lorun_" + std::string(backend) + "::" + name, ""});
}

template <typename... Args>
void call_raw_op(std::string_view backend, const char* name, const Args&... args) {
  const auto op = find_raw_op(backend, name);
  TORCH_CHECK_VALUE(op.has_value(), "backend \"", backend, "\" has no op ", name,
                    "; lorun_kernels.available_backends() says what is missing");
  torch::jit::Stack stack;
  torch::jit::push(stack, args...);
  op->callBoxed(stack);
}

}  // namespace lorun
