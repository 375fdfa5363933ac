#include "while_graph.h"

#include <vector>

#include "../loss_gate.h"
#include "../reduction.h"

namespace llpf::cuda {
namespace {

/// One warp. `left` is set to the iterations allowed before the loop and decremented after each, so that a body that never
/// changes the gate does not run for ever.
__global__ void set_condition(cudaGraphConditionalHandle handle, WhileRule rule, bool before) {
  bool goes_on = false;
  LLPF_ROLLED
  for (int64_t k = threadIdx.x; k < rule.paths; k += kWarp)
    goes_on = goes_on || LossGate::goes_on(rule.state + k * (LossGate::kWindow + rule.window), rule.window);
  const bool any = __ballot_sync(0xffffffffu, goes_on) != 0;
  if (threadIdx.x != 0) return;
  const int64_t left = before ? rule.max_iterations : *rule.left - 1;
  *rule.left = left;
  cudaGraphSetConditional(handle, any && left > 0 ? 1 : 0);
}

/// Adds `set_condition` after `after` (null: at the beginning).
cudaError_t add_condition(cudaGraph_t graph, const cudaGraphNode_t* after, cudaGraphConditionalHandle handle, WhileRule rule,
                          bool before, cudaGraphNode_t& node) {
  void* arguments[] = {&handle, &rule, &before};
  const cudaKernelNodeParams kernel{reinterpret_cast<void*>(set_condition), dim3(1), dim3(kWarp), 0, arguments, nullptr};
  return cudaGraphAddKernelNode(&node, graph, after, after == nullptr ? 0 : 1, &kernel);
}

/// cudaErrorNotSupported for a node that a conditional body may not have, at any depth. Instantiation would fail as well,
/// but with cudaErrorInvalidValue.
cudaError_t check_nodes(cudaGraph_t graph) {
  size_t count = 0;
  cudaError_t error = cudaGraphGetNodes(graph, nullptr, &count);
  std::vector<cudaGraphNode_t> nodes(count);
  if (error == cudaSuccess && count > 0) error = cudaGraphGetNodes(graph, nodes.data(), &count);
  for (size_t i = 0; error == cudaSuccess && i < count; ++i) {
    cudaGraphNodeType type;
    error = cudaGraphNodeGetType(nodes[i], &type);
    if (error != cudaSuccess) break;
    switch (type) {
      case cudaGraphNodeTypeKernel:
      case cudaGraphNodeTypeMemcpy:
      case cudaGraphNodeTypeMemset:
      case cudaGraphNodeTypeEmpty:
        break;
      case cudaGraphNodeTypeGraph: {
        cudaGraph_t inner = nullptr;
        error = cudaGraphChildGraphNodeGetGraph(nodes[i], &inner);
        if (error == cudaSuccess) error = check_nodes(inner);
        break;
      }
      default:
        return cudaErrorNotSupported;
    }
  }
  return error;
}

/// Begin -> WHILE { body -> again }.
cudaError_t fill(cudaGraph_t graph, cudaGraph_t body, const WhileRule& rule) {
  cudaGraphConditionalHandle handle;
  // 0 at every launch: whatever `begin` is prevented from doing, the loop does not run.
  cudaError_t error = cudaGraphConditionalHandleCreate(&handle, graph, 0, cudaGraphCondAssignDefault);
  if (error != cudaSuccess) return error;
  cudaGraphNode_t begin, loop, iteration, again;
  error = add_condition(graph, nullptr, handle, rule, true, begin);
  if (error != cudaSuccess) return error;
  cudaGraphNodeParams conditional{};
  conditional.type = cudaGraphNodeTypeConditional;
  conditional.conditional.handle = handle;
  conditional.conditional.type = cudaGraphCondTypeWhile;
  conditional.conditional.size = 1;
#if CUDART_VERSION >= 13000
  error = cudaGraphAddNode(&loop, graph, &begin, nullptr, 1, &conditional);
#else
  error = cudaGraphAddNode(&loop, graph, &begin, 1, &conditional);
#endif
  if (error != cudaSuccess) return error;
  const cudaGraph_t inside = conditional.conditional.phGraph_out[0];
  error = cudaGraphAddChildGraphNode(&iteration, inside, nullptr, 0, body);
  if (error != cudaSuccess) return error;
  return add_condition(inside, &iteration, handle, rule, false, again);
}

}  // namespace

const char* while_unsupported() {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "there is no NVIDIA driver";
  return driver < 12040 ? "the NVIDIA driver is older than CUDA 12.4" : nullptr;
}

cudaError_t make_while(cudaGraph_t body, const WhileRule& rule, WhileGraph& out) {
  out = {};
  cudaFuncAttributes attributes;
  // Loads the kernel: a driver that does not know cudaGraphSetConditional says so here.
  cudaError_t error = cudaFuncGetAttributes(&attributes, set_condition);
  if (error == cudaSuccess) error = check_nodes(body);
  if (error == cudaSuccess) error = cudaGraphCreate(&out.graph, 0);
  if (error == cudaSuccess) error = fill(out.graph, body, rule);
  if (error == cudaSuccess) error = cudaGraphInstantiate(&out.executable, out.graph, 0);
  if (error != cudaSuccess) destroy(out);
  return error;
}

cudaError_t launch(const WhileGraph& graph, cudaStream_t stream) { return cudaGraphLaunch(graph.executable, stream); }

void destroy(WhileGraph& graph) {
  if (graph.executable != nullptr) cudaGraphExecDestroy(graph.executable);
  if (graph.graph != nullptr) cudaGraphDestroy(graph.graph);
  graph = {};
}

}  // namespace llpf::cuda
