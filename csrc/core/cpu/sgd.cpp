#include "../sgd.h"

#include "contents.h"
#include "walk.h"

namespace llpf::cpu {
namespace {

/// Rates of active paths must not be negative. (A NaN shows in what it trains.)
void check_rates(const SgdArguments& a) {
  for (int64_t k = 0; k < a.values.paths; ++k) {
    if (!checked_active("sgd_", a.active, k)) continue;
    for (int64_t s = 0; s < (a.rate_stride == 0 ? 1 : a.table.segment_count); ++s)
      if (a.rates[k][s] < 0) refuse_element("sgd_", "lr", a.rates, k, s);
  }
}

}  // namespace

void sgd(const SgdArguments& a, const Threads& threads) {
  const Table& table = a.table;
  const int64_t numel = a.values.numel, bytes = bytes_of(a.values.p_dtype);
  check_table("sgd_", table, numel);
  check_rates(a);
  const auto update = chunk_kernels().sgd[static_cast<int>(a.values.p_dtype)];
  for_paths(a.values.paths, numel, threads, [&](int64_t k, const Threads& inner) {
    if (!a.active(k)) return;
    char* p = static_cast<char*>(a.values.p) + k * numel * bytes;
    const char* g = static_cast<const char*>(a.g) + k * numel * bytes;
    char* buffer = a.momentum_buffer == nullptr ? nullptr : static_cast<char*>(a.momentum_buffer) + k * numel * bytes;
    for_chunks(table, {0, table.chunk_count}, inner, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const Chunk& chunk = table.chunks[c];
        if (table.segments[chunk.segment].has(kFrozen)) continue;
        const int64_t at = chunk.start * bytes;
        const double rate = a.rates[k][chunk.segment * a.rate_stride];
        update(p + at, g + at, buffer == nullptr ? nullptr : buffer + at, chunk.length, rate, a.rule);
      }
    });
  });
}

}  // namespace llpf::cpu
