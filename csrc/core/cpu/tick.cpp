#include <cstring>

#include "../tick.h"
#include "contents.h"
#include "walk.h"

// A tick reads p and d for the moments and again for the map. It goes through the table group by group, since nothing
// outside a group enters a group's map, and so finds them in the cache the second time; only groups larger than the
// cache are read twice from memory. (Walking those backwards, to begin with what is still cached, was measured 15%
// slower: it unsettles the prefetcher.)
namespace llpf::cpu {
namespace {

/// Elements a batch of groups: 1 MiB of float32 p and d, the second-level cache of a core; with threads sixteen times as
/// much, or waking them would cost more than the cache saves.
constexpr int64_t kBatch = int64_t{1} << 17, kThreadedBatch = int64_t{1} << 21;

/// Write P for the whole chunk: a waypoint is complete, so masked and unprojected values are copied bit for bit.
void record(const Row& row, const Chunk& chunk, bool masked, const double* coefficients, char* waypoint) {
  const auto map = Map<double>::projection(coefficients);
  if (masked || map.identity) {
    const int64_t at = chunk.start * row.p_bytes;
    std::memcpy(waypoint + at, row.p + at, chunk.length * row.p_bytes);
  } else {
    const double projection[3] = {map.a, map.b, map.c};
    row.apply(chunk, waypoint, projection);
  }
}

void apply(const Row& row, const Table& table, const Chunk& chunk, const double* maps, char* waypoint) {
  const double* map = maps + chunk.segment * kCoefficientColumns;
  const bool masked = table.segments[chunk.segment].has(kMasked);
  if (waypoint != nullptr) record(row, chunk, masked, map, waypoint);
  if (!masked && !Map<double>::tick(map).identity) row.apply(chunk, row.p, map);
}

}  // namespace

void tick(const TickArguments& arguments, const Threads& threads) {
  const Values& values = arguments.values;
  const Table& table = arguments.table;
  check_table("tick_", table, values.numel);
  check_rule("tick_", table, arguments.rule, values.paths);
  const int64_t partial_count = table.chunk_count * kMomentColumns;
  const int64_t moment_count = table.segment_count * kMomentColumns;
  const int64_t coefficient_count = table.segment_count * kCoefficientColumns;
  for_paths(values.paths, values.numel, threads, [&](int64_t k, const Threads& inner) {
    if (!arguments.rule.active(k)) return;
    const Row row(values, k);
    double* partials = arguments.scratch + k * (partial_count + moment_count + coefficient_count);
    double* measured = partials + partial_count;
    double* maps = measured + moment_count;
    PathArguments path = arguments.rule.path(k, arguments.moments_in, table.segment_count);
    if (arguments.moments_in == nullptr) path.moments = measured;
    char* waypoint = static_cast<char*>(arguments.waypoint);
    if (waypoint != nullptr) waypoint += k * values.numel * row.p_bytes;

    for (GroupBatch batch; batch.next(table, inner.count > 1 ? kThreadedBatch : kBatch);) {
      if (arguments.moments_in == nullptr) {
        for_chunks(table, batch.chunks, inner, [&](int64_t begin, int64_t end) {
          for (int64_t c = begin; c < end; ++c) {
            const Chunk& chunk = table.chunks[c];
            if (!table.segments[chunk.segment].has(kMasked)) row.reduce(chunk, partials + c * kMomentColumns);
          }
        });
        combine(table, batch.segments, batch.chunks.begin, partials, measured);
      }
      Coefficients(table, arguments.rule.rule, path, maps).run(batch.segments);
      for_chunks(table, batch.chunks, inner, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) apply(row, table, table.chunks[c], maps, waypoint);
      });
    }
  });
}

}  // namespace llpf::cpu
