#pragma once

#include <cstdint>

#include "loss_gate.h"
#include "macros.h"

// The integers of one batch from (key, round, row, column); llpf_fast/ops/draw.py says what they are.
namespace llpf {

struct Draw {
  static constexpr int kMostRows = 4;

  int64_t rows, columns;
  int64_t bounds[kMostRows];

  /// C. Wellons' lowbias32.
  LLPF_HD static uint32_t mix(uint32_t value) {
    value = (value ^ (value >> 16)) * 0x7FEB352Du;
    value = (value ^ (value >> 15)) * 0x846CA68Bu;
    return value ^ (value >> 16);
  }

  LLPF_HD static uint32_t absorb(uint32_t key, uint32_t part) { return mix(key + mix(part + 0x85EBCA6Bu)); }

  /// The round of a path: where its correction began, and what its gate (null without one) has counted since (0 where that
  /// is no number of rounds). The sum wraps.
  LLPF_HD static int64_t round(int64_t first, const double* gate) {
    if (gate == nullptr || !LossGate::counts(gate[LossGate::kRounds])) return first;
    return static_cast<int64_t>(static_cast<uint64_t>(first) + static_cast<uint64_t>(gate[LossGate::kRounds]));
  }

  /// The key of one row in one round. Row 0 is the stream of batches, the others share that of augmentation.
  LLPF_HD static uint32_t stream(int64_t key, int64_t round, int64_t row) {
    const auto number = static_cast<uint64_t>(round);
    const uint32_t low = absorb(static_cast<uint32_t>(key), static_cast<uint32_t>(number));
    const uint32_t counted = absorb(low, static_cast<uint32_t>(number >> 32));
    return row == 0 ? absorb(counted, 0) : mix(absorb(counted, 1) + static_cast<uint32_t>(row - 1));
  }

  /// Without an index that only the GPU's local memory could follow.
  LLPF_HD int64_t bound(int64_t row) const {
    return row == 0 ? bounds[0] : row == 1 ? bounds[1] : row == 2 ? bounds[2] : bounds[3];
  }

  LLPF_HD int64_t element(uint32_t stream, int64_t row, int64_t column) const {
    const uint32_t bits = mix(mix(static_cast<uint32_t>(column) ^ stream) + (stream >> 7));
    return static_cast<int64_t>((static_cast<uint64_t>(bits) * static_cast<uint64_t>(bound(row))) >> 32);
  }
};

}  // namespace llpf
