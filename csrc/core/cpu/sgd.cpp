#include "walk.h"

// The update and, where they are to be left behind, the moments of the updated values in one pass.
namespace llpf::cpu {

void sgd(const SgdArguments& a, const Values& measured, const Table& table, double* moments_out, double* scratch,
         const Threads& threads) {
  const auto update = chunk_kernels().sgd[static_cast<int>(a.dtype)];
  const auto update_and_measure = chunk_kernels().sgd_moments[static_cast<int>(measured.pair)];
  const int64_t bytes = bytes_of(a.dtype);
  for_paths(a.paths, a.numel, threads, [&](int64_t k, const Threads& inner) {
    if (a.gate && a.gate[k][0] == 0) return;
    const bool leave = moments_out != nullptr && (!a.gate || a.gate_columns < 2 || a.gate[k][1] != 0);
    const Row row(measured, k);
    char* p = static_cast<char*>(a.p) + k * a.numel * bytes;
    const char* g = static_cast<const char*>(a.g) + k * a.numel * bytes;
    char* buffer = a.buffer == nullptr ? nullptr : static_cast<char*>(a.buffer) + k * a.numel * bytes;
    double* partials = scratch == nullptr ? nullptr : scratch + k * table.chunk_count * kMomentColumns;
    for_chunks(table, {0, table.chunk_count}, inner, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const Chunk& chunk = table.chunks[c];
        const Segment& segment = table.segments[chunk.segment];
        const int64_t at = chunk.start * bytes;
        const double rate = a.lr[k][chunk.segment * a.lr_step];
        const bool train = !segment.has(kFrozen), measure = leave && !segment.has(kMasked) && chunk.length > 0;
        char* moving = buffer == nullptr ? nullptr : buffer + at;
        if (train && measure)
          update_and_measure(p + at, g + at, moving, row.d_at(chunk.start), chunk.length, rate, a.settings,
                             partials + c * kMomentColumns);
        else if (train) update(p + at, g + at, moving, chunk.length, rate, a.settings);
        else if (measure) row.reduce(chunk, partials + c * kMomentColumns);
      }
    });
    if (!leave) return;
    combine(table, {0, table.segment_count}, 0, partials, moments_out + k * table.segment_count * kMomentColumns);
  });
}

}  // namespace llpf::cpu
