"""``affine_``: x = a p + b d + c, one map a segment, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from .contents import check_table_contents
from .flags import SegmentFlag
from .library import (
    COEFFICIENT_COLUMNS,
    accumulation_dtype,
    check_apart,
    check_destination,
    check_float64,
    check_parameters,
    check_table,
    define,
    refusal,
    rows,
)

SCHEMA = "affine_(Tensor(a!) p, Tensor? d, Tensor coefficients, Tensor segments, Tensor chunks) -> ()"


def affine_(p: Tensor, d: Tensor | None, coefficients: Tensor, segments: Tensor, chunks: Tensor) -> None:
    """Replace every segment by a p + b d + c (ours).

    Args:
        p: ``[N]`` or ``[K, N]``, overwritten. Padding, MASKED segments and segments whose map is exactly (1, 0, 0)
            keep every bit.
        d: ``[N]`` or of p's shape; not read where b is 0; may be ``None`` when every b is 0 (else it counts as 0).
            May be p itself; any other overlap with p is refused.
        coefficients: float64 ``[S, 5]`` or ``[K, S, 5]``; the first three columns are used.
        segments, chunks: the table, see :func:`llpf_fast.ops.moments`.

    The arithmetic is float64 for float64 storage, float32 for the rest (coefficients are rounded to it once);
    the result is rounded to nearest even. A map that float32 cannot hold (an a or b outside its normal numbers, a c
    beyond them: subnormal values brought to a variance of 1 are multiplied by 1e40) is applied in float64.

    Raises:
        LLPFError: a shape, dtype, device or layout that differs from the above, tensors that overlap, or (on the CPU) a
            wrong table.
    """
    try:
        torch.ops.llpf_fast.affine_.default(p, d, coefficients, segments, chunks)
    except (RuntimeError, ValueError) as error:
        raise refusal("affine_", error) from None


def check_affine(p: Tensor, d: Tensor | None, coefficients: Tensor, segments: Tensor, chunks: Tensor) -> None:
    check_parameters("affine_", p)
    check_destination("affine_", p, d)
    check_table("affine_", p, segments, chunks)
    shape = (*p.shape[:-1], segments.shape[0], COEFFICIENT_COLUMNS)
    check_float64("affine_", p, "coefficients", coefficients, (shape,))


def inspect_affine(p: Tensor, d: Tensor | None, coefficients: Tensor, segments: Tensor, chunks: Tensor) -> None:
    """Checks that need the tensors' memory: overlaps and, on the CPU, values."""
    read = {"d": d, "coefficients": coefficients, "segments": segments, "chunks": chunks}
    check_apart("affine_", {"p": p}, read, (("p", "d"),))
    check_table_contents("affine_", p, segments, chunks)


def apply_maps(p: Tensor, d: Tensor | None, maps: Tensor, segments: Tensor, chunks: Tensor, out: Tensor) -> None:
    """Write a p + b d + c into ``out`` (p itself, or a waypoint) for the segments that occur in ``chunks``.

    ``maps`` is float64 ``[K, S, 3]``. Rows with the identity are not written.
    """
    compute = accumulation_dtype(p.dtype)
    present = set(chunks[:, 0].tolist())
    p, out = p.reshape(rows(p), p.shape[-1]), out.reshape(rows(out), out.shape[-1])

    def mapped(part: slice, abc: Tensor, dtype: torch.dtype) -> Tensor:
        a, b, c = (column[:, None] for column in abc.to(dtype).unbind(-1))
        x = a * p[:, part].to(dtype) + c
        if d is not None:
            x = torch.where(b == 0, x, a * p[:, part].to(dtype) + b * d[..., part].to(dtype) + c)
        return x.to(compute).to(p.dtype)

    for s, (offset, length, _, _, flags) in enumerate(segments.tolist()):
        if s not in present or flags & SegmentFlag.MASKED:
            continue
        part, abc = slice(offset, offset + length), maps[:, s]
        identity = (abc == abc.new_tensor([1.0, 0.0, 0.0])).all(-1)[:, None]
        x = torch.where(identity, p[:, part], mapped(part, abc, compute))
        if compute == torch.float32:
            x = torch.where(_is_wide(abc), mapped(part, abc, torch.float64), x)
        out[:, part] = x


def _is_wide(maps: Tensor) -> Tensor:
    """bool ``[K, 1]``: float32 cannot hold the map. A factor loses digits below the normal numbers."""
    info = torch.finfo(torch.float32)
    size = maps.abs()
    lost = (size[:, :2] != 0) & (size[:, :2] < info.smallest_normal)
    return (lost.any(-1) | (size > info.max).any(-1))[:, None]


@torch.no_grad()
def affine_eager(p: Tensor, d: Tensor | None, coefficients: Tensor, segments: Tensor, chunks: Tensor) -> None:
    check_affine(p, d, coefficients, segments, chunks)
    inspect_affine(p, d, coefficients, segments, chunks)
    maps = coefficients.reshape(rows(p), segments.shape[0], COEFFICIENT_COLUMNS)[..., :3]
    apply_maps(p, d, maps, segments, chunks, p)


def affine_fake(p: Tensor, d: Tensor | None, coefficients: Tensor, segments: Tensor, chunks: Tensor) -> None:
    check_affine(p, d, coefficients, segments, chunks)


define(SCHEMA, affine_eager, affine_fake)
