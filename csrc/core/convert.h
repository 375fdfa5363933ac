#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include "macros.h"

// Storage types and the arithmetic type of each: 16-bit values are widened to float, float stays, double stays.
namespace llpf {

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

/// Storage types by number, for run-time dispatch and for foreign callers.
enum class Dtype { kFloat32, kFloat64, kBfloat16, kFloat16 };

LLPF_HD constexpr int64_t bytes_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

/// Type of the elementwise arithmetic on storage T.
template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

template <class To, class From>
LLPF_HD To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To out;
  memcpy(&out, &value, sizeof(To));
  return out;
}

LLPF_HD float widen(float value) { return value; }
LLPF_HD double widen(double value) { return value; }

LLPF_HD float widen(Bfloat16 value) { return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

LLPF_HD float widen(Float16 value) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(value.bits));
#else
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  // A subnormal is a multiple of 2^-24. (Shifting its bits and multiplying by 2^112 would serve all values, but goes
  // through a subnormal float, which a processor that flushes those makes 0.)
  const float small = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  const uint32_t normal = (magnitude << 13) + 0x38000000u;
  const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;
  return bit_cast<float>((magnitude < 0x400u ? bit_cast<uint32_t>(small) : normal) | special | sign);
#endif
}

/// `narrow<T>(x)`: x in storage T, rounded to nearest even; a NaN stays one.
template <class T>
struct Narrow {
  LLPF_HD static T from(Compute<T> value) { return value; }
};

template <>
struct Narrow<Bfloat16> {
  LLPF_HD static Bfloat16 from(float value) {
    const uint32_t bits = bit_cast<uint32_t>(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return {static_cast<uint16_t>(value != value ? 0x7fc0u : rounded)};
  }
};

template <>
struct Narrow<Float16> {
  LLPF_HD static Float16 from(float value) {
#if defined(__CUDA_ARCH__)
    return {__half_as_ushort(__float2half_rn(value))};
#else
    const uint32_t bits = bit_cast<uint32_t>(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t half;
    if (magnitude > 0x7f800000u) {
      half = 0x7e00u;
    } else if (magnitude >= 0x477ff000u) {  // 65520: the first value that rounds to infinity
      half = 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // 2^-14: subnormal; adding 1/2 makes the hardware round at 2^-24
      half = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<uint32_t>(0.5f);
    } else {
      half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    }
    return {static_cast<uint16_t>(half | sign)};
#endif
  }
};

template <class T>
LLPF_HD T narrow(Compute<T> value) {
  return Narrow<T>::from(value);
}

}  // namespace llpf
