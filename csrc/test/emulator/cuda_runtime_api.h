#pragma once

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

// As much of CUDA as csrc/core/cuda uses, on one CPU thread: the kernels' own code runs, every GPU thread a fiber. It finds
// wrong indices, missing barriers (lanes run in ascending or descending order between two barriers; LLPF_LANES=down), barriers
// that not all threads reach, and accesses beyond an allocation (the next page is not mapped). It knows nothing of speed,
// of weak memory ordering between blocks, or of what nvcc makes of the code.

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __shared__ static  // one block at a time runs between two grid barriers, and no kernel keeps its value over one
#define __launch_bounds__(...)

struct uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorCooperativeLaunchTooLarge = 720,
  cudaErrorNotSupported = 801,
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor,
  cudaDevAttrCooperativeLaunch,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrReservedSharedMemoryPerBlock,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
};
using cudaStream_t = struct CUstream_st*;

namespace emulator {

enum class Wait { kNone, kWarp, kBlock, kGrid, kDone };

constexpr size_t kStack = 64 * 1024;
constexpr int kWarpSize = 32;
/// A small GPU, so that a cooperative launch of few blocks fills it.
constexpr int kMultiprocessors = 3, kResident = 2, kSharedPerMultiprocessor = 228 * 1024;

/// A stack that can be left and entered again. On x86-64 without ucontext, whose two system calls a switch would make a
/// run of gpu_test four times as long.
class Context {
 public:
  void prepare(char* stack, size_t bytes, void (*enter)()) {
#if defined(__x86_64__)
    auto* top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + bytes) / 16 * 16 - 16);
    *top = reinterpret_cast<void*>(enter);  // where the first switch returns to; 6 registers lie below
    stack_pointer_ = top - 6;
#else
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, enter, 0);
#endif
  }
  void switch_to(Context& other) {
#if defined(__x86_64__)
    exchange_stacks(&stack_pointer_, other.stack_pointer_);
#else
    swapcontext(&context_, &other.context_);
#endif
  }

 private:
#if defined(__x86_64__)
  __attribute__((naked, noinline)) static void exchange_stacks(void*** /*save*/, void** /*load*/) {
    asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n\t"
        "movq %rsp, (%rdi); movq %rsi, %rsp\n\t"
        "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
  }
  void** stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
};

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  dim3 thread, block;
  Wait wait = Wait::kNone;
  uint64_t given = 0, taken = 0;  // of the barrier or exchange it waits in
  int offset = 0;                 // of a shuffle; -1: a ballot
};

inline Fiber* current = nullptr;
inline Context scheduler;
inline const std::function<void()>* body = nullptr;
inline dim3 grid_size, block_size;
inline std::vector<char>* dynamic_shared = nullptr;
inline std::vector<std::unique_ptr<Fiber>> idle;

inline void enter() {
  (*body)();
  current->wait = Wait::kDone;
  current->context.switch_to(scheduler);
}

inline uint64_t yield(Wait wait, uint64_t given = 0, int offset = 0) {
  Fiber* const self = current;
  self->wait = wait;
  self->given = given;
  self->offset = offset;
  self->context.switch_to(scheduler);
  return self->taken;
}

[[noreturn]] inline void stop(const char* what) {
  std::printf("emulator: %s\n", what);
  std::exit(4);
}

/// LLPF_LANES=down: the last of those that may run goes first.
inline bool lanes_down() {
  static const bool down = std::getenv("LLPF_LANES") != nullptr && std::strcmp(std::getenv("LLPF_LANES"), "down") == 0;
  return down;
}

/// One block of fibers with its dynamic shared memory.
struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<char> shared;

  Block(dim3 index, size_t shared_bytes) : shared(shared_bytes + 16, '\xff') {
    for (unsigned t = 0; t < block_size.x; ++t) {
      if (idle.empty()) idle.push_back(std::make_unique<Fiber>());
      Fiber& fiber = *fibers.emplace_back(std::move(idle.back()));
      idle.pop_back();
      fiber.thread = dim3(t, 0, 0);
      fiber.block = index;
      fiber.wait = Wait::kNone;
      fiber.context.prepare(fiber.stack.get(), kStack, enter);
    }
  }
  ~Block() {
    for (auto& fiber : fibers) idle.push_back(std::move(fiber));
  }

  bool all(Wait wait, size_t begin, size_t end) const {
    for (size_t i = begin; i < end; ++i)
      if (fibers[i]->wait != wait) return false;
    return true;
  }

  /// Runs until every fiber is done or waits for the grid; true when done.
  bool run() {
    const bool down = lanes_down();
    dynamic_shared = &shared;
    const size_t count = fibers.size();
    for (auto& fiber : fibers)
      if (fiber->wait == Wait::kGrid) fiber->wait = Wait::kNone;
    while (true) {
      for (size_t i = 0; i < count; ++i) {
        Fiber& fiber = *fibers[down ? count - 1 - i : i];
        if (fiber.wait != Wait::kNone) continue;
        current = &fiber;
        scheduler.switch_to(fiber.context);
      }
      if (all(Wait::kDone, 0, count)) return true;
      if (all(Wait::kGrid, 0, count)) return false;
      if (all(Wait::kBlock, 0, count)) {
        for (auto& fiber : fibers) release(*fiber, 0);
        continue;
      }
      bool moved = false;
      for (size_t warp = 0; warp < count; warp += kWarpSize)
        if (all(Wait::kWarp, warp, std::min(count, warp + kWarpSize))) {
          exchange(warp);
          moved = true;
        }
      if (!moved) stop("some threads of a block wait for others that wait elsewhere or have returned");
    }
  }

 private:
  static void release(Fiber& fiber, uint64_t value) {
    fiber.taken = value;
    fiber.wait = Wait::kNone;
  }

  void exchange(size_t warp) {
    uint64_t ballot = 0;
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if (fibers[warp + lane]->offset != fibers[warp]->offset) stop("lanes of a warp exchange differently");
      ballot |= (fibers[warp + lane]->given & 1) << lane;
    }
    uint64_t given[kWarpSize];
    for (int lane = 0; lane < kWarpSize; ++lane) given[lane] = fibers[warp + lane]->given;
    for (int lane = 0; lane < kWarpSize; ++lane) {
      Fiber& fiber = *fibers[warp + lane];
      const int from = lane + fiber.offset;
      release(fiber, fiber.offset < 0 ? ballot : given[from < kWarpSize ? from : lane]);
    }
  }
};

/// Blocks one after another; with `cooperative` all exist, and run by turns from one grid barrier to the next.
inline void run_grid(dim3 grid, dim3 block, size_t shared_bytes, bool cooperative, const std::function<void()>& kernel) {
  if (grid.x > 0x7fffffffu || grid.y > LLPF_GRID_Y || grid.z != 1) stop("a grid that no GPU launches");
  body = &kernel;
  grid_size = grid;
  block_size = block;
  std::vector<std::unique_ptr<Block>> waiting;
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
      auto one = std::make_unique<Block>(dim3(x, y, 0), shared_bytes);
      if (one->run()) continue;
      if (!cooperative) stop("a grid barrier in an ordinary launch");
      waiting.push_back(std::move(one));
    }
  while (!waiting.empty()) {
    if (waiting.size() != static_cast<size_t>(grid.x) * grid.y) stop("some blocks returned before a grid barrier");
    size_t done = 0;
    for (auto& one : waiting) done += one->run();
    if (done == waiting.size()) return;
    if (done != 0) stop("some blocks returned before a grid barrier");
  }
}

inline void* shared_memory() {
  const auto address = reinterpret_cast<uintptr_t>(dynamic_shared->data());
  return reinterpret_cast<void*>((address + 15) / 16 * 16);
}

/// Allocations end where an unmapped page begins, up to the rounding to 16 bytes, which is checked when they are freed.
struct Allocation {
  char* pages;
  size_t page_bytes, bytes, slack;
};
inline std::map<void*, Allocation> allocations;

}  // namespace emulator

#include "graphs.h"

#define threadIdx (emulator::current->thread)
#define blockIdx (emulator::current->block)
#define gridDim (emulator::grid_size)
#define blockDim (emulator::block_size)

inline void __syncthreads() { emulator::yield(emulator::Wait::kBlock); }
inline unsigned __ballot_sync(unsigned, bool value) {
  return static_cast<unsigned>(emulator::yield(emulator::Wait::kWarp, value ? 1 : 0, -1));
}
inline double __shfl_down_sync(unsigned, double value, int offset) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits = emulator::yield(emulator::Wait::kWarp, bits, offset);
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(unsigned value) { return __builtin_ffs(static_cast<int>(value)); }
using std::min;

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "error of the emulator"; }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }

inline cudaError_t cudaMalloc(void** out, size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), slack = (16 - bytes % 16) % 16;
  const size_t mapped = (bytes + slack + page - 1) / page * page;
  char* const pages = static_cast<char*>(mmap(nullptr, mapped + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  mprotect(pages + mapped, page, PROT_NONE);
  std::memset(pages, 0xa5, mapped);
  *out = pages + mapped - bytes - slack;
  emulator::allocations[*out] = {pages, mapped + page, bytes, slack};
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* pointer) {
  const auto found = emulator::allocations.find(pointer);
  if (found == emulator::allocations.end()) return cudaSuccess;
  const auto& allocation = found->second;
  for (size_t i = 0; i < allocation.slack; ++i)
    if (static_cast<unsigned char*>(pointer)[allocation.bytes + i] != 0xa5) emulator::stop("a write beyond an allocation");
  munmap(allocation.pages, allocation.page_bytes);
  emulator::allocations.erase(found);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* out, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *out = emulator::kMultiprocessors; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *out = emulator::kSharedPerMultiprocessor; break;
    case cudaDevAttrCooperativeLaunch: *out = 1; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *out = emulator::kSharedPerMultiprocessor - 1024; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *out = 1024; break;
  }
  return cudaSuccess;
}
template <class... Arguments>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* out, void (*kernel)(Arguments...)) {
  emulator::remember(kernel);
  return out->sharedSizeBytes = 384, cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t shared_bytes) {
  const int fitting = static_cast<int>(emulator::kSharedPerMultiprocessor / (shared_bytes + 1024 + 384));
  return *blocks = std::min(fitting, emulator::kResident), cudaSuccess;
}
template <class... Arguments>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(Arguments...), dim3 grid, dim3 block, void** arguments,
                                        size_t shared_bytes, cudaStream_t) {
  if (grid.x > static_cast<unsigned>(emulator::kMultiprocessors * emulator::kResident))
    return cudaErrorCooperativeLaunchTooLarge;
  [&]<size_t... I>(std::index_sequence<I...>) {
    emulator::run_grid(grid, block, shared_bytes, true,
                       [&] { kernel(*static_cast<std::remove_reference_t<Arguments>*>(arguments[I])...); });
  }(std::index_sequence_for<Arguments...>{});
  return cudaSuccess;
}
