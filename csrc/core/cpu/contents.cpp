#include "contents.h"

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

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

/// The row at which a group begins a second time, or -1. Labels rise in most tables, and then no group is split.
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

/// First reason why an op must not follow the table, or null.
struct TableFault {
  const char* what;
  int64_t row;
};

TableFault fault_of_segments(const Table& table, int64_t numel) {
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

TableFault fault_of_table(const Table& table, int64_t numel) {
  if (const TableFault fault = fault_of_segments(table, numel); fault.what != nullptr) return fault;
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

/// NaN is not at least 0 either.
bool bad(double value) { return !(value >= 0); }
constexpr double kMostFinite = std::numeric_limits<double>::max();

}  // namespace

void check_table(const char* op, const Table& table, int64_t numel) {
  const TableFault fault = fault_of_table(table, numel);
  LLPF_CHECK(fault.what == nullptr, op, ": ", fault.what, " (row ", fault.row, ", buffer of ", numel, " elements)");
}

void check_segments(const char* op, const Table& table) {
  const TableFault fault = fault_of_segments(table, std::numeric_limits<int64_t>::max());
  LLPF_CHECK(fault.what == nullptr, op, ": ", fault.what, " (row ", fault.row, ")");
}

bool checked_active(const char* op, const Active& active, int64_t path) {
  if (!active.rows) return true;
  const double value = *active.rows[path];
  LLPF_CHECK(value == value, op, ": active[", path, ", 0] must be a number, got ", value);
  return value != 0;
}

void refuse_element(const char* op, const char* name, const Rows& rows, int64_t path, int64_t column) {
  const std::string row = rows.stride == 0 ? "" : std::to_string(path) + ", ";
  check::refuse(op, ": ", name, "[", row, column, "] must be at least 0 and finite, got ", rows[path][column]);
}

void check_rule(const char* op, const Table& table, const RuleArguments& rule, int64_t paths) {
  const bool to_norm = rule.rule.destination == Destination::kNormSphere;
  const Rows radius{rule.radius, 0};
  for (int64_t k = 0; k < paths; ++k) {
    if (!checked_active(op, rule.active, k)) continue;
    for (int64_t i = 0; i < 2; ++i)
      if (bad(rule.step[k][i])) refuse_element(op, "step", rule.step, k, i);
    for (int64_t s = 0; s < table.segment_count;) {
      const Range group = table.variance_group(s);
      int64_t n = 0;
      for (int64_t i = group.begin; i < group.end; ++i)
        if (!table.segments[i].has(kMasked)) n += table.segments[i].length;
      for (; s < group.end; ++s) {
        // What is not read may be anything: a layer of one element has no variance.
        if (table.segments[s].has(kMasked)) continue;
        const double target = rule.target_variance[k][s];
        if (n > 1 && !table.segments[s].has(kFree) && (bad(target) || target > kMostFinite))
          refuse_element(op, "target_variance", rule.target_variance, k, s);
        if (!radius || !(to_norm || n > 1)) continue;
        if (bad(radius[0][s]) || radius[0][s] > kMostFinite) refuse_element(op, "radius", radius, k, s);
      }
    }
  }
}

}  // namespace llpf::cpu
