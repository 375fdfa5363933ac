"""Rules of enclosure of normalization layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .form import AffineForm, NotEnclosedError, add, bilinear, exact, note_largest, unit_roundoff
from .smooth_rules import reciprocal_root
from .tensor import EnclosedTensor, form_of, result, rule


@rule("batch_norm")
def _batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> EnclosedTensor:
    """k (x - mean) + bias with k = weight / sqrt(var + eps): a row of C numbers in float64, then a product."""
    if training or running_mean is None or running_var is None:
        raise NotEnclosedError("batch_norm with the statistics of the batch mixes its samples: run it in eval mode")
    if not isinstance(input, EnclosedTensor):
        raise NotEnclosedError("batch_norm of values that do not move has no rule of enclosure")
    mean, variance = (_row(value, input.form) for value in (running_mean, running_var))
    scale = reciprocal_root(add(variance, exact(torch.tensor(eps, dtype=torch.float64, device=variance.left.device))))
    if weight is not None:
        scale = bilinear(lambda x, y, _: x * y, scale, _row(weight, input.form), 1)
    shift = exact(torch.zeros_like(mean.left)) if bias is None else _row(bias, input.form)
    return result(_centred_product(input.form, mean, scale, shift), input)


def _row(value: Any, like: AffineForm) -> AffineForm:
    """The form of one number a channel, in float64."""
    return form_of(value, like).to(torch.float64)


def _centred_product(x: AffineForm, mean: AffineForm, scale: AffineForm, shift: AffineForm) -> AffineForm:
    """The form of scale (x - mean) + shift, with one of each a channel (dimension 1 of x), in 15 passes over x.

    As in :func:`~.form.bilinear`: with X, M, K the chords, K (X - M) is the chord of its ends minus (1 - t^2) Q,
    Q = (K_r - K_l) (X_r - X_l - M_r + M_l) / 4. What else can differ is at most

        e_K m + (|K| + e_K) (e_x + e_M) + e_shift + 16 u |K| m + 4 u |shift|,  m = max(|X_l - M_l|, |X_r - M_r|).

    The rounding: the ends take 4.5 u |K| m + 1.1 u |shift|, the half of Q 2.3 u |K| m, and its subtraction 2 u |K| m.
    """
    x = x.settled()
    u, tiny = unit_roundoff(x.dtype), torch.finfo(x.dtype).tiny
    outward = 1 + 16 * u
    rank = x.left.dim()
    mean, scale, shift = (_channels(form.to(x.dtype).settled(), rank) for form in (mean, scale, shift))
    steepest = scale.magnitude + scale.full_radius()
    fixed = steepest * mean.full_radius() + shift.full_radius() + shift.magnitude * (4 * u)
    fixed = fixed.add_(8 * tiny * (1 + steepest)).mul_(outward)
    relative = (scale.full_radius() + scale.magnitude * (16 * u)).mul_(outward)
    still = x.still and mean.still and scale.still and shift.still
    deviation = x.left - mean.left
    left = right = torch.addcmul(shift.left, deviation, scale.left)
    half_q = None
    if not still:
        other = x.right - mean.right
        right = torch.addcmul(shift.right, other, scale.right)
        if not scale.still:
            half_q = (other - deviation).mul_((scale.right - scale.left).mul_(0.125))
            left, right = left.sub_(half_q), right.sub_(half_q)
        deviation = torch.maximum(deviation.abs_(), other.abs_())
    else:
        deviation = deviation.abs_()
    radius = torch.addcmul(fixed, deviation, relative)
    if x.radius is not None:
        radius = radius.addcmul_(x.radius, steepest * outward)
    if half_q is not None:
        radius = radius.add_(half_q.abs_(), alpha=outward)
    note_largest(radius)
    return AffineForm(left, right, radius)


def _channels(form: AffineForm, rank: int) -> AffineForm:
    """One number a channel, with the dimensions of a tensor [B, C, ...] of ``rank``."""

    def spread(value: Tensor) -> Tensor:
        return value.view(1, -1, *[1] * (rank - 2))

    return form.map(spread)
