"""``bisect``: proves that a loss is at most a threshold on whole segments, from upper bounds on pieces of them."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ...path.polyline import Position
from ..coverage import Cause, Coverage, Piece
from ..sample_choice import SampleChoice
from ..worker_pool import WorkerPool

#: Units of one worker's call of the enclosure.
_BATCH = 1_000
#: Pieces are bounded together until they have this many units: work for several workers.
_AT_ONCE = 16_000
#: Units of the pilot, which finds how wide the first pieces may be.
_PILOT = 256
#: The pilot accepts a piece whose gap is at most this multiple of the slack. LeNet5's path cost 119, 91, 77, 76, 75 and
#: 78 evaluations a sample with 2, 4, 8, 12, 16 and 30; on the samples of level sampled fewer are better.
_PILOT_GAP = 12.0
#: The smallest slack it reckons with, as a share of the threshold: its estimate of the loss is rough.
_PILOT_SLACK = 0.05
_PILOT_FINEST = 2.0**-12
_PILOT_AT_ONCE = 1_024
#: Pieces a segment that the pilot bounds at most.
_PILOT_PIECES = 256
#: A piece of this width is given up where the loss at one end is too close to the threshold to tell. At both ends: any.
_STUCK = 2.0**-10
#: Share of the slack that the bounds are to take when units are cut: 0.5, 0.8 and 0.9 cost 83, 77 and 76 evaluations.
_TAKEN = 0.9
#: A gap shrinks as this power of the width. On narrow pieces it is 2, on wide ones 4 and more.
_SHRINKS = 3.0
#: Units that are bounded in float64 for comparison where a gap does not shrink.
_PROBE = 8
#: Stands for a gap that is not finite.
_HUGE = 1e100


class Bounds(Protocol):
    """Upper bounds of numerators at the ends of a piece, float64 ``[n]``, and the estimates that they enclose."""

    @property
    def start(self) -> Tensor: ...
    @property
    def end(self) -> Tensor: ...
    @property
    def start_estimate(self) -> Tensor: ...
    @property
    def end_estimate(self) -> Tensor: ...


class Enclosure(Protocol):
    """What :func:`bisect` asks of a path, network, loss and data: ``LossEnclosure`` of this package."""

    def bounds(self, waypoint: int, start: float, end: float, units: Tensor, *, precise: bool = False) -> Bounds:
        """Bounds on the piece ``start``..``end`` of a segment: the numerators are at most the chords of the bounds."""
        ...

    def losses(self, position: Position, units: Tensor) -> Tensor:
        """The numerators of ``units`` at a point, evaluated in the ordinary way."""
        ...


@dataclass(frozen=True)
class Limits:
    """When :func:`bisect` gives up: the finest width of a piece (share of its segment), the number of evaluations of
    one sample each, and the time. With a limit of time the result depends on the machine."""

    finest: float = 2.0**-20
    evaluations: float = math.inf
    seconds: float = math.inf


@dataclass(frozen=True)
class _Known:
    """What is known of all chosen units on a piece.

    Attributes:
        upper: float64 ``[2, n]``: the numerators are at most the chords of these.
        center: the chords of the estimates that these bounds enclose.
        ratio: ``[n]``: how many times as wide the piece was on which a unit was bounded.
    """

    start: float
    end: float
    upper: Tensor
    center: Tensor
    ratio: Tensor

    def on(self, part: _Part) -> _Known:
        """The same on a part of the piece: chords hold there as well."""
        width = self.end - self.start
        shares = [(point - self.start) / width for point in (part.start, part.end)]
        upper, center = (
            torch.stack([torch.lerp(value[0], value[1], share) for share in shares])
            for value in (self.upper, self.center)
        )
        if part.width < width:
            # More than the rounding of a lerp: 4 units of 2^-53 of both ends.
            upper += self.upper.abs().sum(0) * 2.0**-50
        return _Known(part.start, part.end, upper, center, self.ratio * (width / part.width))

    @property
    def gaps(self) -> Tensor:
        """``[2, n]``: what bounding on narrower pieces can gain."""
        return (self.upper - self.center).nan_to_num(nan=_HUGE, posinf=_HUGE).clamp_max(_HUGE)


@dataclass(frozen=True)
class _Part:
    """A piece that is to be bounded.

    Attributes:
        todo: which of the chosen units are bounded on it.
        known: of all units, on a piece that contains this one; None: nothing, all are bounded.
        bounds: upper bounds of the loss at its ends that are known already.
        priority: the part with the highest is bounded first.
        precise: whether to compute in float64.
        parent_gap: of the pilot: the gap on a piece twice as wide.
    """

    waypoint: int
    start: float
    end: float
    todo: Tensor
    known: _Known | None = None
    bounds: tuple[float, float] = (math.inf, math.inf)
    priority: float = math.inf
    precise: bool = False
    parent_gap: float = math.inf

    @property
    def width(self) -> float:
        return self.end - self.start

    @property
    def order(self) -> tuple[float, int, float]:
        return -self.priority, self.waypoint, self.start

    def points(self) -> tuple[Position, Position]:
        end = Position(self.waypoint, self.end) if self.end < 1 else Position(self.waypoint + 1, 0.0)
        return Position(self.waypoint, self.start), end

    def piece(self, cause: Cause | None) -> Piece:
        return Piece(self.waypoint, self.start, self.end, *self.bounds, cause)

    def split(self, count: int) -> list[_Part]:
        """``count`` (a power of 2) parts of equal width. Their ends are exact: all widths are powers of 2."""
        first, second = self.bounds
        edges = [i / count for i in range(count + 1)]
        # Convex along the piece, so below the chord; infinity times 0 is NaN.
        known = [(1 - t) * first + t * second if math.isfinite(first + second) else math.inf for t in edges]
        return [
            replace(
                self,
                start=self.start + self.width * edges[i],
                end=self.start + self.width * edges[i + 1],
                bounds=(known[i], known[i + 1]),
            )
            for i in range(count)
        ]


def bisect(
    enclosure: Enclosure,
    segments: Sequence[int],
    threshold: float,
    chosen: SampleChoice,
    *,
    workers: int = 1,
    limits: Limits | None = None,
    seed: int = 0,
    progress: Callable[[float, str], None] | None = None,
) -> Coverage:
    """Prove that the loss is at most ``threshold`` on ``segments``, or meet a point above it (ours).

    A piece is closed when the estimate from the upper bounds of the chosen units is at most the threshold at both of
    its ends: the estimate is convex between them (:class:`~llpf_fast.verify.sample_choice.SampleChoice`). Otherwise it
    is split. A unit's bound is a chord, which holds on the parts as well; so each unit is bounded again only on pieces
    so narrow that its share of what all must gain is bought at the least cost. Where even the estimates without radii
    are above the threshold at an end, the point is evaluated.

    Args:
        segments: first waypoints of the segments that change.
        chosen: the units, and the estimate of the whole loss from theirs.
        workers: threads; the result does not depend on their number.
        seed: of the pilot's draw: it changes the pieces, not what they prove.
        progress: called with the share that is closed (0..1) and a line of text.

    Raises:
        NotEnclosedError: an operation of the network has no rule.
    """
    with torch.no_grad(), WorkerPool(workers) as pool:
        return _Bisection(enclosure, threshold, chosen, limits or Limits(), pool, progress).run(segments, seed)


class _Bisection:
    def __init__(
        self,
        enclosure: Enclosure,
        threshold: float,
        chosen: SampleChoice,
        limits: Limits,
        pool: WorkerPool,
        progress: Callable[[float, str], None] | None,
    ) -> None:
        self._enclosure, self._threshold, self._chosen = enclosure, threshold, chosen
        self._limits, self._pool, self._progress = limits, pool, progress
        self._weights = chosen.weights
        self._all = torch.arange(len(chosen.units))
        self._closed: list[Piece] = []
        self._open: list[Piece] = []
        self._queue: list[tuple[tuple[float, int, float], _Part]] = []
        self._checked: dict[Position, bool] = {}
        self._violation: Position | None = None
        self._evaluations = self._precise = 0
        self._started = time.perf_counter()

    def run(self, segments: Sequence[int], seed: int) -> Coverage:
        parts = [_Part(waypoint, 0.0, 1.0, self._all) for waypoint in segments]
        for part in self._pilot(parts, seed) if len(self._all) > 2 * _PILOT else parts:
            self._push(part)
        while self._queue and self._going_on():
            self._report(len(segments))
            batch = self._next(min(_AT_ONCE, self._limits.evaluations - self._evaluations))
            for part, values in zip(batch, self._bounds(batch), strict=True):
                self._finish(part, values)
        self._open += [part.piece("budget") for _, part in self._queue]
        return Coverage(
            closed=sorted(self._closed, key=lambda piece: (piece.waypoint, piece.start)),
            open=sorted(self._open, key=lambda piece: (-piece.bound, piece.waypoint, piece.start)),
            violation=self._violation,
            evaluations=self._evaluations,
            precise_evaluations=self._precise,
            seconds=time.perf_counter() - self._started,
        )

    def _going_on(self) -> bool:
        elapsed = time.perf_counter() - self._started
        within = self._evaluations < self._limits.evaluations and elapsed < self._limits.seconds
        return within and self._violation is None

    def _report(self, segments: int) -> None:
        if self._progress is not None:
            share = math.fsum(piece.end - piece.start for piece in self._closed) / segments
            each = self._evaluations / len(self._all)
            self._progress(share, f"{len(self._closed)} pieces closed, {each:.1f} evaluations a sample")

    def _push(self, part: _Part) -> None:
        heapq.heappush(self._queue, (part.order, part))

    def _next(self, enough: float) -> list[_Part]:
        """The first parts of the queue that together have ``enough`` samples for several workers."""
        batch: list[_Part] = []
        while self._queue and sum(len(part.todo) for part in batch) < enough:
            batch.append(heapq.heappop(self._queue)[1])
        return batch

    def _bounds(self, parts: Sequence[_Part]) -> Iterator[Tensor]:
        """Of each part the bounds of its ``todo``: upper ones at start and end, estimates there, ``[4, n]``."""

        def bound(item: tuple[_Part, Tensor]) -> Tensor:
            part, units = item
            bounds = self._enclosure.bounds(
                part.waypoint, part.start, part.end, self._chosen.units[units], precise=part.precise
            )
            return torch.stack([bounds.start, bounds.end, bounds.start_estimate, bounds.end_estimate])

        cut = [part.todo.split(_BATCH) for part in parts]
        results = self._pool.map(
            bound, [(part, units) for part, pieces in zip(parts, cut, strict=True) for units in pieces]
        )
        for part, pieces in zip(parts, cut, strict=True):
            self._evaluations += len(part.todo)
            self._precise += len(part.todo) * part.precise
            yield torch.cat([next(results) for _ in pieces], dim=1)

    def _finish(self, part: _Part, values: Tensor) -> None:
        """Close ``part``, leave it open, or queue what is left to bound on it."""
        first = part.known is None
        known, stalled = self._update(part, values)
        bounds, base = self._estimates(known.upper), self._estimates(known.center)
        # Highest bound first: a violation is met soonest, and what barely misses the threshold comes last.
        part = replace(part, bounds=bounds, priority=max(bounds), known=known)
        if max(bounds) <= self._threshold:
            self._closed.append(part.piece(None))
            return
        if max(base) > self._threshold:
            wider = (known.ratio > 1).nonzero().flatten()
            if len(wider):
                # Chords of wider pieces leave no slack here, which the bounds on this piece may.
                self._push(replace(part, todo=wider))
                return
            if self._blocked(part, base):
                self._open.append(part.piece("samples"))
                return
        if part.width <= self._limits.finest:
            self._open.append(part.piece("rounding" if stalled else "width"))
            return
        factors = self._allocate(known, base)
        if (first or stalled) and not part.precise and self._rounding_dominates(part, values):
            # On the same piece: half of the gap vanishes at once.
            self._push(replace(part, todo=(factors > 0).nonzero().flatten(), precise=True))
            return
        # Units that need narrower parts wait until these are reached.
        count = int(factors[factors > 0].min())
        for child in replace(part, todo=(factors == count).nonzero().flatten()).split(count):
            self._push(child)

    def _update(self, part: _Part, values: Tensor) -> tuple[_Known, bool]:
        """What is known on ``part`` with the new bounds, and whether these did not even halve their units' gaps."""
        if part.known is None:
            nothing = torch.empty(2, len(self._all), dtype=torch.float64)
            known = _Known(part.start, part.end, nothing, nothing.clone(), torch.empty(len(self._all)).double())
        else:
            known = part.known.on(part)
        weights = self._weights[part.todo]
        before = float((known.gaps[:, part.todo].amax(0) * weights).sum())
        known.upper[:, part.todo], known.center[:, part.todo] = values[:2], values[2:]
        known.ratio[part.todo] = 1.0
        after = float((known.gaps[:, part.todo].amax(0) * weights).sum())
        return known, part.known is not None and not after < before / 2

    def _allocate(self, known: _Known, base: tuple[float, float]) -> Tensor:
        """Int64 ``[n]``: into how many parts of this piece each unit's is to be cut: 0 (not at all), 1, 2, 4 or 8.

        A unit with gap g, bounded on a piece r times as wide, is expected to keep g / (r f)^3 on f parts, which cost f
        evaluations. Of the steps 0 -> 1 -> 2 -> 4 -> 8 of all units, those that gain most for their cost are taken
        until the rest of the gaps takes no more than its share of the slack.
        """
        slack = torch.tensor([max(self._threshold - value, 1e-9 * abs(self._threshold), 1e-30) for value in base])
        gaps = (known.gaps / slack.double()[:, None]).amax(0) * self._weights
        wider = known.ratio > 1
        steps = torch.tensor([1, 2, 4, 8])
        remaining = torch.stack([gaps, *(gaps / (known.ratio * step) ** _SHRINKS for step in steps.tolist())])
        gains = (remaining[:-1] - remaining[1:]).flatten()
        cost = torch.tensor([[1.0], [1.0], [2.0], [4.0]]).double().repeat(1, len(gaps))
        # A unit that was bounded on this very piece goes from 0 to 2.
        cost[1, ~wider] = 2.0
        order = (gains / cost.flatten()).argsort(descending=True, stable=True)
        total = float(gaps.sum())
        # Where eight parts are not enough, only the largest gaps are cut.
        target = max(_TAKEN, 1.5 * float(remaining[-1].sum()))
        # These sums do not know the standard error, and here they were not enough.
        target = target if target < total else total / 2
        count = int(torch.searchsorted(gains[order].cumsum(0), total - target)) + 1
        taken = torch.zeros(len(gains), dtype=torch.bool)
        taken[order[:count]] = True
        taken = taken.view(4, -1)
        taken[0] &= wider
        return (taken * steps[:, None]).amax(0)

    def _estimates(self, numerators: Tensor) -> tuple[float, float]:
        return self._chosen.upper(numerators[0]), self._chosen.upper(numerators[1])

    def _rounding_dominates(self, part: _Part, values: Tensor) -> bool:
        """Whether float64 halves the gaps of those units of ``part`` that have the largest; ``values``: its bounds."""
        gaps = (values[:2] - values[2:]).amax(0).nan_to_num(nan=math.inf)
        largest = (gaps * self._weights[part.todo]).argsort(descending=True, stable=True)[:_PROBE]
        (precise,) = self._bounds([replace(part, todo=part.todo[largest], precise=True)])
        return bool((precise[:2] - precise[2:]).amax(0).sum() < gaps[largest].sum() / 2)

    def _blocked(self, part: _Part, base: tuple[float, float]) -> bool:
        """Whether the losses at the ends of ``part`` keep it from being closed; sets the violation if they show one."""
        high = [(value, point) for value, point in zip(base, part.points(), strict=True) if value > self._threshold]
        doubtful = [point for _, point in sorted(high, reverse=True) if self._violation is None and self._above(point)]
        return self._violation is not None or len(doubtful) == 2 or (len(doubtful) == 1 and part.width <= _STUCK)

    def _above(self, point: Position) -> bool:
        """Whether the estimate of the loss at ``point`` is above the threshold; sets the violation where it must be."""
        if point not in self._checked:
            losses = self._losses(point, self._all)
            self._checked[point] = self._chosen.upper(losses) > self._threshold
            if self._chosen.lower(losses) > self._threshold:
                self._violation = point
        return self._checked[point]

    def _losses(self, point: Position, units: Tensor) -> Tensor:
        self._evaluations += len(units)
        parts = [self._chosen.units[some] for some in units.split(_BATCH)]
        return torch.cat(list(self._pool.map(lambda some: self._enclosure.losses(point, some), parts)))

    def _pilot(self, parts: Sequence[_Part], seed: int) -> list[_Part]:
        """Parts whose bounds leave a few times the slack to gain, as far as a few random units can tell.

        Bounds of wide pieces are useless and cost as much as those of narrow ones: on LeNet5's path easy segments need
        1 or 2 pieces, hard ones 16. A spike that shows in these units is met here, within a second.
        """
        count = len(self._all)
        drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:_PILOT].sort().values
        weights = self._weights[drawn]
        estimate = SampleChoice(drawn, hardest=0, others=count, denominator=1.0, seed=seed)
        accepted: list[_Part] = []
        bounded = 0
        for part in parts:
            self._push(replace(part, todo=drawn))
        while self._queue and self._going_on() and bounded < _PILOT_PIECES * len(parts):
            batch = self._next(_PILOT_AT_ONCE)
            bounded += len(batch)
            for part, values in zip(batch, self._bounds(batch), strict=True):
                weighted = values * weights
                for losses, point in zip(weighted[2:], part.points(), strict=True):
                    if self._violation is None and estimate.lower(losses) > self._threshold:
                        # On a wide piece the estimates are rough.
                        here = self._losses(point, drawn) * weights
                        if estimate.lower(here) > self._threshold:
                            self._above(point)
                upper, center = (weighted.sum(1) * (count / _PILOT)).nan_to_num(nan=math.inf).split(2)
                gap = float((upper - center).nan_to_num(nan=math.inf).max())
                slack = max(self._threshold - float(center.max()), _PILOT_SLACK * self._threshold)
                part = replace(part, priority=float(upper.max()))
                if gap <= _PILOT_GAP * slack or part.width <= _PILOT_FINEST:
                    accepted.append(part)
                    continue
                stalled = gap > part.parent_gap / 2
                precise = stalled and not part.precise and self._rounding_dominates(part, values)
                for child in part.split(1 if precise else 2):
                    self._push(replace(child, parent_gap=gap, precise=part.precise or precise))
        accepted += [part for _, part in self._queue]
        self._queue.clear()
        return [replace(part, todo=self._all, precise=False) for part in accepted]
