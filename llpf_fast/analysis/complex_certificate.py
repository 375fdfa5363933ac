"""``certify_complex``: whether the loss is below a threshold everywhere on a simplicial complex."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ..errors import LLPFError
from ..types import ProgressCallback
from ..verify import Evaluation
from ..verify.worker_pool import WorkerPool
from .cache import Evaluate
from .networks import Networks
from .simplices import Cell, Subdivision, Weights

#: A point whose screening loss is less than this many standard errors below the threshold is evaluated on all samples.
_NEAR = 3.0
_SPACING = {1: 1 / 32, 2: 1 / 8, 3: 1 / 4}


@dataclass(frozen=True)
class ComplexPoint:
    """One evaluated point: ``weights`` of the vertices (sum 1); no ``standard_error`` where all samples were used."""

    weights: tuple[float, ...]
    loss: float
    samples: int
    standard_error: float | None
    accuracy: float | None
    test_loss: float | None = None
    test_accuracy: float | None = None


@dataclass(frozen=True)
class ComplexCertificate:
    """The verdict over all simplices, and the evaluations behind it.

    ``connected``: the training loss is finite and at most ``threshold`` at every evaluated point. Nothing is proved for
    the points between; ``resolution`` has the sizes of the cells and the number that may contain a higher loss
    (``cells_that_may_exceed``). ``simplex_max`` is the highest loss on each simplex, ``edge_max`` that on the edges of
    the simplices alone. Losses are those of the whole set, lengths L2.
    """

    connected: bool
    reasons: list[str]
    threshold: float
    max_loss: float
    max_loss_at: tuple[float, ...]
    max_loss_standard_error: float | None
    vertex_loss: list[float]
    simplex_max: list[float]
    edge_max: float
    min_test_accuracy: float | None
    points_evaluated: int
    points_on_all_samples: int
    simplices: list[tuple[int, ...]]
    resolution: dict[str, Any]
    evaluation: dict[str, Any]
    points: list[ComplexPoint] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values."""
        return asdict(self)


def certify_complex(
    vertices: Networks,
    simplices: Sequence[Sequence[int]],
    evaluate_train: Evaluate,
    evaluate_test: Evaluate | None = None,
    *,
    threshold: float,
    full_train: Evaluate | None = None,
    spacing: float | None = None,
    rounds: int = 6,
    cells: int = 16,
    most_rounds: int = 16,
    finest: float = 1 / 256,
    worst: int = 10,
    workers: int = 1,
    progress: ProgressCallback | None = None,
) -> ComplexCertificate:
    """Evaluate the simplices over ``vertices``, inside and on their faces, and compare them with ``threshold``.

    Every simplex is cut by bisection of its longest edge, in barycentric coordinates, until no edge of a cell is longer
    than ``spacing`` of the longest edge of all (when missing 1/32, 1/8, 1/4, 1/2 for lines, triangles, tetrahedra and
    beyond: the number of cells is about spacing^-dimension); all corners are evaluated with ``evaluate_train`` (and
    ``evaluate_test``). Then each of ``rounds`` rounds halves the ``cells`` cells in which the loss may be highest
    (:meth:`Subdivision.estimate`), and rounds go on, up to ``most_rounds``, while some cell may exceed the threshold
    though its corners do not. No cell becomes smaller than ``finest``.

    With ``full_train`` given, ``evaluate_train`` is taken for a screening subset of it, and ``full_train`` evaluates
    the vertices, the ``worst`` highest points, every point within three standard errors of the threshold or above it
    (worst first, until one is truly above), and then, up to ``worst`` times, whatever point is highest. Where both are
    known the full value counts.

    Args:
        vertices: the states that the numbers in ``simplices`` mean; points between are combined in float64.
        simplices: tuples of at least two vertex numbers, of any sizes.
        threshold: highest training loss allowed, in units of the loss.
        workers: points evaluated at a time, each in a thread.

    Raises:
        LLPFError: a threshold that is not finite; no simplices, unknown vertices, or two vertices that are one point.
    """
    if not math.isfinite(threshold):
        raise LLPFError(f"the threshold must be a finite number, got {threshold}")
    if not simplices or any(len(simplex) < 2 for simplex in simplices):
        raise LLPFError("a complex needs simplices of at least two vertices")
    if any(not 0 <= v < len(vertices) for simplex in simplices for v in simplex):
        raise LLPFError(f"the simplices name vertices outside 0 to {len(vertices) - 1}")
    vectors = vertices.vectors()
    vectors = vectors - vectors.mean(0)
    subdivision = Subdivision(simplices, vectors @ vectors.T)
    if not subdivision.longest > 0:
        raise LLPFError("the vertices are all the same point: there is nothing to certify")
    spacing = spacing or _SPACING.get(max(map(len, simplices)) - 1, 1 / 2)
    subdivision.cut_to(spacing * subdivision.longest)
    with torch.random.fork_rng(devices=[]), WorkerPool(workers) as pool:
        sampler = _ComplexSampler(
            vertices, subdivision, evaluate_train, evaluate_test, full_train, threshold, pool, progress
        )
        sampler.plan(rounds * cells + (0 if full_train is None else worst + len(vertices)))
        sampler.measure(subdivision.points(), "screening" if full_train else "evaluating", test=True)
        sampler.refine(rounds, cells, most_rounds, finest * subdivision.longest)
        sampler.measure_fully(worst)
    return sampler.certificate(simplices, {"spacing": spacing, "rounds": rounds, "cells": cells, "finest": finest})


class _ComplexSampler:
    """Evaluates the points of one complex."""

    def __init__(
        self,
        vertices: Networks,
        subdivision: Subdivision,
        train: Evaluate,
        test: Evaluate | None,
        full: Evaluate | None,
        threshold: float,
        pool: WorkerPool,
        progress: ProgressCallback | None,
    ) -> None:
        self._vertices, self._subdivision, self._threshold = vertices, subdivision, threshold
        self._train, self._test, self._full = train, test, full
        self._pool, self._progress = pool, progress
        #: The value that counts at each point; on the screening set, for estimates; on all samples; on the test set.
        self.points: dict[Weights, Evaluation] = {}
        self.screened: dict[Weights, float] = {}
        self.full: dict[Weights, Evaluation] = {}
        self.test: dict[Weights, Evaluation] = {}
        self._done, self._expected, self._highest_loss = 0, len(subdivision.points()), -math.inf

    def plan(self, more: int) -> None:
        self._expected += more

    def measure(self, points: Sequence[Weights], text: str, *, test: bool = False) -> None:
        new = [point for point in points if point not in self.points]

        def one(point: Weights) -> tuple[Evaluation, Evaluation | None]:
            state = self._vertices.combine(point)
            return self._train(state), self._test(state) if test and self._test is not None else None

        for point, (train, on_test) in zip(new, self._pool.map(one, new), strict=True):
            self.points[point] = train
            self.screened[point] = train.loss
            if on_test is not None:
                self.test[point] = on_test
            self._report(text, train.loss)

    def refine(self, rounds: int, count: int, most_rounds: int, finest: float) -> None:
        for number in range(most_rounds):
            large = [(cell, estimate) for cell, estimate in self._estimates() if self._subdivision.size(cell) > finest]
            if number >= rounds:
                large = [(cell, estimate) for cell, estimate in large if self._may_exceed(cell, estimate)]
            if not large:
                return
            self._subdivision.bisect(cell for cell, _ in large[:count])
            self.measure(self._subdivision.points(), "refining")

    def _estimates(self) -> list[tuple[Cell, float]]:
        pairs = [(cell, self._subdivision.estimate(cell, self.screened)) for cell in self._subdivision.cells]
        return sorted(
            ((cell, estimate) for cell, estimate in pairs if estimate > -math.inf),
            key=lambda pair: (-pair[1], pair[0].simplex, pair[0].corners),
        )

    def _may_exceed(self, cell: Cell, estimate: float) -> bool:
        return max(self.screened[corner] for corner in cell.corners) <= self._threshold < estimate

    def measure_fully(self, worst: int) -> None:
        if self._full is None:
            return
        self._measure_full([point for point in self.points if max(point) == 1.0])
        self._measure_full(sorted(self.points, key=self._falling)[:worst])
        for point in sorted(self.points, key=self._falling):
            if any(self._is_wrong(each) for each in self.full.values()):
                break
            margin = _NEAR * (self.points[point].standard_error or 0.0)
            if not self.points[point].loss + margin <= self._threshold:
                self._measure_full([point])
        for _ in range(worst):
            highest = min(self.points, key=self._falling)
            if highest in self.full:
                break
            self._measure_full([highest])

    def _measure_full(self, points: Sequence[Weights]) -> None:
        full = self._full
        assert full is not None
        new = [point for point in points if point not in self.full]
        measured = self._pool.map(lambda point: full(self._vertices.combine(point)), new)
        for point, evaluation in zip(new, measured, strict=True):
            self.points[point] = self.full[point] = evaluation
            self._report("all samples", evaluation.loss)

    def _report(self, text: str, loss: float) -> None:
        self._done += 1
        self._highest_loss = max(self._highest_loss, math.inf if math.isnan(loss) else loss)
        if self._progress is not None:
            expected = max(self._done, self._expected)
            self._progress(self._done, expected, f"{text}  highest loss {self._highest_loss:.4f}")

    def _falling(self, point: Weights) -> tuple[float, Weights]:
        """Sorts the highest loss first; NaN counts as higher than anything."""
        loss = self.points[point].loss
        return -(math.inf if math.isnan(loss) else loss), point

    def _is_wrong(self, evaluation: Evaluation) -> bool:
        return evaluation.not_finite > 0 or not evaluation.loss <= self._threshold

    def certificate(self, simplices: Sequence[Sequence[int]], rule: Mapping[str, Any]) -> ComplexCertificate:
        highest = min(self.points, key=self._falling)
        top = self.points[highest]
        by_simplex = [[p for p in self.points if _inside(p, simplex)] for simplex in simplices]
        maxima = [self.points[min(inside, key=self._falling)].loss for inside in by_simplex]
        on_edges = [point for point in self.points if sum(weight > 0 for weight in point) <= 2]
        accuracies = [each.accuracy for each in self.test.values() if each.accuracy is not None]
        estimates = self._estimates()
        corners = [p for p in self.points if max(p) == 1.0]
        first = self.points[corners[0]]
        screening = min((each.samples for each in self.points.values()), default=0)
        reasons = self._reasons(highest)
        return ComplexCertificate(
            connected=not reasons,
            reasons=reasons,
            threshold=self._threshold,
            max_loss=top.loss,
            max_loss_at=highest,
            max_loss_standard_error=top.standard_error if self._full is not None and highest not in self.full else None,
            vertex_loss=[self.points[p].loss for p in sorted(corners, reverse=True)],
            simplex_max=maxima,
            edge_max=self.points[min(on_edges, key=self._falling)].loss,
            min_test_accuracy=min(accuracies, default=None),
            points_evaluated=len(self.points),
            points_on_all_samples=len(self.points) if self._full is None else len(self.full),
            simplices=[tuple(simplex) for simplex in simplices],
            resolution={
                **rule,
                "rule": "bisection of longest edges in barycentric coordinates; then, a round at a time, of the cells "
                "with the highest estimate (highest corner + 2 |f''| h^2 d / (4 (d + 1)))",
                "cells_in_all": len(self._subdivision.cells),
                "largest_cell": max(self._subdivision.size(cell) for cell in self._subdivision.cells),
                "smallest_cell": min(self._subdivision.size(cell) for cell in self._subdivision.cells),
                "longest_edge": self._subdivision.longest,
                "highest_estimate": estimates[0][1] if estimates else None,
                "cells_that_may_exceed": sum(self._may_exceed(cell, estimate) for cell, estimate in estimates),
            },
            evaluation={
                "samples": first.samples,
                "screened": self._full is not None,
                "screening_samples": screening if self._full is not None else None,
                "test_samples": next((each.samples for each in self.test.values()), None),
                "batchnorm_statistics": first.statistics,
            },
            points=[self._point(point) for point in sorted(self.points, reverse=True)],
        )

    def _reasons(self, highest: Weights) -> list[str]:
        reasons = []
        bad = [p for p, e in self.points.items() if e.not_finite > 0 or not math.isfinite(e.loss)]
        if bad:
            reasons.append(f"the training loss is not finite at {len(bad)} points, first at {self._describe(bad[0])}")
        above = [p for p, e in self.points.items() if math.isfinite(e.loss) and e.loss > self._threshold]
        if above:
            worst = min(above, key=self._falling)
            kind = "" if self._full is None or worst in self.full else " on the screening subset"
            reasons.append(
                f"the training loss{kind} is {self.points[worst].loss:.4g} at {self._describe(worst)}, above the "
                f"threshold {self._threshold:g}, and above it at {len(above)} of {len(self.points)} points"
            )
        return reasons

    def _describe(self, point: Weights) -> str:
        names = self._vertices.names
        return " + ".join(f"{weight:.3g} x {names[i]}" for i, weight in enumerate(point) if weight)

    def _point(self, point: Weights) -> ComplexPoint:
        evaluation, test = self.points[point], self.test.get(point)
        known = self._full is None or point in self.full
        return ComplexPoint(
            weights=point,
            loss=evaluation.loss,
            samples=evaluation.samples,
            standard_error=None if known else evaluation.standard_error,
            accuracy=evaluation.accuracy,
            test_loss=None if test is None else test.loss,
            test_accuracy=None if test is None else test.accuracy,
        )


def _inside(point: Weights, simplex: Sequence[int]) -> bool:
    return all(weight == 0 or i in simplex for i, weight in enumerate(point))
