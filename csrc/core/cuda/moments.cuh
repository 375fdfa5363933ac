#pragma once

#include "common.cuh"

// Stage one, a block a chunk: the moments of the chunk. Stage two, a block a segment: the moments of its chunks.
namespace llpf::cuda {

/// Adds the `count` elements of a run, in order.
template <class P, class D>
__device__ __forceinline__ void add(ShiftedSums& sums, const Shift& shift, const Pair<P, D>& held, int count,
                                    bool with_d) {
#pragma unroll
  for (int i = 0; i < kVector<P>; ++i)
    if (i < count) {
      if (with_d) sums.add(shift, widen(held.p.at[i]), widen(held.d.at[i]));
      else sums.add(shift, widen(held.p.at[i]));
    }
}

/// The shift of a chunk, requested before the chunk's own loads and computed after them. Computed first it would make
/// every thread wait for memory twice.
template <class P, class D>
class LateShift {
 public:
  __device__ explicit LateShift(const PairReader<P, D>& read) : p_(read.p[0]), with_d_(read.d != nullptr) {
    if (with_d_) d_ = read.d[0];
  }
  __device__ void resolve() {
    if (known_) return;
    known_ = true;
    shift_.p = widen(p_);
    shift_.delta = with_d_ ? widen(d_) - shift_.p : 0.0;
  }
  __device__ const Shift& operator*() const { return shift_; }

 private:
  P p_;
  D d_{};
  bool with_d_, known_ = false;
  Shift shift_{};
};

/// Joins the threads' sums and, in thread 0, stores the chunk's moments. `shared` is free after the next barrier.
__device__ __forceinline__ void store_chunk(const ShiftedSums& sums, const Shift& shift, int64_t length,
                                            ShiftedSums* shared, double* partial) {
  const ShiftedSums all = block_tree<kThreads>(sums, shared);
  if (threadIdx.x == 0) all.finish(static_cast<double>(length), shift).store(partial);
}

/// First chunk in `rows` whose segment is `segment` or a later one, by the whole block: 256 probes a round find it in
/// two rounds among 65,536 chunks, where one thread's binary search would wait for 16 loads one after another.
__device__ __forceinline__ int64_t lower_bound(const Table& table, Range rows, int64_t segment) {
  while (rows.begin < rows.end) {
    const int64_t step = (rows.end - rows.begin + kThreads - 1) / kThreads;
    const int64_t probe = rows.begin + threadIdx.x * step;
    const int earlier = __syncthreads_count(probe < rows.end && table.chunks[probe].segment < segment);
    if (earlier == 0) break;
    const int64_t last = rows.begin + (earlier - 1) * step;
    rows = {last + 1, min(rows.end, last + step)};
  }
  return rows.begin;
}

/// The moments of each segment in `rows` from its chunks' `partials` (both of one path). A MASKED segment joins nothing:
/// its row is zero, whatever scratch holds.
__device__ __forceinline__ void join_chunks(const Table& table, Range rows, const double* partials, double* moments,
                                            Moments* shared) {
  int64_t end = 0;
  for (int64_t s = rows.begin; s < rows.end; ++s) {
    const int64_t begin = lower_bound(table, {end, table.chunk_count}, s);
    end = table.segments[s].has(kMasked) ? begin : lower_bound(table, {begin, table.chunk_count}, s + 1);
    const Moments lane = lane_moments<kThreads>(table, {begin, end}, partials, threadIdx.x);
    const Moments all = block_tree<kThreads>(lane, shared);
    if (threadIdx.x == 0) all.store(moments + s * kMomentColumns);
    __syncthreads();
  }
}

/// Queues stage one for the open paths. Chunks of MASKED segments are neither read nor written.
cudaError_t launch_chunk_moments(const Values& values, const Table& table, const Gate& gate, double* partials,
                                 cudaStream_t stream);

/// Queues stage two into `out [paths, S, 5]` for the paths whose gate says `last`.
cudaError_t launch_segment_moments(int64_t paths, const Table& table, const Gate& gate, const double* partials,
                                   double* out, cudaStream_t stream);

}  // namespace llpf::cuda
