#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace llpf::cuda {

/// An iteration that repeats itself on the device, as one launch; one device, one launch at a time.
struct WhileGraph {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
};

/// When the repetition ends: once `LossGate::goes_on` holds for none of the paths of `state [paths, 4 + window]`, or
/// after `max_iterations`, which are counted in `*left`. Both lie on the device and outlive the graph.
struct WhileRule {
  const double* state;
  int64_t paths, window, max_iterations;
  int64_t* left;
};

/// Why this driver has no conditional nodes; null: it has.
const char* while_unsupported();

/// Makes `out` of a copy of `body`, which counts its own steps in `rule.state` and may hold kernels, copies and fills
/// within device memory, and child graphs of these; memory that it uses stays its owner's. cudaErrorNotSupported where it
/// holds anything else, otherwise the first error; `out` is then empty.
cudaError_t make_while(cudaGraph_t body, const WhileRule& rule, WhileGraph& out);

/// Queues one launch.
cudaError_t launch(const WhileGraph& graph, cudaStream_t stream);

void destroy(WhileGraph& graph);

}  // namespace llpf::cuda
