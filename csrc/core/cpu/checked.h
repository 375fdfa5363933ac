#pragma once

#include <limits>
#include <string_view>
#include <vector>

#include "../checks.h"
#include "ops.h"

// The ops on any framework's CPU arrays (see core/checks.h): check, describe by pointers, run. What torch and pybind11
// register are wrappers of these.
namespace llpf::cpu::checked {

template <class T = double, class A>
T* pointer(const A& array) {
  return static_cast<T*>(array.data_ptr());
}
template <class T = double, class A>
T* pointer(const std::optional<A>& array) {
  return array ? pointer<T>(*array) : nullptr;
}

/// Rows of a matrix [K, columns], or the one row of a vector for every path.
template <class A>
Rows<const double> rows(const A& matrix) {
  return {pointer<const double>(matrix), matrix.dim() == 2 ? matrix.size(1) : 0};
}

/// Columns of a gate, one row a path whatever its shape.
template <class A>
int64_t gate_columns(const std::optional<A>& gate, int64_t paths) {
  return gate && paths > 0 ? gate->numel() / paths : 0;
}
template <class A>
Rows<const double> gate_rows(const std::optional<A>& gate, int64_t paths) {
  return {pointer<const double>(gate), gate_columns(gate, paths)};
}

/// The table, after a look at every row: a wrong one is refused rather than followed. With a chunk for every 4096 elements
/// the look costs a thousandth of the work.
template <class A>
Table table_of(const char* op, const A& p, const A& segments, const A& chunks) {
  const Table table{pointer<const Segment>(segments), segments.size(0), pointer<const Chunk>(chunks), chunks.size(0)};
  const TableFault fault = find_fault(table, check::row_numel(p));
  LLPF_CHECK(fault.what == nullptr, op, ": ", fault.what, " (row ", fault.row, ", buffer of ", check::row_numel(p),
             " elements)");
  return table;
}

/// Refuses the call where there is a fault in an argument's values.
inline void no_fault(const char* op, const ValueFault& fault) {
  if (fault.what == nullptr) return;
  const std::string path = fault.path < 0 ? "" : std::to_string(fault.path) + ", ";
  LLPF_CHECK(false, op, ": ", fault.what, "[", path, fault.column, "] must be ",
             std::string_view(fault.what) == "gate" ? "a number" : "at least 0 and finite", ", got ", fault.value);
}

template <class A>
Values values_of(const A& p, const std::optional<A>& d) {
  const Dtype own = check::dtype_of(p), other = d ? check::dtype_of(*d) : own;
  const Pair mixed = other == Dtype::kBfloat16 ? Pair::kFloat32Bfloat16 : Pair::kFloat32Float16;
  return {
      .p = p.data_ptr(),
      .d = pointer<const void>(d),
      .pair = own == other ? static_cast<Pair>(own) : mixed,
      .paths = check::paths(p),
      .numel = check::row_numel(p),
      .d_per_path = d && d->dim() == 2,
  };
}

template <class A>
RuleArguments arguments_of(const A& target_variance, const A& step, const std::optional<A>& gate,
                           const std::optional<A>& radius, int64_t paths) {
  return {rows(target_variance), rows(step), gate_rows(gate, paths), pointer<const double>(radius)};
}

/// `new_moments(K, S)` makes the result.
template <class A, class New>
A moments(const A& p, const std::optional<A>& d, const A& segments, const A& chunks, const A& scratch,
          const Threads& threads, New&& new_moments) {
  check::moments(p, d, segments, chunks, scratch);
  const Table table = table_of("moments", p, segments, chunks);
  const A out = new_moments();
  cpu::moments(values_of(p, d), table, pointer(scratch), pointer(out), threads);
  return out;
}

template <class A, class New>
A moments_device_blocking(const A& p, const std::optional<A>& d, const A& segments, const A& chunks,
                          New&& new_moments) {
  constexpr auto op = "_moments_device_blocking";
  check::parameters(op, p);
  check::destination(op, p, d);
  check::table(op, p, segments, &chunks);
  const Table table = table_of(op, p, segments, chunks);
  const A out = new_moments();
  cpu::moments_device_blocking(values_of(p, d), table, pointer(out));
  return out;
}

template <class A, class New>
A coefficients(const A& moments, const A& segments, const A& target_variance, const A& step,
               const std::optional<A>& gate, const std::optional<A>& radius, const Rule& rule, New&& new_coefficients) {
  constexpr auto op = "coefficients";
  const int64_t paths = check::coefficients(moments, segments, target_variance, step, gate, radius,
                                            static_cast<int64_t>(rule.destination), rule.epsilon);
  const Table table{pointer<const Segment>(segments), segments.size(0), nullptr, 0};
  const TableFault fault = find_fault_of_segments(table, std::numeric_limits<int64_t>::max());
  LLPF_CHECK(fault.what == nullptr, op, ": ", fault.what, " (row ", fault.row, ")");
  const RuleArguments arguments = arguments_of(target_variance, step, gate, radius, paths);
  no_fault(op, find_fault(table, rule, arguments, paths));
  const A out = new_coefficients();
  cpu::coefficients(table, rule, arguments, pointer(moments), paths, pointer(out));
  return out;
}

template <class A>
void affine(const A& p, const std::optional<A>& d, const A& coefficients, const A& segments, const A& chunks,
            const Threads& threads) {
  check::affine(p, d, coefficients, segments, chunks);
  cpu::affine(values_of(p, d), table_of("affine_", p, segments, chunks), pointer(coefficients), threads);
}

template <class A>
void tick(const A& p, const std::optional<A>& d, const A& segments, const A& chunks, const A& target_variance,
          const A& step, const std::optional<A>& gate, const std::optional<A>& radius,
          const std::optional<A>& moments_in, const std::optional<A>& waypoint, const A& scratch, const Rule& rule,
          const Threads& threads) {
  check::tick(p, d, segments, chunks, target_variance, step, gate, radius, moments_in, waypoint, scratch,
              static_cast<int64_t>(rule.destination), rule.epsilon);
  const Table table = table_of("tick_", p, segments, chunks);
  const RuleArguments arguments = arguments_of(target_variance, step, gate, radius, check::paths(p));
  no_fault("tick_", find_fault(table, rule, arguments, check::paths(p)));
  cpu::tick(values_of(p, d), table, rule, arguments, pointer(moments_in), pointer<void>(waypoint), pointer(scratch),
            threads);
}

template <class A>
void sgd(const A& p, const A& g, const std::optional<A>& momentum_buffer, const A& lr, const A& segments,
         const A& chunks, const std::optional<A>& gate, const SgdSettings& settings, const Threads& threads) {
  check::sgd(p, g, momentum_buffer, lr, segments, chunks, gate, settings.momentum, settings.weight_decay,
             settings.nesterov);
  const int64_t paths = check::paths(p), rates = lr.dim() == 0 ? 1 : lr.size(lr.dim() - 1);
  const SgdArguments arguments{
      .dtype = check::dtype_of(p),
      .p = p.data_ptr(),
      .g = g.data_ptr(),
      .buffer = pointer<void>(momentum_buffer),
      .paths = paths,
      .numel = check::row_numel(p),
      .lr = rows(lr),
      .lr_step = rates == 1 ? 0 : 1,
      .gate = gate_rows(gate, paths),
      .settings = settings,
  };
  const Table table = table_of("sgd_", p, segments, chunks);
  no_fault("sgd_", find_fault(table, arguments));
  cpu::sgd(arguments, table, threads);
}

template <class A>
void loss_gate(const A& state, const A& loss, const LossGate& gate) {
  const int64_t paths = check::loss_gate(state, loss, gate.threshold, gate.min_rounds, gate.max_rounds);
  const ValueFault fault = find_fault(gate, pointer(state), paths);
  LLPF_CHECK(fault.what == nullptr, "loss_gate_: state of path ", fault.path, ": ", fault.what, ", got ", fault.value,
             " in column ", fault.column);
  cpu::loss_gate(gate, pointer(state), loss.data_ptr(), check::dtype_of(loss), paths);
}

template <class A, class Bounds>
void draw(const A& out, const A& key, const A& first, const std::optional<A>& gate, const Bounds& bounds) {
  const Draw rule = check::draw(out, key, first, gate, bounds);
  const int64_t paths = key.numel();
  for (int64_t k = 0; gate && k < paths; ++k) {
    const double rounds = gate_rows(gate, paths)[k][LossGate::kRounds];
    LLPF_CHECK(LossGate::counts(rounds), "draw_: gate of path ", k, ": rounds must be a whole number of at least 0, got ",
               rounds, " in column ", LossGate::kRounds);
  }
  cpu::draw(rule, pointer<int64_t>(out), pointer<int64_t>(key), pointer<int64_t>(first), pointer(gate),
            gate_columns(gate, paths), paths);
}

}  // namespace llpf::cpu::checked
