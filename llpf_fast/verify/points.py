"""``cover_by_points``: closes the gaps between evaluated points by a rule, where a network has no enclosure."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..path.polyline import Polyline, Position
from .coverage import Cause, Coverage, Piece
from .enclosure.bisection import Limits
from .evaluator import Evaluation, Evaluator, UnitLosses
from .sample_choice import SampleChoice
from .worker_pool import WorkerPool

#: Most inner points lie between these shares of a gap, where they show most. One in eight lies anywhere but close to
#: the ends: a path must not be able to be high where no draw looks.
_INNER, _ANYWHERE, _ANYWHERE_SHARE = (0.25, 0.75), (1 / 64, 63 / 64), 1 / 8
#: A gap's outputs may lie this much further from the chord than its inner point shows.
_SAFETY = 2.0
#: Cross-entropy changes by at most this times the L2 distance of the logits.
_SLOPE = math.sqrt(2.0)
#: Random places of a segment that are looked at first, on this many samples: the highest is the first point. On three
#: points alone, one path in a hundred with a peak over a third of a segment was closed.
_SCAN, _SCAN_SAMPLES = 32, 250
#: What is added to a cross-entropy that is multiplied: those below float32's resolution come out as 0.
_LEAST = 1e-6
#: Largest exponent of the rule: beyond it the other branch is the smaller.
_LARGEST_EXPONENT = 50.0


#: Most points inside a segment, and the finest width of a gap as a share of its segment.
_MOST, _FINEST = 64, 2.0**-16


@dataclass(frozen=True)
class MeasuredPoint:
    """One evaluated point: ``upper`` and ``lower`` bound the loss of all samples by what was chosen of them."""

    evaluation: Evaluation
    upper: float
    lower: float


@dataclass(frozen=True)
class PointCoverage:
    """The coverage, and all evaluated points."""

    coverage: Coverage
    points: dict[Position, MeasuredPoint]


def cover_by_points(
    line: Polyline,
    evaluator: Evaluator,
    segments: Sequence[int],
    threshold: float,
    chosen: SampleChoice,
    *,
    seed: int,
    workers: int = 1,
    limits: Limits | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> PointCoverage:
    """Evaluate random points of every one of ``segments`` until a rule closes all gaps between them (ours).

    Each segment is first split, whatever its length, at the highest of 32 random places on 250 samples, so that it has
    at least three points inside. A gap has one inner point at a random fraction f of it. Let d be the distance of the
    inner point's outputs from the chord between those of the gap's ends. A parabola through the three is at most
    d / (4 f (1 - f)) from its chord; the rule allows twice that anywhere in the gap. A sample's loss inside is then
    taken to be at most

    - cross-entropy (without label smoothing): min((L + 1e-6) exp(r), L + r), where L is the loss of the higher end and
      r = 2 sqrt(2) |logits - chord| / (4 f (1 - f)). It is convex in the logits, so on their chord at most L; its
      gradient's L2 norm is at most sqrt(2) and at most sqrt(2) times the loss;
    - any other loss: L + 2 |loss - chord| / (4 f (1 - f)), with the losses of samples (of batches where the loss has no
      values of single samples).

    The gap is closed where the estimate from these bounds is at most ``threshold``, and split at its inner point where
    it is not. This is a rule, not a proof: what happens between two points only, a narrow peak, is not seen.

    Args:
        evaluator: of the chosen units.
        segments: first waypoints of the segments to cover, ascending.
        limits: when to give up; also after 64 points inside a segment, and at gaps of 2^-16 of it.
        seed: of the random places.
        progress: called with the share of the segments that is done and a line of text.

    Returns:
        Its ``coverage`` has a violation where the loss of a point is above the threshold by all that the chosen units
        say.
    """
    few = evaluator.on_few(_SCAN_SAMPLES, seed)
    search = _Search(line, evaluator, few, threshold, chosen, limits or Limits(), seed, len(segments), progress)
    with torch.no_grad(), WorkerPool(workers) as pool:
        # Runs of neighbouring segments: the point at which one ends and the next begins is evaluated once.
        size = max(1, math.ceil(len(segments) / (4 * workers)))
        for _ in pool.map(search.run, [segments[i : i + size] for i in range(0, len(segments), size)]):
            pass
    return search.result()


@dataclass(frozen=True)
class _Point:
    """A point of a segment: its fraction (1: the next waypoint), its losses and what they say of all samples."""

    fraction: float
    losses: UnitLosses
    upper: float


@dataclass
class _Search:
    line: Polyline
    evaluator: Evaluator
    few: Evaluator
    threshold: float
    chosen: SampleChoice
    limits: Limits
    seed: int
    segments: int
    progress: Callable[[float, str], None] | None
    points: dict[Position, MeasuredPoint] = field(default_factory=dict)
    pieces: list[Piece] = field(default_factory=list)
    violations: list[Position] = field(default_factory=list)
    done: int = 0
    scanned: int = 0
    started: float = field(default_factory=time.perf_counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, segments: Sequence[int]) -> None:
        last: tuple[int, _Point] | None = None
        for waypoint in segments:
            known = last[1] if last is not None and last[0] == waypoint else None
            last = waypoint + 1, self._cover(waypoint, known)

    def _cover(self, waypoint: int, known: _Point | None) -> _Point:
        """Cover one segment, whose start may be ``known``; returns its end."""
        generator = random.Random(f"{self.seed} {waypoint}")
        start = self._measure(waypoint, 0.0) if known is None else _Point(0.0, known.losses, known.upper)
        end = self._measure(waypoint, 1.0)
        first = self._measure(waypoint, self._highest(waypoint, generator))
        left, finest = _MOST - 1, max(self.limits.finest, _FINEST)
        gaps = [(first, end), (start, first)]
        pieces: list[Piece] = []
        while gaps:
            a, b = gaps.pop()
            width = b.fraction - a.fraction
            if self.violations or left <= 0 or width < finest or self._is_spent():
                pieces.append(self._open(waypoint, a, b, "width" if width < finest else "budget"))
                continue
            left -= 1
            inner = self._measure(waypoint, a.fraction + width * _inner(generator))
            bound = self.chosen.upper(self.evaluator.by_unit(list(_gap_bounds(a, inner, b))))
            if bound <= self.threshold:
                pieces.append(Piece(waypoint, a.fraction, b.fraction, bound, bound))
            else:
                gaps += [(inner, b), (a, inner)]
        with self.lock:
            self.pieces += pieces
            self.done += 1
            if self.progress is not None:
                highest = max(point.upper for point in self.points.values())
                self.progress(self.done / self.segments, f"{len(self.points):,} points  highest loss {highest:.4f}")
        return end

    def _is_spent(self) -> bool:
        return self._evaluations() >= self.limits.evaluations or self._seconds() >= self.limits.seconds

    def _evaluations(self) -> int:
        return len(self.points) * self.evaluator.samples + self.scanned

    def _seconds(self) -> float:
        return time.perf_counter() - self.started

    def _highest(self, waypoint: int, generator: random.Random) -> float:
        """The highest of random places of a segment, one in each of 32 equal parts, on few samples."""
        places = [(i + generator.uniform(*_ANYWHERE)) / _SCAN for i in range(_SCAN)]
        losses = [self.few(self.line.state(Position(waypoint, place))).loss for place in places]
        with self.lock:
            self.scanned += _SCAN * self.few.samples
        ranks = [
            (not math.isfinite(loss), loss, generator.random(), place)
            for loss, place in zip(losses, places, strict=True)
        ]
        return max(ranks)[-1]

    def _measure(self, waypoint: int, fraction: float) -> _Point:
        position = Position(waypoint, fraction) if fraction < 1 else Position(waypoint + 1, 0.0)
        evaluation, losses = self.evaluator.with_losses(self.line.state(position))
        numerators = self.evaluator.by_unit(losses.numerators)
        measured = MeasuredPoint(evaluation, self.chosen.upper(numerators), self.chosen.lower(numerators))
        with self.lock:
            self.points[position] = measured
            if not measured.lower <= self.threshold:
                self.violations.append(position)
        return _Point(fraction, losses, measured.upper)

    def _open(self, waypoint: int, a: _Point, b: _Point, cause: Cause) -> Piece:
        # Above the threshold by the chosen samples' errors alone: finer gaps would not close it.
        unclear = not self.violations and max(a.upper, b.upper) > self.threshold
        return Piece(waypoint, a.fraction, b.fraction, math.inf, math.inf, "samples" if unclear else cause)

    def result(self) -> PointCoverage:
        pieces = sorted(self.pieces, key=lambda piece: (piece.waypoint, piece.start))
        highest = max(self.violations, key=lambda at: (self.points[at].lower, at), default=None)
        closed, still_open = ([p for p in pieces if (p.cause is None) is kind] for kind in (True, False))
        return PointCoverage(
            Coverage(closed, still_open, highest, self._evaluations(), 0, self._seconds()), self.points
        )


def _inner(generator: random.Random) -> float:
    """A random fraction of a gap."""
    return generator.uniform(*(_ANYWHERE if generator.random() < _ANYWHERE_SHARE else _INNER))


def _gap_bounds(a: _Point, inner: _Point, b: _Point) -> Iterator[Tensor]:
    """Upper bounds of the numerators inside a gap by the rule, in the batches of the evaluation."""
    share = (inner.fraction - a.fraction) / (b.fraction - a.fraction)
    allowed = _SAFETY / (4 * share * (1 - share))
    for i, (left, right) in enumerate(zip(a.losses.numerators, b.losses.numerators, strict=True)):
        high = torch.maximum(left, right)
        logits = [point.losses.logits[i] for point in (a, inner, b)]
        if logits[0] is not None and logits[1] is not None and logits[2] is not None:
            from_chord = logits[1] - logits[0].lerp(logits[2], share)
            rise = allowed * _SLOPE * from_chord.double().norm(dim=1)
            # Class weights scale a sample's loss; a sample of weight 0 has the numerator 0.
            weights = a.losses.weights[i]
            factor = rise.clamp(max=_LARGEST_EXPONENT).exp()
            yield torch.minimum((high + _LEAST * weights) * factor, high + weights * rise)
        else:
            chord = left.lerp(right, share)
            yield high + allowed * (inner.losses.numerators[i] - chord).abs()
