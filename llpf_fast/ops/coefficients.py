"""``coefficients``: from moments to one affine map a segment."""

from __future__ import annotations

import torch
from torch import Tensor

from ..modes import Destination
from .contents import check_rule_contents, segment_fault
from .flags import SegmentFlag
from .library import (
    COEFFICIENT_COLUMNS,
    MOMENT_COLUMNS,
    check,
    check_float64,
    check_not_negative,
    check_row_per_path,
    check_table,
    define,
    is_active,
    refusal,
)

SCHEMA = (
    "coefficients(Tensor moments, Tensor segments, Tensor target_variance, Tensor step, Tensor? active, "
    "Tensor? radius, *, int destination, float epsilon, bool combine_sum, bool clamp, bool project_first) -> Tensor"
)

#: A variance below this share of the terms it was summed from is rounding, not signal: 2^-40 is a deviation of
#: sixteen float32 units in the last place. Scaling it up to the target would fill the tensor with noise.
DEGENERATE = 2.0**-40
#: The share of a squared mean that counts among those terms. Between the segments of a group a variance is summed from
#: differences of means, each rounded: with DEGENERATE, a deviation of 2^-48 of the mean is rounding.
OF_MEAN = 2.0**-56
#: A sum of squares up to this has lost digits to float64's smallest numbers and counts as 0.
SMALLEST_SQUARE = 2.0**-960


def coefficients(
    moments: Tensor,
    segments: Tensor,
    target_variance: Tensor,
    step: Tensor,
    active: Tensor | None = None,
    radius: Tensor | None = None,
    *,
    destination: int = Destination.POINT,
    epsilon: float = 0.0,
    combine_sum: bool = True,
    clamp: bool = True,
    project_first: bool = False,
) -> Tensor:
    """The affine map of one tick for every segment: project what training left, move, project.

    With q the values before the tick, P = a0 q + c0 is q on its variance sphere (P = q unless ``project_first``) and
    x = a q + b d + c is P moved by the fraction t toward the destination and put back on the sphere.
    Step rule and sphere: LLPF (arXiv 2505.02604); composition into one map: ours.

    Args:
        moments: float64 ``[S, 5]`` or ``[K, S, 5]`` from :func:`llpf_fast.ops.moments`.
        segments: int64 ``[S, 5]``; segments of one distance group are neighbours, so are those of one variance group.
        target_variance: float64 ``[S]`` or ``[K, S]``, unbiased; all members of a variance group hold the group's.
        step: float64 ``[2]`` or ``[K, 2]``: fixed length and share of the distance.
        active: float64, one row a path; a path whose row begins with 0 gets identity maps.
        radius: float64 ``[S]``, for VARIANCE_SPHERE the unbiased variance, for NORM_SPHERE the L2 norm to go to
            (members of a variance group hold the group's).
        destination: a :class:`~llpf_fast.modes.Destination`.
        epsilon: s = sqrt((v + epsilon) / (var + epsilon)); 0 in the paper, 1e-4 in the authors' code.
        combine_sum: step length = fixed + relative * distance (paper) or the larger of both (authors' code).
        clamp: never past the destination (t <= 1).
        project_first: the values come from training and are projected before the move.

    Returns:
        float64 ``[S, 5]`` or ``[K, S, 5]``: a, b, c, a0, c0. ``b`` is 0 unless destination is POINT.
        MASKED segments and inactive paths get the identity (1, 0, 0, 1, 0).

    Raises:
        LLPFError: a shape, dtype or device that differs from the above; on the CPU also a wrong table, and a negative
            or missing number (NaN) where one is read.
    """
    try:
        return torch.ops.llpf_fast.coefficients.default(
            moments,
            segments,
            target_variance,
            step,
            active,
            radius,
            destination=int(destination),
            epsilon=epsilon,
            combine_sum=combine_sum,
            clamp=clamp,
            project_first=project_first,
        )
    except (RuntimeError, ValueError) as error:
        raise refusal("coefficients", error) from None


def check_rule(
    op: str,
    like: Tensor,
    paths: int,
    segments: Tensor,
    target_variance: Tensor,
    step: Tensor,
    active: Tensor | None,
    radius: Tensor | None,
    destination: int,
    epsilon: float,
) -> None:
    """What ``coefficients`` and ``tick_`` check of their common arguments."""
    count = segments.shape[0]
    check_float64(op, like, "target_variance", target_variance, ((count,), (paths, count)))
    check_float64(op, like, "step", step, ((2,), (paths, 2)))
    check_row_per_path(op, like, paths, "active", active)
    known = [int(kind) for kind in Destination]
    check(
        destination in known,
        lambda: f"{op}: destination must be one of {known}, got {destination}",
    )
    sphere = destination in (Destination.VARIANCE_SPHERE, Destination.NORM_SPHERE)
    check(
        (radius is not None) == sphere,
        lambda: (
            f"{op}: radius belongs to the sphere destinations and to them only, got destination {destination} "
            f"with radius {'given' if radius is not None else 'missing'}"
        ),
    )
    if radius is not None:
        check_float64(op, like, "radius", radius, ((count,),))
    check_not_negative(op, "epsilon", epsilon)


def check_coefficients(
    moments: Tensor,
    segments: Tensor,
    target_variance: Tensor,
    step: Tensor,
    active: Tensor | None,
    radius: Tensor | None,
    destination: int,
    epsilon: float,
) -> None:
    check_table("coefficients", moments, segments, None)
    count = segments.shape[0]
    paths = moments.shape[0] if moments.dim() == 3 else 1
    check_float64(
        "coefficients",
        moments,
        "moments",
        moments,
        ((count, MOMENT_COLUMNS), (paths, count, MOMENT_COLUMNS)),
    )
    check_rule("coefficients", moments, paths, segments, target_variance, step, active, radius, destination, epsilon)


def inspect_coefficients(
    moments: Tensor,
    segments: Tensor,
    target_variance: Tensor,
    step: Tensor,
    active: Tensor | None,
    radius: Tensor | None,
    destination: int,
) -> None:
    """Checks that need the tensors' memory: overlaps and, on the CPU, values."""
    if segments.device.type != "cpu":
        return
    fault = segment_fault(segments.tolist(), None)
    check(fault is None, lambda: "coefficients: {} (row {})".format(*(fault or ())))
    paths = moments.shape[0] if moments.dim() == 3 else 1
    check_rule_contents("coefficients", paths, segments, target_variance, step, active, radius, destination)


def _group_sum(group: Tensor, value: Tensor) -> Tensor:
    """Sum of ``value [K, S]`` over the members of each group, handed back to every member.

    Serial over the members in table order, so that the bits are those of the compiled loops.
    """
    names, at = torch.unique_consecutive(group, return_inverse=True)
    total = torch.zeros(*value.shape[:-1], len(names), dtype=value.dtype, device=value.device)
    start = torch.searchsorted(at, torch.arange(len(names), device=at.device))
    size = torch.bincount(at, minlength=len(names))
    for i in range(int(size.max()) if len(names) else 0):
        member = (start + i).clamp(max=value.shape[-1] - 1)
        total += torch.where(i < size, value[..., member], 0.0)
    return total[..., at]


@torch.no_grad()
def coefficients_eager(
    moments: Tensor,
    segments: Tensor,
    target_variance: Tensor,
    step: Tensor,
    active: Tensor | None,
    radius: Tensor | None,
    *,
    destination: int,
    epsilon: float,
    combine_sum: bool,
    clamp: bool,
    project_first: bool,
) -> Tensor:
    check_coefficients(moments, segments, target_variance, step, active, radius, destination, epsilon)
    inspect_coefficients(moments, segments, target_variance, step, active, radius, destination)
    batched = moments.dim() == 3
    m = moments if batched else moments[None]
    mean_q, mean_delta, m2_q, c, m2_delta = m.unbind(-1)
    flags = segments[:, 4]

    def has(flag: SegmentFlag) -> Tensor:
        return (flags & int(flag)) != 0

    masked = has(SegmentFlag.MASKED)
    n = torch.where(masked, 0, segments[:, 1]).double().expand_as(mean_q)
    sphere = segments[:, 3]

    def pooled(mean: Tensor, m2: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and M2 of each variance group, shifted by the first member so that large means do not cancel."""
        total = _group_sum(sphere, n)
        share = torch.where(total > 0, n / total, 0.0)
        first = torch.searchsorted(sphere_rank, sphere_rank)
        shift = mean[..., first]
        gap = mean - shift
        group_mean = shift + _group_sum(sphere, share * gap)
        off = mean - group_mean
        return group_mean, _group_sum(sphere, m2 + n * off * off)

    sphere_rank = torch.unique_consecutive(sphere, return_inverse=True)[1].contiguous()
    n_group = _group_sum(sphere, n)
    fixed_scale = has(SegmentFlag.FREE) | masked | (n_group <= 1)

    def scale_to_target(m2: Tensor, reference: Tensor) -> Tensor:
        variance = m2 / (n_group - 1).clamp(min=1)
        s = torch.sqrt((target_variance + epsilon) / (variance + epsilon))
        return torch.where(fixed_scale | (m2 <= SMALLEST_SQUARE) | (m2 <= DEGENERATE * reference), 1.0, s)

    group_mean_q, group_m2_q = pooled(mean_q, m2_q)
    zero = torch.zeros_like(mean_q)
    s0 = scale_to_target(group_m2_q, zero) if project_first else torch.ones_like(mean_q)
    back = 1.0 - s0
    mean_p = s0 * mean_q + back * group_mean_q
    m2_p = s0 * s0 * m2_q

    alpha = beta = zero
    if destination == Destination.POINT:
        mean_delta = mean_delta + back * (mean_q - group_mean_q)
        m2_delta = (m2_delta + 2 * back * c + back * back * m2_q).clamp(min=0.0)
        c = s0 * (c + back * m2_q)
    else:
        if destination == Destination.INFINITY:
            alpha = torch.full_like(mean_q, 2.0)
        elif destination == Destination.MEAN:
            beta = torch.ones_like(mean_q)
        elif destination == Destination.VARIANCE_SPHERE:
            assert radius is not None
            m2 = s0 * s0 * group_m2_q
            variance = m2 / (n_group - 1).clamp(min=1)
            alpha = torch.where((m2 > SMALLEST_SQUARE) & (n_group > 1), torch.sqrt(radius / variance), 1.0)
            beta = 1.0 - alpha
        elif destination == Destination.NORM_SPHERE:
            assert radius is not None
            square = _group_sum(sphere, m2_p + n * mean_p * mean_p)
            alpha = torch.where(square > SMALLEST_SQUARE, radius / torch.sqrt(square), 1.0)
        mean_delta = (alpha - 1.0) * mean_p + beta * group_mean_q
        c = (alpha - 1.0) * m2_p
        m2_delta = (alpha - 1.0) ** 2 * m2_p

    moving = ~(masked | has(SegmentFlag.HOLD))
    squared = torch.where(moving, m2_delta + n * mean_delta * mean_delta, 0.0)
    squared = _group_sum(segments[:, 2], squared)
    distance = torch.sqrt(squared)
    fixed, relative = step.reshape(-1, 2)[:, 0:1], step.reshape(-1, 2)[:, 1:2]
    length = fixed + relative * distance if combine_sum else torch.maximum(fixed, relative * distance)
    t = torch.where(squared > SMALLEST_SQUARE, length / distance, 0.0)
    if clamp:
        t = t.clamp(max=1.0)
    t = torch.where(moving, t, 0.0)
    away = torch.where(has(SegmentFlag.TWICE), -2.0, -1.0)
    t = torch.where(has(SegmentFlag.COMPENSATE), away * t, t)

    mean_m = mean_p + t * mean_delta
    m2_m = (m2_p + 2 * t * c + t * t * m2_delta).clamp(min=0.0)
    group_mean_m, group_m2_m = pooled(mean_m, m2_m)
    # What the group's variance was summed from: the deviations of P and those of the move, within each segment and
    # between them, and the means that the latter were taken from.
    off = mean_p - group_mean_q
    deviation_gap = mean_m - group_mean_m - off
    between = n * (off * off + deviation_gap * deviation_gap + OF_MEAN * (mean_p * mean_p + mean_m * mean_m))
    s = scale_to_target(group_m2_m, _group_sum(sphere, m2_p + t * t * m2_delta + between))

    point = destination == Destination.POINT
    share_of_p = s * (1.0 - t) if point else s * (1.0 - t + t * alpha)
    out = torch.stack(
        [
            share_of_p * s0,
            s * t if point else zero,
            share_of_p * back * group_mean_q + s * t * beta * group_mean_q + (1.0 - s) * group_mean_m,
            s0,
            back * group_mean_q,
        ],
        -1,
    )
    identity = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0], dtype=out.dtype, device=out.device)
    unmoved = masked | ~is_active(active, m.shape[0], m.device)
    out = torch.where(unmoved[..., None], identity, out)
    return out if batched else out[0]


def coefficients_fake(
    moments: Tensor,
    segments: Tensor,
    target_variance: Tensor,
    step: Tensor,
    active: Tensor | None,
    radius: Tensor | None,
    *,
    destination: int,
    epsilon: float,
    combine_sum: bool,
    clamp: bool,
    project_first: bool,
) -> Tensor:
    check_coefficients(moments, segments, target_variance, step, active, radius, destination, epsilon)
    return moments.new_empty((*moments.shape[:-1], COEFFICIENT_COLUMNS))


define(SCHEMA, coefficients_eager, coefficients_fake)
