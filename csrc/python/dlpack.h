#pragma once

#include <cstdint>

// The part of the DLPack ABI (dmlc/dlpack, version 1) that reading a CPU array needs.
namespace dlpack {

struct Device {
  int32_t type, id;
};
constexpr int32_t kCpu = 1;

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};
constexpr uint8_t kInt = 0, kFloat = 2, kBfloat = 4;

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null: compact
  uint64_t byte_offset;
};

/// What a capsule named "dltensor" holds.
struct Managed {
  Tensor tensor;
  void* manager;
  void (*deleter)(Managed*);
};

/// What a capsule named "dltensor_versioned" holds.
struct ManagedVersioned {
  uint32_t major, minor;
  void* manager;
  void (*deleter)(ManagedVersioned*);
  uint64_t flags;
  Tensor tensor;
};
constexpr uint64_t kReadOnly = 1;

}  // namespace dlpack
