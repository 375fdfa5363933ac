#pragma once

#include "arguments.h"
#include "convert.h"
#include "macros.h"

// `affine_`: x = a p + b d + c, one map a segment.
namespace llpf {

/// A segment's map, rounded once to the type of the elementwise arithmetic.
template <class T>
struct Map {
  T a = 1, b = 0, c = 0;
  /// Exactly (1, 0, 0) in float64: the values keep every bit, so they are not written at all.
  bool identity = true;
  /// Whether T cannot hold the map: subnormal values brought to a variance of 1 are multiplied by 1e40. The arithmetic is
  /// then that of a Map<double>.
  bool wide = false;

  LLPF_HD static Map of(double a, double b, double c) {
    return {static_cast<T>(a), static_cast<T>(b), static_cast<T>(c), a == 1.0 && b == 0.0 && c == 0.0,
            sizeof(T) == sizeof(float) && (beyond(a) || beyond(b) || magnitude(c) > kMost)};
  }
  /// Columns 0-2 of a coefficient row: the tick.
  LLPF_HD static Map tick(const double* row) { return of(row[0], row[1], row[2]); }
  /// Columns 3-4 of a coefficient row: the projection before the move, which a waypoint records.
  LLPF_HD static Map projection(const double* row) { return of(row[3], 0.0, row[4]); }

  /// d is read only where this holds: 0 times an infinite d must not count.
  LLPF_HD bool reads_destination() const { return b != 0 || wide; }

  // V is T or a vector of T. Rounded after every operation, as eager torch does it.
  template <class V>
  LLPF_HD V operator()(V p, V d) const {
    return a * p + b * d + c;
  }
  template <class V>
  LLPF_HD V operator()(V p) const {
    return a * p + c;
  }

 private:
  /// The largest and the smallest normal number of float.
  static constexpr double kMost = 0x1.fffffep127, kLeast = 0x1p-126;

  LLPF_HD static double magnitude(double value) { return value < 0 ? -value : value; }
  /// Below the normal numbers a factor loses digits, and a value is multiplied by what is left.
  LLPF_HD static bool beyond(double factor) {
    return magnitude(factor) > kMost || (factor != 0 && magnitude(factor) < kLeast);
  }
};

/// One element of a map that is `wide` for storage P; `d` may be null.
template <class P, class D>
LLPF_HD P widely(const Map<double>& map, P p, const D* d) {
  const double value = widen(p);
  return narrow<P>(static_cast<Compute<P>>(
      d != nullptr && map.reads_destination() ? map(value, static_cast<double>(widen(*d))) : map(value)));
}

struct AffineArguments {
  Values values;
  Table table;
  const double* coefficients;  // [paths, S, 5]

  template <class A>
  static AffineArguments of(const A& p, const std::optional<A>& d, const A& coefficients, const A& segments,
                            const A& chunks) {
    constexpr auto op = "affine_";
    check::parameters(op, p);
    check::destination(op, p, d);
    check::table(op, p, segments, &chunks);
    check::per_segment(op, p, "coefficients", coefficients, segments.size(0), 5);
    check::Memory<A>(op)
        .writes("p", p)
        .reads_or_is("p", "d", d)
        .reads("coefficients", coefficients)
        .reads("segments", segments)
        .reads("chunks", chunks);
    return {Values::of(p, d), table_of(segments, chunks), pointer(coefficients)};
  }
};

namespace cpu {
void affine(const AffineArguments& arguments, const Threads& threads);
}
namespace cuda {
/// One launch.
Error affine(const AffineArguments& arguments, Stream stream);
}

}  // namespace llpf
