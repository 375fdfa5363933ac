#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "../coefficients.h"
#include "../convert.h"
#include "../draw.h"
#include "../loss_gate.h"
#include "../moments.h"
#include "../table.h"

// The CUDA kernels for callers without a framework: raw device pointers and a stream.
//
// Every function queues its kernels on `stream` of the current device and returns the first error of queueing them. None
// synchronises, allocates device memory or reads device memory on the host, so each may be captured into a CUDA graph.
// What an argument means stands in llpf_fast/ops/<op>.py; arguments are not checked here.
namespace llpf::cuda {

/// p `[paths, numel]`, and d `[numel]` (row 0 for every path) or `[paths, numel]`; data null where there is no d.
struct Values {
  void* p;
  Dtype p_dtype;
  int64_t paths, numel;
  const void* d = nullptr;
  Dtype d_dtype = Dtype::kFloat32;
  bool d_shared = true;
};

/// `gate [paths, columns]`; rows null: every path is open.
struct Gate {
  const double* rows = nullptr;
  int64_t columns = 1;

  LLPF_HD bool open(int64_t path) const { return rows == nullptr || rows[path * columns + LossGate::kOpen] != 0; }
};

/// Parts of `scratch`, float64 [paths (5 C + 10 S)]; the contents on entry do not matter.
struct Scratch {
  double *partials, *moments, *coefficients;  // [paths, C, 5], [paths, S, 5], [paths, S, 5]

  static Scratch of(double* scratch, const Table& table, int64_t paths) {
    double* const moments = scratch + paths * table.chunk_count * kMomentColumns;
    return {scratch, moments, moments + paths * table.segment_count * kMomentColumns};
  }
};

/// What `coefficients` and `tick` have in common; `*_stride` is 0 where all paths share one row.
struct RuleArguments {
  Rule rule;
  const double* target_variance;
  int64_t target_variance_stride;
  const double* step;
  int64_t step_stride;
  const double* radius = nullptr;
  Gate gate;

  LLPF_HD PathArguments path(int64_t k, const double* moments, int64_t segment_count) const {
    return {moments + k * segment_count * kMomentColumns, target_variance + k * target_variance_stride,
            step + k * step_stride, radius, gate.open(k)};
  }
};

/// `lr` of `sgd`: element (path, segment) at `rates[path * path_stride + segment * segment_stride]`.
struct SgdArguments {
  const void* g;
  void* momentum_buffer = nullptr;
  const double* rates;
  int64_t path_stride = 0, segment_stride = 0;
  double momentum = 0, weight_decay = 0;
  bool nesterov = false;
  Gate gate;
};

/// Two launches: a block per chunk, then a block per segment.
cudaError_t moments(const Values& values, const Table& table, double* scratch, double* out, cudaStream_t stream);

/// One launch. `coefficients` is `[paths, S, 5]`.
cudaError_t coefficients(const double* moments, int64_t paths, const Table& table, const RuleArguments& rule,
                         double* coefficients, cudaStream_t stream);

/// One launch.
cudaError_t affine(const Values& values, const Table& table, const double* coefficients, cudaStream_t stream);

/// How a tick without `moments_in` is launched. The plans give the same bits; naming one is for tests and measurements.
enum class TickPlan { kChoose, kStages, kOnChip };

/// One cooperative launch where p and d of the whole call fit on the chip, else three; two with `moments_in`.
cudaError_t tick(const Values& values, const Table& table, const RuleArguments& rule, const double* moments_in,
                 void* waypoint, double* scratch, TickPlan plan, cudaStream_t stream);

/// One launch; of `values` only p counts.
cudaError_t sgd(const Values& values, const Table& table, const SgdArguments& arguments, cudaStream_t stream);

/// One launch. `loss` holds one element a path, of type `loss_dtype`.
cudaError_t loss_gate(double* state, const void* loss, Dtype loss_dtype, int64_t paths, const LossGate& rule,
                      cudaStream_t stream);

/// One launch. `out` is `[paths, rows, columns]`, `key` and `first` `[paths]`; `gate` rows null: the round is `first`.
cudaError_t draw(const Draw& rule, int64_t* out, const int64_t* key, const int64_t* first, const Gate& gate,
                 int64_t paths, cudaStream_t stream);

}  // namespace llpf::cuda
