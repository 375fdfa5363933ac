"""Rules of enclosure of linear and piecewise linear operations: layers, sums, ReLU, maxima, pooling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.utils import _ntuple

from .form import (
    AffineForm,
    NotEnclosedError,
    add,
    bilinear,
    check_slope,
    leaky_relu,
    maximum,
    negative,
    scaled,
    summed,
)
from .smooth_rules import product, reciprocal
from .tensor import EnclosedTensor, check_aligned, check_dims, dims_of, forms_of, result, rule

# Linear layers


def _layer(function: Callable[..., Tensor], terms: Callable[[torch.Size, int], int], name: str) -> Callable[..., Any]:
    """The rule of a layer ``function(x, weight, bias, ...)``; ``terms`` of the weight's shape and the groups."""

    def enclosed(input: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> EnclosedTensor:
        if any(isinstance(value, EnclosedTensor) and value.batched for value in (weight, bias)):
            raise NotEnclosedError(f"{name} with weights that depend on the samples has no rule of enclosure")
        x, w, *b = forms_of(input, weight, *([] if bias is None else [bias]))
        if name != "linear" and x.left.dim() != w.left.dim():
            raise NotEnclosedError(f"{name} of one image without a batch has no rule of enclosure")
        if x.left.dim() < 2:
            raise NotEnclosedError(f"{name} of a vector has no rule of enclosure")
        groups = args[3] if len(args) > 3 else kwargs.get("groups", 1)
        batched = isinstance(input, EnclosedTensor) and input.batched and x.left.dim() > 1
        form = bilinear(
            lambda x, w, b: function(x, w, b, *args, **kwargs),
            x,
            w,
            terms(w.shape, groups),
            b[0] if b else None,
            batched=batched,
        )
        return result(form, input)

    return enclosed


rule("linear")(_layer(F.linear, lambda shape, _: shape[-1], "linear"))
for _n in (1, 2, 3):
    _name = f"conv{_n}d"
    rule(_name)(_layer(getattr(F, _name), lambda shape, _: math.prod(shape[1:]), _name))
    _name = f"conv_transpose{_n}d"
    rule(_name)(_layer(getattr(F, _name), lambda shape, groups: shape[0] // groups * math.prod(shape[2:]), _name))


@rule("matmul", "__matmul__", "bmm", "mm")
def _matmul(x: Any, y: Any) -> EnclosedTensor:
    a, b = forms_of(x, y)
    first, second = (isinstance(value, EnclosedTensor) and value.batched for value in (x, y))
    ranks = a.left.dim(), b.left.dim()
    if min(ranks) < 2:
        raise NotEnclosedError("matmul with a vector has no rule of enclosure")
    # Samples may be rows of the first operand, or one batch dimension of both.
    mixes = second and (ranks[1] == 2 or ranks[0] > ranks[1] or (first and ranks[0] != ranks[1]))
    for value, other, rank in ((x, second, ranks[0]), (y, first, ranks[1])):
        if other and not getattr(value, "batched", False) and rank >= 3:
            check_aligned("matmul", value, y if value is x else x)
    if mixes or (first and ranks[1] > ranks[0]):
        raise NotEnclosedError("matmul over the dimension of the samples mixes the samples of a batch")
    return result(bilinear(lambda x, y, _: torch.matmul(x, y), a, b, a.shape[-1]), x, y)


@rule("mul", "multiply", "__mul__", "__rmul__")
def _mul(x: Any, y: Any) -> EnclosedTensor:
    for number, other in ((x, y), (y, x)):
        if isinstance(number, (int, float)) and not isinstance(number, bool):
            return result(scaled(other.form, float(number)), other)
    check_aligned("mul", x, y)
    a, b = forms_of(x, y)
    return result(bilinear(lambda x, y, _: x * y, a, b, 1), x, y)


@rule("div", "true_divide", "__truediv__", "divide")
def _div(x: Any, y: Any, rounding_mode: str | None = None) -> EnclosedTensor:
    if rounding_mode is not None:
        raise NotEnclosedError(f"div with rounding_mode={rounding_mode} has no rule of enclosure")
    if isinstance(y, (int, float)) and not isinstance(y, bool) and y != 0:
        # Division by a power of two is exact; otherwise the reciprocal's rounding counts as one more.
        form = scaled(x.form, 1.0 / y)
        return result(AffineForm(form.left, form.right, form.radius, form.rounding + 4.0), x)
    if isinstance(y, Tensor) and not isinstance(y, EnclosedTensor):
        check_aligned("div", x, y)
        a, b = forms_of(x, y)
        inverse = 1.0 / b.left
        return result(bilinear(lambda x, y, _: x * y, a, AffineForm(inverse, inverse, None, b.rounding + 4.0), 1), x, y)
    if not isinstance(y, EnclosedTensor):
        raise NotEnclosedError(f"division by {y} has no rule of enclosure")
    check_aligned("div", x, y)
    a, b = forms_of(x, y)
    return result(product(a, reciprocal(b)), x, y)


# Sums


@rule("add", "__add__", "__radd__")
def _add(x: Any, y: Any, *, alpha: float = 1) -> EnclosedTensor:
    check_aligned("add", x, y)
    a, b = forms_of(x, y)
    return result(add(a, b if alpha == 1 else scaled(b, float(alpha))), x, y)


@rule("sub", "subtract", "__sub__")
def _sub(x: Any, y: Any, *, alpha: float = 1) -> EnclosedTensor:
    check_aligned("sub", x, y)
    a, b = forms_of(x, y)
    return result(add(a, b if alpha == 1 else scaled(b, float(alpha)), -1.0), x, y)


@rule("rsub", "__rsub__")
def _rsub(x: Any, y: Any, *, alpha: float = 1) -> EnclosedTensor:
    return _sub(y, x, alpha=alpha)


@rule("neg", "negative", "__neg__")
def _neg(x: Any) -> EnclosedTensor:
    return result(negative(x.form), x)


def _reduction(name: str, *, mean: bool) -> Callable[..., EnclosedTensor]:
    def enclosed(x: EnclosedTensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> EnclosedTensor:
        if dtype not in (None, x.form.dtype):
            raise NotEnclosedError(f"{name} in another dtype has no rule of enclosure")
        dims = dims_of(x, dim)
        check_dims(name, x, dims)
        terms = math.prod(x.form.shape[d] for d in dims)

        def total(value: Tensor) -> Tensor:
            return value.mean(dims, keepdim) if mean else value.sum(dims, keepdim)

        return result(summed(x.form, total, terms), x)

    return enclosed


rule("sum")(_reduction("sum", mean=False))
rule("mean")(_reduction("mean", mean=True))


def _average_pool(n: int) -> Callable[..., EnclosedTensor]:
    function = getattr(F, f"avg_pool{n}d")

    def enclosed(input: EnclosedTensor, kernel_size: Any, *args: Any, **kwargs: Any) -> EnclosedTensor:
        _check_rank(f"avg_pool{n}d", input, n)
        terms = math.prod(_ntuple(n)(kernel_size))
        if kwargs.get("divisor_override", args[4] if len(args) > 4 else None) is not None:
            raise NotEnclosedError(f"avg_pool{n}d with divisor_override has no rule of enclosure")
        return result(summed(input.form, lambda x: function(x, kernel_size, *args, **kwargs), terms), input)

    return enclosed


def _adaptive_average_pool(n: int) -> Callable[..., EnclosedTensor]:
    function = getattr(F, f"adaptive_avg_pool{n}d")

    def enclosed(input: EnclosedTensor, output_size: Any) -> EnclosedTensor:
        _check_rank(f"adaptive_avg_pool{n}d", input, n)
        terms = math.prod(input.form.shape[-n:])
        return result(summed(input.form, lambda x: function(x, output_size), terms), input)

    return enclosed


def _check_rank(name: str, x: EnclosedTensor, n: int) -> None:
    """Images without a batch have their channels where the samples should be."""
    if x.before.left.dim() != n + 2:
        raise NotEnclosedError(f"{name} of one image without a batch has no rule of enclosure")


# Maxima


@rule("relu")
def _relu(x: EnclosedTensor) -> EnclosedTensor:
    return _waiting(x, 0.0)


@rule("leaky_relu")
def _leaky_relu(x: EnclosedTensor, negative_slope: float = 0.01) -> EnclosedTensor:
    return _waiting(x, float(negative_slope))


def _waiting(x: EnclosedTensor, slope: float) -> EnclosedTensor:
    """Leaky ReLU of ``x``, not yet applied."""
    check_slope(slope)
    return EnclosedTensor(x.form, batched=x.batched, slope=slope)


@rule("maximum", "max")
def _maximum(x: Any, y: Any = None, **kwargs: Any) -> EnclosedTensor:
    if kwargs or not isinstance(y, Tensor):
        raise NotEnclosedError("max along a dimension has no rule of enclosure")
    check_aligned("maximum", x, y)
    return result(maximum(*forms_of(x, y)), x, y)


@rule("minimum", "min")
def _minimum(x: Any, y: Any = None, **kwargs: Any) -> EnclosedTensor:
    if kwargs or not isinstance(y, Tensor):
        raise NotEnclosedError("min along a dimension has no rule of enclosure")
    check_aligned("minimum", x, y)
    a, b = forms_of(x, y)
    return result(negative(maximum(negative(a), negative(b))), x, y)


@rule("abs", "absolute", "__abs__")
def _abs(x: EnclosedTensor) -> EnclosedTensor:
    return result(maximum(x.form, negative(x.form)), x)


def _max_pool(n: int) -> Callable[..., EnclosedTensor]:
    def enclosed(
        input: EnclosedTensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> EnclosedTensor:
        if return_indices:
            raise NotEnclosedError(f"max_pool{n}d with return_indices has no rule of enclosure")
        _check_rank(f"max_pool{n}d", input, n)
        options = [_sizes(n, value) for value in (kernel_size, stride or kernel_size, padding, dilation)]
        x, slope = input.before, input.slope
        # Images [N, C, H, W]: of one row, or all slices of a volume, of which then the depths are pooled.
        if n == 1:
            options = [(neutral, *value) for neutral, value in zip((1, 1, 0, 1), options, strict=True)]
            form = leaky_relu(x.map(lambda value: value.unsqueeze(2)), slope, *options, ceil_mode=ceil_mode)
            return result(form.map(lambda value: value.squeeze(2)), input)
        if n == 2:
            return result(leaky_relu(x, slope, *options, ceil_mode=ceil_mode), input)
        slices = x.map(lambda value: value.flatten(1, 2))
        form = leaky_relu(slices, slope, *(value[1:] for value in options), ceil_mode=ceil_mode)
        sizes = form.shape[2:]
        columns = form.map(lambda value: value.unflatten(1, x.shape[1:3]).flatten(3))
        options = [(value[0], neutral) for neutral, value in zip((1, 1, 0, 1), options, strict=True)]
        form = leaky_relu(columns, 1.0, *options, ceil_mode=ceil_mode)
        return result(form.map(lambda value: value.unflatten(3, sizes)), input)

    return enclosed


def _sizes(n: int, value: Any) -> tuple[int, ...]:
    """An option of a layer of ``n`` dimensions as ``n`` integers."""
    sizes: tuple[int, ...] = _ntuple(n)(value)
    return sizes * n if len(sizes) == 1 else sizes


for _n in (1, 2, 3):
    rule(f"avg_pool{_n}d")(_average_pool(_n))
    rule(f"adaptive_avg_pool{_n}d")(_adaptive_average_pool(_n))
    rule(f"max_pool{_n}d")(_max_pool(_n))
