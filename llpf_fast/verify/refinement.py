"""Refinement: which gaps between evaluated points are halved, by an estimate of the loss inside."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from ..errors import LLPFError, shown
from ..path.polyline import Position

#: A parabola through three neighbouring points exceeds the higher end of a gap by at most its second divided
#: difference times width^2 / 4. Losses are no parabolas, hence the factor (ours).
_SAFETY = 2.0


@dataclass(frozen=True)
class Refinement:
    """How the certificate refines (ours).

    The estimate of the loss inside a gap between two neighbouring points is the loss of its higher end plus what the
    curvature of the points nearby allows. Each of ``rounds`` rounds halves the ``gaps`` gaps with the highest estimate,
    none of them to less than ``finest`` of the path's length. After that, up to ``most_rounds`` rounds in all, every
    gap is halved whose estimate exceeds the threshold though both its ends are below it: at most ``most_points`` times
    in all, and none to less than ``finest`` of its segment. Gaps that are then still open make the certificate
    undecided.

    Raises:
        LLPFError: a value is negative or no number; all but ``finest`` must be whole numbers.
    """

    rounds: int = 4
    gaps: int = 8
    most_rounds: int = 12
    finest: float = 1 / 1024
    most_points: int = 256

    def __post_init__(self) -> None:
        for field in fields(self):
            value, is_share = getattr(self, field.name), field.name == "finest"
            kind = numbers.Real if is_share else numbers.Integral
            # "not >= 0" rather than "< 0" refuses NaN too.
            if not isinstance(value, kind) or isinstance(value, bool) or not float(value) >= 0:
                what = "a number" if is_share else "a whole number"
                raise LLPFError(f"{field.name} of a Refinement must be {what} of at least 0, got {shown(value)}")


@dataclass(frozen=True)
class Gap:
    """Two neighbouring points of one segment, at the fractions ``start`` and ``end`` (1: the next waypoint) of it.

    ``highest_end`` is the loss of the higher end; ``rise`` is how far the loss inside may exceed it.
    """

    waypoint: int
    start: float
    end: float
    highest_end: float
    rise: float

    @property
    def estimate(self) -> float:
        """An estimate of the highest loss inside."""
        return self.highest_end + self.rise

    @property
    def width(self) -> float:
        return self.end - self.start

    @property
    def middle(self) -> Position:
        return Position(self.waypoint, (self.start + self.end) / 2)

    @property
    def endpoints(self) -> tuple[Position, Position]:
        last = Position(self.waypoint, self.end) if self.end < 1 else Position(self.waypoint + 1, 0.0)
        return Position(self.waypoint, self.start), last


def find_gaps(
    losses: Mapping[Position, float], changing: Sequence[bool], levels: Mapping[Position, float] | None = None
) -> list[Gap]:
    """All gaps whose ends are finite, highest estimate first; equal ones in the order of the path.

    Args:
        losses: of every evaluated point, all on one set; the curvature follows from them.
        changing: whether anything changes in each segment; where nothing does there are no gaps.
        levels: of every evaluated point, the loss to add the curvature to; ``losses`` when missing.
    """
    inside: list[list[Position]] = [[] for _ in changing]
    for position in losses:
        if position.waypoint < len(changing):
            inside[position.waypoint].append(position)
        if position.fraction == 0 and position.waypoint > 0:
            inside[position.waypoint - 1].append(position)
    gaps = [
        gap
        for waypoint, positions in enumerate(inside)
        if changing[waypoint]
        for gap in _segment_gaps(waypoint, sorted(positions), losses, losses if levels is None else levels)
    ]
    return sorted(gaps, key=lambda gap: (-gap.estimate, gap.waypoint, gap.start))


def _segment_gaps(
    waypoint: int, positions: list[Position], losses: Mapping[Position, float], levels: Mapping[Position, float]
) -> list[Gap]:
    points = [(at.fraction + (at.waypoint - waypoint), losses[at]) for at in positions]
    bends = [_second_difference(*points[i - 1 : i + 2]) for i in range(1, len(points) - 1)]
    gaps = []
    for i in range(len(points) - 1):
        highest = max(levels[positions[i]], levels[positions[i + 1]], key=nan_as_inf)
        if not math.isfinite(highest):
            continue
        # bends[i - 1] is centred on the gap's left end, bends[i] on its right. Upward bends count too: the curvature
        # may change its sign inside the gap. A gap at a waypoint has one bend at its ends: the next one counts as well.
        first = min(max(i - 1, 0), max(len(bends) - 2, 0))
        near = [abs(bend) for bend in bends[first : first + 2] if math.isfinite(bend)]
        width = points[i + 1][0] - points[i][0]
        # Without any curvature to estimate from, the loss inside may be anything.
        rise = _SAFETY * max(near) * width**2 / 4 if near else math.inf
        gaps.append(Gap(waypoint, points[i][0], points[i + 1][0], highest, rise))
    return gaps


def nan_as_inf(value: float) -> float:
    """Infinity for NaN: a key by which NaN is the highest loss."""
    return math.inf if math.isnan(value) else value


def _second_difference(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    """Newton's second divided difference, half the second derivative."""
    return ((c[1] - b[1]) / (c[0] - b[0]) - (b[1] - a[1]) / (b[0] - a[0])) / (c[0] - a[0])
