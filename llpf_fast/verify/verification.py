"""``Verification``: the work of one certificate: samples, pieces, a witness, points for the picture."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ..path.polyline import Polyline, Position
from ..types import ProgressCallback
from .arc_length import ArcLength
from .coverage import Coverage, Piece
from .enclosure.bisection import Limits, bisect
from .enclosure.form import NotEnclosedError
from .enclosure.loss_enclosure import LossEnclosure
from .evaluator import Evaluation, Evaluator, differs_beyond_rounding
from .pictures import PathPoint, evaluate_all, picture_positions, test_positions
from .points import MeasuredPoint, cover_by_points
from .repeatability import unrepeatable
from .sample_choice import STANDARD_ERRORS, all_units, choose_units
from .verdict import Findings, Level, barred, is_violation, make_witness
from .worker_pool import WorkerPool

#: Waypoints that are evaluated on all samples before some are chosen.
_WHOLE_WAYPOINTS = 5
#: An enclosure costs about four evaluations, so as many evaluations for pictures cost a quarter of the verdict.
_FORWARDS_OF_ENCLOSURE = 4
#: Evaluations of samples that pictures may cost whatever the verdict did: two seconds of LeNet5 on one core.
_CHEAP = 50_000
#: Evaluations a chosen sample after which pieces stay open, where no limits are given. LeNet5 takes 70 to 140.
_MOST_EVALUATIONS = 2_000
#: Waypoints at which a network is tried for what it keeps between calls.
_TRIED_WAYPOINTS = 4
#: Samples on which new copies of the network are compared with those in use.
_FEW = 500


class Verification:
    """One certificate in progress: ``decide``, ``draw``, ``confirm_points`` and ``unreliable_losses`` in this order.

    Attributes:
        whole: evaluations on all samples.
        measured: what is known of each point that the certificate lists.
        on_test: evaluations on the test set.
        chosen: the samples that the verdict rests on.
        notes: for the certificate.
    """

    def __init__(
        self,
        line: Polyline,
        train: Evaluator,
        test: Evaluator | None,
        threshold: float,
        level: Level,
        limits: Limits | None,
        names: Collection[str] | None,
        workers: int,
        seed: int,
        pool: WorkerPool,
    ) -> None:
        self.line, self.arc_length = line, ArcLength(line, names, train.counters)
        self._train, self._test, self._threshold, self._level = train, test, threshold, level
        self._limits, self._workers, self._seed, self._pool = limits, workers, seed, pool
        self.progress: ProgressCallback | None = None
        self.whole: dict[Position, Evaluation] = {}
        self.measured: dict[Position, MeasuredPoint] = {}
        self.on_test: dict[Position, Evaluation] = {}
        self.notes: list[str] = []
        self._ordered = False
        self._changing = [i for i, change in enumerate(self.arc_length.changes) if change.any]
        self._barred = barred(self.arc_length.changes)
        self._last = Position(line.segments, 0.0)
        self.chosen = all_units(train.unit_denominators())
        self._part = train
        self._done = 0

    def report(self, text: str, share: float | None = None) -> None:
        if self.progress is not None:
            self._done = self._done if share is None else max(self._done, int(90 * share))
            self.progress(self._done, 100, text)

    def decide(self) -> Findings:
        """The verdict, before any picture."""
        try:
            enclosure: LossEnclosure | None = LossEnclosure(self.line, self._train)
            not_enclosed = None
        except NotEnclosedError as error:
            enclosure, not_enclosed = None, str(error)
            self._check_order()
        self._evaluate_whole()
        if enclosure is not None and self.line.segments:
            try:
                enclosure.compare(self._start_numerators)
            except NotEnclosedError as error:
                enclosure, not_enclosed = None, str(error)
                self._check_order()
        above = [at for at in sorted(self.whole) if is_violation(self.whole[at], self._threshold)]
        barred_segments = {segment for segment, _, _ in self._barred}
        segments = [i for i in self._changing if i not in barred_segments]
        coverage = _nothing(segments)
        if not above:
            coverage, not_enclosed = self._cover(enclosure, not_enclosed, segments)
            for position in [Position(i, 0.5) for i in sorted(barred_segments)]:
                self._on_all(position)
            if coverage.violation is not None:
                self._on_all(coverage.violation)
        return self._findings(coverage, not_enclosed)

    def _findings(self, coverage: Coverage, not_enclosed: str | None) -> Findings:
        above = [at for at in self.whole if is_violation(self.whole[at], self._threshold)]
        highest = min(above, key=lambda at: (-nan_as_inf(self.whole[at].loss), at), default=None)
        witness = None if highest is None else make_witness(self.line, highest, self.whole[highest])
        unconfirmed = coverage.violation if witness is None else None
        return Findings(
            self.line,
            self.arc_length,
            self._threshold,
            self._train,
            self.chosen,
            coverage,
            not_enclosed,
            self._barred,
            witness,
            unconfirmed,
        )

    def _on_all(self, position: Position) -> None:
        """Evaluate ``position`` on all samples."""
        if position not in self.whole:
            self.whole[position] = self._train(self.line.state(position))

    def _check_order(self) -> None:
        """Note it, and take all samples, where the loss depends on which samples share a batch."""
        start = self.line.waypoint(0)
        other = self._train.in_another_order(start)
        if other is None:
            return
        loss = self._train(start).loss
        if differs_beyond_rounding(loss, other, self._train.dtype):
            self._level, self._ordered = "full", True
            self.notes.append(
                f"the loss depends on which samples share a batch: at the start it is {loss:.4g} in batches of "
                f"{self._train.batch_size} in the data's order, and {other:.4g} in another order; this certificate is "
                "about the data's order"
            )

    def _evaluate_whole(self) -> None:
        """Evaluate the endpoints on all samples; to choose samples, up to five waypoints, and choose them."""
        last = self.line.segments
        count = 2 if self._level == "full" else _WHOLE_WAYPOINTS
        indices = sorted({round(i * last / (count - 1)) for i in range(count)})
        hardness: Tensor | None = None

        def evaluate(index: int) -> tuple[Evaluation, Tensor]:
            evaluation, losses = self._train.with_losses(self.line.waypoint(index))
            return evaluation, self._train.by_unit(losses.numerators)

        for index, (evaluation, numerators) in zip(indices, self._pool.map(evaluate, indices), strict=True):
            self.report("all samples")
            self.whole[Position(index, 0.0)] = evaluation
            if index == 0:
                self._start_numerators = numerators
            hardness = numerators if hardness is None else torch.maximum(hardness, numerators)
        if self._level == "sampled" and hardness is not None:
            self.chosen = choose_units(hardness, self._train.unit_denominators(), seed=self._seed)
        if not self.chosen.complete:
            self._part = self._train.on_units(self.chosen.units)

    def _cover(
        self, enclosure: LossEnclosure | None, not_enclosed: str | None, segments: Sequence[int]
    ) -> tuple[Coverage, str | None]:
        def report(share: float, text: str) -> None:
            self.report(text, share)

        if enclosure is not None:
            try:
                limits = self._limits or Limits(evaluations=_MOST_EVALUATIONS * len(self.chosen.units))
                options: dict[str, Any] = {"workers": self._workers, "limits": limits, "seed": self._seed}
                return bisect(enclosure, segments, self._threshold, self.chosen, **options, progress=report), None
            except NotEnclosedError as error:
                not_enclosed = str(error)
                self._check_order()
        covered = cover_by_points(
            self.line,
            self._part,
            segments,
            self._threshold,
            self.chosen,
            seed=self._seed,
            workers=self._workers,
            limits=self._limits,
            progress=report,
        )
        self.measured.update(covered.points)
        return covered.coverage, not_enclosed

    def draw(self, findings: Findings) -> None:
        """Evaluate the points of the picture, at about a quarter of the verdict's cost."""
        budget = findings.coverage.evaluations
        if self.measured:  # the points that the rule went by
            budget //= _FORWARDS_OF_ENCLOSURE
        budget = max(budget, _CHEAP)
        if not self.measured:
            positions = picture_positions(self.line.segments, self._changing, budget // 2 // self._part.samples)
            self._measure([position for position in positions if position not in self.whole])
        for position, evaluation in self.whole.items():
            self.measured[position] = MeasuredPoint(evaluation, evaluation.loss, evaluation.loss)
        if self._test is not None:
            positions = test_positions(sorted(self.measured), budget // 2 // self._test.samples)
            self.on_test = evaluate_all(self._test, self.line, positions, self._pool)

    def _measure(self, positions: Sequence[Position]) -> None:
        """Evaluate ``positions`` on the chosen samples."""

        def measure(position: Position) -> MeasuredPoint:
            evaluation, losses = self._part.with_losses(self.line.state(position))
            if self.chosen.complete:
                return MeasuredPoint(evaluation, evaluation.loss, evaluation.loss)
            numerators = self._part.by_unit(losses.numerators)
            return MeasuredPoint(evaluation, self.chosen.upper(numerators), self.chosen.lower(numerators))

        for position, point in zip(positions, self._pool.map(measure, positions), strict=True):
            self.report("picture")
            self.measured[position] = point

    def confirm_points(self, findings: Findings) -> Findings:
        """The findings, with what the picture's points add: one of them may be above the threshold on all samples."""
        if self.chosen.complete:
            self.whole.update({at: point.evaluation for at, point in self.measured.items()})
        else:
            highest = min(self.measured, key=lambda at: (-nan_as_inf(self.loss(at)), at))
            self._on_all(highest)
            evaluation = self.whole[highest]
            self.measured[highest] = MeasuredPoint(evaluation, evaluation.loss, evaluation.loss)
        return self._findings(findings.coverage, findings.not_enclosed)

    def unreliable_losses(self) -> list[str]:
        """Reasons why the losses are not those of points: the network changes, or samples share more than a mean."""
        generator, used = random.Random(self._seed), self._train.on_few(_FEW, self._seed)
        places = [Position(generator.choice(self._changing), generator.random())] if self._changing else []
        for position in dict.fromkeys([*places, Position(self.line.segments // 2, 0.0), Position(0, 0.0)]):
            state = self.line.state(position)
            before, now = used(state).loss, used.with_new_copies()(state).loss
            if differs_beyond_rounding(before, now, self._train.dtype):
                return [
                    f"the network's output depends on earlier calls: at {self.arc_length.location(position)} the loss "
                    f"is {now:.4g} in a new copy of it, {before:.4g} in one that was used before"
                ]
        # The start, and a few waypoints to which something changed.
        changed = [i + 1 for i in self._changing]
        indices = [0, *changed[:: max(1, len(changed) // _TRIED_WAYPOINTS)]]
        return [*unrepeatable(self._train, [self.line.waypoint(i) for i in indices]), *self._other_order()]

    def _other_order(self) -> list[str]:
        """A reason where the loss depends on the order of samples, and is above the threshold in another one."""
        if not self._ordered:
            return []
        highest = min(self.whole, key=lambda at: (-nan_as_inf(self.whole[at].loss), at))
        loss = self._train.in_another_order(self.line.state(highest))
        if loss is None or loss <= self._threshold:
            return []
        return [
            f"the loss depends on which samples share a batch: at {self.arc_length.location(highest)} it is {loss:.4g} "
            f"in another order of the samples, above the threshold {self._threshold:g}"
        ]

    def loss(self, position: Position) -> float:
        point = self.measured[position]
        if self.chosen.complete or position in self.whole:
            return point.evaluation.loss
        # Both are infinite where a sample's loss is not finite.
        return (point.upper + point.lower) / 2 if point.lower < math.inf else math.nan

    def point(self, position: Position) -> PathPoint:
        """What is known at ``position``, as the certificate lists it."""
        measured, test = self.measured[position], self.on_test.get(position)
        on_all = self.chosen.complete or position in self.whole
        return PathPoint(
            at=self.arc_length.location(position),
            train_loss=self.loss(position),
            train_samples=measured.evaluation.samples,
            standard_error=None if on_all else (measured.upper - measured.lower) / (2 * STANDARD_ERRORS),
            train_accuracy=measured.evaluation.accuracy if on_all else None,
            test_loss=None if test is None else test.loss,
            test_accuracy=None if test is None else test.accuracy,
        )

    def resolution(self, findings: Findings) -> dict[str, Any]:
        """By which rule pieces were closed, how many, and at which cost."""
        coverage = findings.coverage
        widths = [piece.end - piece.start for piece in (*coverage.closed, *coverage.open)]
        return {
            "rule": "enclosure" if findings.not_enclosed is None else "random points, and a rule between them",
            "seed": self._seed,
            "closed_pieces": len(coverage.closed),
            "open_pieces": len(coverage.open),
            "open_because": dict(Counter(str(piece.cause) for piece in coverage.open)),
            "widest_piece": max(widths, default=None),
            "narrowest_piece": min(widths, default=None),
            "evaluations": coverage.evaluations,
            "precise_evaluations": coverage.precise_evaluations,
            "seconds": coverage.seconds,
        }

    def evaluation(self, findings: Findings, straight: int) -> dict[str, Any]:
        """On which samples and points the losses were computed, for the certificate."""
        first, chosen = self.whole[Position(0, 0.0)], self.chosen
        few = None
        if not chosen.complete:
            few = {
                "hardest": chosen.hardest,
                "random": len(chosen.units) - chosen.hardest,
                "units": "samples" if self._train.by_sample else "batches",
                "seed": chosen.seed,
            }
        return {
            "train": {
                "samples": self._train.samples,
                "screened": not chosen.complete,
                "screening_samples": None if chosen.complete else self._part.samples,
                "chosen": few,
                "points_on_all_samples": len(self.whole),
                "loss_is": "exact" if first.reduction == "exact" else "mean of batch means",
            },
            "test": None if self._test is None else {"samples": self._test.samples, "points": len(self.on_test)},
            "not_enclosed": findings.not_enclosed,
            "pictures": {"points": len(self.measured), "on_test": len(self.on_test), "straight_line": straight},
            "batchnorm_statistics": first.statistics,
            "dtype": str(self._train.dtype),
            "batch_size": self._train.batch_size,
        }


def _nothing(segments: Sequence[int]) -> Coverage:
    """All of ``segments`` open: a point above the threshold was known before any work."""
    pieces = [Piece(i, 0.0, 1.0, math.inf, math.inf, "budget") for i in segments]
    return Coverage([], pieces, None, 0, 0, 0.0)


def nan_as_inf(value: float) -> float:
    """Infinity for NaN: a key by which NaN is the highest loss."""
    return math.inf if math.isnan(value) else value
