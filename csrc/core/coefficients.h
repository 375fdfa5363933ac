#pragma once

#include <cmath>

#include "arguments.h"
#include "moments.h"
#include "table.h"

// `coefficients`: from moments to one affine map a segment. The formulas are those of llpf_fast/ops/coefficients.py, sums serial in
// table order as there.
//
// Four stages, each a loop over the segments of one path, with a barrier between stages. A stage first summarises a
// group, then treats a member: a GPU thread takes one segment and summarises its group itself, O(group) work; the CPU
// summarises each group once. Between stages a segment's five results are its state, so that no other memory is needed:
//
//   after     [0]               [1]              [2]       [3]   [4]
//   project   its distance^2    -                alpha     a0    c0
//   move                        t, or k          alpha
//   rescale   s                 t, or k          c
//   compose   a                 b                c         a0    c0
//
// For a destination that is a formula of the values the move is m = P + k (P - h) with k = t (alpha - 1), and h the
// mean of the variance group or 0: alpha, t and beta of the specification in one number.
namespace llpf {

/// Columns of float64 `coefficients[S, 5]`: a, b, c and the projection's map a0, c0.
constexpr int kCoefficientColumns = 5;

/// A variance below this share of the terms it was summed from is rounding, not signal.
constexpr double kDegenerate = 0x1p-40;
/// The share of a squared mean that counts among those terms: with kDegenerate, a deviation of 2^-48 of the mean.
constexpr double kOfMean = 0x1p-56;
/// A sum of squares up to this has lost digits to float64's smallest numbers and counts as 0.
constexpr double kSmallestSquare = 0x1p-960;

/// Where a tick moves to: Destination of llpf_fast/modes.py; tests/ops/test_flags.py compares.
enum class Destination : int64_t {
  kPoint = 0,
  kOrigin = 1,
  kInfinity = 2,
  kMean = 3,
  kVarianceSphere = 4,
  kNormSphere = 5,
};

/// The rule of one tick, the same for all paths.
struct Rule {
  Destination destination = Destination::kPoint;
  double epsilon = 0;
  bool combine_sum = true, clamp = true, project_first = false;

  LLPF_HD bool to_point() const { return destination == Destination::kPoint; }
  /// Whether a formula destination moves about the group's mean rather than about 0.
  LLPF_HD bool about_mean() const {
    return destination == Destination::kMean || destination == Destination::kVarianceSphere;
  }
};

/// One path's rows of the arguments; `radius` is null unless the destination is a sphere.
struct PathArguments {
  const double* moments;          // [S, 5]
  const double* target_variance;  // [S]
  const double* step;             // fixed length, share of the distance
  const double* radius;           // [S]
  bool active = true;             // a path that is not gets identities
};

class Coefficients {
 public:
  LLPF_HD Coefficients(const Table& table, const Rule& rule, const PathArguments& path, double* out)
      : table_(table), rule_(rule), path_(path), out_(out) {}

  /// Mean and second moment of a variance group.
  struct Pooled {
    double n = 0, mean = 0, m2 = 0;
  };

  // ---- stage 1: project what training left; each segment's share of its group's distance

  struct Projected {
    Pooled q;
    double norm = 0;  // of the projected group; only where the destination needs it
  };

  LLPF_HD Projected summarise_project(Range group) const {
    Projected summary{pool(group, [this](int64_t s) { return moments(s); })};
    if (rule_.destination == Destination::kNormSphere) {
      double squared = 0;
      LLPF_ROLLED
      for (int64_t s = group.begin; s < group.end; ++s) {
        const Moments p = projected(s, summary.q, first_scale(s, summary.q));
        squared += p.m2_p + p.n * p.mean_p * p.mean_p;
      }
      summary.norm = squared > kSmallestSquare ? sqrt(squared) : 0.0;
    }
    return summary;
  }

  LLPF_HD void project(int64_t s, const Projected& summary) const {
    const double s0 = first_scale(s, summary.q), back = 1.0 - s0;
    const Moments p = projected(s, summary.q, s0);
    double* row = at(s);
    row[2] = alpha(s, summary, s0);
    row[3] = s0;
    row[4] = back * summary.q.mean;
    double mean_delta = p.mean_delta, m2_delta = p.m2_delta;
    if (!rule_.to_point()) {
      mean_delta = (row[2] - 1.0) * p.mean_p + beta(row[2]) * summary.q.mean;
      m2_delta = (row[2] - 1.0) * (row[2] - 1.0) * p.m2_p;
    }
    row[0] = moves(s) ? m2_delta + p.n * mean_delta * mean_delta : 0.0;
  }

  // ---- stage 2: the fraction of the way

  /// The common fraction t of a distance group.
  LLPF_HD double summarise_move(Range group) const {
    double squared = 0;
    LLPF_ROLLED
    for (int64_t s = group.begin; s < group.end; ++s) squared += at(s)[0];
    const double distance = sqrt(squared);
    const double fixed = path_.step[0], relative = path_.step[1] * distance;
    const double longer = fixed != fixed || fixed > relative ? fixed : relative;
    const double length = rule_.combine_sum ? fixed + relative : longer;
    const double t = squared > kSmallestSquare ? length / distance : 0.0;
    return rule_.clamp && t > 1.0 ? 1.0 : t;
  }

  LLPF_HD void move(int64_t s, double t) const {
    const Segment& segment = table_.segments[s];
    if (!moves(s)) t = 0.0;
    if (segment.has(kCompensate)) t *= segment.has(kTwice) ? -2.0 : -1.0;
    double* row = at(s);
    row[1] = rule_.to_point() ? t : t * (row[2] - 1.0);
  }

  // ---- stage 3: back onto the variance sphere

  struct Moved {
    Pooled m;
    double mean_q = 0, reference = 0;
  };

  LLPF_HD Moved summarise_rescale(Range group) const {
    const Pooled q = pool(group, [this](int64_t s) { return moments(s); });
    Moved summary{pool(group, [&](int64_t s) { return moved(s, q); }), q.mean};
    // What the group's variance was summed from: the deviations of P and those of the move, within each segment and
    // between them, and the means that the latter were taken from.
    LLPF_ROLLED
    for (int64_t s = group.begin; s < group.end; ++s) {
      const Moments p = projected(s, q, at(s)[3]);
      const double t = at(s)[1], mean_m = moved_mean(p, q, t);
      const double off = p.mean_p - q.mean, gone = mean_m - summary.m.mean - off;
      const double inside = p.m2_p + t * t * (rule_.to_point() ? p.m2_delta : p.m2_p);
      summary.reference +=
          inside + p.n * (off * off + gone * gone + kOfMean * (p.mean_p * p.mean_p + mean_m * mean_m));
    }
    return summary;
  }

  LLPF_HD void rescale(int64_t s, const Moved& summary) const {
    double* row = at(s);
    const double scale = scale_to_target(s, summary.m.n, summary.m.m2, summary.reference);
    const double toward_mean = rule_.to_point() || !rule_.about_mean() ? 0.0 : -scale * row[1] * summary.mean_q;
    row[0] = scale;
    row[2] = share_of_p(row, scale) * row[4] + toward_mean + (1.0 - scale) * summary.m.mean;
  }

  // ---- stage 4: the map itself

  LLPF_HD void compose(int64_t s) const {
    double* row = at(s);
    if (masked(s) || !path_.active) {
      row[0] = row[3] = 1.0;
      row[1] = row[2] = row[4] = 0.0;
      return;
    }
    const double scale = row[0];
    row[0] = share_of_p(row, scale) * row[3];
    row[1] = rule_.to_point() ? scale * row[1] : 0.0;
  }

  // ---- all stages, serially

  LLPF_HD void run(Range segments) const {
    for_each_group(segments, &Segment::variance_group, [this](Range group) {
      const Projected summary = summarise_project(group);
      LLPF_ROLLED
      for (int64_t s = group.begin; s < group.end; ++s) project(s, summary);
    });
    for_each_group(segments, &Segment::distance_group, [this](Range group) {
      const double t = summarise_move(group);
      LLPF_ROLLED
      for (int64_t s = group.begin; s < group.end; ++s) move(s, t);
    });
    for_each_group(segments, &Segment::variance_group, [this](Range group) {
      const Moved summary = summarise_rescale(group);
      LLPF_ROLLED
      for (int64_t s = group.begin; s < group.end; ++s) rescale(s, summary);
    });
    LLPF_ROLLED
    for (int64_t s = segments.begin; s < segments.end; ++s) compose(s);
  }

 private:
  template <class F>
  LLPF_HD void for_each_group(Range segments, int64_t Segment::* label, F&& f) const {
    LLPF_ROLLED
    for (int64_t s = segments.begin; s < segments.end;) {
      const Range group = table_.group(s, label);
      f(group);
      s = group.end;
    }
  }

  LLPF_HD double* at(int64_t s) const { return out_ + s * kCoefficientColumns; }
  LLPF_HD bool masked(int64_t s) const { return table_.segments[s].has(kMasked); }
  LLPF_HD bool moves(int64_t s) const { return !masked(s) && !table_.segments[s].has(kHold); }

  /// A masked segment counts no elements.
  LLPF_HD Moments moments(int64_t s) const {
    const double n = masked(s) ? 0.0 : static_cast<double>(table_.segments[s].length);
    return Moments::load(n, path_.moments + s * kMomentColumns);
  }

  /// Chan's formula over a group, about the first member's mean so that large means do not cancel.
  template <class Member>
  LLPF_HD Pooled pool(Range group, Member&& member) const {
    Pooled all;
    LLPF_ROLLED
    for (int64_t s = group.begin; s < group.end; ++s) all.n += member(s).n;
    const double shift = member(group.begin).mean_p;
    double gap = 0;
    LLPF_ROLLED
    for (int64_t s = group.begin; s < group.end; ++s) {
      const Moments m = member(s);
      gap += (all.n > 0 ? m.n / all.n : 0.0) * (m.mean_p - shift);
    }
    all.mean = shift + gap;
    LLPF_ROLLED
    for (int64_t s = group.begin; s < group.end; ++s) {
      const Moments m = member(s);
      const double off = m.mean_p - all.mean;
      all.m2 += m.m2_p + m.n * off * off;
    }
    return all;
  }

  LLPF_HD double scale_to_target(int64_t s, double n, double m2, double reference) const {
    const Segment& segment = table_.segments[s];
    if (segment.has(kFree) || segment.has(kMasked) || n <= 1) return 1.0;
    if (m2 <= kSmallestSquare || m2 <= kDegenerate * reference) return 1.0;
    const double variance = m2 / (n - 1.0);
    return sqrt((path_.target_variance[s] + rule_.epsilon) / (variance + rule_.epsilon));
  }

  LLPF_HD double first_scale(int64_t s, const Pooled& q) const {
    return rule_.project_first ? scale_to_target(s, q.n, q.m2, 0.0) : 1.0;
  }

  /// Moments of (P, d - P) for P = s0 q + (1 - s0) mean(q).
  LLPF_HD Moments projected(int64_t s, const Pooled& q, double s0) const {
    const Moments m = moments(s);
    const double back = 1.0 - s0;
    const double m2_delta = m.m2_delta + 2.0 * back * m.c + back * back * m.m2_p;
    return {m.n,
            s0 * m.mean_p + back * q.mean,
            m.mean_delta + back * (m.mean_p - q.mean),
            s0 * s0 * m.m2_p,
            s0 * (m.c + back * m.m2_p),
            m2_delta < 0 ? 0.0 : m2_delta};
  }

  LLPF_HD double alpha(int64_t s, const Projected& summary, double s0) const {
    switch (rule_.destination) {
      case Destination::kInfinity: return 2.0;
      case Destination::kVarianceSphere: {
        const double n = summary.q.n, m2 = s0 * s0 * summary.q.m2, variance = m2 / (n > 2 ? n - 1.0 : 1.0);
        return m2 > kSmallestSquare && n > 1 ? sqrt(path_.radius[s] / variance) : 1.0;
      }
      case Destination::kNormSphere: return summary.norm > 0 ? path_.radius[s] / summary.norm : 1.0;
      default: return 0.0;
    }
  }
  LLPF_HD double beta(double alpha) const { return rule_.about_mean() ? 1.0 - alpha : 0.0; }

  /// Mean and second moment (in the first two columns) of m = P moved.
  LLPF_HD Moments moved(int64_t s, const Pooled& q) const {
    const Moments p = projected(s, q, at(s)[3]);
    const double t = at(s)[1];
    const double m2 =
        rule_.to_point() ? p.m2_p + 2.0 * t * p.c + t * t * p.m2_delta : (1.0 + t) * (1.0 + t) * p.m2_p;
    return {p.n, moved_mean(p, q, t), 0, m2 < 0 ? 0.0 : m2};
  }
  LLPF_HD double moved_mean(const Moments& p, const Pooled& q, double t) const {
    if (rule_.to_point()) return p.mean_p + t * p.mean_delta;
    return p.mean_p + t * (p.mean_p - (rule_.about_mean() ? q.mean : 0.0));
  }

  /// Share of P in the result: s (1 - t), or s (1 + k).
  LLPF_HD double share_of_p(const double* row, double scale) const {
    return scale * (rule_.to_point() ? 1.0 - row[1] : 1.0 + row[1]);
  }

  const Table& table_;
  const Rule& rule_;
  const PathArguments& path_;
  double* out_;
};

/// What `coefficients` and `tick_` have in common.
struct RuleArguments {
  Rule rule;
  Rows target_variance, step;
  const double* radius = nullptr;
  Active active;

  template <class A>
  static RuleArguments of(const char* op, const A& like, int64_t paths, int64_t segments, const A& target_variance,
                          const A& step, const std::optional<A>& active, const std::optional<A>& radius,
                          const Rule& rule) {
    check::float64(op, like, "target_variance", target_variance, {{segments}, {paths, segments}});
    check::float64(op, like, "step", step, {{2}, {paths, 2}});
    check::row_per_path(op, like, paths, "active", active);
    const auto destination = static_cast<int64_t>(rule.destination);
    LLPF_CHECK(destination >= 0 && destination <= static_cast<int64_t>(Destination::kNormSphere), op,
               ": destination must be one of [0, 1, 2, 3, 4, 5], got ", destination);
    const bool sphere =
        rule.destination == Destination::kVarianceSphere || rule.destination == Destination::kNormSphere;
    LLPF_CHECK(radius.has_value() == sphere, op,
               ": radius belongs to the sphere destinations and to them only, got destination ", destination,
               " with radius ", radius ? "given" : "missing");
    if (radius) check::float64(op, like, "radius", *radius, {{segments}});
    check::not_negative(op, "epsilon", rule.epsilon);
    return {rule, Rows::of(target_variance), Rows::of(step), pointer<const double>(radius), {Rows::of(active, paths)}};
  }

  LLPF_HD PathArguments path(int64_t k, const double* moments, int64_t segment_count) const {
    return {moments + k * segment_count * kMomentColumns, target_variance[k], step[k], radius, active(k)};
  }
};

struct CoefficientsArguments {
  const double* moments;  // [paths, S, 5]
  int64_t paths;
  Table table;  // without chunks
  RuleArguments rule;

  template <class A>
  static CoefficientsArguments of(const A& moments, const A& segments, const A& target_variance, const A& step,
                                  const std::optional<A>& active, const std::optional<A>& radius, const Rule& rule) {
    constexpr auto op = "coefficients";
    check::table(op, moments, segments, nullptr);
    const int64_t s = segments.size(0), k = moments.dim() == 3 ? moments.size(0) : 1;
    check::float64(op, moments, "moments", moments, {{s, kMomentColumns}, {k, s, kMomentColumns}});
    return {pointer<const double>(moments), k, table_of(segments),
            RuleArguments::of(op, moments, k, s, target_variance, step, active, radius, rule)};
  }
};

/// `out` is [paths, S, 5].
namespace cpu {
void coefficients(const CoefficientsArguments& arguments, double* out, const Threads& threads);
}
namespace cuda {
/// One launch.
Error coefficients(const CoefficientsArguments& arguments, double* out, Stream stream);
}

}  // namespace llpf
