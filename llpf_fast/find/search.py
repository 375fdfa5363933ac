"""``PathSearch``: every decision of one search. Its driver trains and evaluates for it, one path or a stack."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..correct import CorrectionResult
from ..correct.correction import Trainer
from ..correct.optimizer_step import LayerRates
from ..errors import LLPFError
from ..flat import FlatParameters
from ..path.polyline import interpolate
from ..settings import Settings
from ..types import StateDict
from ..verify.evaluator import Evaluator
from .endpoints import Endpoints
from .mend import PathMender, find_fault
from .pacing import AcceptedPoint, IterateAverage, StepController
from .phases import RoutePhases, Schedule
from .record import FindResult, Record
from .requests import ChordRequest, EvalRequest, Request, TrainRequest
from .search_state import SearchState, load_search_state, save_search_state

#: Where the straight rest of the way is evaluated; the certificate takes more points. The middle comes first, because a
#: barrier is highest there.
_REST_FRACTIONS = sorted((i / 8 for i in range(1, 8)), key=lambda f: abs(f - 0.5))


class PathSearch:
    """One search, from start to a complete run, as a generator of the work that it needs done (:meth:`steps`).

    It decides how far the next step goes, what is accepted and what is taken back, when the search has arrived or is
    stuck, and what is recorded. See :class:`~llpf_fast.find.finder.PathFinder` for the rules.

    Args:
        flat: the path's module, with the start's values.
        trainer: of this path.
        make_evaluator: of all training samples, to mend a complete path with.
        optimizer, rates: where a torch optimiser trains instead of ``sgd_``.
    """

    def __init__(
        self,
        settings: Settings,
        flat: FlatParameters,
        endpoints: Endpoints,
        phases: RoutePhases,
        schedule: Schedule,
        trainer: Trainer,
        record: Record,
        make_evaluator: Callable[[], Evaluator],
        optimizer: torch.optim.Optimizer | None = None,
        rates: LayerRates | None = None,
    ) -> None:
        self.settings, self.flat = settings, flat
        self._endpoints, self._phases, self._schedule, self._record = endpoints, phases, schedule, record
        self._trainer, self._optimizer, self._rates = trainer, optimizer, rates
        self._make_evaluator = make_evaluator
        self._adaptive = settings.pacing.kind == "adaptive"
        #: What a failed tick goes back to.
        self._accepted = AcceptedPoint(flat, trainer, optimizer) if self._adaptive else None
        self._average = IterateAverage(flat.data, settings.pacing.iterate_average if self._adaptive else None)
        self._controller = StepController(settings.pacing, settings.correction.window)
        self._buffer_shapes = {name: list(buffer.shape) for name, buffer in flat.persistent_buffers().items()}
        self._destination_buffers: dict[str, Tensor] | None = None
        self._state = SearchState(phase=phases.first_phase)
        self._measure(phases.main.moments(flat.data))
        if record.resumed and not record.complete:
            self._resume()
        if not record.complete:
            phases.enter(self._state, schedule)

    def _resume(self) -> None:
        state = load_search_state(self._record.run, self.flat, self._trainer, self._optimizer, self._phases.restore)
        if state is None:
            self._record.restart()
            return
        self._state = state
        self._schedule.stage, self._schedule.stage_began = state.stage, state.stage_began
        self._controller.scale = state.step_scale
        self._phases.current(state).scale_step(state.step_scale)

    def steps(self) -> Generator[Request, Any, FindResult]:
        """Search until arrival, ``max_ticks``, or the smallest step fails; mend a complete run whose path is too high.

        Every request is answered by ``send`` before the next one.
        """
        settings, state = self.settings, self._state
        if self._record.complete:
            return self._record.result((yield from self._mend()))
        self._record.start_clock()
        if self._accepted is not None:
            self._accepted.save()
        ended = "max_ticks"
        while state.tick < settings.max_ticks:
            state.tick += 1
            if not (yield from self._one_tick()):
                ended = "stuck"
                break
            due = state.accepted_tick == state.tick and state.tick % settings.arrival.every == 0
            # The last tick is always tried, also from the last waypoint where that tick was taken back.
            if (due or state.tick == settings.max_ticks) and (yield from self._rest_is_low()):
                ended = "arrived"
                break
            if state.tick % settings.record.checkpoint_every == 0:
                self._save()
        self._finish(ended)
        return self._record.result()

    def _one_tick(self) -> Generator[Request, Any, bool]:
        """Move, train, project, evaluate, record; False where the smallest step has failed."""
        self._move()
        if self._accepted is None:
            corrected = yield from self._correct()
            self.flat.ensure()
            self._accept(corrected, self._phases.main.moments(self.flat.data))
            return True
        corrected, moments = yield from self._correct_until_low(self.settings.correction.max_steps, self._is_low)
        if moments is not None and not (yield from self._chord_is_low()):
            moments = None
        if moments is not None:
            self._accept(corrected, moments)
            self._accepted.save()
            self._controller.succeeded(corrected.steps)
        else:
            self._accepted.restore()
            self._record_tick(corrected, rolled_back=True)
            if not self._controller.failed():
                return False
        self._scale_step()
        return True

    def _move(self) -> None:
        """Begin the stage that is due, move, set the learning rates."""
        state = self._state
        self.flat.ensure()
        self._phases.advance(state, self._schedule)
        route = self._phases.current(state)
        route.tick(self.flat.data)
        self._set_rates()

    def _set_rates(self) -> None:
        scale = self._phases.current(self._state).lr_scale(self.flat.data)
        if self._phases.scales_lr:
            self._trainer.scale_lr(scale) if self._rates is None else self._rates.set(scale)

    def _accept(self, corrected: CorrectionResult, moments: Tensor) -> None:
        """Measure the trained point, whose ``moments [S, 5]`` these are, project it, record it where that is due."""
        state = self._state
        state.accepted_tick, state.loss = state.tick, corrected.loss
        self._measure(moments)
        self._phases.current(state).project(self.flat.data, moments)
        if state.tick - state.recorded_tick >= self.settings.record.every:
            self._record.add_waypoint(state, self.flat)
        self._record_tick(corrected)

    def _scale_step(self) -> None:
        state = self._state
        if state.step_scale != self._controller.scale:
            state.step_scale = self._controller.scale
            self._phases.current(state).scale_step(state.step_scale)

    def _correct_until_low(
        self, most: int, is_low: Callable[[Tensor], Generator[Request, Any, bool]]
    ) -> Generator[Request, Any, tuple[CorrectionResult, Tensor | None]]:
        """Correct, and again while the projected point ``[N]`` is too high and less than ``most`` steps were taken.

        Returns the point's moments beside the correction; None where it is too high in the end.

        A window of few batches may meet the threshold by chance; training on costs less than going back.
        """
        steps, average = 0, self._average
        average.clear()
        while True:
            corrected = yield from self._correct(continued=steps > 0)
            steps += corrected.steps
            corrected, point = replace(corrected, steps=steps), self.flat.data
            if not corrected.finite:
                return corrected, None
            if average.values is not None:
                corrected, point = average.add(point, corrected, self.settings.correction_threshold), average.values
                if not corrected.met and steps < most:
                    continue
            projected, moments = self._projected_copy(point)
            if (yield from is_low(projected)):
                if average.values is not None:
                    self.flat.data.copy_(point)
                return corrected, moments
            if steps >= most:
                return corrected, None

    def _correct(self, continued: bool = False) -> Generator[Request, Any, CorrectionResult]:
        state = self._state
        try:
            corrected: CorrectionResult = yield TrainRequest(state.sgd_steps, continued, stop_at_nan=self._adaptive)
        except LLPFError as error:
            raise LLPFError(f"tick {state.tick}: {error}{self._first_bad_layer()}") from error
        state.sgd_steps += corrected.steps
        self._check_buffer_shapes()
        return corrected

    def _check_buffer_shapes(self) -> None:
        """LLPFError where training gave a buffer another shape: no waypoint after it would fit the first."""
        now = {name: list(buffer.shape) for name, buffer in self.flat.persistent_buffers().items()}
        for name in now.keys() ^ self._buffer_shapes.keys():
            what = "made" if name in now else "removed"
            raise LLPFError(
                f"training {what} the buffer {name!r}, but the tensors of a path may not change in shape: register it "
                "with persistent=False, or run one batch through the networks before"
            )
        for name, shape in now.items():
            if shape != self._buffer_shapes[name]:
                raise LLPFError(
                    f"training changed the shape of the buffer {name!r} from {self._buffer_shapes[name]} to {shape}, "
                    "but the tensors of a path may not change in shape: register it with persistent=False"
                )

    def _first_bad_layer(self) -> str:
        for name, view in self.flat.views(self.flat.data).items():
            if not bool(view.isfinite().all()):
                return f" (first layer with values that are not finite: {name})"
        return ""

    def _is_low(self, projected: Tensor) -> Generator[Request, Any, bool]:
        """Whether the projected point ``[N]`` passes the screening set."""
        limit = self.settings.threshold * self.settings.pacing.margin
        loss: float = yield EvalRequest(projected, self._early_reject_limit(limit))
        return loss <= limit

    def _early_reject_limit(self, limit: float) -> float:
        """Mean loss of the first samples above which a point is given up."""
        factor = self.settings.pacing.early_reject
        return math.inf if factor is None or not self._adaptive else limit * factor

    def _chord_is_low(self) -> Generator[Request, Any, bool]:
        """With ``pacing.midpoint``: whether the way to the present point, projected, is low, half the margin wider.

        Its middle comes first. More training would not lower the loss; only shorter steps do.
        """
        if not self.settings.pacing.midpoint:
            return True
        assert self._accepted is not None
        projected, _ = self._projected_copy(self.flat.data)
        first, limit = self._accepted.values, self.settings.threshold * (1 + self.settings.pacing.margin) / 2
        # The certificate interpolates buffers too.
        now = self.flat.persistent_buffers()
        before = {name: self._accepted.buffers[name] for name in now}
        middle = torch.lerp(first, projected, 0.5, out=projected)
        if (yield EvalRequest(middle, buffers=interpolate(before, now, 0.5))) > limit:
            return False
        # The same values again: another memory for the middle would be one word more a parameter.
        projected, _ = self._projected_copy(self.flat.data)
        return (yield from self._nothing_is_above(limit, first, before, projected, now, at=0.5, out=projected))

    def _nothing_is_above(
        self,
        limit: float,
        first: Tensor,
        first_buffers: StateDict,
        second: Tensor,
        second_buffers: StateDict,
        *,
        at: float,
        out: Tensor,
    ) -> Generator[Request, Any, bool]:
        """Whether no point of a chord, whose ends are ``[N]``, is known to be above ``limit``; overwrites ``out [N]``.

        ``at``: the fraction of the point that was evaluated last.
        """
        start = {**self.flat.state_dict(first, copied=False), **first_buffers}
        end = {**self.flat.state_dict(second, copied=False), **second_buffers}
        suspect: float | None = yield ChordRequest(start, end, at, limit)
        if suspect is None:
            return True
        here = interpolate(first_buffers, second_buffers, suspect)
        loss: float = yield EvalRequest(torch.lerp(first, second, suspect, out=out), buffers=here)
        return loss <= limit

    def _mend(self) -> Generator[Request, Any, str]:
        """Mend a complete path that its certificate refutes; returns a line about it, empty where all is well."""
        fault, line = find_fault(self._record.run)
        if fault is None:
            return line
        state, status = self._state, self._record.run.status or {}
        state.phase, state.accepted_tick, state.sgd_steps = "main", 1, int(status.get("sgd_steps") or 0)
        run, evaluator = self._record.run, self._make_evaluator
        mender = PathMender(
            self.settings, run, self.flat, evaluator, self._correct_here, lambda point: self._projected_copy(point)[0]
        )
        return (yield from mender.steps(fault))

    def _correct_here(self, most: int, is_low: Callable[[Tensor], bool]) -> Generator[Request, Any, tuple[int, bool]]:
        """Correct the present point of a complete path; returns the gradient steps, and whether it is low then."""
        if self.settings.spheres.variance == "shrink-first":
            # How far the layers had shrunk here is in no file; the place itself tells.
            here = self._phases.main
            here.set_spheres(here.statistics.variance(here.moments(self.flat.data)))
        self._set_rates()

        def accepted(projected: Tensor) -> Generator[Request, Any, bool]:
            yield from ()
            return is_low(projected)

        corrected, moments = yield from self._correct_until_low(most, accepted)
        return corrected.steps, moments is not None

    def _projected_copy(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """``point [N]`` as it would be accepted, in the gradients' memory; and the moments of ``point``."""
        copy = self.flat.borrow_gradient_memory().copy_(point)
        moments = self._phases.main.moments(copy)
        shares = self._shares(self._phases.distances(copy, moments))
        self._phases.project_as_accepted(self._state, copy, shares, moments)
        return copy, moments

    def _rest_is_low(self) -> Generator[Request, Any, bool]:
        """Whether the straight way from the current point to its end stays below the threshold."""
        if self.settings.goal == "none" or self._state.phase != "main":
            return False
        self.flat.ensure()
        point = self.flat.data
        # Counted from the destination's loss up, so that a destination just below the threshold can be arrived at.
        lowest = self._endpoints.destination_loss
        limit = lowest + (self.settings.threshold - lowest) * self.settings.arrival.margin
        stop = self._early_reject_limit(limit)
        if (yield EvalRequest(point, stop)) > limit:
            return False
        end = self._phases.main.rest(point)
        if self._endpoints.destination is None and (yield EvalRequest(end, stop)) > limit:
            return False
        between, buffers = self.flat.borrow_gradient_memory(), self.flat.persistent_buffers()
        last = self._last_buffers(buffers)
        first = {name: buffers[name] for name in last}
        losses = []
        for fraction in _REST_FRACTIONS:
            torch.lerp(point, end, fraction, out=between)
            losses.append((yield EvalRequest(between, stop, interpolate(first, last, fraction))))
            if losses[-1] > limit:
                return False
        highest = _REST_FRACTIONS[losses.index(max(losses))]
        if highest != _REST_FRACTIONS[-1]:
            torch.lerp(point, end, highest, out=between)
            yield EvalRequest(between, buffers=interpolate(first, last, highest))
        return (yield from self._nothing_is_above(limit, point, first, end, last, at=highest, out=between))

    def _last_buffers(self, now: dict[str, Tensor]) -> dict[str, Tensor]:
        """The destination's buffers, of those the module has; ``now``, the module's, without a destination model."""
        end = self._endpoints.destination if self.settings.goal == "model" else None
        if end is None:
            return now
        if self._destination_buffers is None:  # moved to a GPU once
            self._destination_buffers = {
                name: end[name].to(buffer.device) for name, buffer in now.items() if name in end
            }
        return self._destination_buffers

    def _finish(self, ended: str) -> None:
        """Record the last point, and the end of the way where the search has arrived."""
        state = self._state
        self.flat.ensure()
        if state.accepted_tick > state.recorded_tick:
            self._record.add_waypoint(state, self.flat)
        end = None
        if ended == "arrived":
            end = self._endpoints.destination if self.settings.goal == "model" else None
            if end is None:
                end = self.flat.state_dict(self._phases.main.rest(self.flat.data))
        self._record.finish(state, ended, end, self._notes())

    def _notes(self) -> list[str]:
        stay = ", ".join(self._phases.without_direction(self.flat.data))
        return [f"not on their spheres, because from norm 0 no direction leads there: {stay}"] if stay else []

    def _measure(self, moments: Tensor) -> None:
        """Distances and variances of the present point from its ``moments [S, 5]``; blending spheres follow it."""
        state, route = self._state, self._phases.main
        distances, variances = self._phases.distances(self.flat.data, moments), route.statistics.variance(moments)
        shares = self._shares(distances)
        self._phases.blend_spheres(state, shares)
        # One transfer to the host.
        values = torch.cat([distances, shares, variances, route.total(distances).reshape(1)]).tolist()
        count = len(distances)
        state.distances, state.shares, state.variances = (
            values[:count],
            values[count : 2 * count],
            values[2 * count : -1],
        )
        state.distance = values[-1]

    def _shares(self, distances: Tensor) -> Tensor:
        """float64 ``[S]``: shares of the initial distances."""
        initial = self._phases.initial_distance
        return torch.where(initial > 0, distances / initial, 0.0)

    def _record_tick(self, corrected: CorrectionResult, rolled_back: bool = False) -> None:
        state = self._state
        self._record.add_tick(
            state,
            corrected,
            step=self._phases.current(state).step_lengths,
            stage=self._schedule.stage,
            share_left=state.distance / self._phases.initial_total,
            rolled_back=rolled_back,
        )

    def _save(self) -> None:
        state, seconds = self._state, self._record.seconds(self._state)
        state.stage, state.stage_began = self._schedule.stage, self._schedule.stage_began
        tensors = self._phases.tensors()
        save_search_state(self._record.run, state, seconds, self.flat, self._trainer, self._optimizer, tensors)
