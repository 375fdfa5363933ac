"""What every launcher shares: where a kernel runs, and how the buffers are described to it."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from llpf_fast.errors import LLPFError
from llpf_fast.ops.library import check, rows

#: Elements of a whole tile. 128 threads hold 16 elements of each stream, four 16-byte loads in flight. A reduction then
#: needs about 140 registers a thread, three programs a multiprocessor: 48 KiB of float32 p and d on their way at once,
#: twice what hides the latency of memory at 4.8 TB/s. Tiles of 4096 over 256 threads left room for a single program.
BLOCK = 2048
#: Elements of a ragged tile. Single loads need an address and a predicate each; a quarter of the tile keeps them from
#: setting the number of registers of the kernel.
RAGGED = 512
WARPS = 4

#: Blocks along each axis of a grid that a GPU launches.
MOST_BLOCKS = (2**31 - 1, 65_535, 65_535)

_INTERPRETED = bool(triton.knobs.runtime.interpret)


def launch(kernel: Any, grid: tuple[int, ...], like: Tensor, *arguments: Any, warps: int, **constants: Any) -> None:
    """Run ``kernel`` on the device and the current stream of ``like``.

    Products and sums are not fused by the compiler: where a fused multiply-add is wanted the kernel says ``tl.fma``,
    so that the two ways through a chunk (whole, ragged) and two versions of Triton give the same bits.

    Kernels are not specialised on counts, strides or the alignment of small float64 arguments: slices of scratch begin
    where the table makes them, and each new table would compile for seconds what it runs in microseconds.
    """
    if 0 in grid:
        return
    check_grid(kernel, grid)
    if like.is_cuda and like.device.index != torch.cuda.current_device():
        with torch.cuda.device(like.device):
            kernel[grid](*arguments, num_warps=warps, enable_fp_fusion=False, **constants)
        return
    if not like.is_cuda and not _INTERPRETED:
        raise LLPFError(
            f"llpf_fast.kernels: Triton runs on CUDA tensors, got {like.device}; choose another backend, "
            "or set TRITON_INTERPRET=1 before the start to interpret the kernels (slow, for tests)"
        )
    kernel[grid](*arguments, num_warps=warps, enable_fp_fusion=False, **constants)


def check_grid(kernel: Any, grid: tuple[int, ...]) -> None:
    """Refuse what the driver would refuse with "invalid argument"."""
    for axis, (blocks, most) in enumerate(zip(grid, MOST_BLOCKS, strict=False)):
        check(
            blocks <= most,
            lambda blocks=blocks, most=most, axis=axis: (  # type: ignore[misc]
                f"llpf_fast.kernels: {kernel.fn.__name__} needs {blocks:,} blocks along axis {'xyz'[axis]} of its "
                f"grid, and a GPU launches {most:,}; pass less at once, or use the backend cuda"
            ),
        )


def row_stride(value: Tensor | None, width: int) -> int:
    """Elements from one path's row to the next: 0 where one row serves all paths."""
    return 0 if value is None or value.dim() < 2 else width


def row_columns(value: Tensor | None, paths: int) -> int:
    """Columns of a tensor with one row a path, whatever its shape; 0 without one."""
    return 0 if value is None else value.numel() // max(paths, 1)


def walk_constants(p: Tensor) -> dict[str, Any]:
    """Compile-time facts of a streaming kernel over ``p``.

    ALIGNED depends on the length of a row and not on the number of rows: a reduction in 16-byte loads adds in another
    order than one in single loads, and a row of ``[K, N]`` must give the bits of the same row as ``[N]``.

    VECTOR is 16 bytes of p. A 16-bit d beside a float32 p is read in 8-byte pieces, so that a thread holds the same
    elements of both: in 16-byte pieces the tile would change threads through shared memory.
    """
    return {
        "ALIGNED": p.shape[-1] % 16 == 0,
        "VECTOR": 16 // p.element_size(),
        "COMPUTE": tl.float64 if p.dtype == torch.float64 else tl.float32,
        "BLOCK": BLOCK,
        "RAGGED": RAGGED,
    }


def paths_and_length(p: Tensor) -> tuple[int, int]:
    """K and N of ``[N]`` or ``[K, N]``."""
    return rows(p), p.shape[-1]
