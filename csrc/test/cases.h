#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "../core/convert.h"
#include "../core/table.h"

// Small tables that between them reach every branch of the kernels, and random values for them.
namespace llpf::test {

/// splitmix64: the same values on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  /// Uniform in [-1, 1).
  double next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1p-52 - 1.0;
  }

 private:
  uint64_t state_;
};

struct Case {
  std::string name;
  std::vector<Segment> segments;
  std::vector<Chunk> chunks;
  int64_t paths = 1, numel = 0;
  bool d_shared = true;

  Table table() const {
    return {segments.data(), static_cast<int64_t>(segments.size()), chunks.data(), static_cast<int64_t>(chunks.size())};
  }
  int64_t d_stride() const { return d_shared ? 0 : numel; }
  int64_t d_numel() const { return d_shared ? numel : paths * numel; }
};

struct Layout {
  std::vector<int64_t> lengths;
  int64_t chunk = 4096, alignment = 16;
  /// Neighbours a group.
  int64_t distance_group = 1, variance_group = 1;
  std::vector<int64_t> flags = {0};
};

inline Case make_case(std::string name, const Layout& layout, int64_t paths, bool d_shared) {
  Case out{std::move(name), {}, {}, paths, 0, d_shared};
  for (size_t i = 0; i < layout.lengths.size(); ++i) {
    const int64_t s = static_cast<int64_t>(i), length = layout.lengths[i];
    out.segments.push_back({out.numel, length, s / layout.distance_group, s / layout.variance_group,
                            layout.flags[i % layout.flags.size()]});
    for (int64_t at = 0; at < length; at += layout.chunk)
      out.chunks.push_back({s, out.numel + at, length - at < layout.chunk ? length - at : layout.chunk});
    out.numel = (out.numel + length + layout.alignment - 1) / layout.alignment * layout.alignment;
  }
  return out;
}

inline std::vector<Case> all_cases() {
  const std::vector<int64_t> odd = {1, 2, 15, 16, 17, 127, 1025, 4095, 4096, 4097, 12289, 3, 300};
  const std::vector<int64_t> flags = {0,           0,          kMasked, kHold, kCompensate, kCompensate | kTwice, kFree,
                                      kFrozen | 0, kMasked | kFrozen};
  std::vector<Case> out;
  out.push_back(make_case("padded", {.lengths = odd, .distance_group = 2, .variance_group = 3, .flags = flags}, 2, true));
  out.push_back(make_case("three paths", {.lengths = odd, .distance_group = 3, .variance_group = 2, .flags = flags}, 3, false));
  // Starts and row lengths that no vector load may touch.
  out.push_back(make_case("unaligned", {.lengths = odd, .alignment = 1, .distance_group = 2, .flags = flags}, 2, true));
  // More chunks in one segment than two rounds of 256 lanes.
  out.push_back(make_case("many chunks", {.lengths = {64 * 600 + 5, 7, 64}, .chunk = 64, .distance_group = 2}, 1, true));
  // A group wider than a warp, and than the 32 rows that one scan of linked_rows covers.
  out.push_back(make_case("one group", {.lengths = std::vector<int64_t>(70, 40), .distance_group = 70}, 1, true));
  // Chunks that no shared-memory tile can hold: the cooperative tick reads them twice.
  out.push_back(make_case("long chunks", {.lengths = {70001, 130, 60000}, .chunk = 60000, .distance_group = 2}, 1, true));
  return out;
}

/// Linked rows that a warp joins beside rows for the whole block: with as many chunks as a warp or a block has lanes, and one
/// more or less. Apart from the others, since a chunk costs the emulator half a millisecond.
inline Case long_rows() {
  std::vector<int64_t> lengths(17, 40);
  for (const auto& [row, chunks] : {std::pair{1, 31}, {3, 32}, {5, 33}, {6, 256}, {8, 257}, {10, 2}, {12, 40}, {13, 100}})
    lengths[static_cast<size_t>(row)] = 16 * chunks - row;
  const std::vector<int64_t> flags = {0, 0, kMasked, 0, 0, 0, 0, 0, 0, 0, 0, 0, kMasked, 0, 0, 0, 0};
  return make_case("long rows", {.lengths = lengths, .chunk = 16, .distance_group = 16, .flags = flags}, 1, true);
}

/// Random values, a mean of up to fifty deviations in some segments, NaN between the segments.
template <class T>
std::vector<T> random_values(const Case& c, int64_t rows, uint64_t seed) {
  Random random(seed);
  constexpr double kMeans[] = {0.0, 1.0, -3.0, 50.0};
  const T nan = narrow<T>(std::numeric_limits<Compute<T>>::quiet_NaN());
  std::vector<T> out(static_cast<size_t>(rows * c.numel), nan);
  for (int64_t k = 0; k < rows; ++k)
    for (size_t s = 0; s < c.segments.size(); ++s)
      for (int64_t i = 0; i < c.segments[s].length; ++i)
        out[k * c.numel + c.segments[s].offset + i] =
            narrow<T>(static_cast<Compute<T>>(0.05 * (random.next() + kMeans[s % 4])));
  return out;
}

/// Positive numbers, equal for the members of a variance group.
inline std::vector<double> random_by_group(const Case& c, int64_t rows, uint64_t seed) {
  std::vector<double> out;
  for (int64_t k = 0; k < rows; ++k)
    for (const Segment& segment : c.segments)
      out.push_back(0.505 + 0.495 * Random(seed + 977 * k + 31 * segment.variance_group).next());
  return out;
}

}  // namespace llpf::test
