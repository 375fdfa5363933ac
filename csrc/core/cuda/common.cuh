#pragma once

#include <cuda_runtime_api.h>

#include <type_traits>

#include "../arguments.h"
#include "../reduction.h"

// What the kernels share: the grid, 16-byte runs, and the walk of a block over a chunk.
namespace llpf::cuda {

constexpr int kThreads = DeviceBlocking::kLanes;

/// Neighbours that one thread loads at once: 16 bytes of p and as many elements of whatever lies beside p.
template <class P>
constexpr int kVector = DeviceBlocking::kVector<P>;

/// Runs of each stream that a thread requests before it uses the first one: its whole share of a 4,096-element chunk,
/// at most four (two for 16-bit values). 256 threads with four runs of p and of d keep 32 KiB in flight a block, about
/// what memory needs of each multiprocessor to run at full rate; more would cost registers, and with them blocks.
template <class P>
constexpr int kBatch = sizeof(P) == 2 ? 2 : 4;

/// The longest second axis of a grid that a GPU launches; tests build with less.
#ifndef LLPF_GRID_Y
#define LLPF_GRID_Y 65535
#endif

/// `first` blocks along the first axis, which takes 2^31 - 1, and at most LLPF_GRID_Y along the second, over
/// which a kernel strides: paths, or pieces of a long row.
inline dim3 grid(int64_t first, int64_t second) {
  return dim3(static_cast<unsigned>(first), static_cast<unsigned>(second < LLPF_GRID_Y ? second : LLPF_GRID_Y));
}

/// p and d with their types.
template <class P, class D>
struct Streams {
  P* p;
  const D* d;
  int64_t paths, numel, d_stride;

  static Streams of(const Values& values) {
    return {static_cast<P*>(values.p), static_cast<const D*>(values.d), values.paths, values.numel,
            values.d_shared ? 0 : values.numel};
  }
  __device__ P* p_at(int64_t path, int64_t start) const { return p + path * numel + start; }
  __device__ const D* d_at(int64_t path, int64_t start) const {
    return d == nullptr ? nullptr : d + path * d_stride + start;
  }
};

/// Calls `f.template operator()<T>()` with the storage type that `dtype` names.
template <class F>
cudaError_t with_dtype(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::kFloat32:
      return f.template operator()<float>();
    case Dtype::kFloat64:
      return f.template operator()<double>();
    case Dtype::kBfloat16:
      return f.template operator()<Bfloat16>();
    case Dtype::kFloat16:
      return f.template operator()<Float16>();
  }
  return cudaErrorInvalidValue;
}

/// Calls `f(Streams<P, D>)` with the types that `values` names: equal ones, or float32 beside 16 bits.
template <class F>
cudaError_t with_types(const Values& values, F&& f) {
  const Dtype p = values.p_dtype, d = values.d == nullptr ? values.p_dtype : values.d_dtype;
  if (p == Dtype::kFloat32 && d == Dtype::kBfloat16) return f(Streams<float, Bfloat16>::of(values));
  if (p == Dtype::kFloat32 && d == Dtype::kFloat16) return f(Streams<float, Float16>::of(values));
  if (p != d) return cudaErrorInvalidValue;
  return with_dtype(p, [&]<class P>() { return f(Streams<P, P>::of(values)); });
}

/// VEC neighbours in registers.
template <class T, int VEC>
struct alignas(VEC * sizeof(T)) Run {
  T at[VEC];
};

/// The type of one load of a whole run: 16 bytes, or 8 where 16-bit values lie beside float32.
template <class R>
using Word = std::conditional_t<sizeof(R) == 16, uint4, uint2>;

/// Whether every whole run of a chunk that begins at `from` may be one word; a null pointer has no runs.
template <class R, class T>
__device__ __forceinline__ bool aligned(const T* from) {
  return reinterpret_cast<uintptr_t>(from) % sizeof(R) == 0;
}

/// The length of a run as a type: a whole one, moved as one word.
template <int VEC>
struct Whole {
  __device__ constexpr operator int() const { return VEC; }
};

/// Spelled as a word, since the compiler splits the copy of a struct of 16-bit members.
template <class T, int VEC>
__device__ __forceinline__ void load(Run<T, VEC>& run, const T* from, Whole<VEC>) {
  static_assert(sizeof(run) == sizeof(Word<Run<T, VEC>>));
  const auto word = *reinterpret_cast<const Word<Run<T, VEC>>*>(from);
  memcpy(&run, &word, sizeof(run));
}
template <class T, int VEC>
__device__ __forceinline__ void load(Run<T, VEC>& run, const T* from, int count) {
#pragma unroll
  for (int i = 0; i < VEC; ++i)
    if (i < count) run.at[i] = from[i];
}

template <class T, int VEC>
__device__ __forceinline__ void store(const Run<T, VEC>& run, T* to, Whole<VEC>) {
  Word<Run<T, VEC>> word;
  memcpy(&word, &run, sizeof(run));
  *reinterpret_cast<Word<Run<T, VEC>>*>(to) = word;
}
template <class T, int VEC>
__device__ __forceinline__ void store(const Run<T, VEC>& run, T* to, int count) {
#pragma unroll
  for (int i = 0; i < VEC; ++i)
    if (i < count) to[i] = run.at[i];
}

/// This thread's runs of a chunk in the order of `for_each_run`, BATCH at a time: first `load(runs, at, count)` for all of
/// them, then `loaded()`, then `use(runs, at, count)`. With `words`, every stream is aligned, and only the last, shorter run
/// moves element by element; without, all runs do. The order of the sums is the same, so a row of [K, N] that starts
/// unaligned has the bits of the same row as [N].
template <int VEC, int BATCH, class Runs, class Load, class Loaded, class Use>
__device__ __forceinline__ void for_each_batch(int64_t length, bool words, Load&& load, Loaded&& loaded, Use&& use) {
  constexpr int kStride = kThreads * VEC;
  for (int64_t first = static_cast<int64_t>(threadIdx.x) * VEC; first < length; first += BATCH * kStride) {
    const int64_t left = length - first;
    if (words) {
      Runs runs[BATCH];
#pragma unroll
      for (int j = 0; j < BATCH; ++j)
        if (j * kStride + VEC <= left) load(runs[j], first + j * kStride, Whole<VEC>{});
      loaded();
#pragma unroll
      for (int j = 0; j < BATCH; ++j)
        if (j * kStride + VEC <= left) use(runs[j], first + j * kStride, Whole<VEC>{});
    }
    const int64_t whole_runs = left < VEC ? 0 : (left - VEC) / kStride + 1;
#pragma unroll 1
    for (int64_t j = words ? whole_runs : 0; j < BATCH && j * kStride < left; ++j) {
      const int64_t rest = left - j * kStride;
      const int count = rest < VEC ? static_cast<int>(rest) : VEC;
      Runs runs;
      load(runs, first + j * kStride, count);
      loaded();
      use(runs, first + j * kStride, count);
    }
  }
}

/// A run of p and the run of d beside it.
template <class P, class D>
struct Pair {
  Run<P, kVector<P>> p;
  Run<D, kVector<P>> d;
};

/// p and d of one chunk of one path; `d` may be null.
template <class P, class D>
struct PairReader {
  const P* p;
  const D* d;

  __device__ bool words() const { return aligned<Run<P, kVector<P>>>(p) && aligned<Run<D, kVector<P>>>(d); }

  template <class Count>
  __device__ void operator()(Pair<P, D>& runs, int64_t at, Count count) const {
    load(runs.p, p + at, count);
    if (d != nullptr) load(runs.d, d + at, count);
  }
};

/// Shared memory for `block_tree`: a value of each warp. Raw, since shared variables may not have constructors.
template <class T>
struct alignas(16) WarpValues {
  char raw[kThreads / kWarp * sizeof(T)];
  __device__ T* get() { return reinterpret_cast<T*>(raw); }
};

}  // namespace llpf::cuda
