#pragma once

#include <cstdint>
#include <limits>

#include "arguments.h"
#include "macros.h"

// `loss_gate_`: whether the correction goes on; columns of the state as in llpf_fast/ops/loss_gate.py.
namespace llpf {

struct LossGate {
  static constexpr int kActive = 0, kFinal = 1, kSteps = 2, kMean = 3, kWindow = 4;
  static constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(), kMostSteps = 0x1p53;

  double threshold;
  int64_t window, max_steps;

  /// Whether a number of steps can be counted with: a whole number from 0 to 2^53.
  LLPF_HD static bool counts(double steps) {
    return 0 <= steps && steps <= kMostSteps && static_cast<double>(static_cast<int64_t>(steps)) == steps;
  }

  /// Take the loss of one path into account; `state` is its row [4 + window]. A row whose steps cannot be counted with
  /// closes, and its mean becomes NaN. (The CPU refuses such a row before; a GPU's memory is not checked.)
  LLPF_HD void operator()(double* state, double loss) const {
    const bool active = state[kActive] != 0 && state[kFinal] == 0, counted = counts(state[kSteps]);
    if (!active || !counted) {
      state[kActive] = state[kFinal] = 0;
      if (active) state[kMean] = kNaN;
      return;
    }
    double* losses = state + kWindow;
    losses[static_cast<int64_t>(state[kSteps]) % window] = loss;
    const double steps = state[kSteps] + 1;
    const double least = static_cast<double>(window), most = static_cast<double>(max_steps);
    double total = 0;
    for (int64_t i = 0; i < window; ++i) total += losses[i];
    const double mean = total / (steps < least ? steps : least);
    state[kActive] = 1;
    state[kFinal] = (steps >= least && mean <= threshold) || steps >= most;
    state[kSteps] = steps;
    state[kMean] = mean;
  }

  /// Whether another iteration has anything to do: the path is active, its last update was not the final one, and the newest
  /// loss is finite (no later iteration repairs what a loss that is not has done).
  LLPF_HD static bool goes_on(const double* state, int64_t window) {
    if (state[kActive] == 0 || state[kFinal] != 0 || !counts(state[kSteps])) return false;
    const auto steps = static_cast<int64_t>(state[kSteps]);
    if (steps == 0) return true;
    const double newest = state[kWindow + (steps - 1) % window];
    return newest - newest == 0;
  }
};

struct LossGateArguments {
  double* state;     // [paths, 4 + window]
  const void* loss;  // [paths]
  Dtype loss_dtype;
  int64_t paths;
  LossGate gate;

  template <class A>
  static LossGateArguments of(const A& state, const A& loss, const LossGate& gate) {
    constexpr auto op = "loss_gate_";
    LLPF_CHECK(1 <= gate.window && gate.window <= gate.max_steps, op, ": needs 1 <= window <= max_steps, got ",
               gate.window, " and ", gate.max_steps);
    LLPF_CHECK(gate.threshold == gate.threshold, op, ": threshold must be a number, got ", gate.threshold);
    const int64_t width = LossGate::kWindow + gate.window, k = state.dim() == 2 ? state.size(0) : 1;
    check::float64(op, state, "state", state, {{width}, {k, width}});
    LLPF_CHECK(check::is_floating(check::element_of(loss)) && loss.numel() == k && loss.is_contiguous(), op,
               ": loss must be floating point, contiguous, with ", k, " elements, got ", check::describe(loss));
    check::same_device(op, state, "loss", loss);
    check::Memory<A>(op).writes("state", state).reads("loss", loss);
    return {pointer(state), loss.data_ptr(), check::dtype_of(loss), k, gate};
  }
};

namespace cpu {
void loss_gate(const LossGateArguments& arguments, const Threads& threads);
}
namespace cuda {
/// One launch.
Error loss_gate(const LossGateArguments& arguments, Stream stream);
}

}  // namespace llpf
