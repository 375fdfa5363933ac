// chunk_kernels.h compiled for AVX-512 (setup.py gives this file its flags).
#define LLPF_ISA avx512
#include "chunk_kernels.h"

namespace llpf::cpu {
extern const ChunkKernels k_avx512;
const ChunkKernels k_avx512 = avx512::kernels("avx512");
}  // namespace llpf::cpu
