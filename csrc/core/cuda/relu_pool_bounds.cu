#include "../relu_pool_bounds.h"

#include "common.cuh"

namespace llpf::cuda {
namespace {

constexpr int64_t kLanes = 256;

/// A block is 256 outputs of one plane at a time. `kPooled`: a window has more than one cell.
template <bool kPooled, class T>
__global__ void bound_planes(const ReluPoolBoundsArguments a, const FormPointers to) {
  const Window& w = a.window;
  const auto rule = ReluBounds<T>::of(a.slope);
  const int64_t plane = blockIdx.x, in_size = w.size[0] * w.size[1], out_size = w.out[0] * w.out[1];
  const Form<const T*> in{static_cast<const T*>(a.left) + plane * in_size, static_cast<const T*>(a.right) + plane * in_size,
                          static_cast<const T*>(a.radius) + plane % a.radius_planes * in_size};
  LLPF_ROLLED
  for (int64_t i = blockIdx.y * kLanes + threadIdx.x; i < out_size; i += gridDim.y * kLanes) {
    Form<T> form;
    if constexpr (kPooled) {
      const int64_t y = i / w.out[1];
      form = pooled(in, w, rule, y, i - y * w.out[1]);
    } else {
      form = WindowEnds<T>::one({in.left[i], in.right[i], in.radius[i]}).template form<false>(rule);
    }
    const int64_t at = plane * out_size + i;
    static_cast<T*>(to.left)[at] = form.left;
    static_cast<T*>(to.right)[at] = form.right;
    static_cast<T*>(to.radius)[at] = form.radius;
  }
}

}  // namespace

Error relu_pool_bounds(const ReluPoolBoundsArguments& a, const FormPointers& to, Stream stream) {
  const int64_t out_size = a.window.out[0] * a.window.out[1];
  if (a.planes == 0 || out_size == 0) return cudaSuccess;
  const bool pooled = !a.window.pointwise(), wide = a.dtype == Dtype::kFloat64;
  const auto kernel = pooled ? (wide ? bound_planes<true, double> : bound_planes<true, float>)
                             : (wide ? bound_planes<false, double> : bound_planes<false, float>);
  kernel<<<grid(a.planes, (out_size + kLanes - 1) / kLanes), kLanes, 0, stream>>>(a, to);
  return cudaGetLastError();
}

}  // namespace llpf::cuda
