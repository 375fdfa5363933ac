"""Rules of enclosure of functions of one variable, by the ranges of their first and second derivatives."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .form import (
    AffineForm,
    NotEnclosedError,
    bilinear,
    negative,
    scaled,
    unit_roundoff,
)
from .tensor import EnclosedTensor, check_aligned, check_dims, form_of, result, rule

#: (low, high, reach) -> the least and the largest f' on [low - reach, high + reach], the least and the largest f'' on
#: [low, high]; NaN or infinite where nothing is known. They may be too narrow by 1000 u of themselves.
Ranges = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
#: Roundings of torch's exp, log, tanh, erf and their like: at most 4 units in the last place, each of at most 2 u.
#: glibc's errors are at most 2 (its manual, "Known Maximum Errors in Math Functions"), those of SLEEF's ``u10``
#: variants, with which torch vectorizes, 1.0, CUDA's at most 4 (CUDA C++ Programming Guide, "Mathematical Functions").
#: Twice as many, for functions composed of two.
FUNCTION_ROUNDING = 16.0


def smooth(x: AffineForm, function: Callable[[Tensor], Tensor], ranges: Ranges, *, cancels: bool = False) -> AffineForm:
    """The form of ``function``, f, from the ranges of f' and f''.

    With X the chord of x, of width w, and f'' in [s1, s2] on it, f(X(t)) minus the chord of f lies between
    -max(s2, 0) w^2 / 8 and max(-s1, 0) w^2 / 8: f - s1 x^2 / 2 is convex and f - s2 x^2 / 2 concave, and x^2 lies
    between its chord minus w^2 / 4 and its chord. It is also at most (b - a) w / 4 away, for f' in [a, b]: with the
    chord's slope c at most (b - c)(c - a) w / (b - a). And f(x) - f(X) is at most the radius of x times the largest
    |f'|.

    Args:
        cancels: the computed f is within 16 u of |x|, not of itself.
    """
    x = x.settled()
    u, tiny = unit_roundoff(x.dtype), torch.finfo(x.dtype).tiny
    left = right = function(x.left)
    radius = torch.full_like(left, 8 * tiny)
    if cancels:
        radius = radius.add_(x.magnitude, alpha=FUNCTION_ROUNDING * u)
    if x.radius is not None or not x.still:
        low, high = (x.left, x.left) if x.still else (torch.minimum(x.left, x.right), torch.maximum(x.left, x.right))
        reach = torch.zeros_like(left) if x.radius is None else x.radius
        least, most, bottom, top = ranges(low, high, reach)
        outward = 1 + 4000 * u
        radius = radius.add_(torch.maximum(least.abs(), most.abs()).mul_(reach), alpha=outward)
        if not x.still:
            right = function(x.right)
            width = high - low
            cap = (most - least).mul_(width).mul_(0.25)
            squared = (width * width).mul_(0.125)
            below = torch.minimum(top.clamp_min(0) * squared, cap)
            above = torch.minimum((-bottom).clamp_min(0) * squared, cap)
            shift = (above - below).mul_(0.5)
            left, right = left + shift, right + shift
            # The shift's rounding is below 16 u of it and of the values.
            radius = radius.add_(above.add_(below), alpha=0.5 * outward)
    return AffineForm(left, right, radius, FUNCTION_ROUNDING + 4.0)


@dataclass(frozen=True)
class Bounded:
    """A function of one variable whose first three derivatives are bounded.

    Attributes:
        function: f.
        derivatives: (f', f''), computed within 32 u.
        first, second, third: bounds of f', f'' and |f'''|. On an interval f' differs from its value in the middle by
            at most the largest |f''| times half the width, and f'' likewise.
        cancels: the computed f is within 16 u of |x|, not of itself.
    """

    function: Callable[[Tensor], Tensor]
    derivatives: Callable[[Tensor], tuple[Tensor, Tensor]]
    first: tuple[float, float]
    second: tuple[float, float]
    third: float
    cancels: bool = False

    def form(self, x: AffineForm) -> AffineForm:
        """The form of f."""
        return smooth(x, self.function, self._ranges, cancels=self.cancels)

    def _ranges(self, low: Tensor, high: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u = unit_roundoff(low.dtype)
        centre = (low + high).mul_(0.5)
        half = (high - low).mul_(0.5 * (1 + 8 * u)).add_(centre.abs(), alpha=8 * u)
        slope, curvature = self.derivatives(centre)
        far = (half + reach).mul_(max(-self.second[0], self.second[1]) * (1 + 8 * u)).add_(32 * u)
        near = half.mul_(self.third).add_(32 * u)
        return (
            (slope - far).clamp_min(self.first[0]),
            (slope + far).clamp_max(self.first[1]),
            (curvature - near).clamp_min(self.second[0]),
            (curvature + near).clamp_max(self.second[1]),
        )


# Functions with bounded derivatives. Their extremes were computed on a grid of 5e-5 and rounded outward by more than
# the grid's step times the next derivative; beyond |x| = 15 the derivatives are within 1e-4 of their limits. The tests
# do it again.


def _far(x: Tensor) -> Tensor:
    """``x`` within +-100, where all derivatives here have reached their limits: x^2 and e^x stay finite."""
    return x.clamp(-100, 100)


def _tanh_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    value = torch.tanh(x)
    slope = 1 - value * value
    return slope, -2 * value * slope


def _sigmoid_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    value = torch.sigmoid(x)
    slope = value * (1 - value)
    return slope, slope * (1 - 2 * value)


def _softplus_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(x), _sigmoid_derivatives(x)[0]


def _silu_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    x = _far(x)
    slope, curvature = _sigmoid_derivatives(x)
    return torch.sigmoid(x) + x * slope, 2 * slope + x * curvature


def _gelu_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    x = _far(x)
    density = torch.exp(x * x * -0.5) / math.sqrt(2 * math.pi)
    return 0.5 * torch.erfc(x * -math.sqrt(0.5)) + x * density, density * (2 - x * x)


def _gelu_tanh_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    # 0.5 x (1 + tanh(g)) with g = sqrt(2 / pi) (x + 0.044715 x^3).
    x, root = _far(x), math.sqrt(2 / math.pi)
    value = torch.tanh(root * (x + 0.044715 * x**3))
    first, second = root * (1 + 3 * 0.044715 * x * x), root * (6 * 0.044715 * x)
    slope = (1 - value * value) * first
    curvature = (1 - value * value) * second - 2 * value * slope * first
    return 0.5 * (1 + value + x * slope), slope + 0.5 * x * curvature


def _mish_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    # x tanh(softplus(x)); the softplus has the derivatives s and s'.
    x = _far(x)
    value = torch.tanh(F.softplus(x))
    s, s_slope = _softplus_derivatives(x)
    slope = (1 - value * value) * s
    curvature = (1 - value * value) * s_slope - 2 * value * slope * s
    return value + x * slope, 2 * slope + x * curvature


def _sine_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cos(x), -torch.sin(x)


def _cosine_derivatives(x: Tensor) -> tuple[Tensor, Tensor]:
    return -torch.sin(x), -torch.cos(x)


BOUNDED = {
    "tanh": Bounded(torch.tanh, _tanh_derivatives, (0.0, 1.0), (-0.7699, 0.7699), 2.001),
    "sigmoid": Bounded(torch.sigmoid, _sigmoid_derivatives, (0.0, 0.25), (-0.09624, 0.09624), 0.1251),
    "softplus": Bounded(
        lambda x: torch.logaddexp(x, torch.zeros_like(x)), _softplus_derivatives, (0.0, 1.0), (0.0, 0.25), 0.09624
    ),
    "silu": Bounded(F.silu, _silu_derivatives, (-0.0999, 1.0999), (-0.0371, 0.5001), 0.3083),
    "gelu": Bounded(F.gelu, _gelu_derivatives, (-0.1291, 1.1291), (-0.1081, 0.798), 0.779, True),
    "gelu_tanh": Bounded(
        functools.partial(F.gelu, approximate="tanh"),
        _gelu_tanh_derivatives,
        (-0.1291, 1.1291),
        (-0.1081, 0.798),
        0.7768,
        True,
    ),
    "mish": Bounded(F.mish, _mish_derivatives, (-0.1127, 1.0886), (-0.0592, 0.6444), 0.5886, True),
    "sin": Bounded(torch.sin, _sine_derivatives, (-1.0, 1.0), (-1.0, 1.0), 1.0),
    "cos": Bounded(torch.cos, _cosine_derivatives, (-1.0, 1.0), (-1.0, 1.0), 1.0),
}


def _one_variable(name: str) -> Callable[..., EnclosedTensor]:
    return lambda input: result(BOUNDED[name].form(input.form), input)


for _name in ("tanh", "sigmoid", "silu", "mish", "sin", "cos"):
    rule(_name)(_one_variable(_name))


@rule("gelu")
def _gelu(input: EnclosedTensor, approximate: str = "none") -> EnclosedTensor:
    return result(BOUNDED["gelu" if approximate == "none" else f"gelu_{approximate}"].form(input.form), input)


@rule("softplus")
def _softplus(input: EnclosedTensor, beta: float = 1, threshold: float = 20) -> EnclosedTensor:
    """log(1 + e^(beta x)) / beta. Above the threshold torch returns x: less, by at most log(1 + e^-threshold)."""
    if beta <= 0:
        raise NotEnclosedError(f"softplus with beta={beta} has no rule of enclosure")
    x = (scaled(input.form, float(beta)) if beta != 1 else input.form).settled()
    form = BOUNDED["softplus"].form(x)
    switched = x.magnitude + x.full_radius() >= threshold * (1 - 1e-5)
    radius = form.full_radius() + switched * (math.log1p(math.exp(-threshold)) * (1 + 1e-6))
    return result(over(AffineForm(form.left, form.right, radius, 1.0), beta), input)


@rule("logsigmoid", "log_sigmoid")
def _log_sigmoid(input: EnclosedTensor) -> EnclosedTensor:
    return result(negative(BOUNDED["softplus"].form(negative(input.form))), input)


@rule("glu")
def _glu(input: EnclosedTensor, dim: int = -1) -> EnclosedTensor:
    check_dims("glu", input, (dim,))
    first, second = (input.form.map(functools.partial(_half, dim=dim, i=i)) for i in (0, 1))
    return result(product(first, BOUNDED["sigmoid"].form(second)), input)


def _half(value: Tensor, dim: int, i: int) -> Tensor:
    return value.chunk(2, dim)[i]


def over(x: AffineForm, number: float) -> AffineForm:
    """The form of x / number."""
    if number == 1:
        return x
    form = scaled(x, 1.0 / number)
    return AffineForm(form.left, form.right, form.radius, form.rounding + 4.0)


# Functions with monotone derivatives, and domains


#: Where powers of x up to x^3 neither overflow nor vanish.
_POWERS_FIT = {torch.float32: (1e-12, 1e12), torch.float64: (1e-100, 1e100)}


def _within(x: Tensor, size: Tensor) -> Tensor:
    """``x``, with NaN where ``size`` leaves the range in which its powers are numbers: they bound nothing there."""
    least, most = _POWERS_FIT[x.dtype]
    return x.masked_fill(~((size >= least) & (size <= most)), torch.nan)


def _ends(low: Tensor, high: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """Both ends with the reach, NaN where one is not positive, too small or too large."""
    first, last = low - reach, high + reach
    return _within(first, first), _within(last, last)


def _exp_ranges(low: Tensor, high: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (low - reach).exp(), (high + reach).exp(), low.exp(), high.exp()


def _log_ranges(low: Tensor, high: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, last = _ends(low, high, reach)
    return 1 / last, 1 / first, -1 / low.square(), -1 / high.square()


def _root_ranges(low: Tensor, high: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, last = _ends(low, high, reach)
    return 0.5 / last.sqrt(), 0.5 / first.sqrt(), -0.25 * low.pow(-1.5), -0.25 * high.pow(-1.5)


def _inverse_root_ranges(low: Tensor, high: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, last = _ends(low, high, reach)
    return -0.5 * first.pow(-1.5), -0.5 * last.pow(-1.5), 0.75 * high.pow(-2.5), 0.75 * low.pow(-2.5)


def _reciprocal_ranges(low: Tensor, high: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, last = low - reach, high + reach
    first, last = _within(first, first * last.sign()), _within(last, last * first.sign())
    a, b = -1 / first.square(), -1 / last.square()
    return torch.minimum(a, b), torch.maximum(a, b), 2 / high.pow(3), 2 / low.pow(3)


def _cube_ranges(low: Tensor, high: Tensor, reach: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    furthest = torch.maximum((low - reach).abs(), (high + reach).abs())
    return torch.zeros_like(low), 3 * furthest.square(), 6 * low, 6 * high


def inverse_root(x: AffineForm) -> AffineForm:
    """The form of x^(-1/2)."""
    return smooth(x, torch.rsqrt, _inverse_root_ranges)


def reciprocal(x: AffineForm) -> AffineForm:
    """The form of 1 / x."""
    return smooth(x, torch.reciprocal, _reciprocal_ranges)


def square(x: AffineForm) -> AffineForm:
    """The form of x^2."""
    return product(x, x)


def product(x: AffineForm, y: AffineForm) -> AffineForm:
    """The form of x y, element by element."""
    return bilinear(lambda x, y, _: x * y, x, y, 1)


def _monotone(function: Callable[[Tensor], Tensor], ranges: Ranges) -> Callable[..., EnclosedTensor]:
    return lambda x: result(smooth(x.form, function, ranges), x)


rule("exp")(_monotone(torch.exp, _exp_ranges))
rule("log")(_monotone(torch.log, _log_ranges))
rule("sqrt")(_monotone(torch.sqrt, _root_ranges))


@rule("rsqrt")
def _rsqrt(x: EnclosedTensor) -> EnclosedTensor:
    return result(inverse_root(x.form), x)


@rule("reciprocal")
def _reciprocal(x: EnclosedTensor) -> EnclosedTensor:
    return result(reciprocal(x.form), x)


@rule("square")
def _square(x: EnclosedTensor) -> EnclosedTensor:
    return result(square(x.form), x)


@rule("pow", "__pow__")
def _pow(x: Any, exponent: Any) -> EnclosedTensor:
    if not isinstance(exponent, (int, float)) or exponent not in _POWERS:
        raise NotEnclosedError(f"pow with the exponent {exponent} has no rule of enclosure")
    return result(_POWERS[exponent](x.form), x)


_POWERS: dict[float, Callable[[AffineForm], AffineForm]] = {
    -1: reciprocal,
    -0.5: inverse_root,
    0.5: lambda x: smooth(x, torch.sqrt, _root_ranges),
    1: lambda x: x,
    2: square,
    3: lambda x: smooth(x, lambda x: x * x * x, _cube_ranges),
}


@rule("__rtruediv__", "__rdiv__")
def _divided(x: EnclosedTensor, numerator: Any) -> EnclosedTensor:
    check_aligned("div", x, numerator)
    form = reciprocal(x.form)
    if isinstance(numerator, (int, float)):
        return result(scaled(form, float(numerator)), x)
    return result(product(form_of(numerator, x.form), form), x)
