// The emulated device: its limits, its shared memory, and how it runs a grid.
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cuda_runtime.h"

thread_local dim3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace {

constexpr int kSharedUnasked = 48 * 1024;
constexpr int kSharedMost = 227 * 1024;
constexpr int kGuard = 4096;
constexpr int kMostThreads = 1024;
// In every floating-point type these bytes are a NaN, and one that no arithmetic makes.
constexpr unsigned char kPoison = 0xff;

int shared_limit = kSharedMost;
std::map<const void*, int> shared_allowed;
std::string fault;

}  // namespace

// `shared_memory`, which kernels declare extern, begins behind the first guard.
extern "C" {
alignas(16) unsigned char cuda_on_host_arena[kGuard + kSharedMost + kGuard];
static_assert(kGuard == 4096, "the offset in the next line");
asm(".globl shared_memory\n.set shared_memory, cuda_on_host_arena + 4096");
}

namespace {

// Where the threads of a block meet: at __syncthreads, or at the end of the kernel. A thread at one while
// another is at the other is a fault, after which nobody waits any more.
class Barrier {
 public:
  enum class Place { kSync, kEnd };

  explicit Barrier(unsigned threads) : threads_(threads) {}

  // The last thread to arrive runs `last` before all go on.
  void wait(Place place, const std::function<void()>& last) {
    std::unique_lock lock(mutex_);
    if (arrived_ == 0) {
      place_ = place;
    } else if (place_ != place) {
      fault = "a thread ended while others of its block waited in __syncthreads";
      broken_ = true;
    }
    if (broken_ || ++arrived_ == threads_) {
      last();
      arrived_ = 0;
      ++generation_;
      all_arrived_.notify_all();
      return;
    }
    const unsigned generation = generation_;
    all_arrived_.wait(lock, [&] { return generation_ != generation; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_arrived_;
  const unsigned threads_;
  unsigned arrived_ = 0;
  unsigned generation_ = 0;
  bool broken_ = false;
  Place place_ = Place::kSync;
};

Barrier* block_barrier = nullptr;

void poison_shared(size_t bytes) { std::memset(cuda_on_host_arena, kPoison, kGuard + bytes + kGuard); }

bool is_poison(const unsigned char* bytes) {
  for (int i = 0; i < kGuard; ++i) {
    if (bytes[i] != kPoison) {
      return false;
    }
  }
  return true;
}

void check_shared(size_t bytes) {
  if (!is_poison(cuda_on_host_arena)) {
    fault = "a kernel wrote before its shared memory";
  }
  if (!is_poison(cuda_on_host_arena + kGuard + bytes)) {
    fault = "a kernel wrote beyond the " + std::to_string(bytes) + " bytes of shared memory it asked for";
  }
}

dim3 unflatten(unsigned index, const dim3& sizes) {
  return {index % sizes.x, index / sizes.x % sizes.y, index / sizes.x / sizes.y};
}

unsigned count(const dim3& sizes) { return sizes.x * sizes.y * sizes.z; }

void run_thread(unsigned thread, size_t shared, const std::function<void()>& body) {
  threadIdx = unflatten(thread, blockDim);
  const unsigned blocks = count(gridDim);
  for (unsigned block = 0; block < blocks; ++block) {
    blockIdx = unflatten(block, gridDim);
    body();
    block_barrier->wait(Barrier::Place::kEnd, [&] {
      check_shared(shared);
      poison_shared(shared);
    });
  }
}

}  // namespace

void __syncthreads() {
#ifndef CUDA_ON_HOST_WITHOUT_SYNC
  block_barrier->wait(Barrier::Place::kSync, [] {});
#endif
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = shared_limit;
  return cudaSuccess;
}

cudaError_t cuda_on_host::allow_shared(const void* kernel, int bytes) {
  if (bytes > shared_limit) {
    return cudaErrorInvalidValue;
  }
  shared_allowed[kernel] = bytes;
  return cudaSuccess;
}

cudaError_t cuda_on_host::run(const cudaLaunchConfig_t& config, const void* kernel,
                              const std::function<void()>& body) {
  const auto asked = shared_allowed.find(kernel);
  const int allowed = asked == shared_allowed.end() ? kSharedUnasked : asked->second;
  const size_t shared = config.dynamicSmemBytes;
  if (shared > static_cast<size_t>(allowed) || shared > static_cast<size_t>(shared_limit)) {
    return cudaErrorInvalidValue;
  }
  const unsigned threads = count(config.blockDim);
  if (threads == 0 || threads > kMostThreads || count(config.gridDim) == 0) {
    return cudaErrorInvalidConfiguration;
  }
  blockDim = config.blockDim;
  gridDim = config.gridDim;
  fault.clear();
  Barrier barrier(threads);
  block_barrier = &barrier;
  poison_shared(shared);
  std::vector<std::thread> block;
  for (unsigned thread = 0; thread < threads; ++thread) {
    block.emplace_back(run_thread, thread, shared, std::cref(body));
  }
  for (std::thread& thread : block) {
    thread.join();
  }
  return fault.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

extern "C" {

// Makes the device smaller, so that little shapes take the paths of large ones.
void cuda_on_host_set_shared_limit(int bytes) { shared_limit = bytes < kSharedMost ? bytes : kSharedMost; }

// What the last launch did wrong; empty where nothing.
const char* cuda_on_host_fault() { return fault.c_str(); }
}
