"""``LowLossPath``: the polyline through the waypoints of a run, as ``find_path`` returns it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any, overload

from torch import Tensor

from ..errors import LLPFError, shown
from ..flat.buffers import STATISTICS_BUFFERS
from .polyline import Polyline, Position
from .run_directory import RunDirectory

#: Waypoints in memory: both ends of one segment, for a walk along it.
_CACHED = 2


class LowLossPath:
    """The polyline through the waypoints of the run in ``folder``.

    ``len(path)`` is the number of waypoints. ``path[i]`` is a state dict on the CPU, which ``model.load_state_dict``
    takes. It is read from disk, checked against its recorded sha256, and a copy that the caller may change.

    Raises:
        LLPFError: ``folder`` is not a run, or has no waypoints.
    """

    def __init__(self, folder: str | os.PathLike[str] | RunDirectory) -> None:
        self._directory = folder if isinstance(folder, RunDirectory) else RunDirectory.open(folder)
        waypoints = self._directory.waypoints()
        if not waypoints:
            raise LLPFError(f"{self._directory.folder} has no waypoints yet")
        self._line = Polyline(waypoints, cached=_CACHED)
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
        return len(self._line)

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
        return {name: tensor.clone() for name, tensor in self._line.waypoint(number).items()}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"LowLossPath({self.folder!r}, {len(self)} waypoints)"

    def lengths(self) -> list[float]:
        """``len - 1`` L2 distances between neighbouring waypoints, over the parameters, summed in float64.

        Parameters are the floating and complex tensors whose names are not those of normalization statistics: a state
        dict does not say which of its tensors are parameters. The first call reads every waypoint.

        Raises:
            LLPFError: a tensor changes dtype or shape, appears or vanishes along the path.
        """
        if self._lengths is None:
            names = {name for name in self._line.waypoint(0) if not name.endswith(STATISTICS_BUFFERS)}
            self._lengths = [self._line.distance(i, i + 1, names) for i in range(len(self) - 1)]
        return list(self._lengths)

    def arc_length(self) -> float:
        """Length of the whole polyline."""
        return math.fsum(self.lengths())

    def interpolate(self, position: float) -> dict[str, Tensor]:
        """The state dict at ``position`` in [0, len - 1]: 2.25 is a quarter of the way from waypoint 2 to 3.

        Values are those of :func:`~llpf_fast.path.polyline.interpolate`, rounded to each tensor's dtype. A whole number
        gives that waypoint bit for bit.

        Raises:
            LLPFError: not a number, or outside the path; a tensor changes dtype or shape, appears or vanishes.
        """
        try:
            position = float(position)
        except (TypeError, ValueError, OverflowError):
            raise LLPFError(f"a position on a path is a number, got {shown(position)}") from None
        if not 0 <= position <= len(self) - 1:
            raise LLPFError(f"position {position} is not on the path, which goes from 0 to {len(self) - 1}")
        number = math.floor(position)
        if number == position:
            return self[number]
        dtypes = {name: value.dtype for name, value in self._line.waypoint(number).items()}
        between = self._line.state(Position(number, position - number))
        return {name: value.to(dtypes[name], copy=True) for name, value in between.items()}


def open_path(folder: str | os.PathLike[str]) -> LowLossPath:
    """The path in the run directory ``folder``; LLPFError when it is not one or has no waypoints."""
    return LowLossPath(folder)
