#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <bit>
#include <memory>
#include <vector>

#include "../core/checks.h"
#include "dlpack.h"

// Anything that offers the buffer protocol or DLPack on the CPU, as an array of core/checks.h. Nothing is copied.
namespace llpf::python {

namespace py = pybind11;

class Array {
 public:
  /// Reads `object`; `writable` refuses what may not be written to. Errors call it by `name`.
  static Array of(const py::object& object, const char* name, bool writable) {
    Array array;
    if (PyObject_CheckBuffer(object.ptr()) && array.take_buffer(object)) {
    } else if (py::hasattr(object, "__dlpack__")) {
      array.take_dlpack(object, name);
    } else {
      throw py::type_error(std::string(name) + " must offer the buffer protocol or DLPack on the CPU, got " +
                           Py_TYPE(object.ptr())->tp_name);
    }
    if (writable && array.readonly_) check::refuse(name, " is read-only");
    // A field of a structured array, or a buffer that begins at an odd byte.
    const int64_t bytes = check::bytes_of(array.element_);
    if (array.element_ != check::Element::kOther && (array.odd_ || reinterpret_cast<uintptr_t>(array.data_) % bytes != 0))
      check::refuse(name, " must be aligned: its elements of ", bytes, " bytes begin between multiples of that");
    return array;
  }

  /// A new float64 NumPy array.
  static Array make(std::vector<int64_t> shape) {
    Array array;
    array.made_ = py::array_t<double>(shape);
    array.data_ = const_cast<void*>(array.made_.data());
    array.element_ = check::Element::kFloat64;
    array.shape_ = std::move(shape);
    array.strides_ = compact(array.shape_);
    return array;
  }

  /// The NumPy array that `make` made.
  const py::array& made() const { return made_; }

  int64_t dim() const { return static_cast<int64_t>(shape_.size()); }
  int64_t size(int64_t i) const { return shape_.at(i); }
  const std::vector<int64_t>& sizes() const { return shape_; }
  const std::vector<int64_t>& strides() const { return strides_; }
  void* data_ptr() const { return data_; }
  check::Element element() const { return element_; }
  const std::string& other_dtype() const { return other_dtype_; }

  int64_t numel() const {
    int64_t total = 1;
    for (const int64_t size : shape_) total *= size;
    return total;
  }

  bool is_contiguous() const {
    const auto expected = compact(shape_);
    for (size_t i = 0; i < shape_.size(); ++i)
      if (shape_[i] > 1 && strides_[i] != expected[i]) return false;
    return true;
  }

 private:
  static std::vector<int64_t> compact(const std::vector<int64_t>& shape) {
    std::vector<int64_t> strides(shape.size());
    int64_t step = 1;
    for (size_t i = shape.size(); i-- > 0; step *= shape[i]) strides[i] = step;
    return strides;
  }

  /// False where the buffer protocol has no letter for the elements (bfloat16).
  bool take_buffer(const py::object& object) {
    auto view = std::make_shared<py::buffer_info>();
    try {
      *view = py::reinterpret_borrow<py::buffer>(object).request();
    } catch (const py::error_already_set&) {
      return false;
    } catch (const py::value_error&) {
      return false;
    }
    data_ = view->ptr;
    readonly_ = view->readonly;
    element_ = from_format(view->format, view->itemsize);
    other_dtype_ = "buffer format " + view->format;
    shape_.assign(view->shape.begin(), view->shape.end());
    for (size_t i = 0; i < shape_.size(); ++i) {
      const int64_t bytes = view->strides[i], item = std::max<int64_t>(view->itemsize, 1);
      strides_.push_back(bytes / item);
      odd_ = odd_ || (shape_[i] > 1 && bytes % item != 0);
    }
    owner_ = std::move(view);
    return true;
  }

  void take_dlpack(const py::object& object, const char* name) {
    const auto device = py::cast<std::pair<int, int>>(object.attr("__dlpack_device__")());
    if (device.first != dlpack::kCpu)
      check::refuse(name, " must be on the CPU, got DLPack device type ", device.first);
    py::object capsule;
    try {
      capsule = object.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 0));
    } catch (const py::error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;
      capsule = object.attr("__dlpack__")();  // older than DLPack 1.0
    }
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
      readonly_ = adopt<dlpack::ManagedVersioned>(capsule, "dltensor_versioned", "used_dltensor_versioned")->flags &
                  dlpack::kReadOnly;
    } else {
      adopt<dlpack::Managed>(capsule, "dltensor", "used_dltensor");
    }
  }

  template <class Managed>
  const Managed* adopt(const py::object& capsule, const char* fresh, const char* used) {
    auto* managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule.ptr(), fresh));
    if (managed == nullptr) throw py::error_already_set();
    PyCapsule_SetName(capsule.ptr(), used);
    owner_ = std::shared_ptr<Managed>(managed, [](Managed* m) {
      if (m->deleter != nullptr) m->deleter(m);
    });
    const dlpack::Tensor& tensor = managed->tensor;
    data_ = static_cast<char*>(tensor.data) + tensor.byte_offset;
    element_ = from_dlpack(tensor.dtype);
    other_dtype_ =
        "DLPack type " + std::to_string(tensor.dtype.code) + " of " + std::to_string(tensor.dtype.bits) + " bits";
    shape_.assign(tensor.shape, tensor.shape + tensor.ndim);
    if (tensor.strides != nullptr) strides_.assign(tensor.strides, tensor.strides + tensor.ndim);
    else strides_ = compact(shape_);
    return managed;
  }

  /// Of a letter of the struct module, after nothing or after the mark of this machine's byte order: ctypes writes "<f", JAX
  /// "=f". The other order is no element that an op takes.
  static check::Element from_format(const std::string& format, int64_t bytes) {
    constexpr char native = std::endian::native == std::endian::little ? '<' : '>';
    const bool marked = format.size() == 2 && (format[0] == '@' || format[0] == '=' || format[0] == native);
    if (format.size() != 1 && !marked) return check::Element::kOther;
    const char letter = format.back();
    if (bytes == 4 && letter == 'f') return check::Element::kFloat32;
    if (bytes == 8 && letter == 'd') return check::Element::kFloat64;
    if (bytes == 2 && letter == 'e') return check::Element::kFloat16;
    if (bytes == 8 && (letter == 'l' || letter == 'q')) return check::Element::kInt64;
    return check::Element::kOther;
  }

  static check::Element from_dlpack(dlpack::DataType type) {
    if (type.lanes != 1) return check::Element::kOther;
    if (type.code == dlpack::kFloat && type.bits == 32) return check::Element::kFloat32;
    if (type.code == dlpack::kFloat && type.bits == 64) return check::Element::kFloat64;
    if (type.code == dlpack::kFloat && type.bits == 16) return check::Element::kFloat16;
    if (type.code == dlpack::kBfloat && type.bits == 16) return check::Element::kBfloat16;
    if (type.code == dlpack::kInt && type.bits == 64) return check::Element::kInt64;
    return check::Element::kOther;
  }

  void* data_ = nullptr;
  check::Element element_ = check::Element::kOther;
  std::string other_dtype_;
  bool readonly_ = false;
  bool odd_ = false;  // a stride is no multiple of the element
  std::vector<int64_t> shape_, strides_;  // in elements
  std::shared_ptr<void> owner_;           // keeps the memory alive
  py::array made_;
};

}  // namespace llpf::python

namespace llpf::check {

template <>
struct ArrayTraits<python::Array> {
  static Element element(const python::Array& array) { return array.element(); }
  static std::string other_dtype(const python::Array& array) { return array.other_dtype(); }
  static Device device(const python::Array&) { return {dlpack::kCpu, 0}; }
};

}  // namespace llpf::check
