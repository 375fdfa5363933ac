// moments on a CPU: sums of chunks over threads, then joined by the fixed tree of reduction.h.
#include "../moments.h"

#include "contents.h"
#include "walk.h"

namespace llpf::cpu {

void moments(const MomentsArguments& arguments, double* out, const Threads& threads) {
  const Values& values = arguments.values;
  const Table& table = arguments.table;
  check_table("moments", table, values.numel);
  for_paths(values.paths, values.numel, threads, [&](int64_t k, const Threads& inner) {
    const Row row(values, k);
    double* partials = arguments.scratch + k * table.chunk_count * kMomentColumns;
    for_chunks(table, {0, table.chunk_count}, inner, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const Chunk& chunk = table.chunks[c];
        if (!table.segments[chunk.segment].has(kMasked)) row.reduce(chunk, partials + c * kMomentColumns);
      }
    });
    combine(table, {0, table.segment_count}, 0, partials, out + k * table.segment_count * kMomentColumns);
  });
}

}  // namespace llpf::cpu
