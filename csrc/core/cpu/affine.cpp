// affine_ on a CPU: chunks over threads, one loop of the instruction set at hand.
#include "../affine.h"

#include "../coefficients.h"
#include "contents.h"
#include "walk.h"

namespace llpf::cpu {

void affine(const AffineArguments& arguments, const Threads& threads) {
  const Values& values = arguments.values;
  const Table& table = arguments.table;
  check_table("affine_", table, values.numel);
  for_paths(values.paths, values.numel, threads, [&](int64_t k, const Threads& inner) {
    const Row row(values, k);
    const double* maps = arguments.coefficients + k * table.segment_count * kCoefficientColumns;
    for_chunks(table, {0, table.chunk_count}, inner, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const Chunk& chunk = table.chunks[c];
        const double* map = maps + chunk.segment * kCoefficientColumns;
        if (table.segments[chunk.segment].has(kMasked) || Map<double>::tick(map).identity) continue;
        row.apply(chunk, row.p, map);
      }
    });
  });
}

}  // namespace llpf::cpu
