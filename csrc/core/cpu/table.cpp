#include "ops.h"

namespace llpf::cpu {

TableFault find_fault(const Table& table, int64_t numel) {
  for (int64_t s = 0; s < table.segment_count; ++s) {
    const Segment& segment = table.segments[s];
    if (segment.offset < 0 || segment.length < 0 || segment.length > numel || segment.offset > numel - segment.length)
      return {"segments: a row leaves the buffer", s};
  }
  int64_t previous = 0, covered = 0;
  for (int64_t c = 0; c < table.chunk_count; ++c) {
    const Chunk& chunk = table.chunks[c];
    if (chunk.segment < previous || chunk.segment >= table.segment_count)
      return {"chunks: a row names no segment, or the rows are not sorted by segment", c};
    const Segment& segment = table.segments[chunk.segment];
    if (chunk.segment != previous || c == 0) covered = segment.offset;
    previous = chunk.segment;
    const int64_t end = segment.offset + segment.length;
    if (chunk.length < 0 || chunk.start < segment.offset || chunk.length > end - chunk.start)
      return {"chunks: a row leaves its segment", c};
    if (chunk.start < covered) return {"chunks: the rows of a segment overlap or are not in order", c};
    covered = chunk.start + chunk.length;
  }
  return {nullptr, 0};
}

}  // namespace llpf::cpu
