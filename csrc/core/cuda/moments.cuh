#pragma once

#include "../moments.h"
#include "common.cuh"

// Stage one, a block a chunk: the moments of the chunk. Stage two, a block a segment: the moments of its chunks.
namespace llpf::cuda {

/// Parts of `scratch`, float64 [paths (5 C + 10 S)]; the contents on entry do not matter.
struct Scratch {
  double *partials, *moments, *coefficients;  // [paths, C, 5], [paths, S, 5], [paths, S, 5]

  static Scratch of(double* scratch, const Table& table, int64_t paths) {
    double* const moments = scratch + paths * table.chunk_count * kMomentColumns;
    return {scratch, moments, moments + paths * table.segment_count * kMomentColumns};
  }
};

/// Adds the `count` elements of a run, in order.
template <class P, class D>
__device__ __forceinline__ void add(ShiftedSums& sums, const Shift& shift, const Pair<P, D>& runs, int count,
                                    bool with_d) {
#pragma unroll
  for (int i = 0; i < kVector<P>; ++i)
    if (i < count) {
      if (with_d) sums.add(shift, widen(runs.p.at[i]), widen(runs.d.at[i]));
      else sums.add(shift, widen(runs.p.at[i]));
    }
}

/// The shift of a chunk, requested before the chunk's loads and computed after them. Computed first it would make
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

/// First chunk whose segment is `segment` or a later one, by a warp: 32 probes a round find it in four rounds among a
/// million chunks, where one thread's binary search would wait for 20 loads one after another.
__device__ __forceinline__ int64_t lower_bound(const Table& table, int64_t segment) {
  Range rows{0, table.chunk_count};
  while (rows.begin < rows.end) {
    const int64_t step = (rows.end - rows.begin + kWarp - 1) / kWarp;
    const int64_t probe = rows.begin + threadIdx.x % kWarp * step;
    const int earlier =
        __popc(__ballot_sync(0xffffffffu, probe < rows.end && table.chunks[probe].segment < segment));
    if (earlier == 0) break;
    const int64_t last = rows.begin + (earlier - 1) * step;
    rows = {last + 1, min(rows.end, last + step)};
  }
  return rows.begin;
}

/// What a block shares while it joins chunks; raw, since shared variables may not have constructors.
struct JoinStorage {
  WarpValues<Moments> values;
  int64_t begins[kThreads / kWarp];
};

/// The moments of each segment in `rows` from its chunks' `partials` (both of one path). A MASKED segment joins nothing:
/// its row is zero, whatever scratch contains.
///
/// Seven rows at a time: a warp each looks up where the row's chunks begin, one more where those of the last end. Then a
/// warp joins the chunks of its row if it has a lane for each, and the block those of the longer rows, in turn. AHEAD as in
/// `lane_moments`.
template <bool AHEAD>
__device__ __forceinline__ void join_chunks(const Table& table, Range rows, const double* partials, double* moments,
                                            JoinStorage& storage) {
  constexpr int kRows = kThreads / kWarp - 1;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  LLPF_ROLLED
  for (int64_t first = rows.begin; first < rows.end; first += kRows) {
    const int count = static_cast<int>(min(rows.end - first, static_cast<int64_t>(kRows)));
    if (warp <= count) {
      const int64_t begin = lower_bound(table, first + warp);
      if (lane == 0) storage.begins[warp] = begin;
    }
    __syncthreads();
    const auto chunks_of = [&](int row) {
      const int64_t begin = storage.begins[row];
      return Range{begin, table.segments[first + row].has(kMasked) ? begin : storage.begins[row + 1]};
    };
    if (warp < count) {
      const Range chunks = chunks_of(warp);
      const int64_t filled = chunks.end - chunks.begin;
      if (filled <= kWarp) {
        const Moments mine = lane_moments<kThreads>(table, chunks, partials, lane);
        const Moments all = warp_tree(mine, static_cast<int>(filled));
        if (lane == 0) all.store(moments + (first + warp) * kMomentColumns);
      }
    }
    LLPF_ROLLED
    for (int row = 0; row < count; ++row) {
      const Range chunks = chunks_of(row);
      const int64_t filled = chunks.end - chunks.begin;
      if (filled <= kWarp) continue;
      const Moments mine = lane_moments<kThreads, AHEAD>(table, chunks, partials, threadIdx.x);
      const Moments all = block_tree<kThreads>(mine, storage.values.get(), filled);
      if (threadIdx.x == 0) all.store(moments + (first + row) * kMomentColumns);
      __syncthreads();
    }
    __syncthreads();
  }
}

/// Queues stage one for the active paths. Chunks of MASKED segments are neither read nor written.
cudaError_t launch_chunk_moments(const Values& values, const Table& table, const Active& active, double* partials,
                                 cudaStream_t stream);

}  // namespace llpf::cuda
