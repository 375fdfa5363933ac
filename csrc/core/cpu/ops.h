#pragma once

#include <cstdint>
#include <type_traits>

#include "../coefficients.h"
#include "../draw.h"
#include "../loss_gate.h"
#include "../table.h"
#include "chunk.h"

// The ops on the CPU: raw pointers, no framework. Arguments are taken as checked (csrc/torch/common/checks.h says what
// that means); the promises of each op are in llpf_fast/ops/<op>.py.
namespace llpf::cpu {

/// A reference to a callable void(begin, end).
class Body {
 public:
  template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, Body>)
  Body(F&& f)
      : object_(const_cast<void*>(static_cast<const void*>(&f))), call_([](void* object, int64_t begin, int64_t end) {
          (*static_cast<std::remove_reference_t<F>*>(object))(begin, end);
        }) {}
  void operator()(int64_t begin, int64_t end) const { call_(object_, begin, end); }

 private:
  void* object_;
  void (*call_)(void*, int64_t, int64_t);
};

/// The caller's threads. `run` covers [0, count) by disjoint calls of the body, each of at least `grain` (but the
/// last).
struct Threads {
  int count = 1;
  void (*run)(int64_t count, int64_t grain, const Body& body) = nullptr;
};

/// A matrix with one row a path, or one row for all of them (stride 0).
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;

  T* operator[](int64_t path) const { return data + path * stride; }
  explicit operator bool() const { return data != nullptr; }
};

/// p [K, N], and d [K, N] or [N] or null.
struct Values {
  void* p;
  const void* d;
  Pair pair;
  int64_t paths, numel;
  bool d_per_path;
};

/// float64 arguments of a tick's rule; `gate` and `radius` may be null.
struct RuleArguments {
  Rows<const double> target_variance, step, gate;
  const double* radius;
};

struct SgdArguments {
  Dtype dtype;
  void* p;
  const void* g;
  void* buffer;  // null without momentum
  int64_t paths, numel;
  Rows<const double> lr;
  int64_t lr_step;          // 1: a rate for each segment, 0: one for all
  Rows<const double> gate;  // null: open
  SgdSettings settings;
};

/// `out` is [K, S, 5].
void moments(const Values&, const Table&, double* scratch, double* out, const Threads&);
void coefficients(const Table&, const Rule&, const RuleArguments&, const double* moments, int64_t paths, double* out);
void affine(const Values&, const Table&, const double* coefficients, const Threads&);
/// `moments_in` and `waypoint` may be null.
void tick(const Values&, const Table&, const Rule&, const RuleArguments&, const double* moments_in, void* waypoint,
          double* scratch, const Threads&);
void sgd(const SgdArguments&, const Table&, const Threads&);
void loss_gate(const LossGate&, double* state, const void* loss, Dtype loss_dtype, int64_t paths);
/// `out` is [K, R, B], `key` and `first` [K]; `gate` may be null.
void draw(const Draw&, int64_t* out, const int64_t* key, const int64_t* first, const double* gate, int64_t gate_columns,
          int64_t paths);
/// The moments as the GPU's block of threads computes them, lane by lane: slow, for tests.
void moments_device_blocking(const Values&, const Table&, double* out);

/// First reason why an op must not follow the table, or null: it leaves the buffer, segments overlap, groups are split, or
/// chunks do not cover their segment exactly.
struct TableFault {
  const char* what;
  int64_t row;
};
TableFault find_fault(const Table&, int64_t numel);
/// The same of the segments alone.
TableFault find_fault_of_segments(const Table&, int64_t numel);

/// First value that an open path would read and must not, by the argument's name (for a state: the rule that it breaks), or
/// null; `path` -1: the argument has none.
struct ValueFault {
  const char* what;
  int64_t path, column;
  double value;
};
ValueFault find_fault(const Table&, const Rule&, const RuleArguments&, int64_t paths);
ValueFault find_fault(const Table&, const SgdArguments&);
ValueFault find_fault(const LossGate&, const double* state, int64_t paths);

}  // namespace llpf::cpu
