#include <cstring>

#include "../affine.h"
#include "walk.h"

// A tick reads p and d for the moments and again for the map. It goes through the table group by group, since nothing
// outside a group enters a group's map, and so finds them in the cache the second time; only groups larger than the
// cache are read twice from memory. (Walking those backwards, to begin with what is still cached, was measured 15%
// slower: it unsettles the prefetcher.)
namespace llpf::cpu {
namespace {

/// Elements a wave: 1 MiB of float32 p and d, the second-level cache of a core; with threads ten times as much, or
/// waking them would cost more than the cache saves.
constexpr int64_t kWave = int64_t{1} << 17, kThreadedWave = int64_t{1} << 21;

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

void tick(const Values& values, const Table& table, const Rule& rule, const RuleArguments& arguments,
          const double* moments_in, void* waypoint, double* scratch, const Threads& threads) {
  const int64_t partial_count = table.chunk_count * kMomentColumns;
  const int64_t moment_count = table.segment_count * kMomentColumns;
  const int64_t coefficient_count = table.segment_count * kCoefficientColumns;
  for_paths(values.paths, values.numel, threads, [&](int64_t k, const Threads& inner) {
    if (arguments.gate && arguments.gate[k][0] == 0) return;
    const Row row(values, k);
    double* partials = scratch + k * (partial_count + moment_count + coefficient_count);
    double* measured = partials + partial_count;
    double* maps = measured + moment_count;
    const PathArguments path{moments_in == nullptr ? measured : moments_in + k * moment_count,
                             arguments.target_variance[k], arguments.step[k], arguments.radius};
    char* record_to = waypoint == nullptr ? nullptr : static_cast<char*>(waypoint) + k * values.numel * row.p_bytes;

    for (Wave wave; wave.next(table, inner.count > 1 ? kThreadedWave : kWave);) {
      if (moments_in == nullptr) {
        for_chunks(table, wave.chunks, inner, [&](int64_t begin, int64_t end) {
          for (int64_t c = begin; c < end; ++c) {
            const Chunk& chunk = table.chunks[c];
            if (!table.segments[chunk.segment].has(kMasked)) row.reduce(chunk, partials + c * kMomentColumns);
          }
        });
        combine(table, wave.segments, wave.chunks.begin, partials, measured);
      }
      Coefficients(table, rule, path, maps).run(wave.segments);
      for_chunks(table, wave.chunks, inner, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c) apply(row, table, table.chunks[c], maps, record_to);
      });
    }
  });
}

}  // namespace llpf::cpu
