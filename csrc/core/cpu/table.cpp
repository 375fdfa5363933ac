#include <algorithm>
#include <limits>
#include <vector>

#include "ops.h"

namespace llpf::cpu {
namespace {

/// The second of two neighbours by offset that share elements, or -1. Tables are in order of offset but for rare ones.
int64_t overlapping(const Table& table) {
  const auto after = [&table](int64_t left, int64_t right) {
    return table.segments[left].offset + table.segments[left].length <= table.segments[right].offset;
  };
  int64_t in_order = 1;
  while (in_order < table.segment_count && after(in_order - 1, in_order)) ++in_order;
  if (in_order >= table.segment_count) return -1;
  std::vector<int64_t> rows;
  for (int64_t s = 0; s < table.segment_count; ++s)
    if (table.segments[s].length > 0) rows.push_back(s);
  std::sort(rows.begin(), rows.end(),
            [&table](int64_t a, int64_t b) { return table.segments[a].offset < table.segments[b].offset; });
  for (size_t i = 1; i < rows.size(); ++i)
    if (!after(rows[i - 1], rows[i])) return rows[i];
  return -1;
}

/// The row at which a group begins a second time, or -1. Labels rise in most tables, and then nothing can come back.
int64_t split(const Table& table, int64_t Segment::* label) {
  int64_t rising = 1;
  while (rising < table.segment_count && table.segments[rising - 1].*label <= table.segments[rising].*label) ++rising;
  if (rising >= table.segment_count) return -1;
  std::vector<int64_t> heads;
  for (int64_t s = 0; s < table.segment_count; ++s)
    if (s == 0 || table.segments[s - 1].*label != table.segments[s].*label) heads.push_back(s);
  std::stable_sort(heads.begin(), heads.end(), [&](int64_t a, int64_t b) {
    return table.segments[a].*label < table.segments[b].*label;
  });
  for (size_t i = 1; i < heads.size(); ++i)
    if (table.segments[heads[i - 1]].*label == table.segments[heads[i]].*label) return heads[i];
  return -1;
}

}  // namespace

TableFault find_fault_of_segments(const Table& table, int64_t numel) {
  constexpr int64_t kFlags = kMasked | kHold | kCompensate | kTwice | kFree | kFrozen;
  for (int64_t s = 0; s < table.segment_count; ++s) {
    const Segment& segment = table.segments[s];
    if (segment.offset < 0 || segment.length < 0 || segment.length > numel || segment.offset > numel - segment.length)
      return {"segments: a row leaves the buffer", s};
    if ((segment.flags & ~kFlags) != 0) return {"segments: a row has a flag that no op knows", s};
  }
  if (const int64_t s = overlapping(table); s >= 0) return {"segments: a row overlaps another", s};
  if (const int64_t s = split(table, &Segment::distance_group); s >= 0)
    return {"segments: the members of a distance group must be neighbours, and a row is apart", s};
  if (const int64_t s = split(table, &Segment::variance_group); s >= 0)
    return {"segments: the members of a variance group must be neighbours, and a row is apart", s};
  return {nullptr, 0};
}

TableFault find_fault(const Table& table, int64_t numel) {
  if (const TableFault fault = find_fault_of_segments(table, numel); fault.what != nullptr) return fault;
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
    if (chunk.length == 0) return {"chunks: a row is empty", c};
    if (chunk.start < covered) return {"chunks: the rows of a segment overlap or are not in order", c};
    if (chunk.start > covered) return {"chunks: a row leaves a gap to the row before it", c};
    covered = chunk.start + chunk.length;
  }
  for (int64_t s = 0, c = 0; s < table.segment_count; ++s) {
    int64_t length = 0;
    for (; c < table.chunk_count && table.chunks[c].segment == s; ++c) length += table.chunks[c].length;
    if (length != table.segments[s].length) return {"segments: a row is not covered by its chunks", s};
  }
  return {nullptr, 0};
}

namespace {

/// NaN is not at least 0 either.
bool bad(double value) { return !(value >= 0); }
constexpr double kMostFinite = std::numeric_limits<double>::max();

/// The path to name, where an argument has a row for each.
int64_t shown(const Rows<const double>& rows, int64_t path) { return rows.stride == 0 ? -1 : path; }

}  // namespace

ValueFault find_fault(const Table& table, const Rule& rule, const RuleArguments& arguments, int64_t paths) {
  const bool to_norm = rule.destination == Destination::kNormSphere;
  for (int64_t k = 0; k < paths; ++k) {
    if (arguments.gate) {
      const double open = arguments.gate[k][LossGate::kOpen];
      if (open != open) return {"gate", k, LossGate::kOpen, open};
      if (open == 0) continue;
    }
    for (int64_t i = 0; i < 2; ++i)
      if (bad(arguments.step[k][i])) return {"step", shown(arguments.step, k), i, arguments.step[k][i]};
    for (int64_t s = 0; s < table.segment_count;) {
      const Range group = table.variance_group(s);
      int64_t n = 0;
      for (int64_t i = group.begin; i < group.end; ++i)
        if (!table.segments[i].has(kMasked)) n += table.segments[i].length;
      for (; s < group.end; ++s) {
        // What is not read may be anything: a layer of one element has no variance.
        if (table.segments[s].has(kMasked)) continue;
        const double target = arguments.target_variance[k][s];
        if (n > 1 && !table.segments[s].has(kFree) && (bad(target) || target > kMostFinite))
          return {"target_variance", shown(arguments.target_variance, k), s, target};
        if (arguments.radius == nullptr || !(to_norm || n > 1)) continue;
        if (bad(arguments.radius[s]) || arguments.radius[s] > kMostFinite) return {"radius", -1, s, arguments.radius[s]};
      }
    }
  }
  return {nullptr, 0, 0, 0};
}

ValueFault find_fault(const Table& table, const SgdArguments& a) {
  for (int64_t k = 0; k < a.paths; ++k) {
    if (a.gate) {
      const double open = a.gate[k][LossGate::kOpen];
      if (open != open) return {"gate", k, LossGate::kOpen, open};
      if (open == 0) continue;
    }
    for (int64_t s = 0; s < (a.lr_step == 0 ? 1 : table.segment_count); ++s)
      if (a.lr[k][s] < 0) return {"lr", shown(a.lr, k), s, a.lr[k][s]};
  }
  return {nullptr, 0, 0, 0};
}

ValueFault find_fault(const LossGate& gate, const double* state, int64_t paths) {
  for (int64_t k = 0; k < paths; ++k) {
    const double* row = state + k * (LossGate::kWindow + gate.min_rounds);
    for (const int column : {LossGate::kOpen, LossGate::kLast})
      if (row[column] != 0 && row[column] != 1) return {"open and last must be 0 or 1", k, column, row[column]};
    if (row[LossGate::kOpen] == 1 && !LossGate::counts(row[LossGate::kRounds]))
      return {"rounds must be a whole number of at least 0", k, LossGate::kRounds, row[LossGate::kRounds]};
  }
  return {nullptr, 0, 0, 0};
}

}  // namespace llpf::cpu
