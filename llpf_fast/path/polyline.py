"""The polyline through a path's waypoints, read from wherever they are."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import LLPFError
from ..types import StateDict
from .low_loss_path import check_alike, interpolate, same_bits, squared_distance

#: Waypoints kept in memory, for walks along the path by a few threads.
_CACHED = 8
#: BatchNorm's count of the batches it has seen: changes at every step of training, and no output depends on it.
_COUNTER = "num_batches_tracked"


class Position(NamedTuple):
    """A place on the polyline: ``fraction`` (0 <= fraction < 1) of the way from waypoint ``waypoint`` to the next."""

    waypoint: int
    fraction: float


@dataclass(frozen=True)
class Change:
    """What changes from one waypoint to the next.

    ``parameters`` and ``buffers`` are L2 lengths (NaN or infinite where values are); ``any`` is whether any bit
    differs. ``jumps`` names the tensors of integers or booleans that differ, which no straight line can join;
    ``broken`` those with NaN or an infinity at one end where the other end has something else.
    """

    parameters: float
    buffers: float
    any: bool
    jumps: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()


class Polyline:
    """The straight segments between consecutive waypoints.

    Args:
        waypoints: at least one; each a state dict, a callable that returns one, or an object whose ``load()`` does.

    Raises:
        LLPFError: there is no waypoint.
    """

    def __init__(self, waypoints: Sequence[Any]) -> None:
        if not waypoints:
            raise LLPFError("the path has no waypoints: there is nothing to certify")
        self._waypoints = waypoints
        self._load = functools.lru_cache(maxsize=_CACHED)(self._read)

    def __len__(self) -> int:
        return len(self._waypoints)

    @property
    def segments(self) -> int:
        return len(self) - 1

    def _read(self, index: int) -> StateDict:
        waypoint = self._waypoints[index]
        if isinstance(waypoint, Mapping):
            return waypoint
        load: Callable[[], StateDict] = getattr(waypoint, "load", waypoint)
        if isinstance(waypoint, nn.Module) or not callable(load):
            raise LLPFError(f"waypoint {index} is a {type(waypoint).__name__}: pass its state dict")
        return load()

    def state(self, position: Position) -> StateDict:
        """The state dict there; at a waypoint the stored one itself."""
        if position.fraction == 0:
            return self._load(position.waypoint)
        number = position.waypoint
        return self._between(number, number + 1, position.fraction)

    def straight(self, fraction: float) -> StateDict:
        """The state dict at ``fraction`` of the straight line from the first waypoint to the last."""
        last = len(self) - 1
        return self._load(0 if fraction == 0 else last) if fraction in (0, 1) else self._between(0, last, fraction)

    def _between(self, here: int, there: int, fraction: float) -> StateDict:
        names = f"waypoint {here}", f"waypoint {there}"
        return interpolate(self._load(here), self._load(there), fraction, *names)

    def changes(self, names: Collection[str] | None) -> list[Change]:
        """What changes in each segment. ``names`` are the parameters, all other tensors buffers; None: no buffers.

        Raises:
            LLPFError: a tensor changes its dtype or shape, appears or vanishes.
        """
        return [self._change(i, i + 1, names) for i in range(self.segments)]

    def straight_change(self, names: Collection[str] | None) -> Change:
        """What differs between the first waypoint and the last."""
        return self._change(0, len(self) - 1, names)

    def _change(self, here: int, there: int, names: Collection[str] | None) -> Change:
        a, b = self._load(here), self._load(there)
        check_alike(a, b, f"waypoint {here}", f"waypoint {there}")
        changed = [name for name, value in a.items() if not same_bits(value, b[name])]
        lines = {name for name in changed if a[name].is_floating_point() or a[name].is_complex()}
        return Change(
            parameters=distance(a, b, lines if names is None else lines.intersection(names)),
            buffers=0.0 if names is None else distance(a, b, lines.difference(names)),
            any=bool(changed),
            jumps=tuple(name for name in changed if name not in lines and not name.endswith(_COUNTER)),
            broken=tuple(name for name in changed if name in lines and _breaks(a[name], b[name])),
        )

    def kind(self, name: str) -> str:
        """What the tensor ``name`` is made of, in words."""
        value = self._load(0)[name]
        return "booleans" if value.dtype is torch.bool else "integers"


def _breaks(a: Tensor, b: Tensor) -> bool:
    """Whether some entry is not finite at one end and not the same at the other."""
    wide = torch.complex128 if a.is_complex() else torch.float64
    left, right = a.to(wide), b.to(wide)
    finite = left.isfinite() & right.isfinite()
    return bool((~finite & (left != right) & ~(left.isnan() & right.isnan())).any())


def distance(a: StateDict, b: StateDict, names: Collection[str] | None) -> float:
    """L2 distance over the floating and complex tensors ``names`` (None: all of them), summed in float64."""
    squares = [squared_distance(value, b[name]) for name, value in a.items() if names is None or name in names]
    return math.sqrt(math.fsum(squares))
