#include "coefficients.cuh"

namespace llpf::cuda {
namespace {

// One warp a block: linked rows are most often a weight and its bias. Without the 1, ptxas spills for occupancy's sake.
__global__ void __launch_bounds__(kWarp, 1) solve_coefficients(const double* moments, int64_t paths, const Table table,
                                                            const RuleArguments rule, double* coefficients) {
  const Range rows = linked_rows(table, blockIdx.x);
  if (rows.begin == rows.end) return;
  for (int64_t k = blockIdx.y; k < paths; k += gridDim.y) {
    const PathArguments path = rule.path(k, moments, table.segment_count);
    solve({table, rule.rule, path, coefficients + k * table.segment_count * kCoefficientColumns}, table, rows);
  }
}

}  // namespace

cudaError_t launch_coefficients(const double* moments, int64_t paths, const Table& table, const RuleArguments& rule,
                                double* out, cudaStream_t stream) {
  if (paths == 0 || table.segment_count == 0) return cudaSuccess;
  solve_coefficients<<<grid(table.segment_count, paths), kWarp, 0, stream>>>(moments, paths, table, rule, out);
  return cudaGetLastError();
}

Error coefficients(const CoefficientsArguments& arguments, double* out, Stream stream) {
  return launch_coefficients(arguments.moments, arguments.paths, arguments.table, arguments.rule, out, stream);
}

}  // namespace llpf::cuda
