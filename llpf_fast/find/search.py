"""``PathSearch``: every decision of one search. Whoever drives it trains and judges for it, one path or a stack."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..correct import CorrectionResult
from ..correct.correction import Trainer
from ..correct.optimizer_step import LayerRates
from ..errors import LLPFError
from ..flat import FlatParameters
from ..modes import can_arrive, leads_to_model
from ..path.polyline import interpolate
from ..settings import Settings
from .endpoints import Endpoints
from .pacing import AcceptedPoint, IterateAverage, StepController
from .phases import RoutePhases, Schedule
from .record import FindResult, Record
from .search_state import SearchState, load_search_state, save_search_state

#: Interior points at which a straight rest of the way is judged; the certificate looks closer. The middle comes
#: first: that is where a barrier is highest.
_CHORD = sorted((i / 8 for i in range(1, 8)), key=lambda f: abs(f - 0.5))


@dataclass(frozen=True)
class TrainRequest:
    """Asks for a correction from round ``first_round`` of the stream; the answer is a ``CorrectionResult``.

    ``go_on`` and ``stop_at_nan`` as in :meth:`~llpf_fast.correct.Correction.run`, whose LLPFError is thrown in.
    """

    first_round: int
    go_on: bool
    stop_at_nan: bool


@dataclass(frozen=True)
class EvalRequest:
    """Asks for the loss of ``values [N]`` on the screening set, with ``buffers``, or else the module's present ones.

    As soon as the mean so far is above ``stop_above``, that will do for an answer.
    """

    values: Tensor
    stop_above: float = math.inf
    buffers: Mapping[str, Tensor] | None = None


class PathSearch:
    """One search, from start to a complete run, as a generator of the work that it needs done (:meth:`steps`).

    What is decided here, and nowhere else: how far the next step goes, what is accepted and what is taken back, when
    the search has arrived or is stuck, what is recorded. See :class:`~llpf_fast.find.finder.PathFinder` for the rules.

    Args:
        flat: the path's module and values, at the start.
        trainer: of this very path.
        optimizer, rates: where a torch optimiser trains instead of ``sgd_``.
    """

    def __init__(
        self,
        settings: Settings,
        flat: FlatParameters,
        ends: Endpoints,
        legs: RoutePhases,
        schedule: Schedule,
        trainer: Trainer,
        record: Record,
        optimizer: torch.optim.Optimizer | None = None,
        rates: LayerRates | None = None,
    ) -> None:
        self.settings, self.flat = settings, flat
        self._ends, self._legs, self._schedule, self._record = ends, legs, schedule, record
        self._trainer, self._optimizer, self._rates = trainer, optimizer, rates
        #: The last waypoint, where a search may go back to it.
        self._waypoint = torch.zeros_like(flat.data) if settings.pacing.kind == "adaptive" else None
        averaged = settings.pacing.iterate_average if settings.pacing.kind == "adaptive" else None
        self._average = IterateAverage(flat.data, averaged)
        self._moments: Tensor | None = None
        self._pace = StepController(settings.pacing, settings.correction.window)
        self._rollback = AcceptedPoint(flat, trainer, optimizer)
        self._forms = {name: list(buffer.shape) for name, buffer in flat.persistent_buffers().items()}
        self._end_buffers: dict[str, Tensor] | None = None
        self._standing = SearchState(leg=legs.first)
        self._measure()
        if record.resumed and not record.complete:
            self._resume()
        if not record.complete:
            legs.enter(self._standing, schedule)

    def _resume(self) -> None:
        standing = load_search_state(self._record.run, self.flat, self._trainer, self._optimizer, self._legs.restore)
        if standing is None:
            self._record.begin_again()
            return
        self._standing, self._moments = standing, None
        self._schedule.phase, self._schedule.since = standing.phase, standing.since
        self._pace.scale = standing.pace
        self._legs.current(standing).mover.set_pace(standing.pace)

    def steps(self) -> Generator[TrainRequest | EvalRequest, Any, FindResult]:
        """Search until arrival, ``max_ticks``, or the smallest step fails; ends at once when the run is complete.

        Every request is answered by ``send`` before the next one comes.
        """
        settings, at = self.settings, self._standing
        if self._record.complete:
            return self._record.result()
        self._record.begin()
        ended = "max_ticks"
        while at.tick < settings.max_ticks:
            at.tick += 1
            if not (yield from self._one_tick()):
                ended = "stuck"
                break
            due = at.point == at.tick and at.tick % settings.arrival.every == 0
            # The last chance is taken whatever tick it is, and from the last waypoint where that tick was taken back.
            if (due or at.tick == settings.max_ticks) and (yield from self._rest_is_low()):
                ended = "arrived"
                break
            if at.tick % settings.record.checkpoint_every == 0:
                self._save()
        self._close(ended)
        return self._record.result()

    def _one_tick(self) -> Generator[TrainRequest | EvalRequest, Any, bool]:
        """Move, correct, judge. False where the smallest step has failed."""
        at, adaptive = self._standing, self.settings.pacing.kind == "adaptive"
        self._legs.advance(at, self._schedule)
        self._move()
        if adaptive:
            corrected, passed = yield from self._correct_until_low()
        else:
            corrected, passed = (yield from self._correct()), True
        if passed:
            at.point, at.loss = at.tick, corrected.loss
            self._measure()
            self._report(corrected)
            if adaptive:
                self._pace.succeeded(corrected.rounds)
            return self._set_pace()
        assert self._waypoint is not None
        self._rollback.back(self._waypoint)
        self._report(corrected, rolled_back=True)
        return self._pace.failed() and self._set_pace()

    def _move(self) -> None:
        at, adaptive = self._standing, self.settings.pacing.kind == "adaptive"
        route = self._legs.current(at)
        record = at.point - at.recorded >= self.settings.record.every
        # After a rollback the buffer holds a waypoint, and keeps its bits: it was projected when its stage was on.
        project_first = 0 < at.point == at.tick - 1
        self.flat.ensure()
        if adaptive:
            self._rollback.keep()
        moments = self._moments if route is self._legs.main else None
        waypoint = self._waypoint
        if waypoint is None and record:
            waypoint = self._spare()
        route.tick(self.flat.data, project_first=project_first, waypoint=waypoint, moments=moments)
        self._moments = None
        if record:
            assert waypoint is not None
            self._record.waypoint(at, self.flat, waypoint)
        scale = route.lr_scale(self.flat.data)
        if self._legs.scale_lr:
            self._trainer.scale_lr(scale) if self._rates is None else self._rates.set(scale)

    def _set_pace(self) -> bool:
        at = self._standing
        if at.pace != self._pace.scale:
            at.pace = self._pace.scale
            self._legs.current(at).mover.set_pace(at.pace)
        return True

    def _correct_until_low(self) -> Generator[TrainRequest | EvalRequest, Any, tuple[CorrectionResult, bool]]:
        """Correct, and where the screening set still finds the point too high, go on as far as the rounds allow.

        A window of few batches may meet the threshold by luck; training on is cheaper than going back.
        """
        most, rounds, average = self.settings.correction.max_steps, 0, self._average
        average.clear()
        while True:
            corrected = yield from self._correct(go_on=rounds > 0)
            rounds += corrected.rounds
            corrected, point = replace(corrected, rounds=rounds), self.flat.data
            if not corrected.finite:
                return corrected, False
            if average.values is not None:
                corrected, point = average.add(point, corrected, self.settings.correction_threshold), average.values
                if not corrected.met and rounds < most:
                    continue
            here = self._as_recorded(point)
            passed = yield from self._is_low(here)
            if passed or rounds >= most:
                if passed and average.values is not None:
                    self.flat.data.copy_(point)
                return corrected, passed and (yield from self._chord_is_low(here))

    def _correct(self, go_on: bool = False) -> Generator[TrainRequest | EvalRequest, Any, CorrectionResult]:
        at = self._standing
        try:
            corrected: CorrectionResult = yield TrainRequest(
                at.rounds, go_on, stop_at_nan=self.settings.pacing.kind == "adaptive"
            )
        except LLPFError as error:
            raise LLPFError(f"tick {at.tick}: {error}{self._culprit()}") from error
        at.rounds += corrected.rounds
        self._check_forms()
        return corrected

    def _check_forms(self) -> None:
        """LLPFError where training gave a buffer another shape: no waypoint after it would fit the first."""
        now = {name: list(buffer.shape) for name, buffer in self.flat.persistent_buffers().items()}
        for name in now.keys() ^ self._forms.keys():
            what = "made" if name in now else "removed"
            raise LLPFError(
                f"training {what} the buffer {name!r}, and a path keeps the form of every tensor: register it with "
                "persistent=False, or run one batch through the networks before"
            )
        for name, shape in now.items():
            if shape != self._forms[name]:
                raise LLPFError(
                    f"training changed the shape of the buffer {name!r} from {self._forms[name]} to {shape}, and a "
                    "path keeps the form of every tensor: register it with persistent=False"
                )

    def _culprit(self) -> str:
        for name, view in self.flat.views(self.flat.data).items():
            if not bool(view.isfinite().all()):
                return f" (first layer with values that are not finite: {name})"
        return ""

    def _is_low(self, here: Tensor) -> Generator[TrainRequest | EvalRequest, Any, bool]:
        """Whether the projected point ``here [N]`` passes the screening set."""
        limit = self.settings.threshold * self.settings.pacing.margin
        loss: float = yield EvalRequest(here, self._hopeless(limit))
        return loss <= limit

    def _hopeless(self, limit: float) -> float:
        """Mean loss of the first images from which on a point is given up."""
        glance = self.settings.pacing.early_reject
        return math.inf if glance is None or self.settings.pacing.kind != "adaptive" else limit * glance

    def _chord_is_low(self, here: Tensor) -> Generator[TrainRequest | EvalRequest, Any, bool]:
        """With ``pacing.midpoint``: whether the middle of the way to ``here [N]`` passes too, half the margin wider.

        Training on would not lower it; only shorter steps do.
        """
        if not self.settings.pacing.midpoint:
            return True
        assert self._waypoint is not None
        # Buffers on the chord are those that the certificate will give it: half the way too.
        now = self.flat.persistent_buffers()
        buffers = interpolate({name: self._rollback.buffers[name] for name in now}, now, 0.5)
        loss: float = yield EvalRequest(torch.lerp(self._waypoint, here, 0.5, out=here), buffers=buffers)
        return loss <= self.settings.threshold * (1 + self.settings.pacing.margin) / 2

    def _as_recorded(self, point: Tensor) -> Tensor:
        """``point [N]`` as the next tick would record it: blending spheres follow the way that it has come."""
        here = self._beside(point)
        self._legs.project_as_recorded(self._standing, here, self._shares(self._legs.distances(here)))
        return here

    def _beside(self, point: Tensor) -> Tensor:
        """A copy of ``point [N]`` in spare memory."""
        return self._spare().copy_(point)

    def _spare(self) -> Tensor:
        """``[N]``: the gradients' memory, which nothing needs between two corrections."""
        self.flat.ensure_gradients()
        return self.flat.grad

    def _rest_is_low(self) -> Generator[TrainRequest | EvalRequest, Any, bool]:
        """Whether the straight way from the projected current point to its end stays below the threshold."""
        if not can_arrive(self.settings) or not self._legs.is_last(self._standing):
            return False
        at, here = self._standing, self._beside(self.flat.data)
        if at.point == at.tick:
            self._legs.current(at).project(here)
        # Counted from the destination's own loss up: a destination close below the threshold can be arrived at too.
        room = self.settings.threshold - self._ends.end_loss
        limit = self._ends.end_loss + room * self.settings.arrival.margin
        stop = self._hopeless(limit)
        if (yield EvalRequest(here, stop)) > limit:
            return False
        there = self._legs.rest(here)
        if self._ends.end is None and (yield EvalRequest(there, stop)) > limit:
            return False
        between, buffers = torch.empty_like(here), self.flat.persistent_buffers()
        last = self._last_buffers(buffers)
        for fraction in _CHORD:
            torch.lerp(here, there, fraction, out=between)
            if (yield EvalRequest(between, stop, interpolate({n: buffers[n] for n in last}, last, fraction))) > limit:
                return False
        return True

    def _last_buffers(self, now: dict[str, Tensor]) -> dict[str, Tensor]:
        """The destination's buffers, beside the module's ``now``; these, where no network is the destination."""
        end = self._ends.end if leads_to_model(self.settings) else None
        if end is None:
            return now
        if self._end_buffers is None:  # moved to a GPU once
            self._end_buffers = {name: end[name].to(buffer.device) for name, buffer in now.items() if name in end}
        return self._end_buffers

    def _close(self, ended: str) -> None:
        """Record the last point, and the destination where the rest of the way is low."""
        at = self._standing
        self.flat.ensure()
        if at.point > at.recorded:
            if at.point == at.tick:
                self._legs.current(at).project(self.flat.data)
            self._record.waypoint(at, self.flat, self.flat.data)
        end = None
        if ended == "arrived":
            end = self._ends.end if leads_to_model(self.settings) else None
            if end is None:
                end = self.flat.state_dict(self._legs.rest(self.flat.data))
        self._record.finish(at, ended, end, self._notes())

    def _notes(self) -> list[str]:
        """What a reader of the end must know besides."""
        still = ", ".join(self._legs.without_direction(self.flat.data))
        return [f"not on their spheres, because from norm 0 no direction leads there: {still}"] if still else []

    def _measure(self) -> None:
        """Distances and variances of the point that the buffer holds; spheres that follow them."""
        at, route = self._standing, self._legs.main
        # The coming tick begins at this very point: its reduction pass is this one.
        self._moments = moments = route.moments(self.flat.data)
        distances, variances = self._legs.distances(self.flat.data, moments), route.spread.variance(moments)
        shares = self._shares(distances)
        self._legs.follow(at, shares)
        # One read of the host.
        read = torch.cat([distances, shares, variances, route.total(distances).reshape(1)]).tolist()
        count = len(distances)
        at.distances, at.shares, at.variances = read[:count], read[count : 2 * count], read[2 * count : -1]
        at.distance = read[-1]

    def _shares(self, distances: Tensor) -> Tensor:
        initial = self._legs.initial_distance
        return torch.where(initial > 0, distances / initial, 0.0)

    def _report(self, corrected: CorrectionResult, rolled_back: bool = False) -> None:
        at = self._standing
        self._record.tick(
            at,
            corrected,
            step=self._legs.current(at).mover.lengths,
            stage=self._schedule.phase,
            share_left=at.distance / self._legs.initial_total,
            rolled_back=rolled_back,
        )

    def _save(self) -> None:
        at, run = self._standing, self._record.run
        at.phase, at.since = self._schedule.phase, self._schedule.since
        save_search_state(
            run, at, self._record.seconds(at), self.flat, self._trainer, self._optimizer, self._legs.tensors()
        )
