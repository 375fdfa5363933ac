"""Networks and losses in another dtype and on another device, whole: complex buffers and class weights too."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from ..flat.copying import copied
from .loss import LossFunction


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
