#pragma once

#include <cstdint>

// The integers of llpf_fast/ops/flags.py; tests/ops/test_flags.py compares them. Meanings are explained there.
namespace llpf {

enum Flag : int64_t {
  kMasked = 1,
  kHold = 2,
  kCompensate = 4,
  kTwice = 8,
  kFree = 16,
  kFrozen = 32,
};

enum class Destination : int64_t {
  kPoint = 0,
  kOrigin = 1,
  kInfinity = 2,
  kMean = 3,
  kVarianceSphere = 4,
  kNormSphere = 5,
};

}  // namespace llpf
