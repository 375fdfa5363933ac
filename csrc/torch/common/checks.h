#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>

#include "../../core/coefficients.h"
#include "../../core/convert.h"
#include "../../core/table.h"

// What every op checks of its arguments, for any device: the rules of llpf_fast/ops/library.py, with both values in the
// message. A failed check is a RuntimeError in Python.
namespace llpf::check {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Shape = torch::headeronly::IntHeaderOnlyArrayRef;

#define LLPF_CHECK(condition, ...)                                                    \
  do {                                                                                \
    if (!(condition)) [[unlikely]]                                                    \
      throw std::runtime_error(torch::headeronly::detail::stdTorchCheckMsgImpl("", __VA_ARGS__)); \
  } while (false)

inline std::string text(Shape shape) {
  std::ostringstream out;
  out << '[';
  for (size_t i = 0; i < shape.size(); ++i) out << (i ? ", " : "") << shape[i];
  out << ']';
  return out.str();
}

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Half: return "float16";
    case ScalarType::Long: return "int64";
    default: return torch::headeronly::toString(type);
  }
}

inline std::string describe(const Tensor& t) { return std::string(name_of(t.scalar_type())) + ' ' + text(t.sizes()); }

inline bool same(Shape a, Shape b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i)
    if (a[i] != b[i]) return false;
  return true;
}

/// K: 1 for a buffer [N], the leading size for [K, N].
inline int64_t paths(const Tensor& p) { return p.dim() == 1 ? 1 : p.size(0); }
inline int64_t row_numel(const Tensor& p) { return p.size(p.dim() - 1); }

inline Dtype dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double: return Dtype::kFloat64;
    case ScalarType::BFloat16: return Dtype::kBfloat16;
    case ScalarType::Half: return Dtype::kFloat16;
    default: return Dtype::kFloat32;
  }
}

inline void same_device(const char* op, const Tensor& like, const char* name, const Tensor& value) {
  const auto device = like.device(), other = value.device();
  LLPF_CHECK(device == other, op, ": ", name, " must be on p's device (type ", static_cast<int>(device.type()), ", index ",
             device.index(), "), got (type ", static_cast<int>(other.type()), ", index ", other.index(), ")");
}

inline void contiguous(const char* op, const char* name, const Tensor& value) {
  LLPF_CHECK(value.is_contiguous(), op, ": ", name, " must be contiguous, got strides ", text(value.strides()), " for ",
             text(value.sizes()));
}

inline void parameters(const char* op, const Tensor& p) {
  LLPF_CHECK(p.dim() == 1 || p.dim() == 2, op, ": p must be [N] or [K, N], got ", text(p.sizes()));
  const auto type = p.scalar_type();
  LLPF_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
                 type == ScalarType::Half,
             op, ": p must be float32, float64, bfloat16 or float16, got ", name_of(type));
  contiguous(op, "p", p);
}

inline void destination(const char* op, const Tensor& p, const OptionalTensor& d) {
  if (!d) return;
  const bool shared = d->dim() == 1 && d->size(0) == row_numel(p);
  LLPF_CHECK(shared || same(d->sizes(), p.sizes()), op, ": d must be ", text(p.sizes()), " or [", row_numel(p), "], got ",
             text(d->sizes()));
  const auto type = d->scalar_type(), own = p.scalar_type();
  const bool narrow = type == ScalarType::BFloat16 || type == ScalarType::Half;
  LLPF_CHECK(type == own || (own == ScalarType::Float && narrow), op, ": d must be ", name_of(own),
             " (or 16-bit beside a float32 p), got ", name_of(type));
  same_device(op, p, "d", *d);
  contiguous(op, "d", *d);
}

inline void like(const char* op, const Tensor& p, const char* name, const Tensor& value) {
  LLPF_CHECK(value.scalar_type() == p.scalar_type() && same(value.sizes(), p.sizes()), op, ": ", name, " must be ",
             describe(p), ", got ", describe(value));
  same_device(op, p, name, value);
  contiguous(op, name, value);
}

inline void int_table(const char* op, const Tensor& like, const char* name, const Tensor& table, int64_t columns) {
  LLPF_CHECK(table.dim() == 2 && table.size(1) == columns && table.scalar_type() == ScalarType::Long, op, ": ", name,
             " must be int64 [*, ", columns, "], got ", describe(table));
  contiguous(op, name, table);
  same_device(op, like, name, table);
}

inline void table(const char* op, const Tensor& like, const Tensor& segments, const Tensor* chunks) {
  int_table(op, like, "segments", segments, 5);
  if (chunks != nullptr) int_table(op, like, "chunks", *chunks, 3);
}

/// `value` must be contiguous float64 of one of `shapes` on the device of `like`.
inline void float64(const char* op, const Tensor& like, const char* name, const Tensor& value,
                    std::initializer_list<std::initializer_list<int64_t>> shapes) {
  bool matches = false;
  for (const auto& shape : shapes) matches = matches || same(value.sizes(), Shape(shape.begin(), shape.size()));
  if (!matches || value.scalar_type() != ScalarType::Double) {
    std::string wanted;
    for (const auto& shape : shapes) wanted += (wanted.empty() ? "" : " or ") + text(Shape(shape.begin(), shape.size()));
    LLPF_CHECK(false, op, ": ", name, " must be float64 of shape ", wanted, ", got ", describe(value));
  }
  contiguous(op, name, value);
  same_device(op, like, name, value);
}

/// float64 [S, columns], or [K, S, columns] where p is [K, N].
inline void per_segment(const char* op, const Tensor& p, const char* name, const Tensor& value, int64_t segments,
                        int64_t columns) {
  if (p.dim() == 1) float64(op, p, name, value, {{segments, columns}});
  else float64(op, p, name, value, {{p.size(0), segments, columns}});
}

/// Float64 elements that every op accepts as scratch; the number of `scratch_numel` in llpf_fast/ops/library.py.
inline int64_t scratch_numel(int64_t paths, int64_t chunks, int64_t segments) {
  return paths * (5 * chunks + 10 * segments);
}

inline void scratch(const char* op, const Tensor& p, const Tensor& segments, const Tensor& chunks, const Tensor& value) {
  const int64_t need = scratch_numel(paths(p), chunks.size(0), segments.size(0));
  LLPF_CHECK(value.scalar_type() == ScalarType::Double && value.numel() >= need, op,
             ": scratch must be float64 with at least ", need, " elements, got ", name_of(value.scalar_type()), " with ",
             value.numel());
  contiguous(op, "scratch", value);
  same_device(op, p, "scratch", value);
}

inline void gate(const char* op, const Tensor& like, int64_t paths, const OptionalTensor& value) {
  if (!value) return;
  LLPF_CHECK(value->scalar_type() == ScalarType::Double && value->numel() >= paths && value->numel() % paths == 0, op,
             ": gate must be float64 with ", paths, " rows (one a path), got ", describe(*value));
  contiguous(op, "gate", *value);
  same_device(op, like, "gate", *value);
}

/// What `coefficients` and `tick_` check of their common arguments.
inline void rule(const char* op, const Tensor& like, int64_t paths, int64_t segments, const Tensor& target_variance,
                 const Tensor& step, const OptionalTensor& gate_, const OptionalTensor& radius, int64_t destination) {
  float64(op, like, "target_variance", target_variance, {{segments}, {paths, segments}});
  float64(op, like, "step", step, {{2}, {paths, 2}});
  gate(op, like, paths, gate_);
  LLPF_CHECK(destination >= 0 && destination <= static_cast<int64_t>(Destination::kNormSphere), op,
             ": destination must be one of [0, 1, 2, 3, 4, 5], got ", destination);
  const auto kind = static_cast<Destination>(destination);
  const bool sphere = kind == Destination::kVarianceSphere || kind == Destination::kNormSphere;
  LLPF_CHECK(radius.has_value() == sphere, op,
             ": radius belongs to the sphere destinations and to them only, got destination ", destination,
             " with radius ", radius ? "given" : "missing");
  if (radius) float64(op, like, "radius", *radius, {{segments}});
}

/// An exact alias reads before it writes and is harmless; any other overlap is refused.
inline void no_partial_overlap(const char* op, const Tensor& p, const char* name, const Tensor& other) {
  const auto* a = static_cast<const char*>(p.const_data_ptr());
  const auto* b = static_cast<const char*>(other.const_data_ptr());
  const int64_t a_bytes = p.numel() * static_cast<int64_t>(p.element_size());
  const int64_t b_bytes = other.numel() * static_cast<int64_t>(other.element_size());
  if (a_bytes == 0 || b_bytes == 0 || a + a_bytes <= b || b + b_bytes <= a) return;
  LLPF_CHECK(a == b && p.scalar_type() == other.scalar_type() && same(p.sizes(), other.sizes()), op, ": p and ", name,
             " overlap in memory without being the same tensor; clone one");
}

// ---- whole argument lists

inline void sgd(const Tensor& p, const Tensor& g, const OptionalTensor& momentum_buffer, const Tensor& lr,
                const Tensor& segments, const Tensor& chunks, const OptionalTensor& gate_, const OptionalTensor& d,
                const OptionalTensor& moments_out, const OptionalTensor& scratch_, double momentum, bool nesterov) {
  constexpr auto op = "sgd_";
  parameters(op, p);
  like(op, p, "g", g);
  table(op, p, segments, &chunks);
  const int64_t k = paths(p), s = segments.size(0);
  float64(op, p, "lr", lr, {{}, {1}, {s}, {k, 1}, {k, s}});
  LLPF_CHECK(momentum_buffer.has_value() == (momentum != 0.0), op,
             ": momentum_buffer belongs to momentum != 0 and to it only, got momentum ", momentum, " with buffer ",
             momentum_buffer ? "given" : "missing");
  LLPF_CHECK(!nesterov || momentum != 0.0, op, ": nesterov needs momentum, got momentum ", momentum);
  if (momentum_buffer) like(op, p, "momentum_buffer", *momentum_buffer);
  gate(op, p, k, gate_);
  destination(op, p, d);
  if (moments_out) {
    per_segment(op, p, "moments_out", *moments_out, s, kMomentColumns);
    LLPF_CHECK(scratch_.has_value(), op, ": moments_out needs scratch, got none");
    scratch(op, p, segments, chunks, *scratch_);
  }
  no_partial_overlap(op, p, "g", g);
  if (momentum_buffer) no_partial_overlap(op, p, "momentum_buffer", *momentum_buffer);
  if (d) no_partial_overlap(op, p, "d", *d);
}

inline void tick(const Tensor& p, const OptionalTensor& d, const Tensor& segments, const Tensor& chunks,
                 const Tensor& target_variance, const Tensor& step, const OptionalTensor& gate_,
                 const OptionalTensor& radius, const OptionalTensor& moments_in, const OptionalTensor& waypoint,
                 const Tensor& scratch_, int64_t destination_) {
  constexpr auto op = "tick_";
  parameters(op, p);
  destination(op, p, d);
  table(op, p, segments, &chunks);
  rule(op, p, paths(p), segments.size(0), target_variance, step, gate_, radius, destination_);
  const bool to_point = destination_ == static_cast<int64_t>(Destination::kPoint);
  LLPF_CHECK(d.has_value() == to_point, op, ": d belongs to destination POINT and to it only, got destination ",
             destination_, " with d ", d ? "given" : "missing");
  if (moments_in) per_segment(op, p, "moments_in", *moments_in, segments.size(0), kMomentColumns);
  if (waypoint) like(op, p, "waypoint", *waypoint);
  scratch(op, p, segments, chunks, scratch_);
  if (d) no_partial_overlap(op, p, "d", *d);
  if (waypoint) {
    LLPF_CHECK(p.numel() == 0 || waypoint->const_data_ptr() != p.const_data_ptr(), op, ": waypoint must not be p itself");
    no_partial_overlap(op, p, "waypoint", *waypoint);
  }
}

/// Number of paths of `moments` [S, 5] or [K, S, 5].
inline int64_t coefficients(const Tensor& moments, const Tensor& segments, const Tensor& target_variance,
                            const Tensor& step, const OptionalTensor& gate_, const OptionalTensor& radius,
                            int64_t destination) {
  constexpr auto op = "coefficients";
  table(op, moments, segments, nullptr);
  const int64_t s = segments.size(0), k = moments.dim() == 3 ? moments.size(0) : 1;
  float64(op, moments, "moments", moments, {{s, kMomentColumns}, {k, s, kMomentColumns}});
  rule(op, moments, k, s, target_variance, step, gate_, radius, destination);
  return k;
}

/// Number of paths.
inline int64_t loss_gate(const Tensor& state, const Tensor& loss, int64_t min_rounds, int64_t max_rounds) {
  constexpr auto op = "loss_gate_";
  LLPF_CHECK(1 <= min_rounds && min_rounds <= max_rounds, op, ": needs 1 <= min_rounds <= max_rounds, got ", min_rounds,
             " and ", max_rounds);
  const int64_t width = 4 + min_rounds, k = state.dim() == 2 ? state.size(0) : 1;
  float64(op, state, "state", state, {{width}, {k, width}});
  const auto type = loss.scalar_type();
  const bool floating = type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
                        type == ScalarType::Half;
  LLPF_CHECK(floating && loss.numel() == k && loss.is_contiguous(), op,
             ": loss must be floating point, contiguous, with ", k, " elements, got ", describe(loss));
  same_device(op, state, "loss", loss);
  return k;
}

}  // namespace llpf::check
