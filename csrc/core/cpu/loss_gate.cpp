#include "ops.h"

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

}  // namespace

void loss_gate(const LossGate& gate, double* state, const void* loss, Dtype loss_dtype, int64_t paths) {
  const int64_t width = LossGate::kWindow + gate.min_rounds;
  for (int64_t k = 0; k < paths; ++k) gate(state + k * width, element(loss, loss_dtype, k));
}

}  // namespace llpf::cpu
