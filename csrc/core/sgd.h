#pragma once

#include "convert.h"
#include "macros.h"

// One element of stochastic gradient descent; the update is that of torch.optim.SGD (its documentation).
namespace llpf {

template <class T>
struct SgdRule {
  T momentum = 0, weight_decay = 0;
  bool nesterov = false;

  LLPF_HD static SgdRule of(double momentum, double weight_decay, bool nesterov) {
    return {static_cast<T>(momentum), static_cast<T>(weight_decay), nesterov};
  }

  // V is T or a vector of T.
  template <class V>
  LLPF_HD V decayed(V value, V gradient) const {
    return weight_decay != 0 ? gradient + weight_decay * value : gradient;
  }

  /// Without momentum.
  template <class V>
  LLPF_HD V operator()(V value, V gradient, T rate) const {
    return value - rate * decayed(value, gradient);
  }

  /// With momentum; `buffer` is replaced.
  template <class V>
  LLPF_HD V operator()(V value, V gradient, T rate, V& buffer) const {
    const V direction = decayed(value, gradient);
    buffer = momentum * buffer + direction;
    return value - rate * (nesterov ? direction + momentum * buffer : buffer);
  }
};

}  // namespace llpf
