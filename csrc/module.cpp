// The Python module lorun_kernels._C: what it was built from, and whether its threads work.
//
// The ops need no binding: loading the module registers them with torch.
#include <ATen/Parallel.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace py = pybind11;

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#elif defined(__GNUC__)
constexpr const char* kCompiler = "gcc " __VERSION__;
#else
constexpr const char* kCompiler = "unknown";
#endif

// The vector extensions that the compiler was allowed to use.
std::vector<std::string> instruction_set() {
  return {
#ifdef __SSE4_2__
      "sse4.2",
#endif
#ifdef __AVX2__
      "avx2",
#endif
#ifdef __FMA__
      "fma",
#endif
#ifdef __AVX512F__
      "avx512f",
#endif
#ifdef __AVX512BF16__
      "avx512bf16",
#endif
#ifdef __AMX_BF16__
      "amx-bf16",
#endif
#ifdef __ARM_NEON
      "neon",
#endif
#ifdef __ARM_FEATURE_SVE
      "sve",
#endif
  };
}

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = kCompiler;
  info["cxx_flags"] = LORUN_CXX_FLAGS;
  info["cxx_standard"] = __cplusplus;
  info["instruction_set"] = instruction_set();
#ifdef _OPENMP
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = py::none();
#endif
#ifdef _GLIBCXX_USE_CXX11_ABI
  info["cxx11_abi"] = static_cast<bool>(_GLIBCXX_USE_CXX11_ABI);
#else
  info["cxx11_abi"] = py::none();
#endif
  return info;
}

// How many threads at::parallel_for really uses: always 1 in a module compiled without OpenMP.
size_t count_parallel_threads() {
  std::mutex mutex;
  std::set<std::thread::id> threads;
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) {
    const std::lock_guard lock(mutex);
    threads.insert(std::this_thread::get_id());
  });
  return threads.size();
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.def("build_info", &build_info);
  module.def("count_parallel_threads", &count_parallel_threads);
}
