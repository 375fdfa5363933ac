// chunk_kernels.h compiled for AVX2 (setup.py gives this file its flags).
#define LLPF_ISA avx2
#include "chunk_kernels.h"

namespace llpf::cpu {
extern const ChunkKernels k_avx2;
const ChunkKernels k_avx2 = avx2::kernels("avx2");
}  // namespace llpf::cpu
