"""Rules of enclosure of normalization layers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .form import AffineForm, NotEnclosedError, add, bilinear, exact, note_largest, summed, unit_roundoff
from .smooth_rules import inverse_root, product, square
from .tensor import EnclosedTensor, check_dims, form_of, result, rule


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
    scale = inverse_root(add(variance, exact(torch.tensor(eps, dtype=torch.float64, device=variance.left.device))))
    if weight is not None:
        scale = product(scale, _row(weight, input.form))
    shift = exact(torch.zeros_like(mean.left)) if bias is None else _row(bias, input.form)
    return result(_centred_product(input.form, mean, scale, shift), input)


def _row(value: Any, like: AffineForm) -> AffineForm:
    """The form of one number a channel, in float64."""
    return form_of(value, like).to(torch.float64)


def _centred_product(x: AffineForm, mean: AffineForm, scale: AffineForm, shift: AffineForm) -> AffineForm:
    """The form of scale (x - mean) + shift, with one of each a channel (dimension 1 of x), in 18 passes over x.

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
    # Not addcmul: with a row of C numbers in front it takes four times as long as both.
    left = right = (deviation * scale.left).add_(shift.left)
    half_q = None
    if not still:
        other = x.right - mean.right
        right = (other * scale.right).add_(shift.right)
        if not scale.still:
            half_q = (other - deviation).mul_((scale.right - scale.left).mul_(0.125))
            left, right = left.sub_(half_q), right.sub_(half_q)
        deviation = torch.maximum(deviation.abs_(), other.abs_())
    else:
        deviation = deviation.abs_()
    radius = (deviation * relative).add_(fixed)
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


# Statistics of each sample


def _standardized(x: AffineForm, dims: list[int], eps: float, *, centred: bool = True) -> AffineForm:
    """The form of (x - mean) / sqrt(var + eps), with mean and variance over ``dims``; without ``centred`` mean 0.

    The root is between 0 and 1 / sqrt(eps) in any case, and the result of n values at most sqrt(n).
    """
    terms = math.prod(x.shape[d] for d in dims)

    def mean(value: Tensor) -> Tensor:
        return value.mean(dims, keepdim=True)

    x = x.settled()
    if centred:
        x = add(x, summed(x, mean, terms), -1.0).settled()
    scale = inverse_root(add(summed(square(x), mean, terms), form_of(eps, x)))
    # An element of x that is unknown leaves its row unknown.
    known = (x.magnitude + x.full_radius()).sum(dims, keepdim=True).isfinite()
    if eps > 0:
        scale = _known(scale, known & ~scale.full_radius().isfinite(), 0.5 / math.sqrt(eps), 0.5 / math.sqrt(eps))
    form, most = product(x, scale), math.sqrt(terms)
    return _known(form, known & (form.full_radius() > most), 0.0, most)


def _known(x: AffineForm, where: Tensor, centre: float, radius: float) -> AffineForm:
    """The form that is ``centre`` within ``radius`` at ``where``, and x elsewhere."""
    left = x.left.masked_fill(where, centre)
    right = left if x.still else x.right.masked_fill(where, centre)
    return AffineForm(left, right, x.full_radius().masked_fill(where, radius * 1.001))


def _scaled_and_shifted(x: AffineForm, weight: Any, bias: Any) -> AffineForm:
    """weight x + bias; both of a shape that broadcasts to x, or None."""
    if weight is not None:
        return bilinear(
            lambda x, w, b: x * w if b is None else x * w + b,
            x,
            form_of(weight, x),
            1,
            None if bias is None else form_of(bias, x),
        )
    return x if bias is None else add(x, form_of(bias, x))


def _check_parameters(name: str, *values: Any) -> None:
    if any(isinstance(value, EnclosedTensor) and value.batched for value in values):
        raise NotEnclosedError(f"{name} with a weight that depends on the samples has no rule of enclosure")


@rule("layer_norm")
def _layer_norm(
    input: EnclosedTensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> EnclosedTensor:
    _check_parameters("layer_norm", weight, bias)
    rank = input.dim()
    dims = list(range(rank - len(normalized_shape), rank))
    check_dims("layer_norm", input, dims)
    return result(_scaled_and_shifted(_standardized(input.form, dims, eps), weight, bias), input)


@rule("rms_norm")
def _rms_norm(
    input: EnclosedTensor, normalized_shape: Any, weight: Any = None, eps: float | None = None
) -> EnclosedTensor:
    if eps is None:
        raise NotEnclosedError("rms_norm without eps depends on the dtype: give the layer an eps")
    rank = input.dim()
    dims = list(range(rank - len(normalized_shape), rank))
    check_dims("rms_norm", input, dims)
    return result(_scaled_and_shifted(_standardized(input.form, dims, eps, centred=False), weight, None), input)


@rule("group_norm")
def _group_norm(
    input: EnclosedTensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> EnclosedTensor:
    _check_parameters("group_norm", weight, bias)
    shape = input.shape
    grouped = input.form.map(lambda value: value.reshape(shape[0], num_groups, -1))
    form = _standardized(grouped, [2], eps).map(lambda value: value.reshape(shape))
    return result(_scaled_and_shifted(form, *(_spread(value, len(shape)) for value in (weight, bias))), input)


@rule("instance_norm")
def _instance_norm(
    input: EnclosedTensor,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *_: Any,
) -> EnclosedTensor:
    if not use_input_stats:
        return _batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None or input.dim() < 3:
        raise NotEnclosedError("instance_norm in training mode changes its statistics: it has no rule of enclosure")
    return _group_norm(input, input.shape[1], weight, bias, eps)


def _spread(value: Any, rank: int) -> Any:
    """One number a channel, with the dimensions of a tensor of ``rank``."""
    return None if value is None else value.view(1, -1, *[1] * (rank - 2))
