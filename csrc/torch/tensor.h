#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "../core/checks.h"

// Torch's tensor as an array of core/checks.h.
namespace llpf::check {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <>
struct ArrayTraits<Tensor> {
  static Element element(const Tensor& tensor) {
    switch (tensor.scalar_type()) {
      case ScalarType::Float: return Element::kFloat32;
      case ScalarType::Double: return Element::kFloat64;
      case ScalarType::BFloat16: return Element::kBfloat16;
      case ScalarType::Half: return Element::kFloat16;
      case ScalarType::Long: return Element::kInt64;
      default: return Element::kOther;
    }
  }

  static std::string other_dtype(const Tensor& tensor) { return torch::headeronly::toString(tensor.scalar_type()); }

  static Device device(const Tensor& tensor) {
    const auto device = tensor.device();
    return {static_cast<int>(device.type()), static_cast<int>(device.index())};
  }
};

}  // namespace llpf::check
