"""``PathMender``: corrects a complete path where its certificate refutes it, or leaves open what is close to high."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import LLPFError
from ..flat import FlatParameters
from ..path import RunDirectory
from ..path.polyline import Polyline, Position
from ..settings import Settings
from ..types import StateDict
from ..verify.evaluator import Evaluator
from ..verify.sample_choice import choose_units
from .chord import MOST_PARAMETERS, ChordCheck, Effort, WeightedUnits

#: A mended path is certified next, at many times this cost.
_EFFORT = Effort(128, 64, 200, 256, 128, 16_000)
#: Inner points of a new segment that are evaluated.
_FRACTIONS = tuple(i / 8 for i in range(1, 8))
#: How often a new segment is split again, and most new waypoints in place of one segment.
_DEEPEST, _MOST_NEW = 5, 24
#: Gradient steps of one correction, where the settings allow fewer.
_LEAST_STEPS = 1_000
#: Where a correction begins: at the position itself, then so far beside it, as a share of the segment's length.
_BESIDE = (0.0, 0.1, 0.3)
#: Causes of open pieces that a lower loss removes.
_CLOSE_TO_HIGH = ("width", "rounding", "samples")


@dataclass(frozen=True)
class Fault:
    """Where a certificate asks for a lower loss: one position a segment, and the threshold."""

    positions: tuple[Position, ...]
    refuted: bool
    threshold: float


def find_fault(run: RunDirectory) -> tuple[Fault | None, str]:
    """What the certificate of a complete run asks to be mended; else a line that says why nothing is.

    The line is empty where there is no certificate, or one that has nothing against the path.

    Raises:
        LLPFError: certificate.json is damaged.
    """
    certificate = run.certificate()
    if certificate is None or certificate.get("connected") is True:
        return None, ""
    verify = f"llpf verify {run.folder}"
    try:
        if certificate["run"].get("waypoint_index_sha256") != run.index_digest():
            return None, f"nothing is mended: certificate.json is of another path; {verify} makes a new one"
        verdict, threshold = certificate["verdict"], float(certificate["threshold"])
        if verdict == "refuted":
            witness = certificate["witness"]
            positions = [Position(int(witness["waypoint"]), float(witness["fraction"]))]
        elif verdict == "undecided":
            positions = _open_positions(certificate["pieces"])
            if not positions:
                return (
                    None,
                    f"nothing is mended: the certificate is undecided for another reason than the loss; {verify}",
                )
        else:
            return None, ""
        for waypoint, fraction in positions:
            if not (0 <= waypoint < len(run.waypoints()) and 0 <= fraction < 1):
                raise ValueError(f"waypoint {waypoint}, fraction {fraction}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LLPFError(f"{run.folder / 'certificate.json'} is damaged ({error}); {verify} makes a new one") from error
    return Fault(tuple(positions), verdict == "refuted", threshold), ""


def _open_positions(pieces: Any) -> list[Position]:
    """The middle of the open piece of the highest bound, in each segment that has one for the loss's sake."""
    positions: dict[int, tuple[float, Position]] = {}
    for waypoint, start, end, first, second, cause in pieces:
        if cause in _CLOSE_TO_HIGH:
            bound = max(math.inf if each is None else float(each) for each in (first, second))
            middle = Position(int(waypoint), (float(start) + float(end)) / 2)
            if waypoint not in positions or bound > positions[waypoint][0]:
                positions[waypoint] = bound, middle
    return [position for _, position in positions.values()]


class PathMender:
    """Puts corrected waypoints where the certificate met a loss that is too high (ours).

    The point is trained until its loss is below the threshold by the pacing's margin, is projected as any waypoint, and
    becomes a waypoint between its neighbours; waypoints that are themselves too high are replaced. Both new segments
    are evaluated at seven points and checked as the search checks chords; where one is high it is split likewise.
    The loss is estimated as in a certificate of level sampled, from training samples chosen by their losses at the
    fault, plus 5 standard errors. The same run and certificate give the same bits.

    Args:
        run: complete.
        flat: of the path's module; its values and buffers are replaced.
        make_evaluator: of all training samples; called where there is something to mend.
        correct: trains the module for so many gradient steps at most, until the function that it is given says that the
            projected point ``[N]`` is low; returns the steps, and whether it is low.
        project: a projected copy of a point ``[N]``, good until the next one.
    """

    def __init__(
        self,
        settings: Settings,
        run: RunDirectory,
        flat: FlatParameters,
        make_evaluator: Callable[[], Evaluator],
        correct: Callable[[int, Callable[[Tensor], bool]], Generator[Any, Any, tuple[int, bool]]],
        project: Callable[[Tensor], Tensor],
    ) -> None:
        self._settings, self._run, self._flat = settings, run, flat
        self._make_evaluator, self._correct, self._project = make_evaluator, correct, project
        self._sgd_steps = 0

    def steps(self, fault: Fault) -> Generator[Any, Any, str]:
        """Mend, a segment after the other; each is written durably when it is done. Returns a line about it.

        Raises:
            LLPFError: an endpoint is too high; training does not lower the loss. What was not written stays as it was.
        """
        evaluator, lines = self._make_evaluator(), []
        certificate = self._run.certificate() or {}
        # From the end: numbers of waypoints before stay as they are.
        untouched = len(self._run.waypoints())
        for position in sorted(fault.positions, reverse=True):
            if position.waypoint >= untouched:
                continue  # its segment went with the one behind it
            began, before = time.monotonic(), self._sgd_steps
            segment = _Segment(self._run, position)
            loss = self._choose_samples(evaluator, segment.state, fault)
            segment.widen(lambda state: self._loss(state)[0], self._chord_limit, self._threshold)
            new = yield from self._between(segment)
            line = (
                f"mended: the training loss was {loss:.4g} at waypoint {position.waypoint} + {position.fraction:.3g}; "
                f"{len(new)} new waypoint{'s' * (len(new) != 1)}, {self._sgd_steps - before:,} gradient steps"
            )
            self._write(segment, new, line, self._sgd_steps - before, time.monotonic() - began)
            untouched = segment.after
            lines.append(line)
        self._run.write_certificate({**certificate, "outdated": "; ".join(lines)})
        return "; ".join(lines)

    def _write(self, segment: _Segment, new: list[StateDict], line: str, steps: int, seconds: float) -> None:
        status = self._run.status or {}
        mends = [*(status.get("mends") or ()), line]
        changes = {
            "sgd_steps": int(status.get("sgd_steps") or 0) + steps,
            "seconds": float(status.get("seconds") or 0.0) + seconds,
            "mends": mends,
        }
        self._run.splice(segment.after, segment.before, new, changes, mended=len(mends))

    def _choose_samples(self, evaluator: Evaluator, state: StateDict, fault: Fault) -> float:
        """Choose the samples of a mending by their losses at the fault; returns the loss of all there."""
        evaluation, losses = evaluator.with_losses(state)
        loss = evaluation.loss
        threshold = min(fault.threshold, self._settings.threshold)
        if fault.refuted and loss <= threshold and not evaluation.not_finite:
            raise LLPFError(
                f"nothing to mend in {self._run.folder}: the loss at the certificate's witness is {loss:.4g} on the "
                f"search's data, not above {threshold:g}; was it verified on other data?"
            )
        numerators = evaluator.by_unit(losses.numerators)
        choice = choose_units(numerators, evaluator.unit_denominators(), seed=self._settings.seed)
        self._choice, self._part = choice, evaluator.on_units(choice.units)
        weighted = WeightedUnits(self._part, choice.weights * choice.denominator, choice.denominator)
        large = self._flat.data.numel() > MOST_PARAMETERS
        self._chords = ChordCheck(None if large else lambda: weighted, _EFFORT)
        slack = (1 - self._settings.pacing.margin) * abs(threshold)
        self._limit, self._chord_limit, self._threshold = threshold - slack, threshold - slack / 2, threshold
        return loss

    def _loss(self, state: StateDict) -> tuple[float, list[Tensor]]:
        """The estimate of all samples' loss, and the chosen samples' losses."""
        numerators = self._part.with_losses(state)[1].numerators
        return self._choice.upper(self._part.by_unit(numerators)), numerators

    def _between(self, segment: _Segment) -> Generator[Any, Any, list[StateDict]]:
        """The new waypoints of a segment, in order."""
        self._left = _MOST_NEW
        new = yield from self._corrected(segment.state, (segment.first, segment.second or segment.state))
        before = yield from self._checked(segment.first, new, 0)
        after: list[StateDict] = []
        if segment.second is not None:
            after = yield from self._checked(new, segment.second, 0)
        return [*before, new, *after]

    def _checked(self, first: StateDict, second: StateDict, depth: int) -> Generator[Any, Any, list[StateDict]]:
        """The waypoints that must lie between two others for the line to be low."""
        line = Polyline([first, second])
        last = depth == _DEEPEST or self._left == 0
        # Beside an end that must stay nothing is lower than the end.
        ends = max(self._loss(first)[0], self._loss(second)[0])
        high = self._highest(line, self._threshold if last else min(max(self._chord_limit, ends), self._threshold))
        if high is None:
            return []
        if last:
            raise LLPFError(
                f"the path in {self._run.folder} cannot be mended: after {_MOST_NEW - self._left} new waypoints the "
                "loss between them is still too high; search anew with a smaller step.relative, or raise the threshold"
            )
        new = yield from self._corrected(line.state(Position(0, high)), (first, second))
        before = yield from self._checked(first, new, depth + 1)
        return [*before, new, *(yield from self._checked(new, second, depth + 1))]

    def _highest(self, line: Polyline, limit: float) -> float | None:
        """Where the line is highest, as far as that is seen and above ``limit``."""
        known = {f: self._loss(line.state(Position(0, f))) for f in _FRACTIONS}
        at = max(_FRACTIONS, key=lambda f: known[f][0])
        if known[at][0] > limit:
            return at
        suspect = self._chords.suspect(line.waypoint(0), line.waypoint(1), at, known[at][1], limit)
        return suspect if suspect is not None and self._loss(line.state(Position(0, suspect)))[0] > limit else None

    def _corrected(self, state: StateDict, ends: tuple[StateDict, StateDict]) -> Generator[Any, Any, StateDict]:
        """The point after training, projected, with the buffers that training left.

        From the top of a narrow peak steep gradients may lead astray: then training begins beside it.
        """
        own = self._flat.state_dict(copied=False)
        most = max(self._settings.correction.max_steps, _LEAST_STEPS)
        random = torch.Generator().manual_seed(self._settings.seed)
        self._left -= 1
        for share in _BESIDE:
            self._flat.load({name: value.to(own[name].dtype) for name, value in state.items()})
            self._displace(share, ends, random)
            steps, low = yield from self._correct(
                most, lambda projected: self._loss(self._flat.state_dict(projected, copied=False))[0] <= self._limit
            )
            self._sgd_steps += steps
            if low:
                made = self._flat.state_dict(self._project(self._flat.data))
                return {name: value.cpu() for name, value in made.items()}
        raise LLPFError(
            f"the path in {self._run.folder} cannot be mended: {most:,} gradient steps do not bring the loss below "
            f"{self._limit:.4g}; raise the threshold, or change correction.lr and search anew"
        )

    def _displace(self, share: float, ends: tuple[StateDict, StateDict], random: torch.Generator) -> None:
        """Add noise to each parameter of the module: about ``share`` of the length of its way from end to end."""
        if not share:
            return
        for name, view in self._flat.views(self._flat.data).items():
            length = (ends[1][name].double() - ends[0][name].double()).norm()
            noise = torch.randn(view.shape, generator=random) * (share * length / math.sqrt(view.numel()))
            view.add_(noise.to(view))


class _Segment:
    """A position of a path, its state, and the waypoints ``after`` and ``before`` that a new one goes between.

    ``second`` is None where the position is the last waypoint of a path without a destination.
    """

    def __init__(self, run: RunDirectory, position: Position) -> None:
        self._run, waypoints = run, run.waypoints()
        self._line, self._last = Polyline(waypoints), len(waypoints) - 1
        self.state = {name: value.clone() for name, value in self._line.state(position).items()}
        self.after, self.before = position.waypoint, position.waypoint + 1
        if position.fraction == 0:
            self._replace(position.waypoint)
            self.after -= 1

    @property
    def first(self) -> StateDict:
        return self._line.waypoint(self.after)

    @property
    def second(self) -> StateDict | None:
        return self._line.waypoint(self.before) if self.before <= self._last else None

    def widen(self, loss: Callable[[StateDict], float], limit: float, threshold: float) -> None:
        """Leave out neighbours above ``limit``; LLPFError for an endpoint above ``threshold``."""
        while loss(self.first) > (threshold if self._stays(self.after) else limit):
            self._replace(self.after)
            self.after -= 1
        while self.second is not None and loss(self.second) > (threshold if self._stays(self.before) else limit):
            self._replace(self.before)
            self.before += 1

    def _stays(self, waypoint: int) -> bool:
        """Whether the waypoint is an endpoint, which must stay."""
        return waypoint == 0 or (waypoint == self._last and self._run.arrived)

    def _replace(self, waypoint: int) -> None:
        if self._stays(waypoint):
            name = "start" if waypoint == 0 else "destination"
            raise LLPFError(
                f"the {name} of {self._run.folder} is itself above the threshold on all training samples, and must "
                "stay: train it further or raise the threshold"
            )
