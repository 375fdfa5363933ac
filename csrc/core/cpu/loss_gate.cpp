// loss_gate_ on a CPU: counts a step, keeps the last losses, closes the gate when their mean is low enough.
#include "../loss_gate.h"

namespace llpf::cpu {
namespace {

double element(const void* data, Dtype dtype, int64_t i) {
  switch (dtype) {
    case Dtype::kFloat64: return static_cast<const double*>(data)[i];
    case Dtype::kBfloat16: return widen(static_cast<const Bfloat16*>(data)[i]);
    case Dtype::kFloat16: return widen(static_cast<const Float16*>(data)[i]);
    default: return static_cast<const float*>(data)[i];
  }
}

/// Refuses a row that no sequence of losses leads to.
void check_row(const double* row, int64_t path) {
  const auto refuse = [&](const char* rule, int column) {
    check::refuse("loss_gate_: state of path ", path, ": ", rule, ", got ", row[column], " in column ", column);
  };
  for (const int column : {LossGate::kActive, LossGate::kFinal})
    if (row[column] != 0 && row[column] != 1) refuse("active and final must be 0 or 1", column);
  if (row[LossGate::kActive] == 1 && !LossGate::counts(row[LossGate::kSteps]))
    refuse("steps must be a whole number of at least 0", LossGate::kSteps);
}

}  // namespace

void loss_gate(const LossGateArguments& a, const Threads&) {
  const int64_t width = LossGate::kWindow + a.gate.window;
  for (int64_t k = 0; k < a.paths; ++k) check_row(a.state + k * width, k);
  for (int64_t k = 0; k < a.paths; ++k) a.gate(a.state + k * width, element(a.loss, a.loss_dtype, k));
}

}  // namespace llpf::cpu
