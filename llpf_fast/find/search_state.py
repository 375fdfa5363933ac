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
    """Where a search stands.

    ``tick`` counts attempts; ``point`` is the tick whose result the buffer holds (less than ``tick`` after a rollback);
    ``recorded`` is the tick of the last waypoint. ``leg`` is 0 while the first of two legs shrinks the layers.
    """

    tick: int = 0
    point: int = 0
    recorded: int = 0
    rounds: int = 0
    leg: int = 1
    leg_began: int = 0
    phase: int = 0
    since: int = 0
    pace: float = 1.0
    seconds: float = 0.0
    #: Of every segment after the tick ``point``: distance, share of the initial distance, variance.
    distances: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    variances: list[float] = field(default_factory=list)
    #: The whole network's distance, and the loss its correction ended with (None at the start).
    distance: float = 0.0
    loss: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> SearchState:
        """The reverse; LLPFError where a checkpoint of another version holds other fields."""
        known = {f.name for f in fields(cls)}
        if odd := sorted(known ^ set(state)):
            raise LLPFError(
                f"the checkpoint was written by another version of llpf_fast (it differs in {', '.join(odd)}): "
                "finish the run with that version, or begin a new one"
            )
        return cls(**state)


_PREFIX = "optimizer/"
#: Stands for a tensor inside a list or dictionary of the state (the histories of L-BFGS).
_PLACE = "tensor of the optimizer"


def pack(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and everything else as JSON-ready values."""
    saved = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in saved["state"].items():
        plain[str(index)] = {}
        for name, value in entries.items():
            key = f"{_PREFIX}{index}/{name}"
            if isinstance(value, Tensor):
                tensors[key] = value
            else:
                plain[str(index)][name] = _without_tensors(value, key, tensors)
    return tensors, {"state": plain, "param_groups": saved["param_groups"], "class": type(optimizer).__name__}


def _without_tensors(value: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[key] = value
        return {_PLACE: key}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(item, f"{key}/{i}", tensors) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return {name: _without_tensors(item, f"{key}/{name}", tensors) for name, item in value.items()}
    return value


def unpack(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    """The reverse of :func:`pack`; LLPFError where that was another optimiser."""
    name = type(optimizer).__name__
    if plain.get("class", name) != name or not _fits(optimizer.state_dict()["param_groups"], plain["param_groups"]):
        raise LLPFError("cannot resume: the checkpoint holds the state of another optimiser; give the same again")
    left = {key: value for key, value in tensors.items() if key.startswith(_PREFIX)}
    state: dict[int, dict[str, Any]] = {int(i): _with_tensors(entries, left) for i, entries in plain["state"].items()}
    for key, value in left.items():
        index, name = key.removeprefix(_PREFIX).split("/", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": plain["param_groups"]})


def _with_tensors(value: Any, left: dict[str, Tensor]) -> Any:
    """``value`` with its tensors in their places, which are taken out of ``left``."""
    if isinstance(value, list):
        return [_with_tensors(item, left) for item in value]
    if isinstance(value, dict):
        return left.pop(value[_PLACE]) if _PLACE in value else {k: _with_tensors(v, left) for k, v in value.items()}
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
    standing: SearchState,
    seconds: float,
    flat: FlatParameters,
    trainer: Trainer,
    optimizer: torch.optim.Optimizer | None,
    route_tensors: Mapping[str, Tensor],
) -> None:
    """Replace the run's checkpoint; ``seconds`` is the time spent in the whole search."""
    tensors = {"values": flat.data, **route_tensors}
    tensors |= {f"{_BUFFER}{name}": b for name, b in flat.buffers().items()}
    if trainer.keeps_momentum:
        assert trainer.momentum_buffer is not None
        tensors["momentum"] = trainer.momentum_buffer
    state = replace(standing, seconds=seconds).as_dict()
    if optimizer is not None:
        more, state["optimizer"] = pack(optimizer)
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


def load_search_state(
    run: RunDirectory,
    flat: FlatParameters,
    trainer: Trainer,
    optimizer: torch.optim.Optimizer | None,
    restore_routes: Callable[[dict[str, Tensor]], None],
) -> SearchState | None:
    """Where the run's checkpoint stands, with everything put back; None where there is none."""
    saved = run.load_checkpoint()
    if saved is None:
        return None
    tensors, state = saved
    packed = state.pop("optimizer", None)
    standing = SearchState.from_dict(state)
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
        unpack(optimizer, tensors, packed)
    restore_routes(tensors)
    return standing
