#pragma once

#include <vector>

#include "../core/affine.h"
#include "../core/coefficients.h"
#include "../core/loss_gate.h"
#include "../core/reduction.h"
#include "../core/sgd.h"
#include "cases.h"

// What the CUDA kernels must compute, bit for bit: their blocking run lane by lane on the host, by the same functions.
namespace llpf::test {

/// The rows of `active` of a call; empty: every path is active.
struct HostActive {
  std::vector<double> rows;
  int64_t columns = 1;
  bool operator()(int64_t k) const { return rows.empty() || rows[k * columns] != 0; }
};

template <class P, class D>
Moments chunk_moments(const P* p, const D* d, int64_t length) {
  const Shift shift = Shift::at(p, d);
  ShiftedSums lanes[DeviceBlocking::kLanes];
  for (int lane = 0; lane < DeviceBlocking::kLanes; ++lane)
    lanes[lane] = lane_sums<DeviceBlocking::kLanes, DeviceBlocking::kVector<P>>(p, d, length, shift, lane);
  return tree(lanes).finish(static_cast<double>(length), shift);
}

/// Moments [S, 5] of one path; `d` may be null.
template <class P, class D>
void moments(const Table& table, const P* p, const D* d, double* out) {
  std::vector<double> partials(static_cast<size_t>(table.chunk_count * kMomentColumns));
  for (int64_t c = 0; c < table.chunk_count; ++c) {
    const Chunk& chunk = table.chunks[c];
    if (!table.segments[chunk.segment].has(kMasked))
      chunk_moments(p + chunk.start, d == nullptr ? d : d + chunk.start, chunk.length)
          .store(&partials[static_cast<size_t>(c * kMomentColumns)]);
  }
  for (int64_t s = 0; s < table.segment_count; ++s) {
    const Range chunks = table.segments[s].has(kMasked) ? Range{0, 0} : table.chunks_of(s);
    Moments lanes[DeviceBlocking::kLanes];
    for (int lane = 0; lane < DeviceBlocking::kLanes; ++lane)
      lanes[lane] = lane_moments<DeviceBlocking::kLanes>(table, chunks, partials.data(), lane);
    tree(lanes).store(out + s * kMomentColumns);
  }
}

/// The elementwise pass over one path's unmasked segments; `d` and `waypoint` may be null.
template <class P, class D>
void write(const Table& table, const double* coefficients, P* p, const D* d, P* waypoint) {
  using M = Map<Compute<P>>;
  for (int64_t s = 0; s < table.segment_count; ++s) {
    const Segment& segment = table.segments[s];
    const double* const row = coefficients + s * kCoefficientColumns;
    const M tick = segment.has(kMasked) ? M{} : M::tick(row), projection = segment.has(kMasked) ? M{} : M::projection(row);
    for (int64_t i = segment.offset; i < segment.offset + segment.length; ++i) {
      const P before = p[i];
      const Compute<P> value = widen(before);
      if (waypoint != nullptr) {
        waypoint[i] = projection.identity ? before : narrow<P>(projection(value));
        if (projection.wide) waypoint[i] = widely(Map<double>::projection(row), before, static_cast<const D*>(nullptr));
      }
      if (tick.identity) continue;
      const bool with_d = d != nullptr && tick.reads_destination();
      p[i] = narrow<P>(with_d ? tick(value, static_cast<Compute<P>>(widen(d[i]))) : tick(value));
      if (tick.wide) p[i] = widely(Map<double>::tick(row), before, d == nullptr ? d : d + i);
    }
  }
}

/// One path's update of every segment that is not FROZEN; `buffer` may be null, `rates` are one a segment.
template <class P>
void sgd(const Table& table, const SgdRule<Compute<P>>& rule, const double* rates, P* p, const P* g, P* buffer) {
  for (int64_t s = 0; s < table.segment_count; ++s) {
    const Segment& segment = table.segments[s];
    if (segment.has(kFrozen)) continue;
    const auto rate = static_cast<Compute<P>>(rates[s]);
    for (int64_t i = segment.offset; i < segment.offset + segment.length; ++i) {
      Compute<P> moving = buffer == nullptr ? 0 : widen(buffer[i]);
      p[i] = narrow<P>(buffer == nullptr ? rule(widen(p[i]), widen(g[i]), rate) : rule(widen(p[i]), widen(g[i]), rate, moving));
      if (buffer != nullptr) buffer[i] = narrow<P>(moving);
    }
  }
}

}  // namespace llpf::test
