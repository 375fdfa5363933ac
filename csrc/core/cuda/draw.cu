#include "../draw.h"

#include "common.cuh"

namespace llpf::cuda {
namespace {

constexpr unsigned kLanes = 256;

/// A block is 256 columns of one row of one path.
__global__ void draw_rows(int64_t* out, const int64_t* key, const int64_t* first, const Gate gate,
                          const Draw rule) {
  const int64_t path = blockIdx.y / rule.rows, row = blockIdx.y % rule.rows;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kLanes + threadIdx.x;
  if (column >= rule.columns) return;
  const int64_t round = Draw::round(first[path], gate.rows == nullptr ? nullptr : gate.rows + path * gate.columns);
  out[blockIdx.y * rule.columns + column] = rule.element(Draw::stream(key[path], round, row), row, column);
}

}  // namespace

cudaError_t draw(const Draw& rule, int64_t* out, const int64_t* key, const int64_t* first, const Gate& gate,
                 int64_t paths, cudaStream_t stream) {
  if (paths == 0 || rule.columns == 0) return cudaSuccess;
  const dim3 blocks(static_cast<unsigned>((rule.columns + kLanes - 1) / kLanes), static_cast<unsigned>(paths * rule.rows));
  draw_rows<<<blocks, kLanes, 0, stream>>>(out, key, first, gate, rule);
  return cudaGetLastError();
}

}  // namespace llpf::cuda
