#pragma once

#include "arguments.h"
#include "convert.h"
#include "macros.h"

// `moments`: centred moments of p and delta = d - p, as sums within a piece and a rule by which pieces combine.
namespace llpf {

/// Columns of float64 `moments[S, 5]`.
constexpr int kMomentColumns = 5;

/// Count, means and centred second moments of one piece.
struct Moments {
  double n = 0, mean_p = 0, mean_delta = 0, m2_p = 0, c = 0, m2_delta = 0;

  LLPF_HD void store(double* row) const {
    row[0] = mean_p;
    row[1] = mean_delta;
    row[2] = m2_p;
    row[3] = c;
    row[4] = m2_delta;
  }
  LLPF_HD static Moments load(double n, const double* row) { return {n, row[0], row[1], row[2], row[3], row[4]}; }
};

/// Pairwise update of Chan, Golub and LeVeque (1983), eq. 2.1, extended to the mixed moment.
LLPF_HD Moments merge(const Moments& left, const Moments& right) {
  if (left.n == 0) return right;
  if (right.n == 0) return left;
  const double n = left.n + right.n;
  const double share = right.n / n, weight = left.n * share;
  const double gap_p = right.mean_p - left.mean_p, gap_delta = right.mean_delta - left.mean_delta;
  return {n,
          left.mean_p + gap_p * share,
          left.mean_delta + gap_delta * share,
          left.m2_p + right.m2_p + gap_p * gap_p * weight,
          left.c + right.c + gap_p * gap_delta * weight,
          left.m2_delta + right.m2_delta + gap_delta * gap_delta * weight};
}

/// Where the sums of a piece are centred: on its first element. A member of the piece is close enough to the mean that
/// at most log2(n) bits of a second moment cancel, and a constant piece has the exact moment 0.
struct Shift {
  double p, delta;

  template <class P, class D>
  LLPF_HD static Shift at(const P* p, const D* d) {
    const double first = widen(p[0]);
    return {first, d == nullptr ? 0.0 : widen(d[0]) - first};
  }
};

/// Sums of one lane about the shift of its piece. Lanes of one piece combine by addition.
///
/// float64 throughout. A difference or product of two float32 values is then (nearly) exact, so that p within 1e-6 of
/// d, and a mean a million times the deviation, cost no digits; float32 runs would hide a variance that truly vanishes.
struct ShiftedSums {
  double p = 0, delta = 0, pp = 0, p_delta = 0, delta_delta = 0;

  LLPF_HD void add(const Shift& shift, double value, double destination) {
    const double x = value - shift.p, y = (destination - value) - shift.delta;
    p += x;
    delta += y;
    pp += x * x;
    p_delta += x * y;
    delta_delta += y * y;
  }
  LLPF_HD void add(const Shift& shift, double value) {
    const double x = value - shift.p;
    p += x;
    pp += x * x;
  }
  LLPF_HD ShiftedSums& operator+=(const ShiftedSums& other) {
    p += other.p;
    delta += other.delta;
    pp += other.pp;
    p_delta += other.p_delta;
    delta_delta += other.delta_delta;
    return *this;
  }

  /// The moments of a piece of n > 0 elements.
  LLPF_HD Moments finish(double n, const Shift& shift) const {
    const double offset_p = p / n, offset_delta = delta / n;
    const double m2_p = pp - p * offset_p, m2_delta = delta_delta - delta * offset_delta;
    return {n,
            shift.p + offset_p,
            shift.delta + offset_delta,
            m2_p < 0 ? 0 : m2_p,
            p_delta - p * offset_delta,
            m2_delta < 0 ? 0 : m2_delta};
  }
};

struct MomentsArguments {
  Values values;
  Table table;
  double* scratch;

  template <class A>
  static MomentsArguments of(const A& p, const std::optional<A>& d, const A& segments, const A& chunks,
                             const A& scratch) {
    constexpr auto op = "moments";
    check::parameters(op, p);
    check::destination(op, p, d);
    check::table(op, p, segments, &chunks);
    check::scratch(op, p, segments, chunks, scratch);
    check::Memory<A>(op)
        .writes("scratch", scratch)
        .reads("p", p)
        .reads("d", d)
        .reads("segments", segments)
        .reads("chunks", chunks);
    return {Values::of(p, d), table_of(segments, chunks), pointer(scratch)};
  }
};

/// `out` is [paths, S, 5].
namespace cpu {
void moments(const MomentsArguments& arguments, double* out, const Threads& threads);
/// The moments as a GPU's block of threads computes them, lane by lane: slow, for tests.
void moments_device_blocking(const MomentsArguments& arguments, double* out);
}  // namespace cpu
namespace cuda {
/// Two launches: a block per chunk, then a block per segment.
Error moments(const MomentsArguments& arguments, double* out, Stream stream);
}

}  // namespace llpf
