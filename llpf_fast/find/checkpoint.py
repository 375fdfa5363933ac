"""A search into a checkpoint and back: everything that the coming ticks depend on."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..errors import LLPFError
from ..flat import FlatParameters
from ..flat.buffers import set_buffers
from ..path import RunDirectory
from ..wording import one_line
from . import optimizer_state
from .legs import Legs
from .standing import Standing
from .trainer import Trainer

_BUFFER = "buffer/"


def save_standing(
    run: RunDirectory,
    standing: Standing,
    seconds: float,
    flat: FlatParameters,
    trainer: Trainer,
    optimizer: torch.optim.Optimizer | None,
    legs: Legs,
) -> None:
    """Replace the run's checkpoint; ``seconds`` is the time spent in the whole search."""
    tensors = {"values": flat.data, **legs.tensors()}
    tensors |= {f"{_BUFFER}{name}": b for name, b in flat.buffers().items()}
    if trainer.keeps_momentum:
        assert trainer.momentum_buffer is not None
        tensors["momentum"] = trainer.momentum_buffer
    state = replace(standing, seconds=seconds).as_dict()
    if optimizer is not None:
        more, state["optimizer"] = optimizer_state.pack(optimizer)
        tensors |= more
    try:
        run.save_checkpoint(tensors, state)
    except TypeError as error:
        if optimizer is None:
            raise
        raise LLPFError(
            f"the state of {type(optimizer).__name__} cannot be kept in a checkpoint ({one_line(error)}): let it hold "
            "tensors, numbers, texts, lists and dictionaries with text keys"
        ) from error


def load_standing(
    run: RunDirectory,
    flat: FlatParameters,
    trainer: Trainer,
    optimizer: torch.optim.Optimizer | None,
    legs: Legs,
) -> Standing | None:
    """Where the run's checkpoint stands, with everything put back; None where there is none."""
    saved = run.load_checkpoint()
    if saved is None:
        return None
    tensors, state = saved
    packed = state.pop("optimizer", None)
    standing = Standing.from_dict(state)
    if (packed is None) != (optimizer is None):
        used = "the fused SGD" if packed is None else "a torch optimiser"
        raise LLPFError(f"cannot resume {run.folder}: it was begun with {used}; give the same again")
    with torch.no_grad():
        flat.data.copy_(tensors["values"])
    named = {key.removeprefix(_BUFFER): value for key, value in tensors.items() if key.startswith(_BUFFER)}
    # One that a forward pass had set to None by then is in no file.
    set_buffers(flat.module, {**dict.fromkeys(flat.buffers()), **named})
    if "momentum" in tensors and trainer.momentum_buffer is not None:
        trainer.momentum_buffer.copy_(tensors["momentum"])
    if optimizer is not None:
        optimizer_state.unpack(optimizer, tensors, packed)
    legs.restore(tensors)
    return standing
