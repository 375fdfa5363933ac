"""``tick_``: project what training left, move toward the destination, project: one reduction and one write."""

from __future__ import annotations

import torch
from torch import Tensor

from ..modes import Destination
from .affine import apply_maps
from .coefficients import check_rule, coefficients_eager
from .contents import check_rule_contents, check_table_contents
from .flags import SegmentFlag
from .library import (
    COEFFICIENT_COLUMNS,
    MOMENT_COLUMNS,
    check,
    check_apart,
    check_destination,
    check_float64,
    check_like,
    check_parameters,
    check_scratch,
    check_table,
    define,
    is_active,
    refusal,
    rows,
    scratch_numel,
)
from .moments import reduce_rows

SCHEMA = (
    "tick_(Tensor(a!) p, Tensor? d, Tensor segments, Tensor chunks, Tensor target_variance, Tensor step, "
    "Tensor? active, Tensor? radius, Tensor? moments_in, Tensor(b!)? waypoint, Tensor(c!) scratch, *, "
    "int destination, float epsilon, bool combine_sum, bool clamp, bool project_first) -> ()"
)


def tick_(
    p: Tensor,
    d: Tensor | None,
    segments: Tensor,
    chunks: Tensor,
    target_variance: Tensor,
    step: Tensor,
    active: Tensor | None = None,
    radius: Tensor | None = None,
    moments_in: Tensor | None = None,
    waypoint: Tensor | None = None,
    scratch: Tensor | None = None,
    *,
    destination: int = Destination.POINT,
    epsilon: float = 0.0,
    combine_sum: bool = True,
    clamp: bool = True,
    project_first: bool = False,
) -> None:
    """One LLPF tick on the flat buffer: moments, coefficients and affine_ in one call (docs/algorithm.md).

    Args:
        p: ``[N]`` or ``[K, N]``, overwritten with the moved and projected values.
        d: ``[N]`` or of p's shape for destination POINT, else ``None``.
        segments, chunks: the table, see :func:`llpf_fast.ops.moments`.
        target_variance, step, active, radius, destination, epsilon, combine_sum, clamp, project_first:
            see :func:`llpf_fast.ops.coefficients`. An inactive path keeps every bit.
        moments_in: the moments of (p, d) if known, which saves the reduction pass.
        waypoint: of p's shape and dtype; receives P, the projected values before the move. MASKED segments are
            copied from p, padding and inactive paths are not written.
        scratch: see :func:`llpf_fast.ops.moments`; allocated here when missing.

    Raises:
        LLPFError: a shape, dtype, device or layout that differs from the above, or tensors that overlap (only d may be
            p itself); on the CPU also a wrong table, and a negative or missing number (NaN) where one is read.
    """
    if scratch is None:
        scratch = p.new_empty(scratch_numel(rows(p), chunks.shape[0], segments.shape[0]), dtype=torch.float64)
    try:
        torch.ops.llpf_fast.tick_.default(
            p,
            d,
            segments,
            chunks,
            target_variance,
            step,
            active,
            radius,
            moments_in,
            waypoint,
            scratch,
            destination=int(destination),
            epsilon=epsilon,
            combine_sum=combine_sum,
            clamp=clamp,
            project_first=project_first,
        )
    except (RuntimeError, ValueError) as error:
        raise refusal("tick_", error) from None


def check_tick(
    p: Tensor,
    d: Tensor | None,
    segments: Tensor,
    chunks: Tensor,
    target_variance: Tensor,
    step: Tensor,
    active: Tensor | None,
    radius: Tensor | None,
    moments_in: Tensor | None,
    waypoint: Tensor | None,
    scratch: Tensor,
    destination: int,
    epsilon: float,
) -> None:
    check_parameters("tick_", p)
    check_destination("tick_", p, d)
    check_table("tick_", p, segments, chunks)
    check_rule("tick_", p, rows(p), segments, target_variance, step, active, radius, destination, epsilon)
    check(
        (d is not None) == (destination == Destination.POINT),
        lambda: (
            f"tick_: d belongs to destination POINT and to it only, got destination {destination} with d "
            f"{'given' if d is not None else 'missing'}"
        ),
    )
    if moments_in is not None:
        shape = (*p.shape[:-1], segments.shape[0], MOMENT_COLUMNS)
        check_float64("tick_", p, "moments_in", moments_in, (shape,))
    if waypoint is not None:
        check_like("tick_", p, "waypoint", waypoint)
    check_scratch("tick_", p, segments, chunks, scratch)


def inspect_tick(
    p: Tensor,
    d: Tensor | None,
    segments: Tensor,
    chunks: Tensor,
    target_variance: Tensor,
    step: Tensor,
    active: Tensor | None,
    radius: Tensor | None,
    moments_in: Tensor | None,
    waypoint: Tensor | None,
    scratch: Tensor,
    destination: int,
) -> None:
    """Checks that need the tensors' memory: overlaps and, on the CPU, values."""
    if waypoint is not None and p.numel() > 0:
        check(waypoint.data_ptr() != p.data_ptr(), lambda: "tick_: waypoint must not be p itself")
    # The waypoint is written before d is read, so that even an exact alias would be wrong.
    written = {"p": p, "waypoint": waypoint, "scratch": scratch}
    read = {"d": d, "segments": segments, "chunks": chunks, "target_variance": target_variance, "step": step}
    read |= {"active": active, "radius": radius, "moments_in": moments_in}
    check_apart("tick_", written, read, (("p", "d"),))
    check_table_contents("tick_", p, segments, chunks)
    check_rule_contents("tick_", rows(p), segments, target_variance, step, active, radius, destination)


@torch.no_grad()
def tick_eager(
    p: Tensor,
    d: Tensor | None,
    segments: Tensor,
    chunks: Tensor,
    target_variance: Tensor,
    step: Tensor,
    active: Tensor | None,
    radius: Tensor | None,
    moments_in: Tensor | None,
    waypoint: Tensor | None,
    scratch: Tensor,
    *,
    destination: int,
    epsilon: float,
    combine_sum: bool,
    clamp: bool,
    project_first: bool,
) -> None:
    check_tick(
        p,
        d,
        segments,
        chunks,
        target_variance,
        step,
        active,
        radius,
        moments_in,
        waypoint,
        scratch,
        destination,
        epsilon,
    )
    inspect_tick(
        p,
        d,
        segments,
        chunks,
        target_variance,
        step,
        active,
        radius,
        moments_in,
        waypoint,
        scratch,
        destination,
    )
    measured = moments_in if moments_in is not None else reduce_rows(p, d, segments, chunks)
    maps = coefficients_eager(
        measured,
        segments,
        target_variance,
        step,
        active,
        radius,
        destination=destination,
        epsilon=epsilon,
        combine_sum=combine_sum,
        clamp=clamp,
        project_first=project_first,
    ).reshape(rows(p), segments.shape[0], COEFFICIENT_COLUMNS)
    if waypoint is not None:
        _record(p, maps, segments, chunks, active, waypoint)
    apply_maps(p, d, maps[..., :3], segments, chunks, p)


def _record(p: Tensor, maps: Tensor, segments: Tensor, chunks: Tensor, active: Tensor | None, waypoint: Tensor) -> None:
    k = rows(p)
    moves = is_active(active, k, p.device)
    here, there = p.reshape(k, p.shape[-1]), waypoint.reshape(k, p.shape[-1])
    unmasked = segments.clone()
    unmasked[:, 4] &= ~int(SegmentFlag.MASKED)
    projection = torch.stack([maps[..., 3], torch.zeros_like(maps[..., 3]), maps[..., 4]], -1)
    projected = torch.empty_like(here)
    apply_maps(here, None, projection, unmasked, chunks, projected)
    for _, start, length in chunks.tolist():
        part = slice(start, start + length)
        there[:, part] = torch.where(moves, projected[:, part], there[:, part])


def tick_fake(
    p: Tensor,
    d: Tensor | None,
    segments: Tensor,
    chunks: Tensor,
    target_variance: Tensor,
    step: Tensor,
    active: Tensor | None,
    radius: Tensor | None,
    moments_in: Tensor | None,
    waypoint: Tensor | None,
    scratch: Tensor,
    *,
    destination: int,
    epsilon: float,
    combine_sum: bool,
    clamp: bool,
    project_first: bool,
) -> None:
    check_tick(
        p,
        d,
        segments,
        chunks,
        target_variance,
        step,
        active,
        radius,
        moments_in,
        waypoint,
        scratch,
        destination,
        epsilon,
    )


define(SCHEMA, tick_eager, tick_fake)
