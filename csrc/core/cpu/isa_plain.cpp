// chunk_kernels.h compiled for any processor.
#define LLPF_ISA plain
#include "chunk_kernels.h"

namespace llpf::cpu {
extern const ChunkKernels k_plain;
const ChunkKernels k_plain = plain::kernels("plain");
}  // namespace llpf::cpu
