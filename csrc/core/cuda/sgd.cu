#include "../sgd.h"

#include "common.cuh"

namespace llpf::cuda {
namespace {

// Half the runs of the other kernels, since each is of two or three streams.
template <class P>
constexpr int kSgdBatch = kBatch<P> / 2;

template <class P>
struct Held {
  Run<P, kVector<P>> p, g, buffer;
};

template <class P>
__global__ void __launch_bounds__(kThreads)
    update_chunks(P* values, int64_t paths, int64_t numel, const Table table, const SgdArguments arguments) {
  using T = Compute<P>;
  using R = Run<P, kVector<P>>;
  const Chunk chunk = table.chunks[blockIdx.x];
  if (table.segments[chunk.segment].has(kFrozen)) return;
  const auto rule = SgdRule<T>::of(arguments.momentum, arguments.weight_decay, arguments.nesterov);
  for (int64_t k = blockIdx.y; k < paths; k += gridDim.y) {
    if (!arguments.gate.open(k)) continue;
    const int64_t begin = k * numel + chunk.start;
    P* const p = values + begin;
    const P* const g = static_cast<const P*>(arguments.g) + begin;
    P* const buffer = arguments.momentum_buffer == nullptr ? nullptr : static_cast<P*>(arguments.momentum_buffer) + begin;
    const T rate =
        static_cast<T>(arguments.rates[k * arguments.path_stride + chunk.segment * arguments.segment_stride]);
    const auto read = [&](Held<P>& held, int64_t at, auto count) {
      load(held.p, p + at, count);
      load(held.g, g + at, count);
      if (buffer != nullptr) load(held.buffer, buffer + at, count);
    };
    const auto update = [&](Held<P>& held, int64_t at, auto count) {
#pragma unroll
      for (int i = 0; i < kVector<P>; ++i) {
        P& value = held.p.at[i];
        if (buffer == nullptr) {
          value = narrow<P>(rule(widen(value), widen(held.g.at[i]), rate));
        } else {
          T moving = widen(held.buffer.at[i]);
          value = narrow<P>(rule(widen(value), widen(held.g.at[i]), rate, moving));
          held.buffer.at[i] = narrow<P>(moving);
        }
      }
      store(held.p, p + at, count);
      if (buffer != nullptr) store(held.buffer, buffer + at, count);
    };
    const bool words = aligned<R>(p) && aligned<R>(g) && aligned<R>(buffer);
    for_each_batch<kVector<P>, kSgdBatch<P>, Held<P>>(chunk.length, words, read, [] {}, update);
  }
}

}  // namespace

cudaError_t sgd(const Values& values, const Table& table, const SgdArguments& arguments, cudaStream_t stream) {
  if (values.paths == 0 || table.chunk_count == 0) return cudaSuccess;
  return with_dtype(values.p_dtype, [&]<class P>() {
    update_chunks<<<grid(table.chunk_count, values.paths), kThreads, 0, stream>>>(
        static_cast<P*>(values.p), values.paths, values.numel, table, arguments);
    return cudaGetLastError();
  });
}

}  // namespace llpf::cuda
