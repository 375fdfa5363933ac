#include "walk.h"

namespace llpf::cpu {

void sgd(const SgdArguments& a, const Table& table, const Threads& threads) {
  const auto update = chunk_kernels().sgd[static_cast<int>(a.dtype)];
  const int64_t bytes = bytes_of(a.dtype);
  for_paths(a.paths, a.numel, threads, [&](int64_t k, const Threads& inner) {
    if (a.gate && a.gate[k][0] == 0) return;
    char* p = static_cast<char*>(a.p) + k * a.numel * bytes;
    const char* g = static_cast<const char*>(a.g) + k * a.numel * bytes;
    char* buffer = a.buffer == nullptr ? nullptr : static_cast<char*>(a.buffer) + k * a.numel * bytes;
    for_chunks(table, {0, table.chunk_count}, inner, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const Chunk& chunk = table.chunks[c];
        if (table.segments[chunk.segment].has(kFrozen)) continue;
        const int64_t at = chunk.start * bytes;
        const double rate = a.lr[k][chunk.segment * a.lr_step];
        update(p + at, g + at, buffer == nullptr ? nullptr : buffer + at, chunk.length, rate, a.settings);
      }
    });
  });
}

}  // namespace llpf::cpu
