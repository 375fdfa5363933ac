// Which instruction set the kernels use: the best that the processor has, or the one that LLPF_ISA names.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "chunk.h"

namespace llpf::cpu {

extern const ChunkKernels k_plain;
#if defined(LLPF_X86)
extern const ChunkKernels k_avx2, k_avx512;
#endif

namespace {

const ChunkKernels& choose() {
  const char* widest = std::getenv("LLPF_ISA");
  if (widest != nullptr && *widest == '\0') widest = nullptr;
  bool known = widest == nullptr;
  for (const char* name : {"plain", "avx2", "avx512"}) known = known || std::strcmp(widest, name) == 0;
  if (!known) throw std::invalid_argument(std::string("LLPF_ISA must be plain, avx2 or avx512, got '") + widest + '\'');
  const auto allowed = [widest](const char* lower, const char* lowest) {
    return widest == nullptr || (std::strcmp(widest, lower) != 0 && std::strcmp(widest, lowest) != 0);
  };
#if defined(LLPF_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && allowed("avx2", "plain")) return k_avx512;
  if (avx2 && allowed("plain", "plain")) return k_avx2;
#endif
  return k_plain;
}

}  // namespace

const ChunkKernels& chunk_kernels() {
  static const ChunkKernels& chosen = choose();
  return chosen;
}

}  // namespace llpf::cpu
