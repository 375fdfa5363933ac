#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "../core/cuda/while_graph.h"

// csrc/core/cuda/while_graph.h for ctypes (llpf_fast/correct/graphs.py): handles are addresses. No torch op takes a
// captured graph, and none is needed: a launch takes no tensors.
#define LLPF_EXPORT extern "C" __attribute__((visibility("default")))

using llpf::cuda::WhileGraph;

namespace {

/// Clears the runtime's last error, which torch would otherwise report after its next launch.
cudaError_t take_error(cudaError_t error) {
  if (error != cudaSuccess) static_cast<void>(cudaGetLastError());
  return error;
}

}  // namespace

/// Why there can be no such graph here; null: there can.
LLPF_EXPORT const char* llpf_while_unsupported() { return llpf::cuda::while_unsupported(); }

/// A new graph in `*out`; 0, or the CUDA error that prevented it.
LLPF_EXPORT int llpf_while_make(void* body, const double* state, int64_t paths, int64_t window, int64_t max_iterations,
                                int64_t* left, void** out) {
  auto graph = std::make_unique<WhileGraph>();
  const cudaError_t error =
      llpf::cuda::make_while(static_cast<cudaGraph_t>(body), {state, paths, window, max_iterations, left}, *graph);
  if (error == cudaSuccess) *out = graph.release();
  return take_error(error);
}

LLPF_EXPORT int llpf_while_launch(const void* graph, void* stream) {
  return take_error(llpf::cuda::launch(*static_cast<const WhileGraph*>(graph), static_cast<cudaStream_t>(stream)));
}

LLPF_EXPORT void llpf_while_destroy(void* graph) {
  const std::unique_ptr<WhileGraph> owned(static_cast<WhileGraph*>(graph));
  llpf::cuda::destroy(*owned);
}

LLPF_EXPORT const char* llpf_while_error(int error) {
  if (error == cudaErrorNotSupported) return "the iteration contains something other than kernels, copies and fills";
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
