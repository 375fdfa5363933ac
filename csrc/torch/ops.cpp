// The ops of csrc/core for torch, compiled once for each device: with USE_CUDA into _C_cuda for the CUDA dispatch key, without
// it into _C for the CPU's. Schemas, eager kernels and kernels for tracing are registered by llpf_fast/ops; these libraries
// hold no Python and use torch's stable ABI only.
#if defined(USE_CUDA)
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#endif
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>

#include <exception>
#include <tuple>
#include <vector>

#include "../core/counter_randint.h"
#include "../core/relu_pool_bounds.h"
#include "../core/sgd.h"
#include "../core/tick.h"
#include "tensor.h"

#if !defined(USE_CUDA)
#include "../core/cpu/chunk.h"
#include "../core/cpu/threads.h"
#elif !defined(STABLE_TORCH_ERROR_CODE_CHECK)  // its name since torch 2.12
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace {

using namespace llpf;
using check::OptionalTensor;
using check::ScalarType;
using check::Tensor;

#if defined(USE_CUDA)

namespace device = llpf::cuda;

/// Runs `queue(stream)` with the current stream of the tensor's device, which is made the current device.
template <class F>
void on_device_of(const Tensor& tensor, F&& queue) {
  const torch::stable::accelerator::DeviceGuard guard(tensor.get_device_index());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  STD_CUDA_CHECK(static_cast<cudaError_t>(queue(static_cast<cuda::Stream>(stream))));
}

#else

namespace device = llpf::cpu;

/// Runs `op(threads)` with torch's threads, as many as torch.set_num_threads says at this moment.
template <class F>
void on_device_of(const Tensor&, F&& op) {
  op(cpu::Threads{static_cast<int>(torch::stable::get_num_threads()),
                  [](int64_t count, int64_t grain, const cpu::FunctionRef& body) {
                    torch::stable::parallel_for(0, count, grain, body);
                  }});
}

#endif

/// float64 [S, 5], or [K, S, 5] for p [K, N].
Tensor new_moments(const Tensor& p, const Tensor& segments) {
  const int64_t shape[] = {check::paths(p), segments.size(0), kMomentColumns};
  const bool batched = p.dim() == 2;
  return torch::stable::new_empty(p, {batched ? shape : shape + 1, batched ? 3u : 2u}, ScalarType::Double);
}

Tensor moments(const Tensor& p, const OptionalTensor& d, const Tensor& segments, const Tensor& chunks,
               const Tensor& scratch) {
  const auto arguments = MomentsArguments::of(p, d, segments, chunks, scratch);
  const Tensor out = new_moments(p, segments);
  on_device_of(p, [&](auto on) { return device::moments(arguments, pointer(out), on); });
  return out;
}

Tensor coefficients(const Tensor& moments, const Tensor& segments, const Tensor& target_variance, const Tensor& step,
                    const OptionalTensor& active, const OptionalTensor& radius, int64_t destination, double epsilon,
                    bool combine_sum, bool clamp, bool project_first) {
  const Rule rule{static_cast<Destination>(destination), epsilon, combine_sum, clamp, project_first};
  const auto arguments = CoefficientsArguments::of(moments, segments, target_variance, step, active, radius, rule);
  const Tensor out = torch::stable::new_empty(moments, moments.sizes());
  on_device_of(moments, [&](auto on) { return device::coefficients(arguments, pointer(out), on); });
  return out;
}

void affine_(const Tensor& p, const OptionalTensor& d, const Tensor& coefficients, const Tensor& segments,
             const Tensor& chunks) {
  const auto arguments = AffineArguments::of(p, d, coefficients, segments, chunks);
  on_device_of(p, [&](auto on) { return device::affine(arguments, on); });
}

void tick_(const Tensor& p, const OptionalTensor& d, const Tensor& segments, const Tensor& chunks,
           const Tensor& target_variance, const Tensor& step, const OptionalTensor& active,
           const OptionalTensor& radius, const OptionalTensor& moments_in, const OptionalTensor& waypoint,
           const Tensor& scratch, int64_t destination, double epsilon, bool combine_sum, bool clamp,
           bool project_first) {
  const Rule rule{static_cast<Destination>(destination), epsilon, combine_sum, clamp, project_first};
  const auto arguments = TickArguments::of(p, d, segments, chunks, target_variance, step, active, radius, moments_in,
                                           waypoint, scratch, rule);
  on_device_of(p, [&](auto on) { return device::tick(arguments, on); });
}

void sgd_(const Tensor& p, const Tensor& g, const OptionalTensor& momentum_buffer, const Tensor& lr,
          const Tensor& segments, const Tensor& chunks, const OptionalTensor& active, double momentum,
          double weight_decay, bool nesterov) {
  const auto arguments = SgdArguments::of(p, g, momentum_buffer, lr, segments, chunks, active,
                                          {momentum, weight_decay, nesterov});
  on_device_of(p, [&](auto on) { return device::sgd(arguments, on); });
}

void loss_gate_(const Tensor& state, const Tensor& loss, double threshold, int64_t window, int64_t max_steps) {
  const auto arguments = LossGateArguments::of(state, loss, {threshold, window, max_steps});
  on_device_of(state, [&](auto on) { return device::loss_gate(arguments, on); });
}

void counter_randint_(const Tensor& out, const Tensor& key, const Tensor& first, const OptionalTensor& state,
                      std::vector<int64_t> bounds) {
  const auto arguments = CounterRandintArguments::of(out, key, first, state, bounds);
  on_device_of(out, [&](auto on) { return device::counter_randint(arguments, on); });
}

std::tuple<Tensor, Tensor, Tensor> relu_pool_bounds(const Tensor& left, const Tensor& right, const Tensor& radius,
                                                    double slope, std::vector<int64_t> kernel,
                                                    std::vector<int64_t> stride, std::vector<int64_t> padding,
                                                    std::vector<int64_t> dilation, bool ceil_mode) {
  const auto arguments = ReluPoolBoundsArguments::of(left, right, radius, slope, kernel, stride, padding, dilation, ceil_mode);
  const auto empty = [&] {
    const auto& window = arguments.window;
    if (window.pointwise()) return torch::stable::new_empty(left, left.sizes());
    const int64_t shape[] = {left.size(0), left.size(1), window.out[0], window.out[1]};
    return torch::stable::new_empty(left, {shape, 4u});
  };
  std::tuple<Tensor, Tensor, Tensor> out{empty(), empty(), empty()};
  const auto& [to_left, to_right, to_radius] = out;
  const FormPointers pointers{to_left.data_ptr(), to_right.data_ptr(), to_radius.data_ptr()};
  on_device_of(left, [&](auto on) { return device::relu_pool_bounds(arguments, pointers, on); });
  return out;
}

template <class Library>
void register_ops(Library& m) {
  m.impl("moments", TORCH_BOX(&moments));
  m.impl("coefficients", TORCH_BOX(&coefficients));
  m.impl("affine_", TORCH_BOX(&affine_));
  m.impl("tick_", TORCH_BOX(&tick_));
  m.impl("sgd_", TORCH_BOX(&sgd_));
  m.impl("loss_gate_", TORCH_BOX(&loss_gate_));
  m.impl("counter_randint_", TORCH_BOX(&counter_randint_));
  m.impl("relu_pool_bounds", TORCH_BOX(&relu_pool_bounds));
}

}  // namespace

#if defined(USE_CUDA)

STABLE_TORCH_LIBRARY_IMPL(llpf_fast, CUDA, m) { register_ops(m); }

#else

namespace {

Tensor moments_device_blocking(const Tensor& p, const OptionalTensor& d, const Tensor& segments, const Tensor& chunks,
                               const Tensor& scratch) {
  const auto arguments = MomentsArguments::of(p, d, segments, chunks, scratch);
  const Tensor out = new_moments(p, segments);
  cpu::moments_device_blocking(arguments, pointer(out));
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(llpf_fast, m) {
  m.def("_moments_device_blocking(Tensor p, Tensor? d, Tensor segments, Tensor chunks, Tensor(a!) scratch) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(llpf_fast, CPU, m) {
  register_ops(m);
  m.impl("_moments_device_blocking", TORCH_BOX(&moments_device_blocking));
}

/// For `llpf_fast.ops.info`: the loops in use; null where LLPF_ISA names none.
extern "C" __attribute__((visibility("default"))) const char* llpf_cpu_isa() {
  try {
    return llpf::cpu::chunk_kernels().isa;
  } catch (const std::exception&) {
    return nullptr;
  }
}

#endif
