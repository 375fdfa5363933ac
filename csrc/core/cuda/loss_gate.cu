// loss_gate_ on a GPU: one thread a path.
#include "../loss_gate.h"

#include "common.cuh"

namespace llpf::cuda {
namespace {

template <class T>
__global__ void update_gates(double* state, const T* loss, int64_t paths, const LossGate gate) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k < paths) gate(state + k * (LossGate::kWindow + gate.window), widen(loss[k]));
}

}  // namespace

Error loss_gate(const LossGateArguments& a, Stream stream) {
  if (a.paths == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((a.paths + kWarp - 1) / kWarp);
  return with_dtype(a.loss_dtype, [&]<class T>() {
    update_gates<<<blocks, kWarp, 0, stream>>>(a.state, static_cast<const T*>(a.loss), a.paths, a.gate);
    return cudaGetLastError();
  });
}

}  // namespace llpf::cuda
