// The shim header declares its CUDA functions only under this name.
#ifndef USE_CUDA
#define USE_CUDA
#endif

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <string_view>
#include <vector>

#include "../core/cuda/launch.h"
#include "common/checks.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // its name since torch 2.12
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

// Registration of csrc/core/cuda for the CUDA dispatch key: checks, the current stream of p's device, and nothing else.
// What the tables say is not checked: they lie on the device, and looking would wait for it.
namespace {

using namespace llpf;
using check::OptionalTensor;
using check::ScalarType;
using check::Tensor;

template <class T = double>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <class T = double>
T* pointer(const OptionalTensor& tensor) {
  return tensor ? pointer<T>(*tensor) : nullptr;
}

/// Makes the device of a tensor current and names its current stream.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

Table table_of(const Tensor& segments, const Tensor* chunks) {
  return {pointer<const Segment>(segments), segments.size(0), chunks == nullptr ? nullptr : pointer<const Chunk>(*chunks),
          chunks == nullptr ? 0 : chunks->size(0)};
}

cuda::Values values_of(const Tensor& p, const OptionalTensor& d) {
  return {
      .p = p.mutable_data_ptr(),
      .p_dtype = check::dtype_of(p),
      .paths = check::paths(p),
      .numel = check::row_numel(p),
      .d = pointer<const void>(d),
      .d_dtype = check::dtype_of(d ? *d : p),
      .d_shared = d && d->dim() == 1,
  };
}

cuda::Gate gate_of(const OptionalTensor& gate, int64_t paths) {
  return gate && paths > 0 ? cuda::Gate{pointer(*gate), gate->numel() / paths} : cuda::Gate{};
}

/// Elements from one path's row to the next; a vector is the row of every path.
int64_t row_stride(const Tensor& value) { return value.dim() == 2 ? value.size(1) : 0; }

cuda::RuleArguments rule_of(const Rule& rule, const Tensor& target_variance, const Tensor& step,
                            const OptionalTensor& gate, const OptionalTensor& radius, int64_t paths) {
  return {
      .rule = rule,
      .target_variance = pointer(target_variance),
      .target_variance_stride = row_stride(target_variance),
      .step = pointer(step),
      .step_stride = row_stride(step),
      .radius = pointer(radius),
      .gate = gate_of(gate, paths),
  };
}

/// LLPF_CUDA_TICK=stages or chip names the plan, for measurements; both give the same bits.
cuda::TickPlan tick_plan() {
  static const cuda::TickPlan plan = [] {
    const char* const named = std::getenv("LLPF_CUDA_TICK");
    if (named == nullptr || *named == '\0') return cuda::TickPlan::kChoose;
    if (std::string_view(named) == "stages") return cuda::TickPlan::kStages;
    LLPF_CHECK(std::string_view(named) == "chip", "LLPF_CUDA_TICK must be stages or chip, got ", named);
    return cuda::TickPlan::kOnChip;
  }();
  return plan;
}

Tensor moments(const Tensor& p, const OptionalTensor& d, const Tensor& segments, const Tensor& chunks,
               const Tensor& scratch) {
  check::moments(p, d, segments, chunks, scratch);
  const OnDeviceOf device(p);
  const int64_t shape[] = {check::paths(p), segments.size(0), kMomentColumns};
  const bool batched = p.dim() == 2;
  const Tensor out = torch::stable::new_empty(p, {batched ? shape : shape + 1, batched ? 3u : 2u}, ScalarType::Double);
  STD_CUDA_CHECK(cuda::moments(values_of(p, d), table_of(segments, &chunks), pointer(scratch), pointer(out), device.stream()));
  return out;
}

Tensor coefficients(const Tensor& moments, const Tensor& segments, const Tensor& target_variance, const Tensor& step,
                    const OptionalTensor& gate, const OptionalTensor& radius, int64_t destination, double epsilon,
                    bool combine_sum, bool clamp, bool project_first) {
  const int64_t paths = check::coefficients(moments, segments, target_variance, step, gate, radius, destination, epsilon);
  const OnDeviceOf device(moments);
  const Tensor out = torch::stable::new_empty(moments, moments.sizes());
  const Rule rule{static_cast<Destination>(destination), epsilon, combine_sum, clamp, project_first};
  STD_CUDA_CHECK(cuda::coefficients(pointer(moments), paths, table_of(segments, nullptr),
                                    rule_of(rule, target_variance, step, gate, radius, paths), pointer(out),
                                    device.stream()));
  return out;
}

void affine_(const Tensor& p, const OptionalTensor& d, const Tensor& coefficients, const Tensor& segments,
             const Tensor& chunks) {
  check::affine(p, d, coefficients, segments, chunks);
  const OnDeviceOf device(p);
  STD_CUDA_CHECK(cuda::affine(values_of(p, d), table_of(segments, &chunks), pointer(coefficients), device.stream()));
}

void tick_(const Tensor& p, const OptionalTensor& d, const Tensor& segments, const Tensor& chunks,
           const Tensor& target_variance, const Tensor& step, const OptionalTensor& gate, const OptionalTensor& radius,
           const OptionalTensor& moments_in, const OptionalTensor& waypoint, const Tensor& scratch, int64_t destination,
           double epsilon, bool combine_sum, bool clamp, bool project_first) {
  check::tick(p, d, segments, chunks, target_variance, step, gate, radius, moments_in, waypoint, scratch, destination,
              epsilon);
  const OnDeviceOf device(p);
  const Rule rule{static_cast<Destination>(destination), epsilon, combine_sum, clamp, project_first};
  STD_CUDA_CHECK(cuda::tick(values_of(p, d), table_of(segments, &chunks),
                            rule_of(rule, target_variance, step, gate, radius, check::paths(p)), pointer(moments_in),
                            pointer<void>(waypoint), pointer(scratch), tick_plan(), device.stream()));
}

void sgd_(const Tensor& p, const Tensor& g, const OptionalTensor& momentum_buffer, const Tensor& lr,
          const Tensor& segments, const Tensor& chunks, const OptionalTensor& gate, double momentum, double weight_decay,
          bool nesterov) {
  check::sgd(p, g, momentum_buffer, lr, segments, chunks, gate, momentum, weight_decay, nesterov);
  const OnDeviceOf device(p);
  const int64_t columns = lr.dim() == 0 ? 1 : lr.size(lr.dim() - 1);
  const cuda::SgdArguments arguments{
      .g = g.const_data_ptr(),
      .momentum_buffer = pointer<void>(momentum_buffer),
      .rates = pointer(lr),
      .path_stride = row_stride(lr),
      .segment_stride = columns == 1 ? 0 : 1,
      .momentum = momentum,
      .weight_decay = weight_decay,
      .nesterov = nesterov,
      .gate = gate_of(gate, check::paths(p)),
  };
  STD_CUDA_CHECK(cuda::sgd(values_of(p, {}), table_of(segments, &chunks), arguments, device.stream()));
}

void loss_gate_(const Tensor& state, const Tensor& loss, double threshold, int64_t min_rounds, int64_t max_rounds) {
  const int64_t paths = check::loss_gate(state, loss, threshold, min_rounds, max_rounds);
  const OnDeviceOf device(state);
  STD_CUDA_CHECK(cuda::loss_gate(pointer(state), loss.const_data_ptr(), check::dtype_of(loss), paths,
                                 {threshold, min_rounds, max_rounds}, device.stream()));
}

void draw_(const Tensor& out, const Tensor& key, const Tensor& first, const OptionalTensor& gate,
           std::vector<int64_t> bounds) {
  const Draw rule = check::draw(out, key, first, gate, bounds);
  const int64_t paths = key.numel();
  const OnDeviceOf device(out);
  STD_CUDA_CHECK(cuda::draw(rule, pointer<int64_t>(out), pointer<int64_t>(key), pointer<int64_t>(first),
                            gate_of(gate, paths), paths, device.stream()));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(llpf_fast, CUDA, m) {
  m.impl("moments", TORCH_BOX(&moments));
  m.impl("coefficients", TORCH_BOX(&coefficients));
  m.impl("affine_", TORCH_BOX(&affine_));
  m.impl("tick_", TORCH_BOX(&tick_));
  m.impl("sgd_", TORCH_BOX(&sgd_));
  m.impl("loss_gate_", TORCH_BOX(&loss_gate_));
  m.impl("draw_", TORCH_BOX(&draw_));
}
