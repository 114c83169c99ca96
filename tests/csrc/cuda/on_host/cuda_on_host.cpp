// The emulated device: its limits, its shared memory, and how it runs a grid.
#include <algorithm>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <list>
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
// In every floating-point type these bytes are a NaN, and one that no arithmetic produces.
constexpr unsigned char kPoison = 0xff;

int shared_limit = kSharedMost;
int multiprocessors = 1;
std::map<const void*, int> shared_allowed;
std::string fault;
// Shows that the race check would report a missing barrier.
const bool without_barriers = std::getenv("CUDA_ON_HOST_WITHOUT_BARRIERS") != nullptr;

}  // namespace

// `shared_memory`, which kernels declare extern, begins after the first guard.
extern "C" {
alignas(16) unsigned char cuda_on_host_arena[kGuard + kSharedMost + kGuard];
static_assert(kGuard == 4096, "the offset in the next line");
asm(".globl shared_memory\n.set shared_memory, cuda_on_host_arena + 4096");
}

namespace {

// Where the threads of a block meet: at a barrier within the kernel, or at its end. A thread at one while
// another is at the other is a fault, after which no thread waits any more.
class Barrier {
 public:
  enum class Place { kSync, kEnd };

  Barrier(unsigned threads, std::string name) : threads_(threads), name_(std::move(name)) {}

  // The last thread to arrive runs `last` before all continue.
  void wait(Place place, const std::function<void()>& last) {
    std::unique_lock lock(mutex_);
    if (arrived_ == 0) {
      place_ = place;
    }
    if (place_ != place || left_) {
      fail();
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

  // A thread that ends without waiting for the others: none may wait for it.
  void leave() {
    const std::unique_lock lock(mutex_);
    left_ = true;
    if (arrived_ > 0) {
      fail();
      ++generation_;
      all_arrived_.notify_all();
    }
  }

  void reset() { left_ = false; }

 private:
  void fail() {
    fault = "a thread ended while others of its block waited in " + name_;
    broken_ = true;
  }

  std::mutex mutex_;
  std::condition_variable all_arrived_;
  const unsigned threads_;
  const std::string name_;
  unsigned arrived_ = 0;
  unsigned generation_ = 0;
  bool broken_ = false;
  bool left_ = false;
  Place place_ = Place::kSync;
};

constexpr unsigned kWarp = 32;

Barrier* block_barrier = nullptr;
std::list<Barrier> warp_barriers;
thread_local Barrier* warp_barrier = nullptr;

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
  warp_barrier = &*std::next(warp_barriers.begin(), thread / kWarp);
  const unsigned blocks = count(gridDim);
  for (unsigned block = 0; block < blocks; ++block) {
    blockIdx = unflatten(block, gridDim);
    body();
    warp_barrier->leave();
    block_barrier->wait(Barrier::Place::kEnd, [&] {
      for (Barrier& barrier : warp_barriers) {
        barrier.reset();
      }
      check_shared(shared);
      poison_shared(shared);
    });
  }
}

}  // namespace

void __syncthreads() {
  if (!without_barriers) {
    block_barrier->wait(Barrier::Place::kSync, [] {});
  }
}

void __syncwarp() {
  if (!without_barriers) {
    warp_barrier->wait(Barrier::Place::kSync, [] {});
  }
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? multiprocessors : shared_limit;
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
  Barrier barrier(threads, "__syncthreads");
  block_barrier = &barrier;
  warp_barriers.clear();
  for (unsigned first = 0; first < threads; first += kWarp) {
    warp_barriers.emplace_back(std::min(kWarp, threads - first), "__syncwarp");
  }
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

// Makes the device smaller, so that small shapes take the paths of large ones.
void cuda_on_host_set_shared_limit(int bytes) { shared_limit = bytes < kSharedMost ? bytes : kSharedMost; }

// A persistent kernel is launched with this many blocks.
void cuda_on_host_set_multiprocessors(int count) { multiprocessors = count; }

// What the last launch did wrong; empty if nothing.
const char* cuda_on_host_fault() { return fault.c_str(); }
}
