#pragma once

#include <algorithm>

#include "../arguments.h"
#include "../moments.h"
#include "chunk.h"
#include "threads.h"

// How the ops walk a table: by whole groups while they fit in the cache, by threads where there is enough work.
namespace llpf::cpu {

inline Pair pair_of(const Values& values) {
  if (values.p_dtype == values.d_dtype) return static_cast<Pair>(values.p_dtype);
  return values.d_dtype == Dtype::kBfloat16 ? Pair::kFloat32Bfloat16 : Pair::kFloat32Float16;
}

/// One path's p and d, with the loops for their types.
struct Row {
  char* p;
  const char* d;
  int64_t p_bytes, d_bytes;
  const ChunkKernels& kernels;
  int pair;

  Row(const Values& v, int64_t path) : kernels(chunk_kernels()), pair(static_cast<int>(pair_of(v))) {
    p_bytes = bytes_of(v.p_dtype);
    d_bytes = bytes_of(v.d_dtype);
    p = static_cast<char*>(v.p) + path * v.numel * p_bytes;
    d = static_cast<const char*>(v.d);
    if (d != nullptr && !v.d_shared) d += path * v.numel * d_bytes;
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
struct GroupBatch {
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
  threads.run(count, grain, FunctionRef([&](int64_t begin, int64_t end) { body(range.begin + begin, range.begin + end); }));
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
  threads.run(paths, grain, FunctionRef([&](int64_t begin, int64_t end) {
                for (int64_t k = begin; k < end; ++k) body(k, Threads{});
              }));
}

}  // namespace llpf::cpu
