"""The polyline through a path's waypoints: its states, what changes in each segment, lengths."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import LLPFError
from ..flat.tensors import same_bits
from ..types import StateDict


class Position(NamedTuple):
    """A point of the polyline: ``fraction`` (0 <= fraction < 1) of the way from waypoint ``waypoint`` to the next."""

    waypoint: int
    fraction: float


@dataclass(frozen=True)
class Change:
    """What changes from one waypoint to the next.

    Attributes:
        parameters, buffers: L2 lengths; NaN or infinite where values are.
        any: whether any bit differs.
        jumps: names of the tensors of integers or booleans that differ. No straight line joins them.
        broken: names of the floating and complex tensors with an entry that is NaN or infinite in one waypoint and has
            another value in the other.
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
        cached: loaded waypoints that stay in memory. Eight serve a few threads that walk along the path.

    Raises:
        LLPFError: there is no waypoint.
    """

    def __init__(self, waypoints: Sequence[Any], *, cached: int = 8) -> None:
        if not waypoints:
            raise LLPFError("the path has no waypoints: there is nothing to certify")
        self._waypoints = waypoints
        #: The state dict of the waypoint with this index.
        self.waypoint = functools.lru_cache(maxsize=cached)(self._load)

    def __len__(self) -> int:
        return len(self._waypoints)

    @property
    def segments(self) -> int:
        return len(self) - 1

    def _load(self, index: int) -> StateDict:
        waypoint = self._waypoints[index]
        if isinstance(waypoint, Mapping):
            return waypoint
        load: Callable[[], StateDict] = getattr(waypoint, "load", waypoint)
        if isinstance(waypoint, nn.Module) or not callable(load):
            raise LLPFError(f"waypoint {index} is a {type(waypoint).__name__}: pass its state dict")
        return load()

    def file(self, index: int) -> str:
        """The file of a waypoint inside its run's folder; a name for it where it has none."""
        path = getattr(self._waypoints[index], "path", None)
        return f"waypoint {index}" if path is None else f"{path.parent.name}/{path.name}"

    def state(self, position: Position) -> StateDict:
        """The state dict at ``position``, as :func:`interpolate` gives it; a waypoint is not copied."""
        first, fraction = position
        return self.waypoint(first) if fraction == 0 else self._between(first, first + 1, fraction)

    def straight(self, fraction: float) -> StateDict:
        """The state dict at ``fraction`` (0..1) of the straight line from the first waypoint to the last."""
        last = len(self) - 1
        return self.waypoint(0 if fraction == 0 else last) if fraction in (0, 1) else self._between(0, last, fraction)

    def _between(self, first: int, second: int, fraction: float) -> StateDict:
        names = f"waypoint {first}", f"waypoint {second}"
        return interpolate(self.waypoint(first), self.waypoint(second), fraction, *names)

    def distance(self, first: int, second: int, names: Collection[str] | None) -> float:
        """:func:`distance` of two waypoints; LLPFError where they differ in names, dtypes or shapes."""
        return distance(*self._pair(first, second), names)

    def _pair(self, first: int, second: int) -> tuple[StateDict, StateDict]:
        a, b = self.waypoint(first), self.waypoint(second)
        check_alike(a, b, f"waypoint {first}", f"waypoint {second}")
        return a, b

    def changes(self, names: Collection[str] | None, unread: Collection[str] = ()) -> list[Change]:
        """What changes in each segment. ``names`` are the parameters, all other tensors buffers; None: no buffers.

        ``unread``: names of tensors on which no output depends (BatchNorm's counts of batches): they count as equal.

        Raises:
            LLPFError: a tensor changes its dtype or shape, appears or vanishes.
        """
        return [self._change(i, i + 1, names, unread) for i in range(self.segments)]

    def straight_change(self, names: Collection[str] | None) -> Change:
        """What differs between the first waypoint and the last."""
        return self._change(0, len(self) - 1, names)

    def _change(self, first: int, second: int, names: Collection[str] | None, unread: Collection[str] = ()) -> Change:
        a, b = self._pair(first, second)
        changed = [name for name, value in a.items() if name not in unread and not same_bits(value, b[name])]
        moving = {name for name in changed if _line_dtype(a[name]) is not None}
        return Change(
            parameters=distance(a, b, moving if names is None else moving.intersection(names)),
            buffers=0.0 if names is None else distance(a, b, moving.difference(names)),
            any=bool(changed),
            jumps=tuple(name for name in changed if name not in moving),
            broken=tuple(name for name in changed if name in moving and _breaks(a[name], b[name])),
        )


def interpolate(
    a: StateDict, b: StateDict, t: float, name_a: str = "the first state", name_b: str = "the second"
) -> dict[str, Tensor]:
    """The state dict a + t (b - a), ``t`` in 0..1: floating tensors in float64, complex ones in complex128.

    The finder, the certificate and :class:`LowLossPath` all use it. What has the same bits in both states is passed
    through: the tensor of ``a`` itself, and single entries such as infinities. Tensors of integers or booleans are
    those of ``a``.

    Raises:
        LLPFError: a tensor is missing in one state, or has another dtype or shape there; ``name_a`` and ``name_b`` name
            the states.
    """
    check_alike(a, b, name_a, name_b)
    return {name: _between(value, b[name], t) for name, value in a.items()}


def _between(a: Tensor, b: Tensor, t: float) -> Tensor:
    if a.device.type != "cpu":
        return _between_without_reading(a, b, t)
    wide = _line_dtype(a)
    if wide is None or same_bits(a, b):
        return a
    left, right = a.to(wide), b.to(wide)
    # Not lerp: its result depends on the processor.
    between = (right - left).mul_(t).add_(left)
    # Infinity minus infinity is NaN; an entry that does not change keeps its value.
    return between if bool(between.isfinite().all()) else torch.where(left == right, left, between)


def _between_without_reading(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The same values, but for the sign of zeros. The host reads none of them, so it does not wait for a GPU."""
    wide = _line_dtype(a)
    if wide is None:
        return a
    left, right = a.to(wide), b.to(wide)
    return torch.where(left == right, left, (right - left).mul_(t).add_(left))


def distance(a: StateDict, b: StateDict, names: Collection[str] | None) -> float:
    """L2 distance over the floating and complex tensors ``names`` (None: all of them), summed in float64."""
    squares = [squared_distance(value, b[name]) for name, value in a.items() if names is None or name in names]
    return math.sqrt(math.fsum(squares))


def squared_distance(a: Tensor, b: Tensor) -> float:
    """Sum of |b - a|^2 in float64; 0 for equal entries (NaN equals NaN) and for tensors of integers or booleans."""
    wide = _line_dtype(a)
    if wide is None or same_bits(a, b):
        return 0.0
    left, right = a.detach().to(wide), b.detach().to(wide)
    difference = right - left
    if not bool(difference.isfinite().all()):
        difference = difference.masked_fill((left == right) | (left.isnan() & right.isnan()), 0)
    return float(difference.abs().square().sum())


def _breaks(a: Tensor, b: Tensor) -> bool:
    """Whether an entry is NaN or infinite in one tensor and has another value in the other."""
    wide = _line_dtype(a)
    left, right = a.to(wide), b.to(wide)
    finite = left.isfinite() & right.isfinite()
    return bool((~finite & (left != right) & ~(left.isnan() & right.isnan())).any())


def _line_dtype(value: Tensor) -> torch.dtype | None:
    """The dtype to interpolate in; None for integers and booleans, between which no straight line leads."""
    return torch.complex128 if value.is_complex() else torch.float64 if value.is_floating_point() else None


def check_alike(a: StateDict, b: StateDict, name_a: str, name_b: str) -> None:
    """LLPFError where the state dicts ``a`` and ``b`` differ in names, dtypes or shapes; names the first tensor."""
    for state, other, name_of_state, name_of_other in ((a, b, name_a, name_b), (b, a, name_b, name_a)):
        for name, value in state.items():
            if name not in other:
                raise LLPFError(
                    f"the tensor {name} of {name_of_state} is missing in {name_of_other}: both must be states of one "
                    "network"
                )
            if not isinstance(value, Tensor):
                raise LLPFError(
                    f"{name} of {name_of_state} is no tensor but of type {type(value).__name__}: leave it out"
                )
            if value.layout != torch.strided or value.is_quantized or value.is_meta:
                raise LLPFError(f"{name} of {name_of_state} is sparse, quantized or without values: pass it dense")
    for name, value in a.items():
        for what, one, two in (
            ("dtype", value.dtype, b[name].dtype),
            ("shape", list(value.shape), list(b[name].shape)),
        ):
            if one != two:
                raise LLPFError(
                    f"the tensor {name} has {what} {one} in {name_a} and {two} in {name_b}: every tensor has one dtype "
                    "and shape along a path"
                )
