#pragma once

#include "checks.h"
#include "table.h"

struct CUstream_st;  // what a cudaStream_t points to; the headers of the ops need no CUDA

// What the ops' arguments are made of, for both devices: pointers into the arrays of whatever framework.
//
// Every op has a struct of arguments in its own header. `Arguments::of(arrays...)` checks shapes, dtypes, devices, layout
// and overlaps, and takes the pointers. `cpu::op(arguments, threads)` checks the values too and runs; `cuda::op(arguments,
// stream)` queues kernels on a stream of the current device. It does not check values, which lie on the device, and
// neither synchronises nor allocates, so that it may be captured into a CUDA graph.
namespace llpf {

namespace cpu {
struct Threads;
}
namespace cuda {
using Stream = CUstream_st*;
/// A cudaError_t: the first error of queueing.
using Error = int;
}  // namespace cuda

template <class T = double, class A>
T* pointer(const A& array) {
  return static_cast<T*>(array.data_ptr());
}
template <class T = double, class A>
T* pointer(const std::optional<A>& array) {
  return array ? pointer<T>(*array) : nullptr;
}

/// A float64 matrix with one row a path, or (stride 0) one row for every path; null: not given.
struct Rows {
  const double* data = nullptr;
  int64_t stride = 0;

  /// [K, columns], or [columns] for every path.
  template <class A>
  static Rows of(const A& matrix) {
    return {pointer<const double>(matrix), matrix.dim() == 2 ? matrix.size(1) : 0};
  }
  /// One row a path, whatever the shape.
  template <class A>
  static Rows of(const std::optional<A>& matrix, int64_t paths) {
    return {pointer<const double>(matrix), matrix && paths > 0 ? matrix->numel() / paths : 0};
  }

  LLPF_HD const double* operator[](int64_t path) const { return data + path * stride; }
  LLPF_HD explicit operator bool() const { return data != nullptr; }
};

/// Which paths an op works on: those whose row begins with a number other than 0; without rows, all.
struct Active {
  Rows rows;

  LLPF_HD bool operator()(int64_t path) const { return !rows || *rows[path] != 0; }
};

/// p [paths, numel], and d [numel] (the same for every path), [paths, numel] or null.
struct Values {
  void* p;
  Dtype p_dtype;
  int64_t paths, numel;
  const void* d = nullptr;
  Dtype d_dtype = Dtype::kFloat32;
  bool d_shared = true;

  template <class A>
  static Values of(const A& p, const std::optional<A>& d) {
    return {
        .p = p.data_ptr(),
        .p_dtype = check::dtype_of(p),
        .paths = check::paths(p),
        .numel = check::row_numel(p),
        .d = pointer<const void>(d),
        .d_dtype = check::dtype_of(d ? *d : p),
        .d_shared = d && d->dim() == 1,
    };
  }
};

template <class A>
Table table_of(const A& segments) {
  return {pointer<const Segment>(segments), segments.size(0), nullptr, 0};
}
template <class A>
Table table_of(const A& segments, const A& chunks) {
  return {pointer<const Segment>(segments), segments.size(0), pointer<const Chunk>(chunks), chunks.size(0)};
}

}  // namespace llpf
