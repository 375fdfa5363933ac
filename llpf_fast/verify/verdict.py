"""What a certificate says: the verdict, its reasons, and the sentence about what it covers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ..path.polyline import Change, Polyline, Position
from .arc_length import ArcLength
from .coverage import Cause, Coverage, Piece
from .evaluator import Evaluation, Evaluator
from .sample_choice import STANDARD_ERRORS, SampleChoice

Verdict = Literal["proved", "sampled", "refuted", "undecided"]
Level = Literal["full", "sampled"]

_CLOSED_BY: dict[Cause | None, str] = {
    "width": "the finest width is reached: a lower peak, or a higher threshold, would close them",
    "rounding": "rounding hides what is left: a threshold that is a little higher would close them",
    "budget": "more time would close them (limits=)",
    "samples": "the chosen samples are too few to tell: level full",
}


@dataclass(frozen=True)
class Witness:
    """A point of the path whose loss on all training samples is above the threshold, or not finite.

    ``fraction`` of the way from waypoint ``waypoint`` to the next; ``reproduce``: four lines of PyTorch that compute
    ``loss``, which may be NaN.
    """

    waypoint: int
    fraction: float
    loss: float
    samples: int
    reproduce: str


def make_witness(line: Polyline, position: Position, evaluation: Evaluation) -> Witness:
    i, fraction = position
    if fraction == 0:
        point = [f'state = safetensors.torch.load_file("{line.file(i)}")', "# the point is this waypoint itself"]
    else:
        # Infinities that do not change stay.
        point = [
            f'a, b = (safetensors.torch.load_file(name) for name in ("{line.file(i)}", "{line.file(i + 1)}"))',
            f"state = {{k: a[k].double().lerp(b[k].double(), {fraction!r}).where(a[k] != b[k], a[k].double()) "
            "if a[k].is_floating_point() else a[k] for k in a}",
        ]
    anew = "torch.optim.swa_utils.update_bn(batches_of_training_inputs, model); "
    statistics = anew if evaluation.statistics == "reestimated" else ""
    lines = [
        *point,
        f"model.load_state_dict(state); {statistics}model.eval()",
        "print(loss_fn(model(inputs), targets))",
    ]
    return Witness(i, fraction, evaluation.loss, evaluation.samples, "\n".join(lines))


def is_violation(evaluation: Evaluation, threshold: float) -> bool:
    """Whether the loss of a point is above the threshold, or that of a sample is not finite."""
    return evaluation.not_finite > 0 or not evaluation.loss <= threshold


@dataclass(frozen=True)
class Findings:
    """What the verdict follows from.

    Attributes:
        coverage: of the segments that change, but for ``barred``.
        not_enclosed: what has no enclosure; None: the pieces were closed by one.
        barred: (segment, name of a tensor, whether it holds integers) where no straight line leads on.
        witness: see :class:`Witness`.
        unconfirmed: a point above the threshold by the chosen samples, which all samples do not confirm.
    """

    line: Polyline
    arc_length: ArcLength
    threshold: float
    evaluator: Evaluator
    chosen: SampleChoice
    coverage: Coverage
    not_enclosed: str | None
    barred: Sequence[tuple[int, str, bool]]
    witness: Witness | None
    unconfirmed: Position | None

    @property
    def verdict(self) -> Verdict:
        if self.witness is not None:
            return "refuted"
        if self.barred or self.coverage.open or self.unconfirmed is not None:
            return "undecided"
        if self.left_out:
            return "undecided"
        return "proved" if self.not_enclosed is None and self.chosen.complete else "sampled"

    @property
    def left_out(self) -> list[int]:
        """Changing segments that the pieces do not cover exactly once, though none is open: there are none."""
        barred = {segment for segment, _, _ in self.barred}
        changing = [i for i, change in enumerate(self.arc_length.changes) if change.any and i not in barred]
        return uncovered([*self.coverage.closed, *self.coverage.open], changing)

    @property
    def bound(self) -> float | None:
        """Upper bound of the loss on the whole path by the pieces; None where they do not cover it."""
        covered = self.witness is None and self.verdict != "undecided"
        return max((piece.bound for piece in self.coverage.closed), default=None) if covered else None

    def reasons(self) -> list[str]:
        """Why the path is refuted; empty where it is not."""
        if self.witness is None:
            return []
        at = self.arc_length.location(Position(self.witness.waypoint, self.witness.fraction))
        loss, on = self.witness.loss, f"on all {self.witness.samples:,} training samples"
        if not math.isfinite(loss):
            return [f"the training loss is not finite at {at}, {on}"]
        return [f"the training loss is {loss:.4g} at {at}, above the threshold {self.threshold:g}, {on}"]

    def undecided(self) -> list[str]:
        """What is open, and what would close it."""
        lines = []
        if self.barred:
            number, name, whole = self.barred[0]
            what = f"the tensor {name} has values that are not finite and change"
            if whole:
                kind = "booleans" if self.line.waypoint(number)[name].dtype == torch.bool else "integers"
                what = f"the {kind} of the tensor {name} change"
            more = f" (and {len(self.barred) - 1} more)" if len(self.barred) > 1 else ""
            lines.append(
                f"{what} between waypoints {number} and {number + 1}: no straight line leads from one to the "
                f"other{more}"
            )
        if self.witness is not None:
            return lines
        if self.unconfirmed is not None:
            at = self.arc_length.location(self.unconfirmed)
            lines.append(
                f"the chosen samples say that the loss at {at} is above the threshold {self.threshold:g}, all samples "
                "do not: level full would tell"
            )
        if self.coverage.open and self.unconfirmed is None:
            lines.append(self._open_pieces())
        if self.left_out:
            lines.append(
                f"no piece covers the segment after waypoint {self.left_out[0]}: this is an error of llpf_fast"
            )
        return lines

    def _open_pieces(self) -> str:
        pieces = self.coverage.open
        first = pieces[0]
        start, end = (self.arc_length.location(_position(first, fraction)) for fraction in (first.start, first.end))
        count = f"{len(pieces):,} piece" + "s" * (len(pieces) != 1)
        share = sum(piece.end - piece.start for piece in pieces)
        segments = len(pieces + self.coverage.closed) and len({p.waypoint for p in pieces + self.coverage.closed})
        bound = f" (bound {first.bound:.4g})" if math.isfinite(first.bound) else ""
        return (
            f"{count}, {100 * share / segments:.3g} % of the changing segments, may exceed the threshold "
            f"{self.threshold:g}, first from {start} to {end}{bound}; {_CLOSED_BY.get(first.cause, 'nothing is known')}"
        )

    def covers(self, way: str, remarks: Sequence[str]) -> str:
        """One sentence: on which samples, by which rule and how far the verdict holds. ``way``: from where to where."""
        loss, threshold = f"the training loss {self.evaluator.loss_name}", f"{self.threshold:g}"
        everything, chosen = self.evaluator.samples, self.chosen
        if chosen.complete:
            samples = f"on all {everything:,} training samples"
        else:
            unit = "training samples" if self.evaluator.by_sample else "batches of training samples"
            samples = (
                f"by an estimate with {STANDARD_ERRORS:g} standard errors from {len(chosen.units):,} of "
                f"{chosen.hardest + chosen.others:,} {unit} (the {chosen.hardest:,} hardest, "
                f"{len(chosen.units) - chosen.hardest:,} at random)"
            )
        if self.not_enclosed is None:
            rule = "an enclosure of the network, in exact arithmetic and rounded outward, holds between the points"
        else:
            rule = f"between evaluated points a rule closes the gaps, which is no proof, because {self.not_enclosed}"
        policy = "BatchNorm statistics are re-estimated at each point"
        policies = [policy] if self.evaluator.statistics == "reestimated" else []
        verdict = self.verdict
        if self.witness is not None:
            at = self.arc_length.location(Position(self.witness.waypoint, self.witness.fraction))
            what = f"{loss} is {self.witness.loss:.4g} at {at}, not at most {threshold}, on all "
            what += f"{self.witness.samples:,} training samples; the path leads {way}"
            details = policies
        elif verdict == "undecided":
            what = f"nothing is shown of the whole path {way}: {loss} may exceed {threshold}"
            details = [f"what is closed was closed {samples}", rule, *policies]
        else:
            what = f"{loss} is at most {threshold} at every point of the polyline {way}, {samples}"
            details = [rule, *policies]
        return f"{verdict.capitalize()}: {'; '.join([what, *details, *remarks])}."


def uncovered(pieces: Sequence[Piece], segments: Sequence[int]) -> list[int]:
    """Those of ``segments`` that ``pieces`` do not cover exactly once."""
    by_segment: dict[int, list[Piece]] = {}
    for piece in sorted(pieces, key=lambda piece: piece.start):
        by_segment.setdefault(piece.waypoint, []).append(piece)
    edges = {i: ([p.start for p in parts] + [1.0], [0.0] + [p.end for p in parts]) for i, parts in by_segment.items()}
    return [i for i in segments if i not in edges or edges[i][0] != edges[i][1]]


def verdict_words(verdict: str, connected: bool) -> str:
    """The verdict, and whether the path is connected, in a few words."""
    if connected:
        return f"connected ({verdict})"
    return f"not connected ({verdict})" if verdict in ("proved", "sampled") else verdict


def barred(changes: Sequence[Change]) -> list[tuple[int, str, bool]]:
    """(segment, name of a tensor, whether it holds integers) for each that no straight line joins."""
    return [
        (i, name, whole)
        for i, change in enumerate(changes)
        for names, whole in ((change.jumps, True), (change.broken, False))
        for name in names
    ]


def _position(piece: Piece, fraction: float) -> Position:
    return Position(piece.waypoint, fraction) if fraction < 1 else Position(piece.waypoint + 1, 0.0)
