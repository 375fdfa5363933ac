#pragma once

#include "arguments.h"
#include "convert.h"
#include "macros.h"

// `sgd_`: the update of torch.optim.SGD (its documentation).
namespace llpf {

/// The update of one element. T is the type of the arithmetic; the arguments have an SgdRule<double>.
template <class T>
struct SgdRule {
  T momentum = 0, weight_decay = 0;
  bool nesterov = false;

  LLPF_HD static SgdRule of(const SgdRule<double>& rule) {
    return {static_cast<T>(rule.momentum), static_cast<T>(rule.weight_decay), rule.nesterov};
  }

  // V is T or a vector of T.
  template <class V>
  LLPF_HD V decayed(V value, V gradient) const {
    return weight_decay != 0 ? gradient + weight_decay * value : gradient;
  }

  /// Without momentum.
  template <class V>
  LLPF_HD V operator()(V value, V gradient, T rate) const {
    return value - rate * decayed(value, gradient);
  }

  /// With momentum; `buffer` is replaced.
  template <class V>
  LLPF_HD V operator()(V value, V gradient, T rate, V& buffer) const {
    const V direction = decayed(value, gradient);
    buffer = momentum * buffer + direction;
    return value - rate * (nesterov ? direction + momentum * buffer : buffer);
  }
};

struct SgdArguments {
  Values values;  // no d
  Table table;
  const void* g;
  void* momentum_buffer;  // null without momentum
  Rows rates;
  int64_t rate_stride;  // 1: a rate for each segment, 0: one for all
  SgdRule<double> rule;
  Active active;

  template <class A>
  static SgdArguments of(const A& p, const A& g, const std::optional<A>& momentum_buffer, const A& lr, const A& segments,
                         const A& chunks, const std::optional<A>& active, const SgdRule<double>& rule) {
    constexpr auto op = "sgd_";
    check::parameters(op, p);
    check::like(op, p, "g", g);
    check::table(op, p, segments, &chunks);
    const int64_t k = check::paths(p), s = segments.size(0);
    check::float64(op, p, "lr", lr, {{}, {1}, {s}, {k, 1}, {k, s}});
    check::not_negative(op, "momentum", rule.momentum);
    check::not_negative(op, "weight_decay", rule.weight_decay);
    LLPF_CHECK(momentum_buffer.has_value() == (rule.momentum != 0.0), op,
               ": momentum_buffer belongs to momentum != 0 and to it only, got momentum ", rule.momentum,
               " with buffer ", momentum_buffer ? "given" : "missing");
    LLPF_CHECK(!rule.nesterov || rule.momentum != 0.0, op, ": nesterov needs momentum, got momentum ", rule.momentum);
    if (momentum_buffer) check::like(op, p, "momentum_buffer", *momentum_buffer);
    check::row_per_path(op, p, k, "active", active);
    check::Memory<A>(op)
        .writes("p", p)
        .writes("momentum_buffer", momentum_buffer)
        .reads_or_is("p", "g", g)
        .reads("lr", lr)
        .reads("segments", segments)
        .reads("chunks", chunks)
        .reads("active", active);
    return {
        .values = Values::of(p, std::optional<A>()),
        .table = table_of(segments, chunks),
        .g = g.data_ptr(),
        .momentum_buffer = pointer<void>(momentum_buffer),
        .rates = Rows::of(lr),
        .rate_stride = lr.dim() == 0 || lr.size(lr.dim() - 1) == 1 ? 0 : 1,
        .rule = rule,
        .active = {Rows::of(active, k)},
    };
  }
};

namespace cpu {
void sgd(const SgdArguments& arguments, const Threads& threads);
}
namespace cuda {
/// One launch.
Error sgd(const SgdArguments& arguments, Stream stream);
}

}  // namespace llpf
