// Vectors of the instruction set that this translation unit is compiled for. Include it from isa_*.cpp only: they
// define LLPF_ISA, the namespace that keeps code of different instruction sets apart.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../convert.h"

namespace llpf::LLPF_ISA {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <class T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Vector = typename VectorOf<T, N>::type;

/// Elements of T in a register.
template <class T>
constexpr int kLanes = kBytes / static_cast<int>(sizeof(T));

template <class V>
LLPF_HD V load_bits(const void* from) {
  V out;
  memcpy(&out, from, sizeof(V));
  return out;
}

// Compilers turn __builtin_convertvector into half-width pieces where one instruction exists, hence the intrinsics.

template <int N>
LLPF_HD Vector<double, N> to_double(Vector<float, N> value) {
#if defined(__AVX512F__)
  if constexpr (N == 8) return _mm512_cvtps_pd(value);
#endif
#if defined(__AVX2__)
  if constexpr (N == 4) return _mm256_cvtps_pd(value);
#endif
  return __builtin_convertvector(value, Vector<double, N>);
}

template <int N>
LLPF_HD Vector<float, N> load_floats(const float* from) {
  return load_bits<Vector<float, N>>(from);
}

template <int N>
LLPF_HD Vector<float, N> load_floats(const Bfloat16* from) {
  const auto bits = load_bits<Vector<uint16_t, N>>(from);
#if defined(__AVX2__)
  if constexpr (N == 4) return (__m128)_mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadu_si64(from)), 16);
  if constexpr (N == 8) return (__m256)_mm256_slli_epi32(_mm256_cvtepu16_epi32((__m128i)bits), 16);
#endif
  return bit_cast<Vector<float, N>>(__builtin_convertvector(bits, Vector<uint32_t, N>) << 16);
}

template <int N>
LLPF_HD Vector<float, N> load_floats(const Float16* from) {
#if defined(__F16C__)
  if constexpr (N == 4) return _mm_cvtph_ps(_mm_loadu_si64(from));
  if constexpr (N == 8) return _mm256_cvtph_ps(load_bits<__m128i>(from));
#endif
#if defined(__AVX512F__)
  if constexpr (N == 16) return _mm512_cvtph_ps(load_bits<__m256i>(from));
#endif
  Vector<float, N> out;
  for (int i = 0; i < N; ++i) out[i] = widen(from[i]);
  return out;
}

/// kLanes<C> elements of storage T, widened to C.
template <class C, class T>
LLPF_HD Vector<C, kLanes<C>> load(const T* from) {
  if constexpr (sizeof(T) == sizeof(double)) return load_bits<Vector<double, kLanes<double>>>(from);
  else if constexpr (sizeof(C) == sizeof(double)) return to_double<kLanes<double>>(load_floats<kLanes<double>>(from));
  else return load_floats<kLanes<float>>(from);
}

LLPF_HD void store(double* to, Vector<double, kLanes<double>> value) { memcpy(to, &value, sizeof(value)); }
LLPF_HD void store(float* to, Vector<float, kLanes<float>> value) { memcpy(to, &value, sizeof(value)); }

LLPF_HD void store(Bfloat16* to, Vector<float, kLanes<float>> value) {
  constexpr int N = kLanes<float>;
  using Bits = Vector<uint32_t, N>;
  const Bits bits = bit_cast<Bits>(value), rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const auto narrow = __builtin_convertvector(value == value ? rounded : Bits{} + 0x7fc0u, Vector<uint16_t, N>);
  memcpy(to, &narrow, sizeof(narrow));
}

LLPF_HD void store(Float16* to, Vector<float, kLanes<float>> value) {
#if defined(__AVX512F__)
  const __m256i bits = _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  memcpy(to, &bits, sizeof(bits));
#elif defined(__F16C__)
  const __m128i bits = _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT);
  memcpy(to, &bits, sizeof(bits));
#else
  for (int i = 0; i < kLanes<float>; ++i) to[i] = narrow<Float16>(value[i]);
#endif
}

/// The first `count` of kLanes<T> neighbours; the other lanes are 0, and nothing is read there.
template <class T>
LLPF_HD Vector<T, kLanes<T>> load_some(const T* from, int64_t count) {
#if defined(__AVX512F__)
  const auto mask = static_cast<uint32_t>((uint64_t{1} << count) - 1);
  if constexpr (sizeof(T) == sizeof(float)) return _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from);
  else return _mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), from);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == sizeof(float)) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(from, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes));
  } else {
    return _mm256_maskload_pd(from, _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3)));
  }
#else
  Vector<T, kLanes<T>> out{};
  for (int64_t i = 0; i < count; ++i) out[i] = from[i];
  return out;
#endif
}

/// Writes the first `count` lanes.
template <class T>
LLPF_HD void store_some(T* to, Vector<T, kLanes<T>> value, int64_t count) {
#if defined(__AVX512F__)
  const auto mask = static_cast<uint32_t>((uint64_t{1} << count) - 1);
  if constexpr (sizeof(T) == sizeof(float)) _mm512_mask_storeu_ps(to, static_cast<__mmask16>(mask), value);
  else _mm512_mask_storeu_pd(to, static_cast<__mmask8>(mask), value);
#else
  // The masked stores of AVX2 take 20 operations and more on AMD's processors.
  for (int64_t i = 0; i < count; ++i) to[i] = value[i];
#endif
}

/// Elements 0, 2, 4, ... of two registers that lie one behind the other, overlapping by one element.
template <class T, class V = Vector<T, kLanes<T>>>
LLPF_HD V every_second(V lower, V upper) {
  constexpr int N = kLanes<T>;
#if defined(__AVX512F__)
  if constexpr (N == 16) {
    const __m512i at = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31);
    return _mm512_permutex2var_ps(lower, at, upper);
  }
  if constexpr (N == 8) return _mm512_permutex2var_pd(lower, _mm512_setr_epi64(0, 2, 4, 6, 9, 11, 13, 15), upper);
#endif
  V out;
  for (int i = 0; i < N; ++i) out[i] = 2 * i < N ? lower[2 * i] : upper[2 * i - N + 1];
  return out;
}

using Doubles = Vector<double, kLanes<double>>;

LLPF_HD Doubles multiply_add(Doubles a, Doubles b, Doubles c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_pd(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_pd(a, b, c);
#else
  return a * b + c;
#endif
}

/// a - b by way of the multipliers, a * 1 - b: the reduction's additions and conversions would otherwise queue for Zen's
/// two adders while its two multipliers idle (measured: 13.2 instead of 17.0 µs for 61,440 pairs). On Intel they are one
/// unit. In assembly because a compiler sees through the product, or keeps the 1 in a register that ten sums need: the
/// sum that has to go through memory instead delays all others (0.35 instead of 0.17 ns an element).
LLPF_HD Doubles minus(Doubles a, Doubles b) {
#if defined(__FMA__)
  static const Doubles ones = Doubles{} + 1.0;
  asm("vfmsub132pd %2, %1, %0" : "+v"(a) : "v"(b), "m"(ones));
  return a;
#else
  return a - b;
#endif
}

}  // namespace llpf::LLPF_ISA
