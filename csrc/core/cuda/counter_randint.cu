#include "../counter_randint.h"

#include "common.cuh"

namespace llpf::cuda {
namespace {

constexpr int64_t kLanes = 256;

/// A block is one row of one path, 256 columns at a time.
__global__ void randint_rows(const CounterRandintArguments a) {
  const CounterRandint& rule = a.rule;
  const auto rows = static_cast<unsigned>(rule.rows);
  const int64_t path = blockIdx.x / rows, row = blockIdx.x % rows;
  const int64_t round = CounterRandint::round(a.first[path], a.state ? a.state[path] : nullptr);
  const uint32_t stream = CounterRandint::stream(a.key[path], round, row);
  LLPF_ROLLED
  for (int64_t column = blockIdx.y * kLanes + threadIdx.x; column < rule.columns; column += gridDim.y * kLanes)
    a.out[blockIdx.x * rule.columns + column] = rule.element(stream, row, column);
}

}  // namespace

Error counter_randint(const CounterRandintArguments& a, Stream stream) {
  if (a.paths == 0 || a.rule.columns == 0) return cudaSuccess;
  const dim3 blocks = grid(a.paths * a.rule.rows, (a.rule.columns + kLanes - 1) / kLanes);
  randint_rows<<<blocks, kLanes, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace llpf::cuda
