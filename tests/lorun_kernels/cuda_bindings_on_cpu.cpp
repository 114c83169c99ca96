// The bindings of the CUDA kernels, registered for CPU tensors, with launchers that write down what they are
// given: what a GPU would be asked to do, on a machine without one.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <string>

#include "cuda/cassi.h"

#define CUDA CPU
#define lorun_cuda lorun_cuda_on_cpu
#include "cuda/bindings.cpp"

namespace {

std::string recorded;
cudaError_t result = cudaSuccess;

}  // namespace

namespace lorun::cassi::cuda {
namespace {

std::ostream& operator<<(std::ostream& out, const Problem& p) {
  out << p.batch << ' ' << p.bands << ' ' << p.height << ' ' << p.width << ' ' << p.measured << ' '
      << static_cast<int>(p.dtype);
  for (int64_t band = 0; band < p.bands; ++band) {
    out << ' ' << p.offsets[band];
  }
  return out;
}

std::ostream& operator<<(std::ostream& out, const Cube& c) {
  return out << reinterpret_cast<intptr_t>(c.data) << ' ' << c.batch << ' ' << c.band << ' ' << c.row << ' '
             << c.column;
}

std::ostream& operator<<(std::ostream& out, const Measurement& m) {
  return out << reinterpret_cast<intptr_t>(m.data) << ' ' << m.batch << ' ' << m.row << ' ' << m.column;
}

std::ostream& operator<<(std::ostream& out, Step step) { return out << static_cast<int>(step); }

template <typename... Args>
cudaError_t record(cudaStream_t stream, const Args&... args) {
  std::ostringstream text;
  ((text << args << ' '), ...);
  text << reinterpret_cast<intptr_t>(stream);
  recorded = text.str();
  return result;
}

intptr_t address(const void* data) { return reinterpret_cast<intptr_t>(data); }

}  // namespace

cudaError_t forward(const Problem& problem, Cube x, Cube mask, Measurement y, cudaStream_t stream) {
  return record(stream, problem, x, mask, y);
}

cudaError_t adjoint(const Problem& problem, Measurement y, Cube mask, Cube x, cudaStream_t stream) {
  return record(stream, problem, y, mask, x);
}

cudaError_t mask_grad(const Problem& problem, Cube x, Measurement y, Cube grad_mask, cudaStream_t stream) {
  return record(stream, problem, x, y, grad_mask);
}

cudaError_t step(const Problem& problem, Step step, Cube x, Measurement y, Cube mask, const void* scale,
                 int64_t scale_stride, Cube out, Measurement residual, cudaStream_t stream) {
  return record(stream, problem, step, x, y, mask, address(scale), scale_stride, out, residual);
}

cudaError_t step_backward(const Problem& problem, Step step, Cube grad, Measurement residual, Cube x,
                          Cube mask, const void* scale, int64_t scale_stride, Cube grad_x, Measurement grad_y,
                          Cube grad_mask, void* grad_scale, cudaStream_t stream) {
  return record(stream, problem, step, grad, residual, x, mask, address(scale), scale_stride, grad_x, grad_y,
                grad_mask, address(grad_scale));
}

}  // namespace lorun::cassi::cuda

extern "C" {

const char* last_call() { return recorded.c_str(); }

void fail_with(int error) { result = static_cast<cudaError_t>(error); }

// A CPU torch has no streams, and takes no tensor for one of a GPU.
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = reinterpret_cast<void*>(77);
  return AOTI_TORCH_SUCCESS;
}

int32_t aoti_torch_device_type_cuda() { return aoti_torch_device_type_cpu(); }

AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle*) { return AOTI_TORCH_SUCCESS; }

AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }

cudaError_t cudaSetDevice(int) { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t) { return "the launcher's error"; }
}
