"""Rules of enclosure of functions of one variable that change their formula: ELU, clamp, PReLU and their like."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .form import AffineForm, NotEnclosedError, add, exact, leaky_relu, maximum, negative, scaled
from .smooth_rules import over, product, smooth
from .tensor import EnclosedTensor, check_aligned, form_of, forms_of, result, rule


def _elu(x: AffineForm, alpha: float) -> AffineForm:
    """The form of max(x, 0) + min(alpha (e^(x / alpha) - 1), 0), with f' = e^(min(x, 0) / alpha)."""
    if alpha <= 0:
        raise NotEnclosedError(f"celu with alpha={alpha} has no rule of enclosure")

    def ranges(low: Tensor, high: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first, last = ((end.clamp_max(0) / alpha).exp() for end in (low - reach, high + reach))
        bottom = (low.clamp_max(0) / alpha).exp() / alpha
        top = (high.clamp_max(0) / alpha).exp() / alpha
        return first, last, bottom.masked_fill(high >= 0, 0.0), top

    # The rounding of x / alpha counts with f' <= 1.
    return smooth(x, lambda x: torch.where(x > 0, x, torch.expm1(x / alpha) * alpha), ranges, cancels=True)


@rule("celu")
def _celu(input: EnclosedTensor, alpha: float = 1.0) -> EnclosedTensor:
    return result(_elu(input.form, float(alpha)), input)


@rule("elu")
def _elu_rule(input: EnclosedTensor, alpha: float = 1.0) -> EnclosedTensor:
    """alpha times the ELU of alpha 1, and (1 - alpha) relu(x)."""
    form = _elu(input.form, 1.0)
    if alpha != 1:
        form = add(scaled(form, float(alpha)), scaled(leaky_relu(input.form), 1.0 - alpha))
    return result(form, input)


@rule("selu")
def _selu(input: EnclosedTensor) -> EnclosedTensor:
    # torch's constants (Klambauer et al. 2017, equation 2).
    alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    return result(scaled(_elu_rule(input, alpha).form, scale), input)


def _clamped(x: AffineForm, low: Any, high: Any) -> AffineForm:
    if low is not None:
        x = maximum(x, form_of(low, x))
    if high is not None:
        x = negative(maximum(negative(x), negative(form_of(high, x))))
    return x


@rule("clamp", "clip")
def _clamp(input: EnclosedTensor, min: Any = None, max: Any = None) -> EnclosedTensor:
    check_aligned("clamp", input, min, max)
    return result(_clamped(input.form, min, max), input)


@rule("clamp_min")
def _clamp_min(input: EnclosedTensor, min: Any) -> EnclosedTensor:
    return _clamp(input, min)


@rule("clamp_max")
def _clamp_max(input: EnclosedTensor, max: Any) -> EnclosedTensor:
    return _clamp(input, None, max)


@rule("hardtanh")
def _hardtanh(input: EnclosedTensor, min_val: float = -1.0, max_val: float = 1.0) -> EnclosedTensor:
    return _clamp(input, min_val, max_val)


@rule("relu6")
def _relu6(input: EnclosedTensor) -> EnclosedTensor:
    return _clamp(input, 0.0, 6.0)


def _hard_sigmoid_form(x: AffineForm) -> AffineForm:
    return over(_clamped(add(x, exact(torch.full_like(x.left, 3.0))), 0.0, 6.0), 6)


@rule("hardsigmoid")
def _hardsigmoid(input: EnclosedTensor) -> EnclosedTensor:
    return result(_hard_sigmoid_form(input.form), input)


@rule("hardswish")
def _hardswish(input: EnclosedTensor) -> EnclosedTensor:
    return result(product(input.form, _hard_sigmoid_form(input.form)), input)


@rule("prelu")
def _prelu(input: Any, weight: Any) -> EnclosedTensor:
    """relu(x) - weight relu(-x)."""
    x, slope = forms_of(input, weight)
    if slope.left.numel() > 1:
        shape = (1, -1, *[1] * (x.left.dim() - 2))
        slope = slope.map(lambda value: value.view(shape))
    return result(add(leaky_relu(x), product(leaky_relu(negative(x)), slope), -1.0), input)


@rule("rrelu")
def _rrelu(input: EnclosedTensor, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> EnclosedTensor:
    if training:
        raise NotEnclosedError("rrelu in training mode draws random numbers: it has no rule of enclosure")
    return result(leaky_relu(input.form, (lower + upper) / 2), input)
