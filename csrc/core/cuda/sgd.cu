#include "../sgd.h"

#include "common.cuh"

namespace llpf::cuda {
namespace {

// Half the runs of the other kernels, since each is of two or three streams.
template <class P>
constexpr int kSgdBatch = kBatch<P> / 2;

// What the kernel takes beside values and table. Of the whole SgdArguments nvcc makes one loop for both updates, with and
// without momentum, and 65 registers for double; four blocks a multiprocessor have 64.
struct Update {
  const void* g;
  void* momentum_buffer;
  Rows rates;
  int64_t rate_stride;
  SgdRule<double> rule;
  Active active;
};

template <class P>
struct SgdRuns {
  Run<P, kVector<P>> p, g, buffer;
};

template <class P>
__global__ void __launch_bounds__(kThreads)
    update_chunks(P* values, int64_t paths, int64_t numel, const Table table, const Update a) {
  using T = Compute<P>;
  using R = Run<P, kVector<P>>;
  const Chunk chunk = table.chunks[blockIdx.x];
  if (table.segments[chunk.segment].has(kFrozen)) return;
  const auto rule = SgdRule<T>::of(a.rule);
  for (int64_t k = blockIdx.y; k < paths; k += gridDim.y) {
    if (!a.active(k)) continue;
    const int64_t begin = k * numel + chunk.start;
    P* const p = values + begin;
    const P* const g = static_cast<const P*>(a.g) + begin;
    P* const buffer = a.momentum_buffer == nullptr ? nullptr : static_cast<P*>(a.momentum_buffer) + begin;
    const T rate = static_cast<T>(a.rates[k][chunk.segment * a.rate_stride]);
    const auto read = [&](SgdRuns<P>& runs, int64_t at, auto count) {
      load(runs.p, p + at, count);
      load(runs.g, g + at, count);
      if (buffer != nullptr) load(runs.buffer, buffer + at, count);
    };
    const auto update = [&](SgdRuns<P>& runs, int64_t at, auto count) {
#pragma unroll
      for (int i = 0; i < kVector<P>; ++i) {
        P& value = runs.p.at[i];
        if (buffer == nullptr) {
          value = narrow<P>(rule(widen(value), widen(runs.g.at[i]), rate));
        } else {
          T moving = widen(runs.buffer.at[i]);
          value = narrow<P>(rule(widen(value), widen(runs.g.at[i]), rate, moving));
          runs.buffer.at[i] = narrow<P>(moving);
        }
      }
      store(runs.p, p + at, count);
      if (buffer != nullptr) store(runs.buffer, buffer + at, count);
    };
    const bool words = aligned<R>(p) && aligned<R>(g) && aligned<R>(buffer);
    for_each_batch<kVector<P>, kSgdBatch<P>, SgdRuns<P>>(chunk.length, words, read, [] {}, update);
  }
}

}  // namespace

Error sgd(const SgdArguments& a, Stream stream) {
  if (a.values.paths == 0 || a.table.chunk_count == 0) return cudaSuccess;
  const Update update{a.g, a.momentum_buffer, a.rates, a.rate_stride, a.rule, a.active};
  return with_dtype(a.values.p_dtype, [&]<class P>() {
    update_chunks<<<grid(a.table.chunk_count, a.values.paths), kThreads, 0, stream>>>(
        static_cast<P*>(a.values.p), a.values.paths, a.values.numel, a.table, update);
    return cudaGetLastError();
  });
}

}  // namespace llpf::cuda
