// The loops of relu_pool_bounds for the instruction set LLPF_ISA, a register of outputs at a time; see simd.h.
#pragma once

#include "../relu_pool_bounds.h"
#include "simd.h"

namespace llpf::LLPF_ISA {

/// Elements 0, stride, 2 stride, ... from `from` on: the first `count` lanes. kStride: the stride if it is 1 or 2, else 0.
template <int kStride, class T>
LLPF_HD Vector<T, kLanes<T>> load_strided(const T* from, int64_t stride, int64_t count) {
  constexpr int N = kLanes<T>;
  if constexpr (kStride == 1) {
    return count == N ? load<T>(from) : load_some(from, count);
  } else if constexpr (kStride == 2) {
    if (count == N) return every_second<T>(load<T>(from), load<T>(from + N - 1));
    const int64_t span = 2 * count - 1;
    const auto lower = load_some(from, span < N ? span : N);
    return every_second<T>(lower, span < N ? lower : load_some(from + N - 1, span - N + 1));
  } else {
    Vector<T, N> out{};
    for (int64_t i = 0; i < count; ++i) out[i] = from[i * stride];
    return out;
  }
}

template <int kStride, class T>
LLPF_HD Form<Vector<T, kLanes<T>>> load_forms(const Form<const T*>& from, int64_t at, int64_t stride, int64_t count) {
  return {load_strided<kStride>(from.left + at, stride, count), load_strided<kStride>(from.right + at, stride, count),
          load_strided<kStride>(from.radius + at, stride, count)};
}

template <class T>
LLPF_HD void store_forms(const Form<T*>& to, int64_t at, const Form<Vector<T, kLanes<T>>>& forms, int64_t count) {
  if (count == kLanes<T>) {
    store(to.left + at, forms.left);
    store(to.right + at, forms.right);
    store(to.radius + at, forms.radius);
  } else {
    store_some(to.left + at, forms.left, count);
    store_some(to.right + at, forms.right, count);
    store_some(to.radius + at, forms.radius, count);
  }
}

/// Leaky ReLU alone, of n values.
template <class T>
LLPF_HD void relu_row(const Form<const T*>& in, const Form<T*>& out, const ReluBounds<T>& rule, int64_t n) {
  constexpr int N = kLanes<T>;
  using V = Vector<T, N>;
  for (int64_t i = 0; i < n; i += N) {
    const int64_t count = n - i < N ? n - i : N;
    const auto ends = WindowEnds<V>::one(load_forms<1>(in, i, 1, count));
    store_forms(out, i, ends.template form<false>(rule), count);
  }
}

/// One row of outputs of a plane.
template <int kStride, class T>
LLPF_HD void pool_row(const Form<const T*>& plane, const Form<T*>& out, const Window& w, const ReluBounds<T>& rule, int64_t y) {
  constexpr int N = kLanes<T>;
  using V = Vector<T, N>;
  // Windows from `first` on and before `last` lie inside the plane from side to side; the others one by one.
  const int64_t after = w.size[1] - 1 + w.padding[1] - (w.kernel[1] - 1) * w.dilation[1];
  const int64_t first = std::min(w.out[1], (w.padding[1] + w.stride[1] - 1) / w.stride[1]);
  const int64_t last = std::max(first, after < 0 ? 0 : std::min(w.out[1], after / w.stride[1] + 1));
  const auto single = [&](int64_t x) {
    const Form<T> one = pooled(plane, w, rule, y, x);
    out.left[x] = one.left;
    out.right[x] = one.right;
    out.radius[x] = one.radius;
  };
  for (int64_t x = 0; x < first; ++x) single(x);
  const int64_t begin = w.begin(0, y), end = w.end(0, y);
  for (int64_t x = first; x < last; x += N) {
    const int64_t count = last - x < N ? last - x : N;
    auto ends = WindowEnds<V>::none(V{} - ReluBounds<T>::kInfinity);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = w.position(0, y, i) * w.size[1];
      for (int64_t j = 0; j < w.kernel[1]; ++j)
        ends.add(load_forms<kStride>(plane, row + w.position(1, x, j), w.stride[1], count));
    }
    store_forms(out, x, ends.template form<true>(rule), count);
  }
  for (int64_t x = last; x < w.out[1]; ++x) single(x);
}

template <int kStride, class T>
LLPF_HD void pool_plane(const Form<const T*>& plane, const Form<T*>& out, const Window& w, const ReluBounds<T>& rule) {
  for (int64_t y = 0; y < w.out[0]; ++y) {
    const int64_t at = y * w.out[1];
    pool_row<kStride>(plane, Form<T*>{out.left + at, out.right + at, out.radius + at}, w, rule, y);
  }
}

/// Planes [begin, end).
template <class T>
void relu_pool_planes(const ReluPoolBoundsArguments& a, const FormPointers& to, int64_t begin, int64_t end) {
  const Window& w = a.window;
  const auto rule = ReluBounds<T>::of(a.slope);
  const int64_t in_size = w.size[0] * w.size[1], out_size = w.out[0] * w.out[1];
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t at = plane * in_size, to_at = plane * out_size;
    const Form<const T*> in{static_cast<const T*>(a.left) + at, static_cast<const T*>(a.right) + at,
                            static_cast<const T*>(a.radius) + plane % a.radius_planes * in_size};
    const Form<T*> out{static_cast<T*>(to.left) + to_at, static_cast<T*>(to.right) + to_at,
                       static_cast<T*>(to.radius) + to_at};
    if (w.pointwise()) relu_row(in, out, rule, in_size);
    else if (w.stride[1] == 1) pool_plane<1>(in, out, w, rule);
    else if (w.stride[1] == 2) pool_plane<2>(in, out, w, rule);
    else pool_plane<0>(in, out, w, rule);
  }
}

}  // namespace llpf::LLPF_ISA
