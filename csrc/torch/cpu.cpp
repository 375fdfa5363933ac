#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <exception>

#include "../core/cpu/checked.h"
#include "common/checks.h"

// Registration of csrc/core/cpu for the CPU dispatch key. Schemas, eager kernels and kernels for tracing are registered
// by llpf_fast/ops; this library adds nothing but speed, holds no Python and uses torch's stable ABI only.
namespace {

using namespace llpf;
namespace checked = cpu::checked;
using check::OptionalTensor;
using check::ScalarType;
using check::Tensor;

/// Torch's threads, as many as torch.set_num_threads says at this moment.
cpu::Threads threads() {
  return {static_cast<int>(torch::stable::get_num_threads()), [](int64_t count, int64_t grain, const cpu::Body& body) {
            torch::stable::parallel_for(0, count, grain, body);
          }};
}

Tensor new_moments(const Tensor& p, const Tensor& segments) {
  const int64_t shape[] = {check::paths(p), segments.size(0), kMomentColumns};
  const bool batched = p.dim() == 2;
  return torch::stable::new_empty(p, {batched ? shape : shape + 1, batched ? 3u : 2u}, ScalarType::Double);
}

Tensor moments(const Tensor& p, const OptionalTensor& d, const Tensor& segments, const Tensor& chunks,
               const Tensor& scratch) {
  return checked::moments(p, d, segments, chunks, scratch, threads(), [&] { return new_moments(p, segments); });
}

Tensor moments_device_blocking(const Tensor& p, const OptionalTensor& d, const Tensor& segments, const Tensor& chunks) {
  return checked::moments_device_blocking(p, d, segments, chunks, [&] { return new_moments(p, segments); });
}

Tensor coefficients(const Tensor& moments, const Tensor& segments, const Tensor& target_variance, const Tensor& step,
                    const OptionalTensor& gate, const OptionalTensor& radius, int64_t destination, double epsilon,
                    bool combine_sum, bool clamp, bool project_first) {
  const Rule rule{static_cast<Destination>(destination), epsilon, combine_sum, clamp, project_first};
  return checked::coefficients(moments, segments, target_variance, step, gate, radius, rule,
                               [&] { return torch::stable::new_empty(moments, moments.sizes()); });
}

void affine_(const Tensor& p, const OptionalTensor& d, const Tensor& coefficients, const Tensor& segments,
             const Tensor& chunks) {
  checked::affine(p, d, coefficients, segments, chunks, threads());
}

void tick_(const Tensor& p, const OptionalTensor& d, const Tensor& segments, const Tensor& chunks,
           const Tensor& target_variance, const Tensor& step, const OptionalTensor& gate, const OptionalTensor& radius,
           const OptionalTensor& moments_in, const OptionalTensor& waypoint, const Tensor& scratch, int64_t destination,
           double epsilon, bool combine_sum, bool clamp, bool project_first) {
  const Rule rule{static_cast<Destination>(destination), epsilon, combine_sum, clamp, project_first};
  checked::tick(p, d, segments, chunks, target_variance, step, gate, radius, moments_in, waypoint, scratch, rule,
                threads());
}

void sgd_(const Tensor& p, const Tensor& g, const OptionalTensor& momentum_buffer, const Tensor& lr,
          const Tensor& segments, const Tensor& chunks, const OptionalTensor& gate, double momentum, double weight_decay,
          bool nesterov) {
  checked::sgd(p, g, momentum_buffer, lr, segments, chunks, gate, {momentum, weight_decay, nesterov}, threads());
}

void loss_gate_(const Tensor& state, const Tensor& loss, double threshold, int64_t min_rounds, int64_t max_rounds) {
  checked::loss_gate(state, loss, {threshold, min_rounds, max_rounds});
}

void draw_(const Tensor& out, const Tensor& key, const Tensor& first, const OptionalTensor& gate,
           std::vector<int64_t> bounds) {
  checked::draw(out, key, first, gate, bounds);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(llpf_fast, m) {
  m.def("_moments_device_blocking(Tensor p, Tensor? d, Tensor segments, Tensor chunks) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(llpf_fast, CPU, m) {
  m.impl("moments", TORCH_BOX(&moments));
  m.impl("_moments_device_blocking", TORCH_BOX(&moments_device_blocking));
  m.impl("coefficients", TORCH_BOX(&coefficients));
  m.impl("affine_", TORCH_BOX(&affine_));
  m.impl("tick_", TORCH_BOX(&tick_));
  m.impl("sgd_", TORCH_BOX(&sgd_));
  m.impl("loss_gate_", TORCH_BOX(&loss_gate_));
  m.impl("draw_", TORCH_BOX(&draw_));
}

/// For `llpf_fast.ops.environment`: the loops in use; null where LLPF_ISA names none.
extern "C" __attribute__((visibility("default"))) const char* llpf_cpu_isa() {
  try {
    return llpf::cpu::chunk_kernels().isa;
  } catch (const std::exception&) {
    return nullptr;
  }
}
