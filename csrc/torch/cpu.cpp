#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../core/cpu/ops.h"
#include "common/checks.h"

// Registration of csrc/core/cpu for the CPU dispatch key. Schemas, eager kernels and kernels for tracing are registered by
// llpf_fast/ops; this library adds nothing but speed, holds no Python and uses torch's stable ABI only.
namespace {

using namespace llpf;
using check::OptionalTensor;
using check::ScalarType;
using check::Tensor;

const cpu::Threads& threads() {
  thread_local cpu::Threads current;
  current.count = static_cast<int>(torch::stable::get_num_threads());
  current.run = [](int64_t count, int64_t grain, const cpu::Body& body) {
    torch::stable::parallel_for(0, count, grain, body);
  };
  return current;
}

template <class T = double>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <class T = double>
T* pointer(const OptionalTensor& tensor) {
  return tensor ? pointer<T>(*tensor) : nullptr;
}

Table rows_of(const Tensor& segments, const Tensor* chunks) {
  return {pointer<const Segment>(segments), segments.size(0), chunks == nullptr ? nullptr : pointer<const Chunk>(*chunks),
          chunks == nullptr ? 0 : chunks->size(0)};
}

/// The table, after a look at every row: a wrong one is refused rather than followed out of the buffer. One chunk in
/// 4096 elements makes it a thousandth of the work.
Table table_of(const char* op, const Tensor& p, const Tensor& segments, const Tensor& chunks) {
  const Table table = rows_of(segments, &chunks);
  const auto fault = cpu::find_fault(table, check::row_numel(p));
  LLPF_CHECK(fault.what == nullptr, op, ": ", fault.what, " (row ", fault.row, ", buffer of ", check::row_numel(p),
             " elements)");
  return table;
}

cpu::Pair pair_of(const Tensor& p, const OptionalTensor& d) {
  const Dtype own = check::dtype_of(p.scalar_type()), other = d ? check::dtype_of(d->scalar_type()) : own;
  if (own == other) return static_cast<cpu::Pair>(own);
  return other == Dtype::kBfloat16 ? cpu::Pair::kFloat32Bfloat16 : cpu::Pair::kFloat32Float16;
}

cpu::Values values_of(const Tensor& p, const OptionalTensor& d) {
  return {p.mutable_data_ptr(), pointer<const void>(d),  pair_of(p, d),
          check::paths(p),      check::row_numel(p), d && d->dim() == 2};
}

/// Rows of a matrix [K, columns], or the one row of a vector.
cpu::Rows<const double> rows(const Tensor& matrix) {
  return {pointer(matrix), matrix.dim() == 2 ? matrix.size(1) : 0};
}

/// One row a path, whatever the shape.
cpu::Rows<const double> gate_rows(const OptionalTensor& gate, int64_t paths) {
  return gate ? cpu::Rows<const double>{pointer(*gate), gate->numel() / paths} : cpu::Rows<const double>{};
}

cpu::RuleArguments arguments_of(const Tensor& target_variance, const Tensor& step, const OptionalTensor& gate,
                                const OptionalTensor& radius, int64_t paths) {
  return {rows(target_variance), rows(step), gate_rows(gate, paths), pointer(radius)};
}

Tensor new_moments(const Tensor& p, int64_t segments) {
  const int64_t shape[] = {check::paths(p), segments, kMomentColumns};
  const bool batched = p.dim() == 2;
  return torch::stable::new_empty(p, {batched ? shape : shape + 1, batched ? 3u : 2u}, ScalarType::Double);
}

Tensor moments(const Tensor& p, const OptionalTensor& d, const Tensor& segments, const Tensor& chunks,
               const Tensor& scratch) {
  check::parameters("moments", p);
  check::destination("moments", p, d);
  check::table("moments", p, segments, &chunks);
  check::scratch("moments", p, segments, chunks, scratch);
  const Table table = table_of("moments", p, segments, chunks);
  const Tensor out = new_moments(p, table.segment_count);
  cpu::moments(values_of(p, d), table, pointer(scratch), pointer(out), threads());
  return out;
}

Tensor moments_device_blocking(const Tensor& p, const OptionalTensor& d, const Tensor& segments, const Tensor& chunks) {
  constexpr auto op = "_moments_device_blocking";
  check::parameters(op, p);
  check::destination(op, p, d);
  check::table(op, p, segments, &chunks);
  const Table table = table_of(op, p, segments, chunks);
  const Tensor out = new_moments(p, table.segment_count);
  cpu::moments_device_blocking(values_of(p, d), table, pointer(out));
  return out;
}

Tensor coefficients(const Tensor& moments, const Tensor& segments, const Tensor& target_variance, const Tensor& step,
                    const OptionalTensor& gate, const OptionalTensor& radius, int64_t destination, double epsilon,
                    bool combine_sum, bool clamp, bool project_first) {
  const int64_t paths =
      check::coefficients(moments, segments, target_variance, step, gate, radius, destination);
  const Tensor out = torch::stable::new_empty(moments, moments.sizes());
  const Rule rule{static_cast<Destination>(destination), epsilon, combine_sum, clamp, project_first};
  cpu::coefficients(rows_of(segments, nullptr), rule, arguments_of(target_variance, step, gate, radius, paths),
                    pointer(moments), paths, pointer(out));
  return out;
}

void affine_(const Tensor& p, const OptionalTensor& d, const Tensor& coefficients, const Tensor& segments,
             const Tensor& chunks) {
  check::parameters("affine_", p);
  check::destination("affine_", p, d);
  check::table("affine_", p, segments, &chunks);
  check::per_segment("affine_", p, "coefficients", coefficients, segments.size(0), kCoefficientColumns);
  if (d) check::no_partial_overlap("affine_", p, "d", *d);
  cpu::affine(values_of(p, d), table_of("affine_", p, segments, chunks), pointer(coefficients), threads());
}

void tick_(const Tensor& p, const OptionalTensor& d, const Tensor& segments, const Tensor& chunks,
           const Tensor& target_variance, const Tensor& step, const OptionalTensor& gate, const OptionalTensor& radius,
           const OptionalTensor& moments_in, const OptionalTensor& waypoint, const Tensor& scratch, int64_t destination,
           double epsilon, bool combine_sum, bool clamp, bool project_first) {
  check::tick(p, d, segments, chunks, target_variance, step, gate, radius, moments_in, waypoint, scratch, destination);
  const Rule rule{static_cast<Destination>(destination), epsilon, combine_sum, clamp, project_first};
  cpu::tick(values_of(p, d), table_of("tick_", p, segments, chunks), rule,
            arguments_of(target_variance, step, gate, radius, check::paths(p)), pointer(moments_in), pointer<void>(waypoint),
            pointer(scratch), threads());
}

void sgd_(const Tensor& p, const Tensor& g, const OptionalTensor& momentum_buffer, const Tensor& lr,
          const Tensor& segments, const Tensor& chunks, const OptionalTensor& gate, const OptionalTensor& d,
          const OptionalTensor& moments_out, const OptionalTensor& scratch, double momentum, double dampening,
          double weight_decay, bool nesterov) {
  check::sgd(p, g, momentum_buffer, lr, segments, chunks, gate, d, moments_out, scratch, momentum, nesterov);
  const int64_t paths = check::paths(p), columns = lr.dim() == 0 ? 1 : lr.size(lr.dim() - 1);
  const cpu::SgdArguments arguments{
      .dtype = check::dtype_of(p.scalar_type()),
      .p = p.mutable_data_ptr(),
      .g = g.const_data_ptr(),
      .buffer = pointer<void>(momentum_buffer),
      .paths = paths,
      .numel = check::row_numel(p),
      .lr = rows(lr),
      .lr_step = columns == 1 ? 0 : 1,
      .gate = gate_rows(gate, paths),
      .gate_columns = gate ? gate->numel() / paths : 0,
      .settings = {momentum, dampening, weight_decay, nesterov},
  };
  cpu::sgd(arguments, values_of(p, d), table_of("sgd_", p, segments, chunks), pointer(moments_out), pointer(scratch), threads());
}

void loss_gate_(const Tensor& state, const Tensor& loss, double threshold, int64_t min_rounds, int64_t max_rounds) {
  const int64_t paths = check::loss_gate(state, loss, min_rounds, max_rounds);
  cpu::loss_gate({threshold, min_rounds, max_rounds}, pointer(state), loss.const_data_ptr(),
                 check::dtype_of(loss.scalar_type()), paths);
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
}

extern "C" {
/// For `llpf_fast.ops.info`: the loops in use, and what the library was built against.
__attribute__((visibility("default"))) const char* llpf_cpu_isa() { return llpf::cpu::chunk_kernels().isa; }
__attribute__((visibility("default"))) const char* llpf_build() { return LLPF_BUILD; }
}
