"""``affine_``: x = a p + b d + c, one map a segment, in place."""

from __future__ import annotations

import torch
from torch import Tensor

from .flags import SegmentFlag
from .library import (
    COEFFICIENT_COLUMNS,
    accumulation_dtype,
    check_destination,
    check_float64,
    check_no_partial_overlap,
    check_parameters,
    check_table,
    define,
    rows,
)

SCHEMA = "affine_(Tensor(a!) p, Tensor? d, Tensor coefficients, Tensor segments, Tensor chunks) -> ()"


def affine_(p: Tensor, d: Tensor | None, coefficients: Tensor, segments: Tensor, chunks: Tensor) -> None:
    """Replace every segment by a p + b d + c (DESIGN section 4; ours).

    Args:
        p: ``[N]`` or ``[K, N]``, overwritten. Padding, MASKED segments and segments whose map is exactly (1, 0, 0)
            keep every bit.
        d: ``[N]`` or of p's shape; not read where b is 0; may be ``None`` when every b is 0 (else it counts as 0).
            May be p itself; any other overlap is refused.
        coefficients: float64 ``[S, 5]`` or ``[K, S, 5]``; the first three columns are used.
        segments, chunks: the table, see :func:`llpf_fast.ops.moments`.

    The arithmetic is float64 for float64 storage, float32 for the rest (coefficients are rounded to it once);
    the result is rounded to nearest even.

    Raises:
        ValueError: a shape, dtype, device or layout that differs from the above.
    """
    torch.ops.llpf_fast.affine_.default(p, d, coefficients, segments, chunks)


def check_affine(p: Tensor, d: Tensor | None, coefficients: Tensor, segments: Tensor, chunks: Tensor) -> None:
    check_parameters("affine_", p)
    check_destination("affine_", p, d)
    check_table("affine_", p, segments, chunks)
    shape = (*p.shape[:-1], segments.shape[0], COEFFICIENT_COLUMNS)
    check_float64("affine_", p, "coefficients", coefficients, (shape,))


def apply_maps(p: Tensor, d: Tensor | None, maps: Tensor, segments: Tensor, chunks: Tensor, out: Tensor) -> None:
    """Write a p + b d + c into ``out`` (p itself, or a waypoint) for the segments that occur in ``chunks``.

    ``maps`` is float64 ``[K, S, 3]``. Rows with the identity are not written.
    """
    compute = accumulation_dtype(p.dtype)
    present = set(chunks[:, 0].tolist())
    p, out = p.reshape(rows(p), -1), out.reshape(rows(out), -1)
    for s, (offset, length, _, _, flags) in enumerate(segments.tolist()):
        if s not in present or flags & SegmentFlag.MASKED:
            continue
        part = slice(offset, offset + length)
        a, b, c = (column[:, None] for column in maps[:, s].to(compute).unbind(-1))
        x = a * p[:, part].to(compute) + c
        if d is not None:
            toward = b * d[..., part].to(compute)
            x = torch.where(b == 0, x, a * p[:, part].to(compute) + toward + c)
        identity = (maps[:, s] == maps.new_tensor([1.0, 0.0, 0.0])).all(-1)[:, None]
        out[:, part] = torch.where(identity, p[:, part], x.to(p.dtype))


@torch.no_grad()
def affine_eager(p: Tensor, d: Tensor | None, coefficients: Tensor, segments: Tensor, chunks: Tensor) -> None:
    check_affine(p, d, coefficients, segments, chunks)
    if d is not None:
        check_no_partial_overlap("affine_", p, "d", d)
    maps = coefficients.reshape(rows(p), -1, COEFFICIENT_COLUMNS)[..., :3]
    apply_maps(p, d, maps, segments, chunks, p)


def affine_fake(p: Tensor, d: Tensor | None, coefficients: Tensor, segments: Tensor, chunks: Tensor) -> None:
    check_affine(p, d, coefficients, segments, chunks)


define(SCHEMA, affine_eager, affine_fake)
