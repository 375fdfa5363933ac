#include "../draw.h"

#include "common.cuh"

namespace llpf::cuda {
namespace {

constexpr int64_t kLanes = 256;

/// A block is one row of one path, 256 columns at a time.
__global__ void draw_rows(int64_t* out, const int64_t* key, const int64_t* first, const Gate gate,
                          const Draw rule) {
  const auto rows = static_cast<unsigned>(rule.rows);
  const int64_t path = blockIdx.x / rows, row = blockIdx.x % rows;
  const int64_t round = Draw::round(first[path], gate.rows == nullptr ? nullptr : gate.rows + path * gate.columns);
  const uint32_t stream = Draw::stream(key[path], round, row);
  LLPF_ROLLED
  for (int64_t column = blockIdx.y * kLanes + threadIdx.x; column < rule.columns; column += gridDim.y * kLanes)
    out[blockIdx.x * rule.columns + column] = rule.element(stream, row, column);
}

}  // namespace

cudaError_t draw(const Draw& rule, int64_t* out, const int64_t* key, const int64_t* first, const Gate& gate,
                 int64_t paths, cudaStream_t stream) {
  if (paths == 0 || rule.columns == 0) return cudaSuccess;
  const dim3 blocks = grid(paths * rule.rows, (rule.columns + kLanes - 1) / kLanes);
  draw_rows<<<blocks, kLanes, 0, stream>>>(out, key, first, gate, rule);
  return cudaGetLastError();
}

}  // namespace llpf::cuda
