"""Device, arithmetic (float32, TF32, bfloat16), memory order and dtype of a network and its loss."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..errors import LLPFError, one_line
from ..flat.copying import copied
from ..types import LossFunction

Precision = Literal["float32", "tf32", "bfloat16"]


def checked_device(device: torch.device | str) -> torch.device:
    """``device`` ("cpu", "cuda", "cuda:1") as a torch.device; LLPFError where torch does not see such a device."""
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
    """Refuse an unknown ``precision``, or one that ``device`` lacks, naming the ``option`` (LLPFError)."""
    if precision not in get_args(Precision):
        raise LLPFError(f"{option} must be one of {', '.join(get_args(Precision))}; got {precision!r}")
    if precision == "tf32" and device.type != "cuda":
        raise LLPFError(f"{option} tf32 belongs to NVIDIA GPUs, not to {device.type}: use float32")


class SharedSwitches:
    """Switches of the whole process, for several threads at once: the first sets them, the last puts them back.

    Args:
        set_all: sets the switches, and enters in the given stack what puts them back.
    """

    def __init__(self, set_all: Callable[[contextlib.ExitStack], None]) -> None:
        self._set_all, self._lock = set_all, threading.Lock()
        self._users, self._stack = 0, contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._set_all(self._stack)
            self._users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._stack.close()


def _set_precision(backends: Iterable[Any], wanted: str, stack: contextlib.ExitStack) -> None:
    for backend in backends:
        stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
        backend.fp32_precision = wanted


# getattr: torch's stubs do not know these.
_MKLDNN = tuple(getattr(torch.backends.mkldnn, name) for name in ("matmul", "conv"))
_CUDA = torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv")  # noqa: B009
#: On a CPU certificates evaluate points in several threads.
_IEEE_ON_CPU = SharedSwitches(functools.partial(_set_precision, _MKLDNN, "ieee"))


@contextlib.contextmanager
def float32_products(precision: Precision, device: torch.device) -> Iterator[None]:
    """Inside, float32 matrix products and convolutions are true float32, or TF32 (10 bits of mantissa) on a GPU.

    On a GPU torch's default is mixed: TF32 in convolutions, not in matrix products. On a CPU
    ``torch.set_float32_matmul_precision("medium")`` lets oneDNN round operands to bfloat16, where the processor can.
    """
    if device.type != "cuda":
        with _IEEE_ON_CPU:
            yield
        return
    with contextlib.ExitStack() as stack:
        _set_precision(_CUDA, "tf32" if precision == "tf32" else "ieee", stack)
        yield


def as_channels_last(inputs: Any) -> Any:
    """``inputs`` with C last in the memory of 4-dimensional floating-point tensors ``[B, C, H, W]``.

    Convolutions use the order of their input, so parameters are not converted. With one channel both orders are the
    same memory and torch takes the strides for channels first: explicit strides are set, without a copy.
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
    """``module`` itself, moved to ``device``, its tensors of the parameters' dtype cast to ``dtype``.

    Complex tensors of the same width become complex ``dtype``. Tensors of other dtypes are not cast: a network with a
    half-precision or float64 buffer beside float32 parameters relies on it. ``module.to(dtype)`` would cast all of
    them, and drop the imaginary part of complex buffers.
    """
    kinds = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    kinds |= {kind.to_complex() for kind in kinds if kind in (torch.float16, torch.float32, torch.float64)}

    def cast(value: Tensor) -> Tensor:
        return _moved(value, device, dtype) if value.dtype in kinds else value.to(device)

    return module._apply(cast)


def loss_in(loss_fn: LossFunction, device: torch.device, dtype: torch.dtype) -> LossFunction:
    """``loss_fn`` with its tensors (class weights) on ``device``, floating ones as ``dtype``.

    torch's losses refuse weights of another dtype than the network's output. Modules and ``functools.partial`` are
    copied where something changes; any other callable is returned unchanged.

    Raises:
        LLPFError: a loss module that cannot be copied.
    """
    if isinstance(loss_fn, nn.Module):
        tensors = [*loss_fn.parameters(), *loss_fn.buffers()]
        if all(_moved(value, device, dtype) is value for value in tensors):
            return loss_fn
        # All tensors, unlike those of a network: most losses have no parameter that gives their dtype.
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
