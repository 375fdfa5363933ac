#pragma once

#include <algorithm>

#include "ops.h"

// How the ops walk a table: by whole groups while they fit in the cache, by threads where there is enough work.
namespace llpf::cpu {

constexpr Dtype kStorageOfP[kPairs] = {Dtype::kFloat32, Dtype::kFloat64, Dtype::kBfloat16,
                                       Dtype::kFloat16, Dtype::kFloat32, Dtype::kFloat32};
constexpr Dtype kStorageOfD[kPairs] = {Dtype::kFloat32, Dtype::kFloat64,  Dtype::kBfloat16,
                                       Dtype::kFloat16, Dtype::kBfloat16, Dtype::kFloat16};

/// One path's p and d, with the loops for their types.
struct Row {
  char* p;
  const char* d;
  int64_t p_bytes, d_bytes;
  const ChunkKernels& kernels;
  int pair;

  Row(const Values& v, int64_t path) : kernels(chunk_kernels()), pair(static_cast<int>(v.pair)) {
    p_bytes = bytes_of(kStorageOfP[pair]);
    d_bytes = bytes_of(kStorageOfD[pair]);
    p = static_cast<char*>(v.p) + path * v.numel * p_bytes;
    d = static_cast<const char*>(v.d);
    if (d != nullptr && v.d_per_path) d += path * v.numel * d_bytes;
  }

  char* p_at(int64_t i) const { return p + i * p_bytes; }
  const char* d_at(int64_t i) const { return d == nullptr ? nullptr : d + i * d_bytes; }

  void reduce(const Chunk& chunk, double* partial) const {
    if (chunk.length > 0) kernels.reduce[pair](p_at(chunk.start), d_at(chunk.start), chunk.length, partial);
  }
  void apply(const Chunk& chunk, char* out, const double* abc) const {
    kernels.apply[pair](p_at(chunk.start), d_at(chunk.start), out + chunk.start * p_bytes, chunk.length, abc);
  }
};

/// Moments [S, 5] of the segments in `segments` from the partial sums [C, 5] of their chunks, serially in table order.
inline void combine(const Table& table, Range segments, int64_t chunk, const double* partials, double* out) {
  for (int64_t s = segments.begin; s < segments.end; ++s) {
    Moments total;
    for (; chunk < table.chunk_count && table.chunks[chunk].segment == s; ++chunk) {
      if (table.segments[s].has(kMasked)) continue;
      const double n = static_cast<double>(table.chunks[chunk].length);
      total = merge(total, Moments::load(n, partials + chunk * kMomentColumns));
    }
    total.store(out + s * kMomentColumns);
  }
}

/// Whole groups of segments, neighbours in the table, and their chunks.
struct Wave {
  Range segments{0, 0}, chunks{0, 0};

  /// The next groups, closed under both kinds of group: at least one, more until they have `elements` elements.
  bool next(const Table& table, int64_t elements) {
    segments.begin = segments.end;
    chunks.begin = chunks.end;
    if (segments.begin == table.segment_count) return false;
    int64_t total = 0;
    do {
      do {
        total += table.segments[segments.end++].length;
      } while (segments.end < table.segment_count && same_group(table, segments.end));
    } while (segments.end < table.segment_count && total < elements);
    while (chunks.end < table.chunk_count && table.chunks[chunks.end].segment < segments.end) ++chunks.end;
    return true;
  }

 private:
  static bool same_group(const Table& table, int64_t s) {
    const Segment &left = table.segments[s - 1], &right = table.segments[s];
    return left.distance_group == right.distance_group || left.variance_group == right.variance_group;
  }
};

/// Below this many elements a thread is not worth waking: a quarter million take about 0.1 ms, and on a busy machine
/// two threads were measured ten times slower than one.
constexpr int64_t kElementsPerThread = int64_t{1} << 18;

/// Calls body(begin, end) over [range.begin, range.end) chunks.
template <class F>
void for_chunks(const Table& table, Range range, const Threads& threads, F&& body) {
  if (threads.count <= 1) return body(range.begin, range.end);
  const int64_t count = range.end - range.begin;
  int64_t elements = 0;
  for (int64_t c = range.begin; c < range.end; ++c) elements += table.chunks[c].length;
  if (elements < 2 * kElementsPerThread) return body(range.begin, range.end);
  const int64_t grain = std::max<int64_t>(1, count * kElementsPerThread / elements);
  threads.run(count, grain, Body([&](int64_t begin, int64_t end) { body(range.begin + begin, range.begin + end); }));
}

/// Calls body(path, threads): paths side by side where there are enough of them, else one after another with all
/// threads. Either way a path is computed as if it were alone.
template <class F>
void for_paths(int64_t paths, int64_t numel, const Threads& threads, F&& body) {
  if (threads.count <= 1 || paths < threads.count || paths * numel < 2 * kElementsPerThread) {
    for (int64_t k = 0; k < paths; ++k) body(k, threads);
    return;
  }
  const int64_t grain = std::max<int64_t>(1, kElementsPerThread / std::max<int64_t>(1, numel));
  threads.run(paths, grain, Body([&](int64_t begin, int64_t end) {
                for (int64_t k = begin; k < end; ++k) body(k, Threads{});
              }));
}

}  // namespace llpf::cpu
