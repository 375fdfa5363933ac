#pragma once

#include <cstdint>
#include <limits>

#include "arguments.h"
#include "macros.h"

// `relu_pool_bounds`: affine forms through max pooling and leaky ReLU; llpf_fast/ops/relu_pool_bounds.py derives the formula.
//
// V is T (float or double) or a vector of T. Comparisons keep the second value where one is NaN, in every implementation.
namespace llpf {

template <class V>
LLPF_HD V larger(V a, V b) {
  return a > b ? a : b;
}
template <class V>
LLPF_HD V smaller(V a, V b) {
  return a < b ? a : b;
}

template <class V>
struct Form {
  V left, right, radius;
};

/// Numbers of the rounding analysis for arithmetic in T.
template <class T>
struct ReluBounds {
  static constexpr T kUnit = std::numeric_limits<T>::epsilon() / 2, kMost = std::numeric_limits<T>::max();
  static constexpr T kInfinity = std::numeric_limits<T>::infinity(), kTiny = std::numeric_limits<T>::min();

  T slope, half_bend;  // half_bend: (1 - slope) / 2

  LLPF_HD static ReluBounds of(double slope) { return {static_cast<T>(slope), static_cast<T>(0.5 * (1.0 - slope))}; }

  /// x y / (x + y) where both are positive, else 0; infinite where the sum is.
  template <class V>
  LLPF_HD static V crossing_gap(V x, V y) {
    const V least = smaller(x, y), most = larger(x, y), both = least + most;
    const V zero{}, infinite = zero + kInfinity;
    const V gap = both <= zero + kMost ? least * (most / both) : infinite;
    return least > zero ? gap : zero;
  }

  template <class V>
  LLPF_HD V value_at(V end) const {
    return end > V{} ? end : end * slope;
  }
};

/// What a pass over a window keeps of its forms.
template <class V>
struct WindowEnds {
  V most_left, right_of_left;   // the largest lower end on the left, and the same form's on the right
  V most_right, left_of_right;  // likewise of the right
  V high_left, high_right, total;

  LLPF_HD static WindowEnds none(V minus_infinity) {
    return {minus_infinity, minus_infinity, minus_infinity, minus_infinity, minus_infinity, minus_infinity, V{}};
  }
  LLPF_HD static WindowEnds one(const Form<V>& form) {
    const V low_left = form.left - form.radius, low_right = form.right - form.radius;
    const V high_left = form.left + form.radius, high_right = form.right + form.radius;
    return {low_left, low_right, low_right, low_left, high_left, high_right, high_left + high_right};
  }

  /// The first of equals stays.
  LLPF_HD void add(const Form<V>& form) {
    const WindowEnds cell = one(form);
    const auto on_left = cell.most_left > most_left;
    right_of_left = on_left ? cell.right_of_left : right_of_left;
    most_left = on_left ? cell.most_left : most_left;
    const auto on_right = cell.most_right > most_right;
    left_of_right = on_right ? cell.left_of_right : left_of_right;
    most_right = on_right ? cell.most_right : most_right;
    high_left = larger(cell.high_left, high_left);
    high_right = larger(cell.high_right, high_right);
    total = total + cell.total;
  }

  /// The form of the window's maximum, after leaky ReLU. `kPooled`: the window has more than one cell.
  template <bool kPooled, class T>
  LLPF_HD Form<V> form(const ReluBounds<T>& rule) const {
    constexpr T u = ReluBounds<T>::kUnit;
    const V zero{};
    V low_left = most_left, low_right = most_right;
    if constexpr (kPooled) {
      const V gap = rule.crossing_gap(most_left - left_of_right, most_right - right_of_left);
      const V size = larger(larger(most_left, -most_left), larger(most_right, -most_right));
      const V whole = gap > zero ? gap * (1 + 8 * u) + size * (4 * u) : zero;
      low_left = most_left - whole;
      low_right = most_right - whole;
    }
    V bend = zero;
    if (rule.half_bend != 0)
      bend = rule.crossing_gap(-smaller(low_left, low_right), larger(low_left, low_right)) * rule.half_bend;
    low_left = rule.value_at(low_left);
    low_right = rule.value_at(low_right);
    const V top_left = rule.value_at(high_left), top_right = rule.value_at(high_right);
    const V half_left = (top_left - low_left) * T(0.5), half_right = (top_right - low_right) * T(0.5);
    const V left = (low_left + half_left) - bend, right = (low_right + half_right) - bend;
    const V size = larger(larger(top_left, top_right), -smaller(low_left, low_right));
    const V spread = (larger(half_left, half_right) + bend) * (1 + 24 * u) +
                     (size * (8 * u) + 64 * ReluBounds<T>::kTiny);
    return {left, right, spread + (left + right + total) * T(0)};
  }
};

/// Where the windows of one plane lie, and how many there are.
struct Window {
  int64_t size[2], out[2], kernel[2], stride[2], padding[2], dilation[2];

  LLPF_HD bool pointwise() const {
    return kernel[0] == 1 && kernel[1] == 1 && stride[0] == 1 && stride[1] == 1 && padding[0] == 0 && padding[1] == 0;
  }
  /// Cells [begin, end) of the window of output `at` along axis `i` that lie inside the plane.
  LLPF_HD int64_t begin(int i, int64_t at) const {
    const int64_t before = padding[i] - at * stride[i];
    return before <= 0 ? 0 : (before + dilation[i] - 1) / dilation[i];
  }
  LLPF_HD int64_t end(int i, int64_t at) const {
    const int64_t left = size[i] - 1 + padding[i] - at * stride[i];
    if (left < 0) return 0;
    const int64_t cells = left / dilation[i] + 1;
    return cells < kernel[i] ? cells : kernel[i];
  }
  LLPF_HD int64_t position(int i, int64_t at, int64_t cell) const { return at * stride[i] - padding[i] + cell * dilation[i]; }
};

/// The form of one output of a plane: the specification of what other orders of the work compute.
template <class T>
LLPF_HD Form<T> pooled(const Form<const T*>& plane, const Window& window, const ReluBounds<T>& rule, int64_t y, int64_t x) {
  auto ends = WindowEnds<T>::none(-ReluBounds<T>::kInfinity);
  for (int64_t i = window.begin(0, y); i < window.end(0, y); ++i)
    for (int64_t j = window.begin(1, x); j < window.end(1, x); ++j) {
      const int64_t at = window.position(0, y, i) * window.size[1] + window.position(1, x, j);
      ends.add({plane.left[at], plane.right[at], plane.radius[at]});
    }
  return ends.template form<true>(rule);
}

/// left, right [planes, size], radius [radius_planes, size]: plane i has the radius i mod radius_planes.
struct ReluPoolBoundsArguments {
  const void *left, *right, *radius;
  Dtype dtype;
  int64_t planes, radius_planes;
  Window window;
  double slope;

  template <class A, class Pair>
  static ReluPoolBoundsArguments of(const A& left, const A& right, const A& radius, double slope, const Pair& kernel,
                                    const Pair& stride, const Pair& padding, const Pair& dilation, bool ceil_mode) {
    using check::Element, check::element_of;
    constexpr auto op = "relu_pool_bounds";
    const Element element = element_of(left);
    LLPF_CHECK(element == Element::kFloat32 || element == Element::kFloat64, op, ": left must be float32 or float64, got ",
               check::dtype_name(left));
    check::contiguous(op, "left", left);
    check::like(op, left, "right", right);
    const bool shared = left.dim() > 0 && radius.dim() == left.dim() && radius.size(0) == 1;
    bool fits = radius.dim() == left.dim() && element_of(radius) == element;
    for (int64_t i = 0; fits && i < left.dim(); ++i) fits = radius.size(i) == left.size(i) || (i == 0 && shared);
    LLPF_CHECK(fits, op, ": radius must be ", check::describe(left), " or have first dimension 1, got ",
               check::describe(radius));
    check::same_device(op, left, "radius", radius);
    check::contiguous(op, "radius", radius);
    LLPF_CHECK(slope == 0 || (0x1p-100 <= slope && slope <= 1), op, ": slope must be 0, or 2^-100 to 1, got ", slope);
    const auto pair = [&](const char* name, const Pair& values, int64_t least) {
      LLPF_CHECK(values.size() == 2 && values[0] >= least && values[1] >= least, op, ": ", name,
                 " must be two integers of at least ", least, ", got ", check::text(values));
    };
    pair("kernel", kernel, 1);
    pair("stride", stride, 1);
    pair("padding", padding, 0);
    pair("dilation", dilation, 1);
    Window window{{1, 1},
                  {1, 1},
                  {kernel[0], kernel[1]},
                  {stride[0], stride[1]},
                  {padding[0], padding[1]},
                  {dilation[0], dilation[1]}};
    if (window.pointwise()) {
      // A row a sample; of a vector, one row.
      const int64_t rows = left.dim() > 1 || shared ? left.size(0) : 1;
      window.size[1] = window.out[1] = rows == 0 ? 0 : left.numel() / rows;
      return {left.data_ptr(), right.data_ptr(), radius.data_ptr(), check::dtype_of(left), rows, shared ? 1 : rows, window,
              slope};
    }
    LLPF_CHECK(left.dim() == 4, op, ": left must be [N, C, H, W] for a kernel ", check::text(kernel), ", got ",
               check::text(left.sizes()));
    for (int i = 0; i < 2; ++i) {
      const int64_t span = window.dilation[i] * (window.kernel[i] - 1) + 1;
      LLPF_CHECK(2 * window.padding[i] <= span, op, ": padding must be at most half of the kernel, got ",
                 check::text(padding), " for ", check::text(kernel));
      window.size[i] = left.size(2 + i);
      const int64_t room = window.size[i] + 2 * window.padding[i] - span + (ceil_mode ? window.stride[i] - 1 : 0);
      window.out[i] = room < 0 ? 0 : room / window.stride[i] + 1;
      // The last window must begin inside the image or its left padding.
      if (ceil_mode && (window.out[i] - 1) * window.stride[i] >= window.size[i] + window.padding[i]) --window.out[i];
      LLPF_CHECK(window.out[i] >= 1, op, ": the kernel ", check::text(kernel), " does not fit into ",
                 check::text(left.sizes()), " with padding ", check::text(padding));
    }
    const int64_t planes = left.size(0) * left.size(1);
    return {left.data_ptr(), right.data_ptr(), radius.data_ptr(), check::dtype_of(left), planes,
            shared ? left.size(1) : planes, window, slope};
  }
};

/// The result: contiguous [planes, out].
struct FormPointers {
  void *left, *right, *radius;
};

namespace cpu {
void relu_pool_bounds(const ReluPoolBoundsArguments& arguments, const FormPointers& out, const Threads& threads);
}
namespace cuda {
/// One launch.
Error relu_pool_bounds(const ReluPoolBoundsArguments& arguments, const FormPointers& out, Stream stream);
}

}  // namespace llpf
