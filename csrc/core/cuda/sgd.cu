#include "../sgd.h"

#include "moments.cuh"

namespace llpf::cuda {
namespace {

// Half the runs of the other kernels, since each is of three or four streams.
template <class P>
constexpr int kSgdBatch = kBatch<P> / 2;

template <class P, class D>
struct Held {
  Pair<P, D> pair;
  Run<P, kVector<P>> g, buffer;
};

template <class P, class D>
__global__ void __launch_bounds__(kThreads)
    update_chunks(const Streams<P, D> streams, const Table table, const SgdArguments arguments, double* partials) {
  using T = Compute<P>;
  using R = Run<P, kVector<P>>;
  __shared__ WarpValues<ShiftedSums> shared;
  const int64_t c = blockIdx.x;
  const Chunk chunk = table.chunks[c];
  const Segment segment = table.segments[chunk.segment];
  const bool frozen = segment.has(kFrozen);
  const auto rule =
      SgdRule<T>::of(arguments.momentum, arguments.dampening, arguments.weight_decay, arguments.nesterov);
  for (int64_t k = blockIdx.y; k < streams.paths; k += gridDim.y) {
    const bool measured = partials != nullptr && !segment.has(kMasked) && arguments.gate.last(k);
    if (!arguments.gate.open(k) || (frozen && !measured)) continue;
    const int64_t begin = k * streams.numel + chunk.start;
    P* const p = streams.p + begin;
    const P* const g = static_cast<const P*>(arguments.g) + begin;
    P* const buffer = arguments.momentum_buffer == nullptr ? nullptr : static_cast<P*>(arguments.momentum_buffer) + begin;
    const PairReader<P, D> read{p, measured ? streams.d_at(k, chunk.start) : nullptr};
    const T rate =
        static_cast<T>(arguments.rates[k * arguments.path_stride + chunk.segment * arguments.segment_stride]);

    const auto update = [&](P& value, P gradient, P& momentum) {
      if (buffer == nullptr) {
        value = narrow<P>(rule(widen(value), widen(gradient), rate));
      } else {
        T moving = widen(momentum);
        value = narrow<P>(rule(widen(value), widen(gradient), rate, moving));
        momentum = narrow<P>(moving);
      }
    };

    Shift shift{};
    if (measured) {
      // The sums are centred on the updated first element. Every thread computes it, and none may replace it before.
      P first = p[0], moving = buffer == nullptr ? P{} : buffer[0];
      if (!frozen) update(first, g[0], moving);
      shift.p = widen(first);
      shift.delta = read.d == nullptr ? 0.0 : static_cast<double>(widen(read.d[0])) - shift.p;
      __syncthreads();
    }
    ShiftedSums sums;
    const auto load_all = [&](Held<P, D>& held, int64_t at, auto count) {
      read(held.pair, at, count);
      if (frozen) return;
      load(held.g, g + at, count);
      if (buffer != nullptr) load(held.buffer, buffer + at, count);
    };
    const auto update_all = [&](Held<P, D>& held, int64_t at, auto count) {
      if (!frozen) {
#pragma unroll
        for (int i = 0; i < kVector<P>; ++i) update(held.pair.p.at[i], held.g.at[i], held.buffer.at[i]);
        store(held.pair.p, p + at, count);
        if (buffer != nullptr) store(held.buffer, buffer + at, count);
      }
      if (measured) add(sums, shift, held.pair, count, read.d != nullptr);
    };
    const bool words = read.words() && aligned<R>(g) && aligned<R>(buffer);
    for_each_batch<kVector<P>, kSgdBatch<P>, Held<P, D>>(chunk.length, words, load_all, [] {}, update_all);
    if (measured) {
      store_chunk(sums, shift, chunk.length, shared.get(), partials + (k * table.chunk_count + c) * kMomentColumns);
      __syncthreads();
    }
  }
}

}  // namespace

cudaError_t sgd(const Values& values, const Table& table, const SgdArguments& arguments, double* scratch,
                cudaStream_t stream) {
  if (values.paths == 0) return cudaSuccess;
  double* const partials =
      arguments.moments_out == nullptr ? nullptr : Scratch::of(scratch, table, values.paths).partials;
  if (table.chunk_count > 0) {
    const cudaError_t error = with_types(values, [&](const auto& streams) {
      update_chunks<<<grid(table.chunk_count, values.paths), kThreads, 0, stream>>>(streams, table, arguments, partials);
      return cudaGetLastError();
    });
    if (error != cudaSuccess) return error;
  }
  if (arguments.moments_out == nullptr) return cudaSuccess;
  return launch_segment_moments(values.paths, table, arguments.gate, partials, arguments.moments_out, stream);
}

}  // namespace llpf::cuda
