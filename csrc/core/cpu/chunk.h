#pragma once

#include <cstdint>

#include "../relu_pool_bounds.h"
#include "../sgd.h"

// The innermost loops: one chunk of one path, or planes of images. Compiled once per instruction set, chosen at run time.
namespace llpf::cpu {

/// Storage of p and d together; d is 16-bit beside a float32 p or of p's own type.
enum class Pair { kFloat32, kFloat64, kBfloat16, kFloat16, kFloat32Bfloat16, kFloat32Float16 };
constexpr int kPairs = 6, kDtypes = 4;

struct ChunkKernels {
  const char* isa;
  /// The five moments of n > 0 elements, as a row of `moments`; d may be null.
  void (*reduce[kPairs])(const void* p, const void* d, int64_t n, double* row);
  /// out = a p + b d + c; d may be null, out may be p.
  void (*apply[kPairs])(const void* p, const void* d, void* out, int64_t n, const double* abc);
  /// `buffer` may be null.
  void (*sgd[kDtypes])(void* p, const void* g, void* buffer, int64_t n, double rate, const SgdRule<double>& rule);
  /// Planes [begin, end), of float and of double.
  void (*relu_pool_bounds[2])(const ReluPoolBoundsArguments& arguments, const FormPointers& out, int64_t begin, int64_t end);
};

/// The widest instruction set that the processor has, LLPF_ISA ("plain", "avx2", "avx512") allows and the build
/// contains. std::invalid_argument: LLPF_ISA is none of these.
const ChunkKernels& chunk_kernels();

}  // namespace llpf::cpu
