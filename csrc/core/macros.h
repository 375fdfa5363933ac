#pragma once

// Code that both a CPU core and a GPU thread execute: CPU tests run the very functions that the GPU runs.
//
// Contraction to fused multiply-add is off everywhere (-ffp-contract=off, nvcc --fmad=false), so that these functions
// have the same bits on every instruction set and on the GPU.
//
// On the host every such function is inlined by force. The chunk kernels are compiled once per instruction set, and an
// out-of-line copy made with AVX-512 flags could otherwise be the one that the linker uses everywhere.
#if defined(__CUDACC__)
#define LLPF_HD __host__ __device__ __forceinline__
#else
#define LLPF_HD inline __attribute__((always_inline))
#endif

// Before a loop over the members of a group, or over pieces of which there is most often one: nvcc unrolls it four
// times, which there only costs registers (the cooperative tick would spill) and half the compile time.
#if defined(__CUDACC__)
#define LLPF_ROLLED _Pragma("unroll 1")
#else
#define LLPF_ROLLED
#endif
