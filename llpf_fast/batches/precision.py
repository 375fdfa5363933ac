"""In which arithmetic, memory order, dtype and device a network and its loss run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import LLPFError, one_line
from ..flat.copying import copied
from ..types import LossFunction

Precision = Literal["float32", "tf32", "bfloat16"]


def checked_device(device: torch.device | str) -> torch.device:
    """``device``, "cpu", "cuda" or "cuda:1"; LLPFError where there is no such device, or torch does not see it."""
    try:
        device = torch.device(device)
    except (RuntimeError, ValueError, TypeError) as error:
        raise LLPFError(f"device {one_line(device)}: no such device; use cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise LLPFError(f"device {device}: only cpu and cuda are supported; use cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise LLPFError(f"device {device}: torch {torch.__version__} sees no NVIDIA GPU here; use cpu")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise LLPFError(f"device {device}: this machine has {torch.cuda.device_count()} GPU(s), counted from 0")
    return device


def check_precision(precision: Precision, device: torch.device, option: str = "correction.precision") -> None:
    """LLPFError that names the ``option`` where there is no such arithmetic, or the device has none."""
    if precision not in get_args(Precision):
        raise LLPFError(f"{option} must be one of {', '.join(get_args(Precision))}; got {precision!r}")
    if precision == "tf32" and device.type != "cuda":
        raise LLPFError(f"{option} tf32 belongs to NVIDIA GPUs, not to {device.type}: use float32")


@contextlib.contextmanager
def float32_products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Matrix products and convolutions of float32 on a GPU are true float32 inside, or TF32 (10 bits of mantissa).

    Torch's own default is mixed: convolutions in TF32, matrix products not. On a CPU this does nothing.
    """
    if device.type != "cuda":
        yield
        return
    places = (torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv"))  # noqa: B009  (unknown to its stubs)
    before = [place.fp32_precision for place in places]
    wanted = "tf32" if precision == "tf32" else "ieee"
    try:
        for place in places:
            place.fp32_precision = wanted
        yield
    finally:
        for place, old in zip(places, before, strict=True):
            place.fp32_precision = old


def as_channels_last(inputs: Any) -> Any:
    """4-dimensional floating-point tensors ``[B, C, H, W]`` of ``inputs`` with C last in memory; the rest unchanged.

    Convolutions follow the order of their input, so parameters and the flat buffer stay as they are. With one channel
    both orders are the same memory, and torch takes the ambiguous strides for channels first: they are set apart here,
    without a copy.
    """
    if not isinstance(inputs, Tensor):
        images = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.dim() == 4]
        return pytree.tree_map(as_channels_last, inputs) if images else inputs
    if inputs.dim() != 4 or not inputs.is_floating_point():
        return inputs
    channels, height, width = inputs.shape[1:]
    if channels == 1 and inputs.is_contiguous():
        return inputs.as_strided(inputs.shape, (height * width, 1, width, 1))
    return inputs.contiguous(memory_format=torch.channels_last)


def module_in(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """``module`` itself, on ``device``, computing in ``dtype``: tensors of its parameters' dtype are cast.

    Complex ones of the same width too, to complex numbers. A tensor of another dtype stays what it is: a network with a
    half-precision or a float64 buffer beside float32 parameters expects just that. ``module.to(dtype)`` would cast all
    of them, and drop the imaginary part of complex buffers.
    """
    own = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    own |= {kind.to_complex() for kind in own if kind in (torch.float16, torch.float32, torch.float64)}

    def cast(value: Tensor) -> Tensor:
        return _moved(value, device, dtype) if value.dtype in own else value.to(device)

    return module._apply(cast)


def loss_in(loss_fn: LossFunction, device: torch.device, dtype: torch.dtype) -> LossFunction:
    """``loss_fn`` with the tensors that it holds (class weights) on ``device``, floating ones as ``dtype``.

    torch's losses refuse weights of another dtype than the network's output. Modules and ``functools.partial`` are
    copied where something changes; of any other callable nothing is known, so it stays as it is.

    Raises:
        LLPFError: a loss module that cannot be copied.
    """
    if isinstance(loss_fn, nn.Module):
        held = [*loss_fn.parameters(), *loss_fn.buffers()]
        if all(_moved(value, device, dtype) is value for value in held):
            return loss_fn
        # All of them, unlike a network's: most losses have no parameter that would say what they compute in.
        return copied(loss_fn, "the loss")._apply(lambda value: _moved(value, device, dtype))
    if isinstance(loss_fn, functools.partial):
        options: dict[str, Any] = {key: _value(value, device, dtype) for key, value in loss_fn.keywords.items()}
        arguments = [_value(value, device, dtype) for value in loss_fn.args]
        return functools.partial(loss_in(loss_fn.func, device, dtype), *arguments, **options)
    return loss_fn


def _value(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    return _moved(value, device, dtype) if isinstance(value, Tensor) else value


def _moved(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    if value.is_complex():
        return value.to(device, dtype.to_complex())
    return value.to(device, dtype if value.is_floating_point() else None)
