#include "common.cuh"

namespace llpf::cuda {
namespace {

template <class T>
__global__ void update_gates(double* state, const T* loss, int64_t paths, const LossGate rule) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (k < paths) rule(state + k * (LossGate::kWindow + rule.min_rounds), widen(loss[k]));
}

}  // namespace

cudaError_t loss_gate(double* state, const void* loss, Dtype loss_dtype, int64_t paths, const LossGate& rule,
                      cudaStream_t stream) {
  if (paths == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>((paths + kWarp - 1) / kWarp);
  return with_dtype(loss_dtype, [&]<class T>() {
    update_gates<<<blocks, kWarp, 0, stream>>>(state, static_cast<const T*>(loss), paths, rule);
    return cudaGetLastError();
  });
}

}  // namespace llpf::cuda
