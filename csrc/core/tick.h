#pragma once

#include "affine.h"
#include "coefficients.h"

// `tick_`: moments, coefficients and the elementwise pass in one call.
namespace llpf {

struct TickArguments {
  Values values;
  Table table;
  RuleArguments rule;
  const double* moments_in;  // [paths, S, 5], or null
  void* waypoint;            // like p, or null
  double* scratch;

  template <class A>
  static TickArguments of(const A& p, const std::optional<A>& d, const A& segments, const A& chunks,
                          const A& target_variance, const A& step, const std::optional<A>& active,
                          const std::optional<A>& radius, const std::optional<A>& moments_in,
                          const std::optional<A>& waypoint, const A& scratch, const Rule& rule) {
    constexpr auto op = "tick_";
    check::parameters(op, p);
    check::destination(op, p, d);
    check::table(op, p, segments, &chunks);
    const int64_t count = segments.size(0);
    const auto described =
        RuleArguments::of(op, p, check::paths(p), count, target_variance, step, active, radius, rule);
    LLPF_CHECK(d.has_value() == rule.to_point(), op,
               ": d belongs to destination POINT and to it only, got destination ",
               static_cast<int64_t>(rule.destination), " with d ", d ? "given" : "missing");
    if (moments_in) check::per_segment(op, p, "moments_in", *moments_in, count, kMomentColumns);
    if (waypoint) check::like(op, p, "waypoint", *waypoint);
    check::scratch(op, p, segments, chunks, scratch);
    LLPF_CHECK(!waypoint || p.numel() == 0 || waypoint->data_ptr() != p.data_ptr(), op,
               ": waypoint must not be p itself");
    // The waypoint is written before d is read, so that even an exact alias would be wrong.
    check::Memory<A>(op)
        .writes("p", p)
        .writes("waypoint", waypoint)
        .writes("scratch", scratch)
        .reads_or_is("p", "d", d)
        .reads("segments", segments)
        .reads("chunks", chunks)
        .reads("target_variance", target_variance)
        .reads("step", step)
        .reads("active", active)
        .reads("radius", radius)
        .reads("moments_in", moments_in);
    return {Values::of(p, d), table_of(segments, chunks), described, pointer<const double>(moments_in),
            pointer<void>(waypoint), pointer(scratch)};
  }
};

namespace cpu {
void tick(const TickArguments& arguments, const Threads& threads);
}
namespace cuda {
/// How a tick without `moments_in` is launched. The plans give the same bits. kChoose: as LLPF_CUDA_TICK says (stages or
/// chip, for measurements), else on the chip where p and d of the whole call fit there.
enum class TickPlan { kChoose, kStages, kOnChip };

/// One cooperative launch on the chip, or three in stages; two with `moments_in`.
Error tick(const TickArguments& arguments, Stream stream, TickPlan plan = TickPlan::kChoose);
}  // namespace cuda

}  // namespace llpf
