"""Where to look closer between points that were evaluated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .polyline import Position

#: A parabola through three neighbouring points overshoots the higher end of a gap by at most its second divided
#: difference times width^2 / 4; real losses are no parabolas, hence the factor (ours).
_SAFETY = 2.0


@dataclass(frozen=True)
class Refinement:
    """How the certificate refines (ours).

    The loss inside a gap between two neighbouring points may reach about the higher end plus what the curvature seen
    nearby allows. Each of ``rounds`` rounds halves the ``gaps`` gaps where that estimate is highest. Rounds go on, up
    to ``most_rounds``, while the estimate of some gap exceeds the threshold though both its ends are below it. No gap
    becomes narrower than ``finest`` of the path's length.
    """

    rounds: int = 4
    gaps: int = 8
    most_rounds: int = 12
    finest: float = 1 / 1024


@dataclass(frozen=True)
class Gap:
    """Two neighbouring points of one segment; ``end`` is 1 at the next waypoint; ``estimate`` of the loss between."""

    waypoint: int
    start: float
    end: float
    highest_end: float
    estimate: float

    @property
    def width(self) -> float:
        return self.end - self.start

    @property
    def middle(self) -> Position:
        return Position(self.waypoint, (self.start + self.end) / 2)


def find_gaps(losses: Mapping[Position, float], segments: int) -> list[Gap]:
    """All gaps whose ends are finite, highest estimate first (ties along the path)."""
    inside: list[list[tuple[float, float]]] = [[] for _ in range(segments)]
    for position, loss in losses.items():
        if position.waypoint < segments:
            inside[position.waypoint].append((position.fraction, loss))
        if position.fraction == 0 and position.waypoint > 0:
            inside[position.waypoint - 1].append((1.0, loss))
    gaps = [gap for waypoint, points in enumerate(inside) for gap in _segment_gaps(waypoint, sorted(points))]
    return sorted(gaps, key=lambda gap: (-gap.estimate, gap.waypoint, gap.start))


def _segment_gaps(waypoint: int, points: list[tuple[float, float]]) -> list[Gap]:
    bends = [_second_difference(*points[i - 1 : i + 2]) for i in range(1, len(points) - 1)]
    gaps = []
    for i in range(len(points) - 1):
        (start, left), (end, right) = points[i : i + 2]
        if not (math.isfinite(left) and math.isfinite(right)):
            continue
        highest = max(left, right)
        # bends[i - 1] is centred on the gap's left end, bends[i] on its right; upward bends count too: the curvature
        # may change its sign inside the gap.
        near = [abs(bend) for bend in bends[max(i - 1, 0) : i + 1] if math.isfinite(bend)]
        rise = _SAFETY * max(near, default=0.0) * (end - start) ** 2 / 4
        gaps.append(Gap(waypoint, start, end, highest, highest + rise))
    return gaps


def _second_difference(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    """Newton's second divided difference, half the second derivative."""
    return ((c[1] - b[1]) / (c[0] - b[0]) - (b[1] - a[1]) / (b[0] - a[0])) / (c[0] - a[0])
