"""``LowLossPath``: a path as its user sees it, a polyline through the waypoints of a run."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, overload

import torch
from torch import Tensor

from ..errors import LLPFError
from .run_directory import RunDirectory

#: Names that normalization layers give their statistics: floating buffers that are not parameters.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
#: Waypoints kept in memory: a walk along the path needs both ends of a segment, for many positions in a row.
_CACHED = 2


class LowLossPath:
    """The polyline through the waypoints of the run in ``folder``: what ``find_path`` returns and ``open_path`` opens.

    ``len(path)`` waypoints; ``path[i]`` is a state dict (CPU; ``model.load_state_dict`` takes it), read from disk,
    checked against its recorded sha256, and the caller's own to change. LLPFError when ``folder`` is not a run or has
    no waypoints.
    """

    def __init__(self, folder: str | os.PathLike[str] | RunDirectory) -> None:
        self._directory = folder if isinstance(folder, RunDirectory) else RunDirectory.open(folder)
        self._waypoints = self._directory.waypoints()
        if not self._waypoints:
            raise LLPFError(f"{self._directory.folder} has no waypoints yet")
        self._cache: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self._lengths: list[float] | None = None

    @property
    def directory(self) -> RunDirectory:
        return self._directory

    @property
    def folder(self) -> str:
        return str(self._directory.folder)

    @property
    def run(self) -> dict[str, Any]:
        """The content of run.yaml."""
        return self._directory.run

    @property
    def certificate(self) -> dict[str, Any] | None:
        """The content of certificate.json; None before ``verify_run``."""
        return self._directory.certificate()

    def metrics(self) -> list[dict[str, Any]]:
        """One record a tick, as the search wrote them."""
        return self._directory.metrics()

    def __len__(self) -> int:
        return len(self._waypoints)

    @overload
    def __getitem__(self, index: int) -> dict[str, Tensor]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Tensor]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"waypoint {index} of a path of {len(self)}")
        return {name: tensor.clone() for name, tensor in self._load(number).items()}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"LowLossPath({self.folder!r}, {len(self)} waypoints)"

    def _load(self, number: int) -> dict[str, Tensor]:
        if number in self._cache:
            self._cache.move_to_end(number)
        else:
            self._cache[number] = self._waypoints[number].load()
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return self._cache[number]

    def lengths(self) -> list[float]:
        """``len - 1`` L2 distances between neighbouring waypoints, over the parameters, summed in float64.

        Parameters are the floating tensors less the statistics of normalization layers (told by name: a state dict does
        not say which of its tensors are parameters). Reads every waypoint once, then remembers.
        """
        if self._lengths is None:
            self._lengths = [self._distance(i) for i in range(len(self) - 1)]
        return list(self._lengths)

    def _distance(self, number: int) -> float:
        here, there = self._load(number), self._load(number + 1)
        squares = [
            float(((there[name].double() - value.double()) ** 2).sum())
            for name, value in here.items()
            if value.is_floating_point() and not name.endswith(_STATISTICS)
        ]
        return math.sqrt(math.fsum(squares))

    def arc_length(self) -> float:
        """Length of the whole polyline."""
        return math.fsum(self.lengths())

    def interpolate(self, position: float) -> dict[str, Tensor]:
        """The state dict at ``position`` in [0, len - 1]: 2.25 is a quarter of the way from waypoint 2 to 3.

        Floating and complex tensors linearly, in float64, then in their own dtype; integer ones (counters) are those of
        the waypoint to the left. A whole number gives that waypoint bit for bit. LLPFError outside the path.
        """
        if not 0 <= position <= len(self) - 1:
            raise LLPFError(f"position {position} is not on the path, which goes from 0 to {len(self) - 1}")
        number = math.floor(position)
        t = position - number
        if t == 0:
            return self[number]
        here, there = self._load(number), self._load(number + 1)
        return {name: _between(value, there[name], t) for name, value in here.items()}


def _between(a: Tensor, b: Tensor, t: float) -> Tensor:
    if not (a.is_floating_point() or a.is_complex()):
        return a.clone()
    wide = torch.complex128 if a.is_complex() else torch.float64
    left = a.to(wide)
    return (left + t * (b.to(wide) - left)).to(a.dtype)


def open_path(folder: str | os.PathLike[str]) -> LowLossPath:
    """The path in the run directory ``folder``; LLPFError when it is not one or has no waypoints."""
    return LowLossPath(folder)
