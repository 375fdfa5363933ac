#pragma once

#include "moments.h"
#include "table.h"

// The reduction tree of a block of lanes, in the order in which a GPU's shuffles combine them. No atomics: the order is
// fixed, so the bits are. The host runs the same tree lane by lane (`_moments_device_blocking`).
//
//   chunk    lane l takes elements [VEC (l + LANES j), + VEC) for j = 0, 1, ...; then the tree over lanes, by addition
//   segment  lane l takes chunks first + l + LANES j for j = 0, 1, ...;          then the tree over lanes, by Chan
namespace llpf {

/// The GPU's blocking: a block of 256 threads, each loading 16 bytes of p at once; a chunk of 4096 float32 is four
/// rounds.
struct DeviceBlocking {
  static constexpr int kLanes = 256;
  template <class P>
  static constexpr int kVector = 16 / sizeof(P);
};

constexpr int kWarp = 32;

/// Calls `f(at, count)` for the runs of at most VEC neighbours that are `lane`'s share of `length` elements, in order.
template <int LANES, int VEC, class F>
LLPF_HD void for_each_run(int64_t length, int lane, F&& f) {
  for (int64_t at = static_cast<int64_t>(lane) * VEC; at < length; at += static_cast<int64_t>(LANES) * VEC) {
    const int64_t left = length - at;
    f(at, static_cast<int>(left < VEC ? left : VEC));
  }
}

/// One lane's share of a chunk; `d` may be null.
template <int LANES, int VEC, class P, class D>
LLPF_HD ShiftedSums lane_sums(const P* p, const D* d, int64_t length, const Shift& shift, int lane) {
  ShiftedSums sums;
  for_each_run<LANES, VEC>(length, lane, [&](int64_t at, int count) {
    for (int i = 0; i < count; ++i) {
      if (d == nullptr) sums.add(shift, widen(p[at + i]));
      else sums.add(shift, widen(p[at + i]), widen(d[at + i]));
    }
  });
  return sums;
}

/// One lane's share of a segment's chunks: `partials` is float64 [C, 5]. With AHEAD the next chunk is requested before this
/// one is joined, so that a lane waits for memory or for the division, not for one after the other: 95 times where 100
/// million elements are one segment.
template <int LANES, bool AHEAD = false>
LLPF_HD Moments lane_moments(const Table& table, Range chunks, const double* partials, int lane) {
  Moments total, requested;
  int64_t length = 0;  // made a double where it is used: that waits for the load
  const auto request = [&](int64_t c) {
    if (c >= chunks.end) return;
    length = table.chunks[c].length;
    requested = Moments::load(0, partials + c * kMomentColumns);
  };
  if (AHEAD) request(chunks.begin + lane);
  LLPF_ROLLED
  for (int64_t c = chunks.begin + lane; c < chunks.end; c += LANES) {
    if (!AHEAD) request(c);
    Moments next = requested;
    next.n = static_cast<double>(length);
    if (AHEAD) request(c + LANES);
    total = merge(total, next);
  }
  return total;
}

LLPF_HD ShiftedSums join(ShiftedSums left, const ShiftedSums& right) { return left += right; }
LLPF_HD Moments join(const Moments& left, const Moments& right) { return merge(left, right); }

/// The tree over lanes: halves within each warp, then halves over the warps' results. The result is in lanes[0].
/// Lane l takes over lane l + offset, which is what __shfl_down_sync hands it.
template <int LANES, class T>
inline T tree(T (&lanes)[LANES]) {
  static_assert(LANES % kWarp == 0 && (LANES & (LANES - 1)) == 0);
  for (int warp = 0; warp < LANES; warp += kWarp)
    for (int offset = kWarp / 2; offset > 0; offset /= 2)
      for (int l = 0; l < offset; ++l) lanes[warp + l] = join(lanes[warp + l], lanes[warp + l + offset]);
  for (int offset = LANES / kWarp / 2; offset > 0; offset /= 2)
    for (int w = 0; w < offset; ++w) lanes[w * kWarp] = join(lanes[w * kWarp], lanes[(w + offset) * kWarp]);
  return lanes[0];
}

#if defined(__CUDACC__)

/// `value` of the lane `offset` further on in the warp; T is a struct of doubles.
template <class T>
__device__ __forceinline__ T shuffle_down(const T& value, int offset) {
  constexpr int kWords = sizeof(T) / sizeof(double);
  static_assert(sizeof(T) == kWords * sizeof(double));
  double words[kWords];
  memcpy(words, &value, sizeof(T));
#pragma unroll
  for (int i = 0; i < kWords; ++i) words[i] = __shfl_down_sync(0xffffffffu, words[i], offset);
  T out;
  memcpy(&out, words, sizeof(T));
  return out;
}

/// The tree over the lanes of a warp; the result is valid in its first lane. Lanes from `filled` on hold nothing, and the
/// levels that would only join nothing are left out: with Moments that changes no bit.
template <class T>
__device__ __forceinline__ T warp_tree(T value, int filled) {
  LLPF_ROLLED
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    if (offset < filled) value = join(value, shuffle_down(value, offset));
  return value;
}

/// The same tree as `tree` by a block of LANES threads, of which those from `filled` on hold nothing; the result is valid
/// in thread 0. `shared` holds LANES / 32 values and may be used again after the next __syncthreads().
template <int LANES, class T>
__device__ __forceinline__ T block_tree(T value, T* shared, int64_t filled = LANES) {
  static_assert(LANES % kWarp == 0 && LANES <= kWarp * kWarp && (LANES & (LANES - 1)) == 0);
  constexpr int kWarps = LANES / kWarp;
  const int warp = threadIdx.x / kWarp;
  const bool full = filled >= LANES;
  value = warp_tree(value, full ? kWarp : static_cast<int>(filled) - warp * kWarp);
  if (kWarps == 1) return value;
  if (threadIdx.x % kWarp == 0) shared[warp] = value;
  __syncthreads();
  if (threadIdx.x < kWarp) {
    value = threadIdx.x < kWarps ? shared[threadIdx.x] : T{};
    const int warps = full ? kWarps : (static_cast<int>(filled) + kWarp - 1) / kWarp;
    LLPF_ROLLED
    for (int offset = kWarps / 2; offset > 0; offset /= 2)
      if (offset < warps) value = join(value, shuffle_down(value, offset));
  }
  return value;
}

#endif

}  // namespace llpf
