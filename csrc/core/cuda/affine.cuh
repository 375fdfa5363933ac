#pragma once

#include "../tick.h"
#include "common.cuh"

// The elementwise pass over one chunk: x = a p + b d + c, and the projection where a waypoint is recorded.
namespace llpf::cuda {

/// The maps of one chunk; a default one is the identity.
template <class P>
struct ChunkMaps {
  Map<Compute<P>> tick, projection;

  /// Of the coefficient row of an unmasked segment.
  __device__ static ChunkMaps of(const double* row, bool records) {
    return {Map<Compute<P>>::tick(row), records ? Map<Compute<P>>::projection(row) : Map<Compute<P>>{}};
  }
};

/// The same as `write_chunk` for a segment of which float32 cannot hold one of the maps: single elements, in float64. A map
/// that it can hold gives the bits that it always gives.
template <class P, class D>
__device__ __forceinline__ void write_widely(const ChunkMaps<P>& maps, const double* row, const D* d, int64_t length, P* p,
                                             P* waypoint) {
  LLPF_ROLLED
  for (int64_t i = threadIdx.x; i < length; i += kThreads) {
    const P before = p[i];
    if (waypoint != nullptr) {
      if (maps.projection.identity) waypoint[i] = before;
      else if (maps.projection.wide)
        waypoint[i] = widely(Map<double>::projection(row), before, static_cast<const D*>(nullptr));
      else waypoint[i] = narrow<P>(maps.projection(widen(before)));
    }
    if (maps.tick.identity) continue;
    if (maps.tick.wide) p[i] = widely(Map<double>::tick(row), before, d == nullptr ? d : d + i);
    else if (d == nullptr) p[i] = narrow<P>(maps.tick(widen(before)));
    else p[i] = narrow<P>(maps.tick(widen(before), widen(d[i])));
  }
}

/// Writes one chunk. `read` fetches runs of p and, where it has one, of d; `waypoint` may be null. An identity is not
/// arithmetic: 1 * p + 0 would turn -0 into 0. `row` is the coefficient row, read again where a map is wide.
template <class P, class D, class Reader>
__device__ __forceinline__ void write_chunk(const Reader& read, const ChunkMaps<P>& maps, const double* row,
                                            int64_t length, P* p, P* waypoint) {
  if (maps.tick.identity && waypoint == nullptr) return;
  if (maps.tick.wide || maps.projection.wide) return write_widely(maps, row, read.d, length, p, waypoint);
  using R = Run<P, kVector<P>>;
  const auto write = [&](const Pair<P, D>& runs, int64_t at, auto count) {
    R out = runs.p;
    if (waypoint != nullptr) {
      if (!maps.projection.identity) {
#pragma unroll
        for (int i = 0; i < kVector<P>; ++i) out.at[i] = narrow<P>(maps.projection(widen(runs.p.at[i])));
      }
      store(out, waypoint + at, count);
    }
    if (maps.tick.identity) return;
    if (read.d != nullptr) {
#pragma unroll
      for (int i = 0; i < kVector<P>; ++i) out.at[i] = narrow<P>(maps.tick(widen(runs.p.at[i]), widen(runs.d.at[i])));
    } else {
#pragma unroll
      for (int i = 0; i < kVector<P>; ++i) out.at[i] = narrow<P>(maps.tick(widen(runs.p.at[i])));
    }
    store(out, p + at, count);
  };
  const bool words = read.words() && aligned<R>(p) && aligned<R>(waypoint);
  for_each_batch<kVector<P>, kBatch<P>, Pair<P, D>>(length, words, read, [] {}, write);
}

/// Queues the elementwise pass for the active paths; `waypoint` may be null.
cudaError_t launch_write(const Values& values, const Table& table, const Active& active, const double* coefficients,
                         void* waypoint, cudaStream_t stream);

}  // namespace llpf::cuda
