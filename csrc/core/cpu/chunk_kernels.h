// The loops of chunk.h for the instruction set LLPF_ISA; see simd.h.
#pragma once

#include "../affine.h"
#include "../moments.h"
#include "../sgd.h"
#include "chunk.h"
#include "simd.h"
#include "window_kernels.h"

namespace llpf::LLPF_ISA {

/// Lanes of the reduction, the same for all instruction sets: element i belongs to lane i mod 8.
constexpr int kReductionLanes = 8;
/// Registers that hold one sum of all lanes. Two times five accumulators is what fits in AVX2's sixteen registers.
constexpr int kParts = kReductionLanes / kLanes<double>;

/// Sums over the lanes in the order of the tree; the parts of one sum, first lanes first.
LLPF_HD double total(Doubles a, Doubles b, Doubles c, Doubles d) {
  const Doubles parts[4] = {a, b, c, d};
  double lane[kReductionLanes];
  memcpy(lane, parts, sizeof(lane));
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

/// Where sums are centred. On zero while the mean takes at most four bits of a second moment, which spares two of ten
/// operations an element (0.17 instead of 0.22 ns on Zen 3); else on the piece's first element, like ShiftedSums.
///
/// Those bits come on top of what chains of 512 additions round. Against exact fractions, 4,096 normal values a chunk, a
/// second moment was wrong by 8 float64 units in the last place at mean zero, by 360 where the mean is just short of four
/// deviations, and by 740 about a first element far from the mean: 1e-13 of it at worst, for float32 storage as for float64.
/// tests/ops/test_moments.py allows 1,024 units. (A second pass about the mean would take 1 to 8, and as long again.)
enum class Centre { kZero, kFirst };

/// Whether a second moment summed about zero has lost more than four of its bits to the mean; also when it is NaN.
LLPF_HD bool cancels(double n, double mean, double m2) { return !(16 * m2 >= n * mean * mean); }

/// The arithmetic of ShiftedSums with fused multiply-adds, on a register of lanes.
template <bool kWithD, Centre kCentre>
struct PartSums {
  Doubles p{}, delta{}, pp{}, p_delta{}, delta_delta{};

  LLPF_HD void add(Doubles value, Doubles destination, Doubles shift_p, Doubles shift_delta) {
    Doubles x = value, y = destination;
    if constexpr (kWithD) y = minus(destination, value);
    if constexpr (kCentre == Centre::kFirst) {
      x = minus(value, shift_p);
      if constexpr (kWithD) y = minus(y, shift_delta);
    }
    p += x;
    pp = multiply_add(x, x, pp);
    if constexpr (kWithD) {
      delta += y;
      p_delta = multiply_add(x, y, p_delta);
      delta_delta = multiply_add(y, y, delta_delta);
    }
  }
};

/// Eight neighbours at a time, a lane each.
template <bool kWithD, Centre kCentre>
struct Reduction {
  PartSums<kWithD, kCentre> a, b, c, d;
  Doubles shift_p, shift_delta;

  LLPF_HD explicit Reduction(const Shift& shift)
      : shift_p(Doubles{} + shift.p), shift_delta(Doubles{} + shift.delta) {}

  /// Eight neighbours.
  template <class P, class D>
  LLPF_HD void add(const P* values, const D* destination) {
    add_part<0>(a, values, destination);
    if constexpr (kParts > 1) add_part<1>(b, values, destination);
    if constexpr (kParts > 2) add_part<2>(c, values, destination);
    if constexpr (kParts > 2) add_part<3>(d, values, destination);
  }

  /// The last n < 8 elements, filled up with the centre: it adds exactly 0 to every sum.
  template <class P, class D>
  LLPF_HD void add_rest(const P* values, const D* destination, int64_t n, P centre_p, D centre_d) {
    P last_p[kReductionLanes];
    D last_d[kReductionLanes];
    for (int lane = 0; lane < kReductionLanes; ++lane) {
      last_p[lane] = lane < n ? values[lane] : centre_p;
      if constexpr (kWithD) last_d[lane] = lane < n ? destination[lane] : centre_d;
    }
    add(last_p, last_d);
  }

  LLPF_HD Moments finish(int64_t n, const Shift& shift) const {
    const ShiftedSums sums{total(a.p, b.p, c.p, d.p), total(a.delta, b.delta, c.delta, d.delta),
                           total(a.pp, b.pp, c.pp, d.pp), total(a.p_delta, b.p_delta, c.p_delta, d.p_delta),
                           total(a.delta_delta, b.delta_delta, c.delta_delta, d.delta_delta)};
    return sums.finish(static_cast<double>(n), shift);
  }

 private:
  template <int kPart, class P, class D>
  LLPF_HD void add_part(PartSums<kWithD, kCentre>& part, const P* values, const D* destination) {
    constexpr int kAt = kPart * kLanes<double>;
    Doubles to{};
    if constexpr (kWithD) to = load<double>(destination + kAt);
    part.add(load<double>(values + kAt), to, shift_p, shift_delta);
  }
};

/// Asks for what comes kAhead bytes later, a cache line of each stream. The hardware's own prefetcher stops at every
/// page of 4 KiB: 0.38 instead of 0.42 ns an element from memory, and nothing lost in the cache (Zen 3).
constexpr int kAhead = 1024;
template <class T>
LLPF_HD void prefetch(const T* from) {
  __builtin_prefetch(reinterpret_cast<const char*>(from) + kAhead);
}

template <bool kWithD, Centre kCentre, class P, class D>
LLPF_HD Moments sums_of(const P* p, const D* d, int64_t n) {
  constexpr int kStep = 2 * kReductionLanes;
  const Shift shift = kCentre == Centre::kFirst ? Shift::at(p, kWithD ? d : nullptr) : Shift{0, 0};
  const P centre_p = kCentre == Centre::kFirst ? p[0] : P{};
  const D centre_d = kWithD && kCentre == Centre::kFirst ? d[0] : D{};
  Reduction<kWithD, kCentre> reduction(shift);
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    prefetch(p + i);
    if constexpr (kWithD) prefetch(d + i);
    reduction.add(p + i, kWithD ? d + i : d);
    reduction.add(p + i + kReductionLanes, kWithD ? d + i + kReductionLanes : d);
  }
  for (; i + kReductionLanes <= n; i += kReductionLanes) reduction.add(p + i, kWithD ? d + i : d);
  if (i < n) reduction.add_rest(p + i, kWithD ? d + i : d, n - i, centre_p, centre_d);
  return reduction.finish(n, shift);
}

/// Summed about zero, or a second time about the first element where that is better.
template <bool kWithD, class P, class D>
LLPF_HD void reduce_chunk(const P* p, const D* d, int64_t n, double* row) {
  const Moments moments = sums_of<kWithD, Centre::kZero>(p, d, n);
  const bool again = cancels(moments.n, moments.mean_p, moments.m2_p) ||
                     (kWithD && cancels(moments.n, moments.mean_delta, moments.m2_delta));
  (again ? sums_of<kWithD, Centre::kFirst>(p, d, n) : moments).store(row);
}

template <class P, class D>
void reduce(const void* p, const void* d, int64_t n, double* row) {
  if (d == nullptr) reduce_chunk<false>(static_cast<const P*>(p), static_cast<const D*>(d), n, row);
  else reduce_chunk<true>(static_cast<const P*>(p), static_cast<const D*>(d), n, row);
}

template <class P, class D>
void apply(const void* p_, const void* d_, void* out_, int64_t n, const double* abc) {
  using C = Compute<P>;
  const auto* p = static_cast<const P*>(p_);
  const auto* d = static_cast<const D*>(d_);
  auto* out = static_cast<P*>(out_);
  const auto map = Map<C>::of(abc[0], abc[1], abc[2]);
  int64_t i = 0;
  if (map.wide) [[unlikely]] {
    const auto exact = Map<double>::of(abc[0], abc[1], abc[2]);
    for (; i < n; ++i) out[i] = widely(exact, p[i], d == nullptr ? d : d + i);
    return;
  }
  if (d == nullptr || !map.reads_destination()) {
    for (; i + kLanes<C> <= n; i += kLanes<C>) store(out + i, map(load<C>(p + i)));
    for (; i < n; ++i) out[i] = narrow<P>(map(widen(p[i])));
  } else {
    for (; i + kLanes<C> <= n; i += kLanes<C>) store(out + i, map(load<C>(p + i), load<C>(d + i)));
    for (; i < n; ++i) out[i] = narrow<P>(map(widen(p[i]), widen(d[i])));
  }
}

/// One chunk's update; `kBuffer`: with momentum.
template <bool kBuffer, class P>
struct Update {
  using C = Compute<P>;
  P* p;
  const P* g;
  P* buffer;
  C rate;
  SgdRule<C> rule;

  LLPF_HD Update(void* p, const void* g, void* buffer, double rate, const SgdRule<double>& exact)
      : p(static_cast<P*>(p)),
        g(static_cast<const P*>(g)),
        buffer(static_cast<P*>(buffer)),
        rate(static_cast<C>(rate)),
        rule(SgdRule<C>::of(exact)) {}

  /// As many elements from i on as a register holds.
  LLPF_HD void vector(int64_t i) const {
    if constexpr (kBuffer) {
      auto moving = load<C>(buffer + i);
      const auto value = rule(load<C>(p + i), load<C>(g + i), rate, moving);
      store(buffer + i, moving);
      store(p + i, value);
    } else {
      store(p + i, rule(load<C>(p + i), load<C>(g + i), rate));
    }
  }
  LLPF_HD void one(int64_t i) const {
    if constexpr (kBuffer) {
      C moving = widen(buffer[i]);
      p[i] = narrow<P>(rule(widen(p[i]), widen(g[i]), rate, moving));
      buffer[i] = narrow<P>(moving);
    } else {
      p[i] = narrow<P>(rule(widen(p[i]), widen(g[i]), rate));
    }
  }
};

template <bool kBuffer, class P>
LLPF_HD void sgd_chunk(const Update<kBuffer, P>& update, int64_t n) {
  constexpr int kStep = kLanes<Compute<P>>;
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) update.vector(i);
  for (; i < n; ++i) update.one(i);
}

template <class P>
void sgd(void* p, const void* g, void* buffer, int64_t n, double rate, const SgdRule<double>& rule) {
  if (buffer == nullptr) sgd_chunk(Update<false, P>(p, g, nullptr, rate, rule), n);
  else sgd_chunk(Update<true, P>(p, g, buffer, rate, rule), n);
}

/// In the order of Pair and Dtype.
inline constexpr cpu::ChunkKernels kernels(const char* isa) {
  return {isa,
          {reduce<float, float>, reduce<double, double>, reduce<Bfloat16, Bfloat16>, reduce<Float16, Float16>,
           reduce<float, Bfloat16>, reduce<float, Float16>},
          {apply<float, float>, apply<double, double>, apply<Bfloat16, Bfloat16>, apply<Float16, Float16>,
           apply<float, Bfloat16>, apply<float, Float16>},
          {sgd<float>, sgd<double>, sgd<Bfloat16>, sgd<Float16>},
          {relu_pool_planes<float>, relu_pool_planes<double>}};
}

}  // namespace llpf::LLPF_ISA
