#pragma once

#include <cstdint>

#include "macros.h"

// The segment table: which pieces a flat buffer has, which of them move together, and how kernels walk them.
namespace llpf {

/// What may happen to a segment: SegmentFlag of llpf_fast/ops/flags.py, which explains them; tests/ops/test_flags.py compares.
enum Flag : int64_t {
  kMasked = 1,
  kHold = 2,
  kCompensate = 4,
  kTwice = 8,
  kFree = 16,
  kFrozen = 32,
};

/// One row of int64 `segments[S, 5]`.
struct Segment {
  int64_t offset, length, distance_group, variance_group, flags;

  LLPF_HD bool has(Flag flag) const { return (flags & flag) != 0; }
};

/// One row of int64 `chunks[C, 3]`: sorted by segment, in order of start within a segment.
struct Chunk {
  int64_t segment, start, length;
};

static_assert(sizeof(Segment) == 5 * sizeof(int64_t) && sizeof(Chunk) == 3 * sizeof(int64_t));

/// Half-open range of rows.
struct Range {
  int64_t begin, end;
};

struct Table {
  const Segment* segments;
  int64_t segment_count;
  const Chunk* chunks;
  int64_t chunk_count;

  /// First chunk whose segment is `segment` or a later one.
  LLPF_HD int64_t lower_bound(int64_t segment) const {
    int64_t low = 0, high = chunk_count;
    LLPF_ROLLED
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (chunks[middle].segment < segment) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  LLPF_HD Range chunks_of(int64_t segment) const { return {lower_bound(segment), lower_bound(segment + 1)}; }

  /// The group of a segment: its neighbours left and right that carry the same label.
  LLPF_HD Range group(int64_t segment, int64_t Segment::* label) const {
    const int64_t name = segments[segment].*label;
    Range rows{segment, segment + 1};
    LLPF_ROLLED
    while (rows.begin > 0 && segments[rows.begin - 1].*label == name) --rows.begin;
    LLPF_ROLLED
    while (rows.end < segment_count && segments[rows.end].*label == name) ++rows.end;
    return rows;
  }
  LLPF_HD Range distance_group(int64_t segment) const { return group(segment, &Segment::distance_group); }
  LLPF_HD Range variance_group(int64_t segment) const { return group(segment, &Segment::variance_group); }
};

}  // namespace llpf
