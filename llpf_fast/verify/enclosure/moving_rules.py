"""Rules of enclosure of operations that only move, copy, join or cut elements."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .form import AffineForm, NotEnclosedError
from .tensor import (
    EnclosedTensor,
    SampleNumbers,
    check_aligned,
    check_dims,
    dims_of,
    forms_of,
    result,
    rule,
    samples_of_batch,
)


def _check_reshape(name: str, x: EnclosedTensor, shape: torch.Size) -> None:
    """A reshape in row-major order keeps each sample in one piece where the first dimension is a multiple."""
    samples = samples_of_batch()
    if x.batched and (not shape or shape[0] % max(samples, 1) or shape[0] == 0):
        raise NotEnclosedError(f"{name} to {list(shape)} mixes the samples of a batch of {samples}")


def _reshaping(name: str) -> Callable[..., EnclosedTensor]:
    function: Any = getattr(Tensor, name)

    def enclosed(input: EnclosedTensor, *args: Any, **kwargs: Any) -> EnclosedTensor:
        def reshape(value: Tensor) -> Tensor:
            # A radius may be an expanded row, which no view can flatten.
            return function(value if name not in ("view", "view_as") else value.contiguous(), *args, **kwargs)

        form = input.form.map(reshape)
        _check_reshape(name, input, form.shape)
        return result(form, input, view=True)

    return enclosed


for _name in ("view", "reshape", "flatten", "unflatten"):
    rule(_name)(_reshaping(_name))


@rule("transpose", "swapaxes", "swapdims")
def _transpose(x: EnclosedTensor, dim0: int, dim1: int) -> EnclosedTensor:
    order = list(range(x.dim()))
    (first,), (second,) = dims_of(x, dim0), dims_of(x, dim1)
    order[first], order[second] = second, first
    return _permute(x, order)


@rule("t", "T")
def _t(x: EnclosedTensor) -> EnclosedTensor:
    if x.form.left.dim() != 2:
        raise NotEnclosedError("T of a tensor that is no matrix has no rule of enclosure")
    return _transpose(x, 0, 1)


@rule("mT")
def _mt(x: EnclosedTensor) -> EnclosedTensor:
    return _transpose(x, -2, -1)


@rule("permute")
def _permute(x: EnclosedTensor, *dims: Any) -> EnclosedTensor:
    order = dims_of(x, dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims)
    moved = result(x.form.map(lambda value: value.permute(order)), x, view=True)
    moved.samples_at = order.index(x.samples_at) if x.batched else 0
    return moved


@rule("squeeze")
def _squeeze(x: EnclosedTensor, *dim: Any) -> EnclosedTensor:
    dims = [d for d in (dims_of(x, dim[0]) if dim else range(x.form.left.dim())) if x.form.shape[d] == 1]
    check_dims("squeeze", x, dims)
    return result(x.form.map(lambda value: value.squeeze(dims)), x, view=True)


@rule("unsqueeze")
def _unsqueeze(x: EnclosedTensor, dim: int) -> EnclosedTensor:
    if x.batched and dim % (x.form.left.dim() + 1) == 0:
        raise NotEnclosedError("unsqueeze(0) moves the dimension of the samples")
    return result(x.form.map(lambda value: value.unsqueeze(dim)), x, view=True)


@rule("expand")
def _expand(x: EnclosedTensor, *sizes: Any) -> EnclosedTensor:
    sizes = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    if x.batched and len(sizes) != x.form.left.dim():
        raise NotEnclosedError("expand moves the dimension of the samples")
    return result(x.form.map(lambda value: value.expand(*sizes)), x, view=True)


@rule("__getitem__")
def _getitem(x: EnclosedTensor, index: Any) -> EnclosedTensor:
    if x.samples_at:
        return _select(x, 0, index)
    parts = index if isinstance(index, tuple) else (index,)
    if not all(part is None or part is Ellipsis or type(part) in (int, slice) for part in parts):
        raise NotEnclosedError("indexing by lists or tensors has no rule of enclosure")
    whole = parts[0] is Ellipsis and sum(type(part) in (int, slice) for part in parts) < x.form.left.dim()
    if x.batched and not (whole or parts[0] == slice(None)):
        raise NotEnclosedError("indexing along the dimension of the samples has no rule of enclosure")
    return result(x.form.map(lambda value: value[index]), x, view=True)


@rule("narrow")
def _narrow(x: EnclosedTensor, dim: int, start: int, length: int) -> EnclosedTensor:
    check_dims("narrow", x, (dim,))
    return result(x.form.map(lambda value: value.narrow(dim, start, length)), x, view=True)


@rule("select")
def _select(x: EnclosedTensor, dim: int, index: int) -> EnclosedTensor:
    (dim,) = dims_of(x, dim)
    if type(index) is not int or (x.batched and dim == x.samples_at):
        raise NotEnclosedError("indexing along the dimension of the samples has no rule of enclosure")
    selected = result(x.form.map(lambda value: value.select(dim, index)), x, view=True)
    selected.samples_at = x.samples_at - (dim < x.samples_at)
    return selected


@rule("unbind")
def _unbind(input: EnclosedTensor, dim: int = 0) -> tuple[EnclosedTensor, ...]:
    return tuple(_select(input, dim, i) for i in range(input.shape[dim]))


def _pieces(name: str) -> Callable[..., tuple[EnclosedTensor, ...]]:
    function: Any = getattr(torch, name)

    def enclosed(input: EnclosedTensor, sizes: Any, dim: int = 0) -> tuple[EnclosedTensor, ...]:
        check_dims(name, input, (dim,))
        form = input.form

        def piece(i: int, value: Tensor) -> Tensor:
            part: Tensor = function(value, sizes, dim)[i]
            return part

        count = len(function(form.left, sizes, dim))
        forms = [form.map(functools.partial(piece, i)) for i in range(count)]
        return tuple(result(part, input, view=True) for part in forms)

    return enclosed


rule("chunk")(_pieces("chunk"))
rule("split", "split_with_sizes")(_pieces("split"))


@rule("cat", "concat", "concatenate")
def _cat(tensors: Sequence[Any], dim: int = 0) -> EnclosedTensor:
    tensors = list(tensors)
    check_aligned("cat", *tensors)
    for tensor in tensors:
        if isinstance(tensor, EnclosedTensor):
            check_dims("cat", tensor, (dim,))
    return result(_joined(forms_of(*tensors), lambda values: torch.cat(values, dim)), *tensors)


@rule("stack")
def _stack(tensors: Sequence[Any], dim: int = 0) -> EnclosedTensor:
    tensors = list(tensors)
    check_aligned("stack", *tensors)
    rank = tensors[0].dim() + 1
    if dim % rank == 0 and any(isinstance(tensor, EnclosedTensor) and tensor.batched for tensor in tensors):
        raise NotEnclosedError("stack moves the dimension of the samples")
    return result(_joined(forms_of(*tensors), lambda values: torch.stack(values, dim)), *tensors)


def _joined(forms: list[AffineForm], join: Callable[[list[Tensor]], Tensor]) -> AffineForm:
    left = join([form.left for form in forms])
    right = left if all(form.still for form in forms) else join([form.right for form in forms])
    radius = None
    if any(form.radius is not None for form in forms):
        none = [torch.zeros_like(form.left) if form.radius is None else form.radius for form in forms]
        radius = join([value.expand(form.shape) for value, form in zip(none, forms, strict=True)])
    return AffineForm(left, right, radius, max(form.rounding for form in forms))


@rule("pad")
def _pad(
    input: EnclosedTensor, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> EnclosedTensor:
    if len(pad) >= 2 * input.form.left.dim() and any(pad[2 * input.form.left.dim() - 2 :]):
        check_dims("pad", input, (0,))
    fill = 0.0 if value is None else float(value)
    if torch.tensor(fill, dtype=input.form.dtype).double() != fill:
        raise NotEnclosedError(
            f"pad with {fill}, which {input.form.dtype} does not represent, has no rule of enclosure"
        )
    constant = mode == "constant"
    form = input.form.map(
        lambda x: F.pad(x, pad, mode, fill if constant else None),
        radius=lambda x: F.pad(x, pad, mode, 0.0 if constant else None),
    )
    return result(form, input)


def _moved(name: str) -> Callable[..., EnclosedTensor]:
    """The rule of a function of images ``[B, C, H, W]`` that moves and copies elements inside samples."""
    function: Callable[..., Tensor] = getattr(F, name)

    def enclosed(input: EnclosedTensor, *args: Any, **kwargs: Any) -> EnclosedTensor:
        if input.form.left.dim() != 4:
            raise NotEnclosedError(f"{name} of anything but images [B, C, H, W] has no rule of enclosure")
        return result(input.form.map(lambda value: function(value, *args, **kwargs)), input)

    return enclosed


for _name in ("pixel_shuffle", "pixel_unshuffle", "channel_shuffle"):
    rule(_name)(_moved(_name))


@rule("interpolate")
def _interpolate(
    input: EnclosedTensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", **kwargs: Any
) -> EnclosedTensor:
    if mode != "nearest":
        raise NotEnclosedError(f"interpolate with mode={mode} has no rule of enclosure")
    return result(input.form.map(lambda value: F.interpolate(value, size, scale_factor, mode, **kwargs)), input)


@rule("flip")
def _flip(x: EnclosedTensor, *dims: Any) -> EnclosedTensor:
    dims = dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims
    check_dims("flip", x, dims)
    return result(x.form.map(lambda value: value.flip(dims)), x)


@rule("embedding")
def _embedding(
    input: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, *_: Any, **__: Any
) -> EnclosedTensor:
    if max_norm is not None or isinstance(input, EnclosedTensor) or getattr(weight, "batched", False):
        raise NotEnclosedError("embedding with max_norm, or by values that move, has no rule of enclosure")
    if not isinstance(weight, EnclosedTensor):
        raise NotEnclosedError("embedding in a table that is no parameter or buffer has no rule of enclosure")
    of_samples = isinstance(input, SampleNumbers)
    index = input.numbers if of_samples else input
    return EnclosedTensor(weight.form.map(lambda table: F.embedding(index, table)), batched=of_samples)


@rule("contiguous", "clone", "detach", "requires_grad_", "alias")
def _identity(x: EnclosedTensor, *_: Any, **__: Any) -> EnclosedTensor:
    return result(x.form, x, view=True)


@rule("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
def _dropout(input: EnclosedTensor, p: float = 0.5, training: bool = True) -> EnclosedTensor:
    if training and p:
        raise NotEnclosedError("dropout in training mode draws random numbers: it has no rule of enclosure")
    return result(input.form, input, view=True)


@rule("to", "float", "double", "type", "type_as")
def _to(x: EnclosedTensor, *args: Any, **kwargs: Any) -> EnclosedTensor:
    """A conversion to the dtype that is computed in changes nothing; others round, or widen what was rounded."""
    targets = [value.dtype if isinstance(value, Tensor) else value for value in (*args, *kwargs.values())]
    if (
        any(isinstance(target, str) for target in targets)
        or any(target != x.form.dtype for target in targets if isinstance(target, torch.dtype))
        or not targets
    ):
        raise NotEnclosedError("conversion to another dtype has no rule of enclosure")
    return result(x.form, x, view=True)
