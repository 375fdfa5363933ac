#pragma once

#include <cstdint>

#include "arguments.h"
#include "loss_gate.h"
#include "macros.h"

// `counter_randint_`: integers from (key, round, row, column); llpf_fast/ops/counter_randint.py defines them.
namespace llpf {

struct CounterRandint {
  static constexpr int kMostRows = 4;

  int64_t rows, columns;
  int64_t bounds[kMostRows];

  /// C. Wellons' lowbias32.
  LLPF_HD static uint32_t hash32(uint32_t value) {
    value = (value ^ (value >> 16)) * 0x7FEB352Du;
    value = (value ^ (value >> 15)) * 0x846CA68Bu;
    return value ^ (value >> 16);
  }

  LLPF_HD static uint32_t absorb(uint32_t key, uint32_t part) { return hash32(key + hash32(part + 0x85EBCA6Bu)); }

  /// The round of a path: `first` plus the steps that its row of loss_gate_'s state has counted (null, or no number of
  /// steps: 0). The sum wraps.
  LLPF_HD static int64_t round(int64_t first, const double* state) {
    if (state == nullptr || !LossGate::counts(state[LossGate::kSteps])) return first;
    return static_cast<int64_t>(static_cast<uint64_t>(first) + static_cast<uint64_t>(state[LossGate::kSteps]));
  }

  /// The key of one row in one round. Row 0 is the stream of batches, the others share that of augmentation.
  LLPF_HD static uint32_t stream(int64_t key, int64_t round, int64_t row) {
    const auto number = static_cast<uint64_t>(round);
    const uint32_t low = absorb(static_cast<uint32_t>(key), static_cast<uint32_t>(number));
    const uint32_t counted = absorb(low, static_cast<uint32_t>(number >> 32));
    return row == 0 ? absorb(counted, 0) : hash32(absorb(counted, 1) + static_cast<uint32_t>(row - 1));
  }

  /// Without an index that only the GPU's local memory could follow.
  LLPF_HD int64_t bound(int64_t row) const {
    return row == 0 ? bounds[0] : row == 1 ? bounds[1] : row == 2 ? bounds[2] : bounds[3];
  }

  LLPF_HD int64_t element(uint32_t stream, int64_t row, int64_t column) const {
    const uint32_t bits = hash32(hash32(static_cast<uint32_t>(column) ^ stream) + (stream >> 7));
    return static_cast<int64_t>((static_cast<uint64_t>(bits) * static_cast<uint64_t>(bound(row))) >> 32);
  }
};

struct CounterRandintArguments {
  CounterRandint rule;
  int64_t* out;                // [paths, rows, columns]
  const int64_t *key, *first;  // [paths]
  Rows state;                  // of loss_gate_, or null
  int64_t paths;

  template <class A, class Bounds>
  static CounterRandintArguments of(const A& out, const A& key, const A& first, const std::optional<A>& state,
                                    const Bounds& bounds) {
    using check::Element, check::element_of;
    constexpr auto op = "counter_randint_";
    LLPF_CHECK(element_of(out) == Element::kInt64 && (out.dim() == 2 || out.dim() == 3) && out.is_contiguous(), op,
               ": out must be contiguous int64 [R, B] or [K, R, B], got ", check::describe(out));
    const int64_t k = out.dim() == 3 ? out.size(0) : 1;
    const auto counter = [&](const char* name, const A& value) {
      LLPF_CHECK(
          element_of(value) == Element::kInt64 && value.dim() < 2 && value.numel() == k && value.is_contiguous(), op,
          ": ", name, " must be contiguous int64 with ", k, " elements, got ", check::describe(value));
      check::same_device(op, out, name, value);
    };
    counter("key", key);
    counter("first", first);
    check::row_per_path(op, out, k, "state", state);
    LLPF_CHECK(!state || k == 0 || state->numel() > LossGate::kSteps * k, op,
               ": state must be that of loss_gate_, got ", check::describe(*state));
    check::Memory<A>(op).writes("out", out).reads("key", key).reads("first", first).reads("state", state);
    CounterRandint rule{out.size(out.dim() - 2), out.size(out.dim() - 1), {}};
    const auto count = static_cast<int64_t>(bounds.size());
    LLPF_CHECK(count == rule.rows && 1 <= count && count <= CounterRandint::kMostRows, op, ": bounds must be ", rule.rows,
               " integers (at most ", CounterRandint::kMostRows, "), got ", check::text(bounds));
    for (int64_t row = 0; row < count; ++row) {
      rule.bounds[row] = bounds[static_cast<size_t>(row)];
      LLPF_CHECK(1 <= rule.bounds[row] && rule.bounds[row] <= int64_t{1} << 31, op,
                 ": bounds must lie between 1 and 2^31, got ", check::text(bounds));
    }
    return {rule, pointer<int64_t>(out), pointer<const int64_t>(key), pointer<const int64_t>(first), Rows::of(state, k), k};
  }
};

namespace cpu {
void counter_randint(const CounterRandintArguments& arguments, const Threads& threads);
}
namespace cuda {
/// One launch.
Error counter_randint(const CounterRandintArguments& arguments, Stream stream);
}

}  // namespace llpf
