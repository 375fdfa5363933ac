#pragma once

// Included by cuda_runtime_api.h. Graphs of kernels, child graphs and loops. Nodes run in an order that their declared
// dependencies allow, with LLPF_LANES=down the last that is ready first, so that a missing dependency is found.

#include <functional>
#include <map>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define CUDART_VERSION 13000

enum cudaGraphNodeType {
  cudaGraphNodeTypeKernel = 0,
  cudaGraphNodeTypeMemcpy = 1,
  cudaGraphNodeTypeMemset = 2,
  cudaGraphNodeTypeHost = 3,
  cudaGraphNodeTypeGraph = 4,
  cudaGraphNodeTypeEmpty = 5,
  cudaGraphNodeTypeConditional = 13,
};
enum cudaGraphConditionalNodeType { cudaGraphCondTypeIf = 0, cudaGraphCondTypeWhile = 1 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal };
constexpr unsigned cudaGraphCondAssignDefault = 1;
using cudaGraphConditionalHandle = unsigned long long;
struct cudaGraphEdgeData {};

namespace emulator {

struct Graph;

struct Node {
  cudaGraphNodeType type = cudaGraphNodeTypeKernel;
  std::function<void()> kernel;
  std::shared_ptr<Graph> inner;  // of a child graph, or the body of a loop
  cudaGraphConditionalHandle handle = 0;
  std::vector<size_t> after;
  size_t index = 0;
};

struct Graph {
  std::vector<std::unique_ptr<Node>> nodes;
  std::map<cudaGraphConditionalHandle, unsigned> defaults;

  Node* add(cudaGraphNodeType type, const std::vector<size_t>& after) {
    nodes.push_back(std::make_unique<Node>());
    Node* const node = nodes.back().get();
    node->type = type;
    node->after = after;
    node->index = nodes.size() - 1;
    return node;
  }
  Graph clone() const {
    Graph copy;
    copy.defaults = defaults;
    for (const auto& node : nodes) {
      copy.nodes.push_back(std::make_unique<Node>(*node));
      if (node->inner) copy.nodes.back()->inner = std::make_shared<Graph>(node->inner->clone());
    }
    return copy;
  }
};

inline std::map<cudaGraphConditionalHandle, unsigned> conditions;
inline cudaGraphConditionalHandle handles = 0;
constexpr int kMostIterations = 1000;

inline void run_graph(const Graph& graph);

inline void run_node(const Node& node) {
  if (node.type == cudaGraphNodeTypeKernel) node.kernel();
  if (node.type == cudaGraphNodeTypeHost) stop("a host node");
  if (node.type == cudaGraphNodeTypeGraph) run_graph(*node.inner);
  if (node.type != cudaGraphNodeTypeConditional) return;
  for (int i = 0; conditions.at(node.handle) != 0; ++i) {
    if (i == kMostIterations) stop("a loop that does not end");
    run_graph(*node.inner);
  }
}

inline void run_graph(const Graph& graph) {
  std::vector<bool> done(graph.nodes.size());
  for (size_t left = done.size(); left > 0; --left) {
    const Node* next = nullptr;
    for (const auto& node : graph.nodes) {
      const bool ready = std::all_of(node->after.begin(), node->after.end(), [&](size_t i) { return done[i]; });
      if (!done[node->index] && ready && (next == nullptr || lanes_down())) next = node.get();
    }
    run_node(*next);
    done[next->index] = true;
  }
}

/// How a kernel node's argument pointers become a call; known once its attributes were asked for.
inline std::map<void*, std::function<std::function<void()>(void**)>> kernels;

template <class... Arguments>
void remember(void (*kernel)(Arguments...)) {
  kernels[reinterpret_cast<void*>(kernel)] = [kernel](void** given) {
    return [&]<size_t... I>(std::index_sequence<I...>) {
      const std::tuple<std::remove_cvref_t<Arguments>...> copies{
          *static_cast<std::remove_cvref_t<Arguments>*>(given[I])...};
      return std::function<void()>([kernel, copies] { std::apply(kernel, copies); });
    }(std::index_sequence_for<Arguments...>{});
  };
}

}  // namespace emulator

struct CUstream_st {
  emulator::Graph* capturing = nullptr;
};
using cudaGraph_t = emulator::Graph*;
using cudaGraphExec_t = const emulator::Graph*;
using cudaGraphNode_t = emulator::Node*;

struct cudaKernelNodeParams {
  void* func;
  dim3 gridDim, blockDim;
  unsigned sharedMemBytes;
  void** kernelParams;
  void** extra;
};
struct cudaHostNodeParams {
  void (*fn)(void*);
  void* userData;
};
struct cudaConditionalNodeParams {
  cudaGraphConditionalHandle handle;
  cudaGraphConditionalNodeType type;
  unsigned size;
  cudaGraph_t* phGraph_out;
};
struct cudaGraphNodeParams {
  cudaGraphNodeType type;
  cudaConditionalNodeParams conditional;
};

namespace emulator {

inline std::vector<size_t> indices(const cudaGraphNode_t* nodes, size_t count) {
  std::vector<size_t> out;
  for (size_t i = 0; i < count; ++i) out.push_back(nodes[i]->index);
  return out;
}

/// What `kernel<<<grid, block, shared, stream>>>(...)` becomes (translate.py): a node where the stream is captured.
inline void launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, const std::function<void()>& kernel) {
  if (stream == nullptr || stream->capturing == nullptr) return run_grid(grid, block, shared_bytes, false, kernel);
  const size_t before = stream->capturing->nodes.size();
  Node* const node = stream->capturing->add(cudaGraphNodeTypeKernel, before == 0 ? std::vector<size_t>{} : std::vector{before - 1});
  node->kernel = [=] { run_grid(grid, block, shared_bytes, false, kernel); };
}

}  // namespace emulator

inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaStreamCreate(cudaStream_t* stream) { return *stream = new CUstream_st, cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  return stream->capturing = new emulator::Graph, cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return *graph = std::exchange(stream->capturing, nullptr), cudaSuccess;
}

inline cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned) { return *graph = new emulator::Graph, cudaSuccess; }
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle* handle, cudaGraph_t graph,
                                                    unsigned value, unsigned flags) {
  *handle = ++emulator::handles;
  // Without a default the value is whatever it is.
  graph->defaults[*handle] = flags == cudaGraphCondAssignDefault ? value : 0xa5;
  return cudaSuccess;
}
inline cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after,
                                          size_t count, const cudaKernelNodeParams* parameters) {
  const auto known = emulator::kernels.find(parameters->func);
  if (known == emulator::kernels.end()) emulator::stop("a kernel node whose kernel's attributes nobody asked for");
  *node = graph->add(cudaGraphNodeTypeKernel, emulator::indices(after, count));
  (*node)->kernel = [grid = parameters->gridDim, block = parameters->blockDim, bytes = parameters->sharedMemBytes,
                     call = known->second(parameters->kernelParams)] { emulator::run_grid(grid, block, bytes, false, call); };
  return cudaSuccess;
}
inline cudaError_t cudaGraphAddChildGraphNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after,
                                              size_t count, cudaGraph_t child) {
  *node = graph->add(cudaGraphNodeTypeGraph, emulator::indices(after, count));
  (*node)->inner = std::make_shared<emulator::Graph>(child->clone());
  return cudaSuccess;
}
inline cudaError_t cudaGraphAddHostNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after,
                                        size_t count, const cudaHostNodeParams*) {
  return *node = graph->add(cudaGraphNodeTypeHost, emulator::indices(after, count)), cudaSuccess;
}
inline cudaError_t cudaGraphAddNode(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after,
                                    const cudaGraphEdgeData*, size_t count, cudaGraphNodeParams* parameters) {
  if (parameters->type != cudaGraphNodeTypeConditional || parameters->conditional.type != cudaGraphCondTypeWhile ||
      parameters->conditional.size != 1 || !graph->defaults.contains(parameters->conditional.handle))
    return cudaErrorInvalidValue;
  static std::vector<std::unique_ptr<cudaGraph_t>> owned;
  *node = graph->add(cudaGraphNodeTypeConditional, emulator::indices(after, count));
  (*node)->handle = parameters->conditional.handle;
  (*node)->inner = std::make_shared<emulator::Graph>();
  owned.push_back(std::make_unique<cudaGraph_t>((*node)->inner.get()));
  parameters->conditional.phGraph_out = owned.back().get();
  return cudaSuccess;
}
inline cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  for (size_t i = 0; nodes != nullptr && i < *count; ++i) nodes[i] = graph->nodes[i].get();
  return *count = graph->nodes.size(), cudaSuccess;
}
inline cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  return *type = node->type, cudaSuccess;
}
inline cudaError_t cudaGraphChildGraphNodeGetGraph(cudaGraphNode_t node, cudaGraph_t* graph) {
  return *graph = node->inner.get(), cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  return *executable = new emulator::Graph(graph->clone()), cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) { return delete executable, cudaSuccess; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t) {
  for (const auto& [handle, value] : executable->defaults) emulator::conditions[handle] = value;
  return emulator::run_graph(*executable), cudaSuccess;
}
inline void cudaGraphSetConditional(cudaGraphConditionalHandle handle, unsigned value) {
  emulator::conditions[handle] = value;
}
