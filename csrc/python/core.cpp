#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../core/cpu/chunk.h"
#include "../core/cpu/threads.h"
#include "../core/loss_gate.h"
#include "../core/sgd.h"
#include "../core/tick.h"
#include "array.h"

// llpf_fast._core: the ops for NumPy arrays and whatever else offers the buffer protocol or DLPack on the CPU. Needs no
// torch; arguments and promises are those of llpf_fast.ops, scratch is allocated here. One thread.
namespace {

using namespace llpf;
using namespace pybind11::literals;
namespace py = pybind11;
using python::Array;

using Object = const py::object&;

Array input(Object object, const char* name) { return Array::of(object, name, false); }
Array output(Object object, const char* name) { return Array::of(object, name, true); }
std::optional<Array> optional_input(Object object, const char* name) {
  return object.is_none() ? std::nullopt : std::optional(input(object, name));
}
std::optional<Array> optional_output(Object object, const char* name) {
  return object.is_none() ? std::nullopt : std::optional(output(object, name));
}

Array new_scratch(const Array& p, const Array& segments, const Array& chunks) {
  if (p.dim() == 0 || segments.dim() == 0 || chunks.dim() == 0) return Array::make({0});  // refused by the checks
  return Array::make({check::scratch_numel(check::paths(p), chunks.size(0), segments.size(0))});
}

std::vector<int64_t> moments_shape(const Array& p, const Array& segments) {
  if (p.dim() == 1) return {segments.size(0), kMomentColumns};
  return {p.size(0), segments.size(0), kMomentColumns};
}

py::array moments(Object p_, Object d_, Object segments_, Object chunks_) {
  const Array p = input(p_, "p"), segments = input(segments_, "segments"), chunks = input(chunks_, "chunks");
  const Array scratch = new_scratch(p, segments, chunks);
  const std::optional<Array> d = optional_input(d_, "d");
  const auto arguments = MomentsArguments::of(p, d, segments, chunks, scratch);
  const Array out = Array::make(moments_shape(p, segments));
  cpu::moments(arguments, pointer(out), {});
  return out.made();
}

py::array coefficients(Object moments_, Object segments_, Object target_variance_, Object step_, Object active_,
                       Object radius_, int64_t destination, double epsilon, bool combine_sum, bool clamp,
                       bool project_first) {
  const Array moments = input(moments_, "moments"), segments = input(segments_, "segments");
  const Array target_variance = input(target_variance_, "target_variance"), step = input(step_, "step");
  const std::optional<Array> active = optional_input(active_, "active"), radius = optional_input(radius_, "radius");
  const Rule rule{static_cast<Destination>(destination), epsilon, combine_sum, clamp, project_first};
  const auto arguments = CoefficientsArguments::of(moments, segments, target_variance, step, active, radius, rule);
  const Array out = Array::make(moments.sizes());
  cpu::coefficients(arguments, pointer(out), {});
  return out.made();
}

void affine_(Object p, Object d, Object coefficients, Object segments, Object chunks) {
  cpu::affine(AffineArguments::of(output(p, "p"), optional_input(d, "d"), input(coefficients, "coefficients"),
                                  input(segments, "segments"), input(chunks, "chunks")),
              {});
}

void tick_(Object p_, Object d, Object segments_, Object chunks_, Object target_variance, Object step, Object active,
           Object radius, Object moments_in, Object waypoint, int64_t destination, double epsilon, bool combine_sum,
           bool clamp, bool project_first) {
  const Array p = output(p_, "p"), segments = input(segments_, "segments"), chunks = input(chunks_, "chunks");
  const Rule rule{static_cast<Destination>(destination), epsilon, combine_sum, clamp, project_first};
  cpu::tick(TickArguments::of(p, optional_input(d, "d"), segments, chunks, input(target_variance, "target_variance"),
                              input(step, "step"), optional_input(active, "active"), optional_input(radius, "radius"),
                              optional_input(moments_in, "moments_in"), optional_output(waypoint, "waypoint"),
                              new_scratch(p, segments, chunks), rule),
            {});
}

void sgd_(Object p, Object g, Object momentum_buffer, Object lr, Object segments, Object chunks, Object active,
          double momentum, double weight_decay, bool nesterov) {
  cpu::sgd(SgdArguments::of(output(p, "p"), input(g, "g"), optional_output(momentum_buffer, "momentum_buffer"),
                            input(lr, "lr"), input(segments, "segments"), input(chunks, "chunks"),
                            optional_input(active, "active"), {momentum, weight_decay, nesterov}),
           {});
}

void loss_gate_(Object state, Object loss, double threshold, int64_t window, int64_t max_steps) {
  cpu::loss_gate(LossGateArguments::of(output(state, "state"), input(loss, "loss"), {threshold, window, max_steps}), {});
}

/// llpf_fast.errors.LLPFError; ValueError where this module was taken out of the package.
py::object refusal() {
  try {
    return py::module_::import("llpf_fast.errors").attr("LLPFError");
  } catch (const py::error_already_set&) {
    return py::reinterpret_borrow<py::object>(PyExc_ValueError);
  }
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  py::register_local_exception_translator([](std::exception_ptr raised) {
    try {
      if (raised) std::rethrow_exception(raised);
    } catch (const std::invalid_argument& error) {
      PyErr_SetString(refusal().ptr(), error.what());
    }
  });
  m.doc() =
      "The ops of llpf_fast.ops for NumPy arrays and whatever else offers the buffer protocol or DLPack on the CPU.\n\n"
      "Needs no torch. Shapes, dtypes and meaning are those of the functions of the same name in llpf_fast.ops; "
      "arrays\n"
      "are contiguous, those whose op ends in an underscore are written in place. bfloat16 comes by DLPack only.\n"
      "LLPFError (a ValueError): a shape, dtype, layout, value or table that differs, arrays that overlap; TypeError: an\n"
      "argument that is no array.";
  const auto none = py::none();
  m.def(
      "moments", &moments, "p"_a, "d"_a, "segments"_a, "chunks"_a,
      "Centred moments of p and d - p for every segment: float64 [S, 5], or [K, S, 5] for p [K, N].\n\n"
      "p float32, float64, float16 or bfloat16 [N] or [K, N]; d of p's dtype, or 16-bit beside float32, [N] or of p's\n"
      "shape, or None; segments int64 [S, 5]; chunks int64 [C, 3].");
  m.def("coefficients", &coefficients, "moments"_a, "segments"_a, "target_variance"_a, "step"_a, "active"_a = none,
        "radius"_a = none, py::kw_only(), "destination"_a = 0, "epsilon"_a = 0.0, "combine_sum"_a = true,
        "clamp"_a = true, "project_first"_a = false,
        "The affine map of one tick for every segment: float64 of moments' shape, columns a, b, c, a0, c0.\n\n"
        "moments float64 [S, 5] or [K, S, 5]; target_variance float64 [S] or [K, S]; step float64 [2] or [K, 2];\n"
        "active float64, one row a path, or None; radius float64 [S] for the sphere destinations.");
  m.def("affine_", &affine_, "p"_a, "d"_a, "coefficients"_a, "segments"_a, "chunks"_a,
        "p = a p + b d + c for every segment that is not masked; coefficients float64 [S, 5] or [K, S, 5].");
  m.def("tick_", &tick_, "p"_a, "d"_a, "segments"_a, "chunks"_a, "target_variance"_a, "step"_a, "active"_a = none,
        "radius"_a = none, "moments_in"_a = none, "waypoint"_a = none, py::kw_only(), "destination"_a = 0,
        "epsilon"_a = 0.0, "combine_sum"_a = true, "clamp"_a = true, "project_first"_a = false,
        "One LLPF tick on p, in place: moments, coefficients and affine_ together.");
  m.def("sgd_", &sgd_, "p"_a, "g"_a, "momentum_buffer"_a, "lr"_a, "segments"_a, "chunks"_a, "active"_a = none,
        py::kw_only(), "momentum"_a = 0.0, "weight_decay"_a = 0.0, "nesterov"_a = false,
        "torch.optim.SGD's update of every segment that is not frozen, in place; lr float64 [], [1], [S], [K, 1], [K, "
        "S].");
  m.def("loss_gate_", &loss_gate_, "state"_a, "loss"_a, py::kw_only(), "threshold"_a, "window"_a, "max_steps"_a,
        "Take one batch loss a path into account; state float64 [4 + window] or [K, 4 + window].");
  m.def("isa", [] { return cpu::chunk_kernels().isa; }, "The instruction set in use: plain, avx2 or avx512.");
}
