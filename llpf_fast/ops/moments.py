"""``moments``: one reduction pass over current values and destination."""

from __future__ import annotations

import torch
from torch import Tensor

from .contents import check_table_contents
from .flags import SegmentFlag
from .library import (
    MOMENT_COLUMNS,
    check_apart,
    check_destination,
    check_parameters,
    check_scratch,
    check_table,
    define,
    refusal,
    rows,
)

SCHEMA = "moments(Tensor p, Tensor? d, Tensor segments, Tensor chunks, Tensor(a!) scratch) -> Tensor"

# Chunks of the eager reduction that are gathered at once: 512 x 4096 float64 is 16 MiB a temporary.
_BLOCK = 512


def moments(p: Tensor, d: Tensor | None, segments: Tensor, chunks: Tensor, scratch: Tensor) -> Tensor:
    """Centred first and second moments of p and of delta = d - p for every segment (ours).

    Args:
        p: current values, ``[N]`` or ``[K, N]``, float32, float64, bfloat16 or float16, contiguous.
        d: destination, ``[N]`` or of p's shape, p's dtype or 16-bit beside a float32 p. ``None`` for a destination
            that is a formula of p: only the first and third column are then filled.
        segments: int64 ``[S, 5]``: offset, length, distance group, variance group, flags.
        chunks: int64 ``[C, 3]``: segment, start, length; sorted by segment, in order of start within a segment.
        scratch: float64, at least :func:`~llpf_fast.ops.library.scratch_numel` elements; contents are destroyed.

    Returns:
        float64 ``[S, 5]`` or ``[K, S, 5]``: mean of p, mean of delta, sum of (p - mean)^2,
        sum of (p - mean)(delta - mean), sum of (delta - mean)^2. Rows of MASKED segments are zero.
        Second moments are never negative. The bits depend neither on the number of threads nor on K.

    Raises:
        LLPFError: a shape, dtype, device or layout that differs from the above (the message has both values), scratch
            that overlaps another argument, or (on the CPU) a wrong table.
    """
    try:
        return torch.ops.llpf_fast.moments.default(p, d, segments, chunks, scratch)
    except (RuntimeError, ValueError) as error:
        raise refusal("moments", error) from None


def check_moments(p: Tensor, d: Tensor | None, segments: Tensor, chunks: Tensor, scratch: Tensor) -> None:
    check_parameters("moments", p)
    check_destination("moments", p, d)
    check_table("moments", p, segments, chunks)
    check_scratch("moments", p, segments, chunks, scratch)


def inspect_moments(p: Tensor, d: Tensor | None, segments: Tensor, chunks: Tensor, scratch: Tensor) -> None:
    """Checks that need the tensors' memory: overlaps and, on the CPU, values."""
    check_apart("moments", {"scratch": scratch}, {"p": p, "d": d, "segments": segments, "chunks": chunks})
    check_table_contents("moments", p, segments, chunks)


def reduce_row(p: Tensor, d: Tensor | None, segments: Tensor, chunks: Tensor) -> Tensor:
    """Moments ``[S, 5]`` of one row ``[N]``: two-pass sums per chunk, then a pairwise tree of Chan's formula."""
    active = (segments[:, 4] & SegmentFlag.MASKED) == 0
    chunks = chunks[active[chunks[:, 0]]]
    parts = [_chunk_moments(p, d, block) for block in chunks.split(_BLOCK) if block.shape[0] > 0]
    out = torch.zeros(segments.shape[0], MOMENT_COLUMNS, dtype=torch.float64, device=p.device)
    if parts:
        segment, total = _tree(chunks[:, 0], torch.cat(parts))
        out[segment] = total[:, 1:]
    return out


def _chunk_moments(p: Tensor, d: Tensor | None, chunks: Tensor) -> Tensor:
    """``[C, 6]``: count and the five moments of each chunk."""
    length = chunks[:, 2]
    lane = torch.arange(int(length.max()), device=p.device)
    valid = lane < length[:, None]
    index = torch.where(valid, chunks[:, 1, None] + lane, chunks[:, 1, None])
    count = length.double()
    zero = torch.zeros((), dtype=torch.float64, device=p.device)

    def centred(x: Tensor) -> tuple[Tensor, Tensor]:
        shift = x[:, :1]
        mean = shift + torch.where(valid, x - shift, zero).sum(1, keepdim=True) / count[:, None]
        return mean[:, 0], torch.where(valid, x - mean, zero)

    x = p[index].double()
    mean_p, dev_p = centred(x)
    m2_p = (dev_p * dev_p).sum(1)
    if d is None:
        nothing = torch.zeros_like(mean_p)
        return torch.stack([count, mean_p, nothing, m2_p, nothing, nothing], 1)
    mean_delta, dev_delta = centred(d[index].double() - x)
    return torch.stack(
        [
            count,
            mean_p,
            mean_delta,
            m2_p,
            (dev_p * dev_delta).sum(1),
            (dev_delta * dev_delta).sum(1),
        ],
        1,
    )


def _tree(segment: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
    """Combine the chunks of each segment pairwise, neighbours first, until one row a segment is left."""
    while True:
        first = torch.ones_like(segment, dtype=torch.bool)
        first[1:] = segment[1:] != segment[:-1]
        if bool(first.all()):
            return segment, part
        start = torch.where(first, torch.arange(len(segment), device=segment.device), 0)
        rank = torch.arange(len(segment), device=segment.device) - start.cummax(0).values
        left = rank % 2 == 0
        has_right = torch.zeros_like(left)
        has_right[:-1] = left[:-1] & ~left[1:]
        merged = part.clone()
        at = has_right.nonzero()[:, 0]
        merged[at] = chan(part[at], part[at + 1])
        segment, part = segment[left], merged[left]


def chan(left: Tensor, right: Tensor) -> Tensor:
    """Chan, Golub and LeVeque's pairwise update for rows (n, mean_p, mean_delta, M2_p, C, M2_delta)."""
    n = left[:, 0] + right[:, 0]
    share = right[:, 0] / n
    weight = left[:, 0] * share
    gap_p, gap_delta = right[:, 1] - left[:, 1], right[:, 2] - left[:, 2]
    return torch.stack(
        [
            n,
            left[:, 1] + gap_p * share,
            left[:, 2] + gap_delta * share,
            left[:, 3] + right[:, 3] + gap_p * gap_p * weight,
            left[:, 4] + right[:, 4] + gap_p * gap_delta * weight,
            left[:, 5] + right[:, 5] + gap_delta * gap_delta * weight,
        ],
        1,
    )


@torch.no_grad()
def moments_eager(p: Tensor, d: Tensor | None, segments: Tensor, chunks: Tensor, scratch: Tensor) -> Tensor:
    check_moments(p, d, segments, chunks, scratch)
    inspect_moments(p, d, segments, chunks, scratch)
    return reduce_rows(p, d, segments, chunks)


def reduce_rows(p: Tensor, d: Tensor | None, segments: Tensor, chunks: Tensor) -> Tensor:
    """Moments ``[S, 5]`` of p ``[N]``, or ``[K, S, 5]`` of ``[K, N]``."""
    if p.dim() == 1:
        return reduce_row(p, d, segments, chunks)
    out = torch.zeros(rows(p), segments.shape[0], MOMENT_COLUMNS, dtype=torch.float64, device=p.device)
    for k in range(rows(p)):
        out[k] = reduce_row(p[k], d if d is None or d.dim() == 1 else d[k], segments, chunks)
    return out


def moments_fake(p: Tensor, d: Tensor | None, segments: Tensor, chunks: Tensor, scratch: Tensor) -> Tensor:
    check_moments(p, d, segments, chunks, scratch)
    return torch.empty((*p.shape[:-1], segments.shape[0], MOMENT_COLUMNS), dtype=torch.float64, device=p.device)


define(SCHEMA, moments_eager, moments_fake)
