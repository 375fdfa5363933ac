"""The forward pass of one batch, and the mode that a network needs for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..errors import LLPFError, first_line
from .precision import as_channels_last

#: What a user's forward or loss function may raise on unsuitable data: anything.
FAILURES = Exception
#: Of the global generators during evaluation, so that models that draw random numbers even in eval mode repeat.
_SEED = 0
#: Part of torch's message about normalization over one sample.
_ONE_SAMPLE = "Expected more than 1 value per channel"
#: LeNet5 on one core, 10,000 images: 0.44 s of processor time in batches of 125, 0.52 in batches of 32 (more calls),
#: 0.53 from 250 on (glibc then returns each activation to the system, and every page faults again).
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

    Not ``torch.manual_seed``: without a GPU that takes 140 µs, and stores the stack of its caller for good.
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
    """How points are evaluated. Search and certificate choose it in the same way, from the network and one batch."""

    #: Images have their channels last in memory.
    channels_last: bool = False
    #: The forward itself computes gradients (of its output with respect to its input), so autograd is on.
    gradients: bool = False


def choose_forward_mode(module: nn.Module, inputs: Any, *, channels_last: bool = True) -> tuple[ForwardMode, Any]:
    """The first mode in which ``module`` runs on the batch ``inputs``, and its output.

    Channels last (if asked for) is tried before the usual order, which networks that use ``.view()`` after a
    convolution need; no autograd before autograd.

    Raises:
        LLPFError: the forward fails in every mode; the error is that in the usual order under ``torch.no_grad()``.
    """
    failure: LLPFError | None = None
    for gradients in (False, True):
        for last in (True, False) if channels_last else (False,):
            try:
                with torch.set_grad_enabled(gradients):
                    output = forward(module, as_channels_last(inputs) if last else inputs)
                return ForwardMode(last, gradients), output
            except LLPFError as error:
                if not gradients and not last:
                    failure = error
    assert failure is not None
    raise failure


def default_batch_size(device: torch.device) -> int:
    """Samples per forward pass in evaluations where no batch size is given."""
    return _BATCH_CPU if device.type == "cpu" else _BATCH_GPU


def computing_dtype(module: nn.Module) -> torch.dtype:
    """The dtype in which a network is evaluated: float64 if a parameter is, else float32."""
    return torch.float64 if any(p.dtype == torch.float64 for p in module.parameters()) else torch.float32


def shape_of(value: Any) -> str:
    """The shape of a part of a batch, or its type, for messages."""
    if isinstance(value, Tensor):
        return f"shape {list(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shape_of(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (tuple, list)) and value and all(isinstance(item, Tensor) for item in value):
        return "shapes " + ", ".join(str(list(item.shape)) for item in value)
    return f"type {type(value).__name__}"
