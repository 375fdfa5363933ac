"""The plain values of one search, and their checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..correct.correction import Trainer
from ..errors import LLPFError, one_line
from ..flat import FlatParameters
from ..flat.buffers import set_buffers
from ..path import RunDirectory


@dataclass
class SearchState:
    """How far a search has come.

    Attributes:
        tick: ticks tried, also those that were taken back.
        accepted_tick: the tick whose result the buffer holds, less than ``tick`` after a rollback.
        recorded_tick: the tick of the last waypoint.
        sgd_steps: gradient steps of the whole search.
        phase: "shrink" while layers shrink toward the origin first, else "main"; ``phase_began`` after that many ticks.
        stage: index of the schedule's stage; ``stage_began`` after that many ticks of the phase.
        step_scale: factor of the step's length.
        seconds: spent in the search, up to the checkpoint that this comes from.
        distances, shares, variances: of every segment after ``accepted_tick``; a share is that of the initial distance.
        distance, loss: of the whole network after ``accepted_tick``; no loss at the start.
    """

    tick: int = 0
    accepted_tick: int = 0
    recorded_tick: int = 0
    sgd_steps: int = 0
    phase: str = "main"
    phase_began: int = 0
    stage: int = 0
    stage_began: int = 0
    step_scale: float = 1.0
    seconds: float = 0.0
    distances: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    variances: list[float] = field(default_factory=list)
    distance: float = 0.0
    loss: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> SearchState:
        """The reverse; LLPFError where a checkpoint of another version has other fields."""
        known = {f.name for f in fields(cls)}
        if different := sorted(known ^ set(state)):
            raise LLPFError(
                f"the checkpoint was written by another version of llpf_fast (it differs in {', '.join(different)}): "
                "finish the run with that version, or begin a new one"
            )
        return cls(**state)


_PREFIX = "optimizer/"
#: Key that stands for a tensor inside a list or dictionary of the state (the histories of L-BFGS).
_TENSOR_KEY = "tensor of the optimizer"


def pack(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of an optimiser: tensors by name, and everything else as JSON-ready values."""
    saved = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for index, entries in saved["state"].items():
        values[str(index)] = {}
        for name, value in entries.items():
            key = f"{_PREFIX}{index}/{name}"
            if isinstance(value, Tensor):
                tensors[key] = value
            else:
                values[str(index)][name] = _without_tensors(value, key, tensors)
    return tensors, {"state": values, "param_groups": saved["param_groups"], "class": type(optimizer).__name__}


def _without_tensors(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[key] = value
        return {_TENSOR_KEY: key}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(item, f"{key}/{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {name: _without_tensors(item, f"{key}/{name}", tensors) for name, item in value.items()}
    return value


def unpack(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """The reverse of :func:`pack`; LLPFError where that was another optimiser."""
    name = type(optimizer).__name__
    groups = optimizer.state_dict()["param_groups"]
    if values.get("class", name) != name or not _fits(groups, values["param_groups"]):
        raise LLPFError("cannot resume: the checkpoint holds the state of another optimiser; give the same again")
    left = {key: value for key, value in tensors.items() if key.startswith(_PREFIX)}
    state: dict[int, dict[str, Any]] = {int(i): _with_tensors(entries, left) for i, entries in values["state"].items()}
    for key, value in left.items():
        index, name = key.removeprefix(_PREFIX).split("/", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": values["param_groups"]})


def _with_tensors(value: Any, left: dict[str, Tensor]) -> Any:
    """``value`` with its tensors again, which are taken out of ``left``."""
    if isinstance(value, list):
        return [_with_tensors(item, left) for item in value]
    if isinstance(value, dict):
        if _TENSOR_KEY in value:
            return left.pop(value[_TENSOR_KEY])
        return {name: _with_tensors(item, left) for name, item in value.items()}
    return value


def _fits(made: list[dict[str, Any]], saved: list[dict[str, Any]]) -> bool:
    """Whether the groups ``saved`` are those ``made``; an optimiser's steps may have added entries to them."""
    return len(made) == len(saved) and all(
        fresh.keys() <= old.keys() and len(fresh["params"]) == len(old["params"])
        for fresh, old in zip(made, saved, strict=True)
    )


_BUFFER = "buffer/"


def save_search_state(
    run: RunDirectory,
    state: SearchState,
    seconds: float,
    flat: FlatParameters,
    trainer: Trainer,
    optimizer: torch.optim.Optimizer | None,
    phase_tensors: Mapping[str, Tensor],
) -> None:
    """Replace the run's checkpoint; ``seconds`` is the time spent in the whole search."""
    tensors = {"values": flat.data, **phase_tensors}
    tensors |= {f"{_BUFFER}{name}": b for name, b in flat.buffers().items()}
    if trainer.keeps_momentum:
        assert trainer.momentum_buffer is not None
        tensors["momentum"] = trainer.momentum_buffer
    values = replace(state, seconds=seconds).as_dict()
    if optimizer is not None:
        optimizer_tensors, values["optimizer"] = pack(optimizer)
        tensors |= optimizer_tensors
    try:
        run.save_checkpoint(tensors, values)
    except TypeError as error:
        if optimizer is None:
            raise
        raise LLPFError(
            f"the state of {type(optimizer).__name__} cannot be saved in a checkpoint ({one_line(error)}): it may hold "
            "tensors, numbers, texts, lists and dictionaries with text keys"
        ) from error


def load_search_state(
    run: RunDirectory,
    flat: FlatParameters,
    trainer: Trainer,
    optimizer: torch.optim.Optimizer | None,
    restore_phases: Callable[[dict[str, Tensor]], None],
) -> SearchState | None:
    """The state in the run's checkpoint, with values, buffers and optimiser restored; None where there is none."""
    saved = run.load_checkpoint()
    if saved is None:
        return None
    tensors, values = saved
    packed = values.pop("optimizer", None)
    state = SearchState.from_dict(values)
    if (packed is None) != (optimizer is None):
        used = "the fused SGD" if packed is None else "a torch optimiser"
        raise LLPFError(f"cannot resume {run.folder}: it was begun with {used}; give the same again")
    with torch.no_grad():
        flat.data.copy_(tensors["values"])
    named = {key.removeprefix(_BUFFER): value for key, value in tensors.items() if key.startswith(_BUFFER)}
    # A buffer that a forward pass had set to None is in no file.
    set_buffers(flat.module, {**dict.fromkeys(flat.buffers()), **named})
    if "momentum" in tensors and trainer.momentum_buffer is not None:
        trainer.momentum_buffer.copy_(tensors["momentum"])
    if optimizer is not None:
        unpack(optimizer, tensors, packed)
    restore_phases(tensors)
    return state
