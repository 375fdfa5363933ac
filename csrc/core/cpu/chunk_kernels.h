// The loops of chunk.h for the instruction set LLPF_ISA; see simd.h.
#pragma once

#include "../affine.h"
#include "../moments.h"
#include "../sgd.h"
#include "chunk.h"
#include "simd.h"

namespace llpf::LLPF_ISA {

/// Lanes of the reduction, the same for all instruction sets: element i belongs to lane i mod 8.
constexpr int kReductionLanes = 8;
/// Registers that hold one sum of all lanes. Two times five accumulators is what AVX2's sixteen registers have room
/// for.
constexpr int kParts = kReductionLanes / kLanes<double>;

struct Accumulator {
  Doubles part[kParts] = {};

  LLPF_HD double total() const {
    double lane[kReductionLanes];
    memcpy(lane, part, sizeof(lane));
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
  }
};

/// Eight neighbours at a time, a lane each; the arithmetic of ShiftedSums with fused multiply-adds.
template <bool kWithD, class P, class D>
struct Reduction {
  Accumulator p, delta, pp, p_delta, delta_delta;
  Doubles shift_p, shift_delta, one;

  LLPF_HD explicit Reduction(const Shift& shift) : shift_p(Doubles{} + shift.p), shift_delta(Doubles{} + shift.delta) {
    one = Doubles{} + 1.0;
    asm("" : "+m"(one));  // or the compiler would see through minus()
  }

  LLPF_HD void add(const P* values, const D* destination) {
    for (int k = 0; k < kParts; ++k) {
      const int at = k * kLanes<double>;
      const Doubles value = load<double>(values + at), x = minus(value, shift_p, one);
      p.part[k] += x;
      pp.part[k] = multiply_add(x, x, pp.part[k]);
      if constexpr (kWithD) {
        const Doubles y = minus(load<double>(destination + at) - value, shift_delta, one);
        delta.part[k] += y;
        p_delta.part[k] = multiply_add(x, y, p_delta.part[k]);
        delta_delta.part[k] = multiply_add(y, y, delta_delta.part[k]);
      }
    }
  }

  LLPF_HD ShiftedSums total() const {
    return {p.total(), delta.total(), pp.total(), p_delta.total(), delta_delta.total()};
  }
};

template <bool kWithD, class P, class D>
LLPF_HD void reduce_chunk(const P* p, const D* d, int64_t n, double* row) {
  const Shift shift = Shift::at(p, kWithD ? d : nullptr);
  Reduction<kWithD, P, D> reduction(shift);
  int64_t i = 0;
  for (; i + kReductionLanes <= n; i += kReductionLanes) reduction.add(p + i, kWithD ? d + i : nullptr);
  if (i < n) {
    // The rest, filled up with copies of the first element: those add exactly 0 to every sum.
    P last_p[kReductionLanes];
    D last_d[kReductionLanes];
    for (int lane = 0; lane < kReductionLanes; ++lane) {
      const int64_t at = i + lane < n ? i + lane : 0;
      last_p[lane] = p[at];
      if constexpr (kWithD) last_d[lane] = d[at];
    }
    reduction.add(last_p, last_d);
  }
  reduction.total().finish(static_cast<double>(n), shift).store(row);
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
  if (d == nullptr || !map.reads_destination()) {
    for (; i + kLanes<C> <= n; i += kLanes<C>) store(out + i, map(load<C>(p + i)));
    for (; i < n; ++i) out[i] = narrow<P>(map(widen(p[i])));
  } else {
    for (; i + kLanes<C> <= n; i += kLanes<C>) store(out + i, map(load<C>(p + i), load<C>(d + i)));
    for (; i < n; ++i) out[i] = narrow<P>(map(widen(p[i]), widen(d[i])));
  }
}

template <class P>
void sgd(void* p_, const void* g_, void* buffer_, int64_t n, double rate_, const cpu::SgdSettings& settings) {
  using C = Compute<P>;
  auto* p = static_cast<P*>(p_);
  const auto* g = static_cast<const P*>(g_);
  auto* buffer = static_cast<P*>(buffer_);
  const C rate = static_cast<C>(rate_);
  const auto rule = SgdRule<C>::of(settings.momentum, settings.dampening, settings.weight_decay, settings.nesterov);
  int64_t i = 0;
  if (buffer == nullptr) {
    for (; i + kLanes<C> <= n; i += kLanes<C>) store(p + i, rule(load<C>(p + i), load<C>(g + i), rate));
    for (; i < n; ++i) p[i] = narrow<P>(rule(widen(p[i]), widen(g[i]), rate));
    return;
  }
  for (; i + kLanes<C> <= n; i += kLanes<C>) {
    auto moving = load<C>(buffer + i);
    const auto value = rule(load<C>(p + i), load<C>(g + i), rate, moving);
    store(buffer + i, moving);
    store(p + i, value);
  }
  for (; i < n; ++i) {
    C moving = widen(buffer[i]);
    p[i] = narrow<P>(rule(widen(p[i]), widen(g[i]), rate, moving));
    buffer[i] = narrow<P>(moving);
  }
}

/// In the order of Pair and Dtype.
inline constexpr cpu::ChunkKernels kernels(const char* isa) {
  return {isa,
          {reduce<float, float>, reduce<double, double>, reduce<Bfloat16, Bfloat16>, reduce<Float16, Float16>,
           reduce<float, Bfloat16>, reduce<float, Float16>},
          {apply<float, float>, apply<double, double>, apply<Bfloat16, Bfloat16>, apply<Float16, Float16>,
           apply<float, Bfloat16>, apply<float, Float16>},
          {sgd<float>, sgd<double>, sgd<Bfloat16>, sgd<Float16>}};
}

}  // namespace llpf::LLPF_ISA
