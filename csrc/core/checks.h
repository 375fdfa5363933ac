#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

#include "convert.h"

// What the ops' checks of their arguments are made of, for any framework and device: the rules of llpf_fast/ops/library.py,
// with both values in the message.
//
// An array type A (torch's Tensor, the Array of csrc/python) has dim, size, sizes, strides, numel, is_contiguous and
// data_ptr, and a specialisation of ArrayTraits.
namespace llpf::check {

enum class Element { kFloat32, kFloat64, kBfloat16, kFloat16, kInt64, kOther };  // the first four in the order of Dtype

struct Device {
  int type, index;
  bool operator==(const Device&) const = default;
};

/// `element(a)`, `device(a)` and `other_dtype(a)` of an array type.
template <class A>
struct ArrayTraits;

template <class A>
Element element_of(const A& array) {
  return ArrayTraits<A>::element(array);
}

template <class... Parts>
[[noreturn, gnu::cold, gnu::noinline]] void refuse(const Parts&... parts) {
  std::ostringstream out;
  ((out << parts), ...);
  throw std::invalid_argument(out.str());
}

/// Refuses the call unless the condition holds; the message is built only then.
#define LLPF_CHECK(condition, ...)        \
  do {                                    \
    if (!(condition)) [[unlikely]]        \
      ::llpf::check::refuse(__VA_ARGS__); \
  } while (false)

template <class Shape>
std::string text(const Shape& shape) {
  std::ostringstream out;
  const char* separator = "[";
  for (const int64_t size : shape) {
    out << separator << size;
    separator = ", ";
  }
  out << (*separator == '[' ? "[]" : "]");
  return out.str();
}

/// The dtype's name; the array type knows those that no op takes.
template <class A>
std::string dtype_name(const A& array) {
  constexpr const char* names[] = {"float32", "float64", "bfloat16", "float16", "int64"};
  const Element element = element_of(array);
  return element == Element::kOther ? ArrayTraits<A>::other_dtype(array) : names[static_cast<int>(element)];
}

inline bool is_floating(Element element) { return element < Element::kInt64; }
inline bool is_narrow(Element element) { return element == Element::kBfloat16 || element == Element::kFloat16; }

/// The storage type of a checked array.
template <class A>
Dtype dtype_of(const A& array) {
  return static_cast<Dtype>(element_of(array));
}

template <class A>
std::string describe(const A& array) {
  return dtype_name(array) + ' ' + text(array.sizes());
}

template <class S, class T>
bool same(const S& a, const T& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

/// K: 1 for a buffer [N], the leading size for [K, N].
template <class A>
int64_t paths(const A& p) {
  return p.dim() == 1 ? 1 : p.size(0);
}
template <class A>
int64_t row_numel(const A& p) {
  return p.size(p.dim() - 1);
}

template <class A>
void same_device(const char* op, const A& like, const char* name, const A& value) {
  const Device device = ArrayTraits<A>::device(like), other = ArrayTraits<A>::device(value);
  LLPF_CHECK(device == other, op, ": ", name, " must be on p's device (type ", device.type, ", index ", device.index,
             "), got (type ", other.type, ", index ", other.index, ")");
}

template <class A>
void contiguous(const char* op, const char* name, const A& value) {
  LLPF_CHECK(value.is_contiguous(), op, ": ", name, " must be contiguous, got strides ", text(value.strides()), " for ",
             text(value.sizes()));
}

template <class A>
void parameters(const char* op, const A& p) {
  LLPF_CHECK(p.dim() == 1 || p.dim() == 2, op, ": p must be [N] or [K, N], got ", text(p.sizes()));
  LLPF_CHECK(is_floating(element_of(p)), op, ": p must be float32, float64, bfloat16 or float16, got ", dtype_name(p));
  contiguous(op, "p", p);
}

template <class A>
void destination(const char* op, const A& p, const std::optional<A>& d) {
  if (!d) return;
  const bool shared = d->dim() == 1 && d->size(0) == row_numel(p);
  LLPF_CHECK(shared || same(d->sizes(), p.sizes()), op, ": d must be ", text(p.sizes()), " or [", row_numel(p),
             "], got ", text(d->sizes()));
  const Element of_p = element_of(p), of_d = element_of(*d);
  LLPF_CHECK(of_d == of_p || (of_p == Element::kFloat32 && is_narrow(of_d)), op, ": d must be ", dtype_name(p),
             " (or 16-bit beside a float32 p), got ", dtype_name(*d));
  same_device(op, p, "d", *d);
  contiguous(op, "d", *d);
}

template <class A>
void like(const char* op, const A& p, const char* name, const A& value) {
  LLPF_CHECK(element_of(value) == element_of(p) && same(value.sizes(), p.sizes()), op, ": ", name, " must be ",
             describe(p), ", got ", describe(value));
  same_device(op, p, name, value);
  contiguous(op, name, value);
}

template <class A>
void int_table(const char* op, const A& like, const char* name, const A& table, int64_t columns) {
  LLPF_CHECK(table.dim() == 2 && table.size(1) == columns && element_of(table) == Element::kInt64, op, ": ", name,
             " must be int64 [*, ", columns, "], got ", describe(table));
  contiguous(op, name, table);
  same_device(op, like, name, table);
}

template <class A>
void table(const char* op, const A& like, const A& segments, const std::type_identity_t<A>* chunks) {
  int_table(op, like, "segments", segments, 5);
  if (chunks != nullptr) int_table(op, like, "chunks", *chunks, 3);
}

/// `value` must be contiguous float64 of one of `shapes` on the device of `like`.
template <class A>
void float64(const char* op, const A& like, const char* name, const A& value,
             std::initializer_list<std::initializer_list<int64_t>> shapes) {
  bool matches = false;
  for (const auto& shape : shapes) matches = matches || same(value.sizes(), shape);
  if (!matches || element_of(value) != Element::kFloat64) {
    std::string expected;
    for (const auto& shape : shapes) expected += (expected.empty() ? "" : " or ") + text(shape);
    LLPF_CHECK(false, op, ": ", name, " must be float64 of shape ", expected, ", got ", describe(value));
  }
  contiguous(op, name, value);
  same_device(op, like, name, value);
}

/// float64 [S, columns], or [K, S, columns] where p is [K, N].
template <class A>
void per_segment(const char* op, const A& p, const char* name, const A& value, int64_t segments, int64_t columns) {
  if (p.dim() == 1) float64(op, p, name, value, {{segments, columns}});
  else float64(op, p, name, value, {{p.size(0), segments, columns}});
}

/// Float64 elements that every op accepts as scratch; the number of `scratch_numel` in llpf_fast/ops/library.py.
inline int64_t scratch_numel(int64_t paths, int64_t chunks, int64_t segments) {
  return paths * (5 * chunks + 10 * segments);
}

template <class A>
void scratch(const char* op, const A& p, const A& segments, const A& chunks, const A& value) {
  const int64_t need = scratch_numel(paths(p), chunks.size(0), segments.size(0));
  LLPF_CHECK(element_of(value) == Element::kFloat64 && value.numel() >= need, op,
             ": scratch must be float64 with at least ", need, " elements, got ", dtype_name(value), " with ",
             value.numel());
  contiguous(op, "scratch", value);
  same_device(op, p, "scratch", value);
}

/// `value` must be float64 with a row for each path, of whatever shape.
template <class A>
void row_per_path(const char* op, const A& like, int64_t paths, const char* name, const std::optional<A>& value) {
  if (!value) return;
  const bool whole = value->numel() >= paths && (paths == 0 || value->numel() % paths == 0);
  LLPF_CHECK(element_of(*value) == Element::kFloat64 && whole, op, ": ", name, " must be float64 with ", paths,
             " rows (one a path), got ", describe(*value));
  contiguous(op, name, *value);
  same_device(op, like, name, *value);
}

/// A scalar that must be a number of at least 0.
inline void not_negative(const char* op, const char* name, double value) {
  LLPF_CHECK(value >= 0, op, ": ", name, " must be at least 0, got ", value);
}

inline int64_t bytes_of(Element element) {
  if (element == Element::kFloat64 || element == Element::kInt64) return 8;
  return is_narrow(element) ? 2 : 4;
}

/// The memory of one call's arguments. What is written may lie beside everything else only, whole or in part; arguments that
/// are only read may share memory.
template <class A>
class Memory {
 public:
  explicit Memory(const char* op) : op_(op) {}

  Memory& writes(const char* name, const A& array) { return add(name, array, true, nullptr); }
  Memory& writes(const char* name, const std::optional<A>& array) { return array ? writes(name, *array) : *this; }
  Memory& reads(const char* name, const A& array) { return add(name, array, false, nullptr); }
  Memory& reads(const char* name, const std::optional<A>& array) { return array ? reads(name, *array) : *this; }
  /// `array` may be the very array `alias`, each element of which is read before it is written.
  Memory& reads_or_is(const char* alias, const char* name, const A& array) { return add(name, array, false, alias); }
  Memory& reads_or_is(const char* alias, const char* name, const std::optional<A>& array) {
    return array ? reads_or_is(alias, name, *array) : *this;
  }

 private:
  static constexpr int kMost = 12;
  struct Span {
    const char *name, *alias;
    const char *begin, *end;
    Element element;
    bool written;
  };

  Memory& add(const char* name, const A& array, bool written, const char* alias) {
    const auto* begin = static_cast<const char*>(array.data_ptr());
    const Element element = element_of(array);
    const Span span{name, alias, begin, begin + array.numel() * bytes_of(element), element, written};
    if (span.begin == span.end) return *this;
    for (int i = 0; i < count_; ++i) {
      const Span& other = spans_[i];
      if (!(written || other.written) || other.end <= span.begin || span.end <= other.begin) continue;
      const bool may_be = alias != nullptr && std::string_view(alias) == other.name;
      LLPF_CHECK(may_be && other.begin == span.begin && other.end == span.end && other.element == element, op_, ": ",
                 other.name, " and ", name, may_be ? " overlap in memory without being the same tensor; clone one"
                                                   : " overlap in memory; clone one");
    }
    spans_[count_++] = span;
    return *this;
  }

  const char* op_;
  Span spans_[kMost];
  int count_ = 0;
};

}  // namespace llpf::check
