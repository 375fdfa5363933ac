"""The forward pass of one batch, and the way in which a network must be run for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..errors import LLPFError
from .precision import as_channels_last

#: What a user's forward or loss function raises on data that it cannot take: anything.
FAILURES = Exception
#: Of the global generators where points are judged, so that a model that draws numbers even in eval mode repeats.
_SEED = 0
#: What torch says of a normalization over one sample.
_ONE_SAMPLE = "Expected more than 1 value per channel"
#: LeNet5 on one core, 10,000 images: 0.44 s of processor time at 125 a batch, 0.52 at 32 (calls), 0.53 at 250 and more
#: (glibc then gives each activation back to the system, and every page faults again).
_BATCH_CPU, _BATCH_GPU = 125, 2000


def forward(module: Callable[..., Any], inputs: Any) -> Any:
    """The module's output on one batch: a tuple or list of inputs by position, a mapping by name.

    Raises:
        LLPFError: the forward fails.
    """
    try:
        if isinstance(inputs, Tensor):
            return module(inputs)
        if isinstance(inputs, Mapping):
            return module(**inputs)
        several = isinstance(inputs, (tuple, list)) and not isinstance(inputs, PackedSequence)
        return module(*inputs) if several else module(inputs)
    except LLPFError:
        raise
    except FAILURES as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise LLPFError(f"the GPU's memory is too small for a batch of {shape_of(inputs)}") from error
        remedy = "; leave out a batch of one sample (drop_last=True)" if _ONE_SAMPLE in str(error) else ""
        raise LLPFError(
            f"the model's forward fails on data of {shape_of(inputs)}: {first_line(error)}{remedy}"
        ) from error


@contextlib.contextmanager
def fixed_random_numbers(device: torch.device, seed: int = _SEED) -> Iterator[None]:
    """A fixed state of torch's global generators inside, the old one afterwards (20 µs).

    Not ``torch.manual_seed``: where there is no GPU that takes 140 µs, and keeps the stack of its caller for good.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@dataclass(frozen=True)
class ForwardMode:
    """How points are evaluated. Search and certificate choose it in the same way, from the network and one batch.

    ``channels_last``: images lie with their channels last in memory. ``gradients``: the forward itself takes gradients
    (of its output with respect to its input), so autograd stays on.
    """

    channels_last: bool = False
    gradients: bool = False


def choose_forward_mode(module: nn.Module, inputs: Any, *, channels_last: bool = True) -> tuple[ForwardMode, Any]:
    """The first mode in which ``module`` can run on the batch ``inputs``; and its output there.

    Channels last (where asked for) comes before the usual order, which a network that uses ``.view()`` after a
    convolution needs; without autograd comes before with.

    Raises:
        LLPFError: the forward fails in every mode; the error is the one that plain ``torch.no_grad()`` gives.
    """
    plain: LLPFError | None = None
    for gradients in (False, True):
        for last in (True, False) if channels_last else (False,):
            try:
                with torch.set_grad_enabled(gradients):
                    output = forward(module, as_channels_last(inputs) if last else inputs)
                return ForwardMode(last, gradients), output
            except LLPFError as error:
                if not gradients and not last:
                    plain = error
    assert plain is not None
    raise plain


def default_batch_size(device: torch.device) -> int:
    """Samples a forward pass where points are evaluated and nobody says a number."""
    return _BATCH_CPU if device.type == "cpu" else _BATCH_GPU


def computing_dtype(module: nn.Module) -> torch.dtype:
    """In what a network is evaluated: float64 where its parameters are, else float32."""
    return torch.float64 if any(p.dtype == torch.float64 for p in module.parameters()) else torch.float32


def shape_of(value: Any) -> str:
    """What a message says of a batch's part: its shape, or its type."""
    if isinstance(value, Tensor):
        return f"shape {list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shape_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)) and value and all(isinstance(item, Tensor) for item in value):
        return "shapes " + ", ".join(str(list(item.shape)) for item in value)
    return f"type {type(value).__name__}"


def first_line(error: BaseException) -> str:
    """Of an error's text; its class where it has none."""
    text = str(error).strip()
    if isinstance(error, KeyError):
        return f"KeyError {text}"
    return text.splitlines()[0] if text else type(error).__name__
