// The CPU kernels' inner loops without and with each thing that was done to them; see docs/performance.md. Chunks as the
// ops cut them. Arguments: elements, rounds, calls a round. Prints "name<tab>nanoseconds an element" of every round.
#define LLPF_ISA avx2
#include "../../csrc/core/cpu/chunk_kernels.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>

namespace {

using namespace llpf;
using namespace llpf::avx2;
/// As SegmentTable cuts. Not a constant, or the compiler would specialise the loops for it.
int64_t chunk = 4096;

/// As the specification reads: one element after another, in float64, about the first.
void reduce_scalar(const float* p, const float* d, int64_t n, double* row) {
  const Shift shift = Shift::at(p, d);
  ShiftedSums sums;
  for (int64_t i = 0; i < n; ++i) sums.add(shift, widen(p[i]), widen(d[i]));
  sums.finish(static_cast<double>(n), shift).store(row);
}

/// Eight lanes; nothing asked for ahead.
template <Centre kCentre>
void reduce_vector(const float* p, const float* d, int64_t n, double* row) {
  const Shift shift = kCentre == Centre::kFirst ? Shift::at(p, d) : Shift{0, 0};
  Reduction<true, kCentre> reduction(shift);
  for (int64_t i = 0; i + kReductionLanes <= n; i += kReductionLanes) reduction.add(p + i, d + i);
  reduction.finish(n, shift).store(row);
}

void read_both(const float* p, const float* d, int64_t n, double* row) {
  Vector<float, 8> sums[8] = {};
  for (int64_t i = 0; i + 32 <= n; i += 32)
    for (int k = 0; k < 4; ++k) {
      sums[k] += load_bits<Vector<float, 8>>(p + i + 8 * k);
      sums[4 + k] += load_bits<Vector<float, 8>>(d + i + 8 * k);
    }
  for (int k = 1; k < 8; ++k) sums[0] += sums[k];
  row[0] = sums[0][0];
}

float* buffer(int64_t n, std::mt19937& random) {
  const size_t bytes = (static_cast<size_t>(n + chunk) * sizeof(float) + 4095) / 4096 * 4096;
  auto* values = static_cast<float*>(std::aligned_alloc(4096, bytes));
  std::normal_distribution<float> normal(0.0f, 0.02f);
  // Drawing a normal number costs ten times what the kernels do: a short stretch repeats.
  for (int64_t i = 0; i < n; ++i) values[i] = i < 65536 ? normal(random) : values[i - 65536];
  return values;
}

}  // namespace

int main(int, char** arguments) {
  const int64_t n = std::atoll(arguments[1]) / chunk * chunk;
  const int rounds = std::atoi(arguments[2]), calls = std::atoi(arguments[3]);
  std::mt19937 random(0);
  float *p = buffer(n, random), *d = buffer(n, random), *g = buffer(n, random), *moving = buffer(n, random);
  const SgdRule<double> momentum{0.9, 0.0, false};
  const double map[3] = {0.999, 0.001, 0.0}, rate = 1e-9;
  double row[kMomentColumns];

  using Piece = std::function<void(int64_t)>;
  const std::pair<const char*, Piece> steps[] = {
      {"read p and d", [&](int64_t i) { read_both(p + i, d + i, chunk, row); }},
      {"moments: scalar", [&](int64_t i) { reduce_scalar(p + i, d + i, chunk, row); }},
      {"moments: eight lanes", [&](int64_t i) { reduce_vector<Centre::kFirst>(p + i, d + i, chunk, row); }},
      {"moments: about zero", [&](int64_t i) { reduce_vector<Centre::kZero>(p + i, d + i, chunk, row); }},
      {"moments: as shipped", [&](int64_t i) { reduce<float, float>(p + i, d + i, chunk, row); }},
      {"map", [&](int64_t i) { apply<float, float>(p + i, d + i, p + i, chunk, map); }},
      {"update", [&](int64_t i) { sgd<float>(p + i, g + i, moving + i, chunk, rate, momentum); }},
  };
  for (int round = 0; round < rounds; ++round)
    for (const auto& [name, step] : steps) {
      const auto begin = std::chrono::steady_clock::now();
      for (int call = 0; call < calls; ++call)
        for (int64_t i = 0; i < n; i += chunk) step(i);
      const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - begin;
      std::printf("%s\t%.6f\n", name, spent.count() / static_cast<double>(calls * n));
    }
}
