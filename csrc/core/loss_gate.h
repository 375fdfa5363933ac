#pragma once

#include <cstdint>
#include <limits>

#include "macros.h"

// Whether the correction goes on; columns of the state as in llpf_fast/ops/loss_gate.py.
namespace llpf {

struct LossGate {
  static constexpr int kOpen = 0, kLast = 1, kRounds = 2, kMean = 3, kWindow = 4;
  static constexpr double kNaN = std::numeric_limits<double>::quiet_NaN(), kMostRounds = 0x1p53;

  double threshold;
  int64_t min_rounds, max_rounds;

  /// Whether a number of rounds can be counted with: a whole number from 0 to 2^53.
  LLPF_HD static bool counts(double rounds) {
    return 0 <= rounds && rounds <= kMostRounds && static_cast<double>(static_cast<int64_t>(rounds)) == rounds;
  }

  /// Take the loss of one path into account; `state` is its row [4 + min_rounds]. A row whose rounds cannot be counted with
  /// closes, and its mean becomes NaN: the CPU refuses it before, a GPU's memory nobody looks at.
  LLPF_HD void operator()(double* state, double loss) const {
    const bool open = state[kOpen] != 0 && state[kLast] == 0, counted = counts(state[kRounds]);
    if (!open || !counted) {
      state[kOpen] = state[kLast] = 0;
      if (open) state[kMean] = kNaN;
      return;
    }
    double* window = state + kWindow;
    window[static_cast<int64_t>(state[kRounds]) % min_rounds] = loss;
    const double rounds = state[kRounds] + 1;
    const double least = static_cast<double>(min_rounds), most = static_cast<double>(max_rounds);
    double total = 0;
    for (int64_t i = 0; i < min_rounds; ++i) total += window[i];
    const double mean = total / (rounds < least ? rounds : least);
    state[kOpen] = 1;
    state[kLast] = (rounds >= least && mean <= threshold) || rounds >= most;
    state[kRounds] = rounds;
    state[kMean] = mean;
  }

  /// Whether another iteration has anything to do: the gate is open, this update did not close it, and the newest loss is a
  /// finite number (nothing mends what one that is not has done).
  LLPF_HD static bool goes_on(const double* state, int64_t min_rounds) {
    if (state[kOpen] == 0 || state[kLast] != 0 || !counts(state[kRounds])) return false;
    const auto rounds = static_cast<int64_t>(state[kRounds]);
    if (rounds == 0) return true;
    const double newest = state[kWindow + (rounds - 1) % min_rounds];
    return newest - newest == 0;
  }
};

}  // namespace llpf
