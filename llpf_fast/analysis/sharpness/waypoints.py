"""Which waypoints of a run an analysis looks at."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from ...errors import LLPFError
from ...path import RunDirectory, Waypoint
from ...verify.polyline import distance


@dataclass(frozen=True)
class Chosen:
    """A waypoint, the share of the path's length before it, its L2 norm (parameters only) and that of the first."""

    waypoint: Waypoint
    arc: float
    norm: float
    norm_share: float

    def load(self) -> Mapping[str, Tensor]:
        return self.waypoint.load()


def choose(folder: str | os.PathLike[str], names: Collection[str], points: int) -> list[Chosen]:
    """At most ``points`` waypoints of the run in ``folder``, its first and last among them, evenly spaced in length.

    ``names`` are those of the parameters. Reads every waypoint once.

    Raises:
        LLPFError: not a run; no waypoints, or fewer than two; ``points`` below 2.
    """
    if points < 2:
        raise LLPFError(f"at least 2 points of the path are needed, got {points}")
    waypoints = RunDirectory.open(folder).waypoints()
    if len(waypoints) < 2:
        raise LLPFError(f"{folder} has {len(waypoints) or 'no'} waypoints: that is no path yet")
    places, norms = [0.0], []
    before: Mapping[str, Tensor] | None = None
    for waypoint in waypoints:
        state = waypoint.load()
        if before is not None:
            places.append(places[-1] + distance(before, state, names))
        norms.append(_norm(state, names))
        before = state
    total = places[-1]
    if not (math.isfinite(total) and total > 0):
        raise LLPFError(f"the path in {folder} has a length of {total}: its waypoints are all alike or not finite")
    wanted = [total * i / (points - 1) for i in range(points)]
    numbers = {min(range(len(places)), key=lambda i: (abs(places[i] - place), i)) for place in wanted}
    return [
        Chosen(waypoints[i], places[i] / total, norms[i], norms[i] / norms[0] if norms[0] else math.nan)
        for i in sorted(numbers | {0, len(waypoints) - 1})
    ]


def _norm(state: Mapping[str, Tensor], names: Collection[str]) -> float:
    return math.sqrt(math.fsum(float(state[name].double().square().sum()) for name in names if name in state))
