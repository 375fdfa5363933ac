#pragma once

#include "../coefficients.h"
#include "moments.cuh"

// From moments to maps, a block for the segments whose coefficients depend on each other.
namespace llpf::cuda {

/// The rows from `first` on that are linked by a shared distance or variance group; empty where `first` is linked to the
/// row before it, so that of a launch of one block a segment exactly one takes each linked run. Groups are contiguous,
/// so links only join neighbours. Each warp scans for itself, 32 rows a round.
__device__ __forceinline__ Range linked_rows(const Table& table, int64_t first) {
  const auto begins = [&table](int64_t s) {
    if (s == 0) return true;
    const Segment &left = table.segments[s - 1], &here = table.segments[s];
    return left.distance_group != here.distance_group && left.variance_group != here.variance_group;
  };
  if (!begins(first)) return {first, first};
  for (int64_t end = first + 1;; end += kWarp) {
    const int64_t s = end + threadIdx.x % kWarp;
    const unsigned beginnings = __ballot_sync(0xffffffffu, s >= table.segment_count || begins(s));
    if (beginnings != 0) return {first, end + __ffs(beginnings) - 1};
  }
}

/// The four stages of the coefficients of linked rows, a thread a segment, a barrier after each.
__device__ __forceinline__ void solve(const Coefficients& rule, const Table& table, Range rows) {
  const auto each = [rows](auto&& stage) {
    for (int64_t s = rows.begin + threadIdx.x; s < rows.end; s += blockDim.x) stage(s);
    __syncthreads();
  };
  each([&](int64_t s) { rule.project(s, rule.summarise_project(table.variance_group(s))); });
  each([&](int64_t s) { rule.move(s, rule.summarise_move(table.distance_group(s))); });
  each([&](int64_t s) { rule.rescale(s, rule.summarise_rescale(table.variance_group(s))); });
  each([&](int64_t s) { rule.compose(s); });
}

/// Queues the coefficients of the active paths; `out` is [paths, S, 5].
cudaError_t launch_coefficients(const double* moments, int64_t paths, const Table& table, const RuleArguments& rule,
                                double* out, cudaStream_t stream);

}  // namespace llpf::cuda
