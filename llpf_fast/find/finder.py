"""``PathFinder``: the LLPF search, composed from the rooms below."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..correct import Corrected, LossFunction
from ..correct.draw import key_of
from ..correct.group_rates import GroupRates, OptimizerFactory, one_group_each
from ..errors import LLPFError
from ..flat import FlatParameters
from ..path import RunDirectory, check_finite, state_digest
from . import environment
from .checkpoint import load_standing, save_standing
from .dialect import can_arrive, leads_to_model, resolve
from .legs import Legs
from .make_correction import TrainingData, make_correction, on_device
from .pace import Pace
from .results import FindResult, TickProgress
from .rollback import Rollback
from .schedule import make_schedule
from .screen import Screen, screen_batches
from .settings import Settings
from .standing import Standing

#: Interior points at which a straight rest of the way is judged; the certificate looks closer.
_CHORD_POINTS = 7
_STREAM_MODULE_RANDOMNESS = 2


class PathFinder:
    """Search a low-loss path from a trained model and write it to a run directory.

    Per tick (LLPF, arXiv 2505.02604): every active layer steps toward the destination, is rescaled onto its variance
    sphere (M2M), trains until the loss is back under the threshold, and is rescaled again. Toward a model or a sphere
    the search has arrived when the straight rest of the way stays below the threshold; that rest is the path's last
    segment. Toward the origin, infinity or the mean it goes on for ``max_ticks``, or until it is stuck.

    Args:
        module: the architecture; its values are replaced, its device is ``device``.
        start: complete state dict.
        destination: complete state dict: the model to go to (m2m), or one that lies on the spheres to go to.
            ``None`` for the other modes, and for spheres given by ``settings.spheres``.
        settings: see :class:`~llpf_fast.find.settings.Settings`.
        train: (inputs, targets) tensors, or a re-iterable of such batches (DataLoader).
        loss_fn: (model output, targets) -> mean loss; cross-entropy when missing.
        optimizer: makes any torch optimiser for the correction from the parameters (from one group for each where a
            learning-rate rule is on); the fused SGD when missing.
        device: where to compute.
        out: the run directory; a new temporary folder when missing.
        progress: called after every tick.
        resume: continue the run that ``out`` holds.
        provenance: plain values to record in run.yaml (file names of the endpoints, recipe).
        is_norm: also counts a module for which it returns True as a normalization layer.

    Raises:
        LLPFError: input that cannot work; the message names it.
    """

    def __init__(
        self,
        module: nn.Module,
        start: Mapping[str, Tensor],
        destination: Mapping[str, Tensor] | None = None,
        *,
        settings: Settings,
        train: TrainingData,
        loss_fn: LossFunction | None = None,
        optimizer: OptimizerFactory | None = None,
        device: torch.device | str = "cpu",
        out: str | os.PathLike[str] | None = None,
        progress: Callable[[TickProgress], None] | None = None,
        resume: bool = False,
        provenance: dict[str, Any] | None = None,
        is_norm: Callable[[nn.Module], bool] | None = None,
    ) -> None:
        settings.validate()
        self.settings = settings
        self._device = torch.device(device)
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise LLPFError("device cuda was asked for, but torch sees no GPU; use cpu")
        self._progress = progress
        self._start = dict(start)
        check_finite(self._start, "start")
        self._end = self._destination_state(destination)
        self._loss_fn = loss_fn or nn.functional.cross_entropy
        data = on_device(train, self._device)
        rule = resolve(settings)
        layout: dict[str, Any] = {"join_bias": settings.step.join_bias, "cut_attention": rule.values_only}
        self.flat = FlatParameters(module.to(self._device), is_norm=is_norm, **layout)
        like = None if self._end is None else self.flat.flatten(self._end)
        self.flat.load(self._start)
        if leads_to_model(settings) and like is not None and torch.equal(like, self.flat.data):
            raise LLPFError("start and destination have equal parameters: there is no path to find")
        self._legs = Legs(settings, rule, self.flat, like)
        self._optimizer, self._rates = self._make_optimizer(optimizer, self._legs.scale_lr)
        self._correction = make_correction(settings, self.flat, self._loss_fn, data, self._optimizer)
        batches = screen_batches(data, settings.screen_size, self._device)
        self._screen = Screen(module, self._loss_fn, batches, **layout)
        self._check_endpoints(like)
        self._schedule = make_schedule(
            settings, self.flat, self._legs.main.may_move(), lambda: module(batches[0][0][:2])
        )
        self._waypoint = torch.zeros_like(self.flat.data)
        self._moments: Tensor | None = None
        self._pace = Pace(settings.pace, settings.correction.min_rounds)
        self._rollback = Rollback(self.flat, self._correction, self._optimizer)
        self._standing = Standing(leg=self._legs.first)
        self._measure()
        self._run = self._open(out, resume, provenance or {})
        self._legs.enter(self._standing, self._schedule)

    def _destination_state(self, destination: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
        settings = self.settings
        if destination is None:
            if leads_to_model(settings):
                raise LLPFError("mode m2m needs a destination model")
            if settings.mode.endswith("-sphere") and not settings.spheres:
                raise LLPFError(f"mode {settings.mode} needs spheres: numbers in the settings, or a model on them")
            return None
        if not leads_to_model(settings) and not settings.mode.endswith("-sphere"):
            raise LLPFError(f"mode {settings.mode} takes no destination model")
        if settings.spheres:
            raise LLPFError("spheres are given twice, by numbers and by a model; leave one out")
        state = dict(destination)
        check_finite(state, "destination")
        return state

    def _make_optimizer(
        self, factory: OptimizerFactory | None, by_layer: bool
    ) -> tuple[torch.optim.Optimizer | None, GroupRates | None]:
        if factory is None:
            return None, None
        if not by_layer:
            return factory(self.flat.module.parameters()), None
        optimizer = factory(one_group_each(self.flat.module))
        return optimizer, GroupRates(optimizer, self.flat)

    def _check_endpoints(self, like: Tensor | None) -> None:
        ends = [("start", self.flat.data, self._start)]
        if leads_to_model(self.settings) and like is not None and self._end is not None:
            ends.append(("destination", like, self._end))
        self._end_loss = 0.0
        for name, values, state in ends:
            loss = self._screen.loss(values, state)
            if name == "destination":
                self._end_loss = loss
            if loss > self.settings.threshold:
                raise LLPFError(
                    f"the {name} itself has training loss {loss:.4g} on the screening set, above the threshold "
                    f"{self.settings.threshold:g}: train it further or raise the threshold"
                )

    def _open(self, out: str | os.PathLike[str] | None, resume: bool, provenance: dict[str, Any]) -> RunDirectory:
        record = {
            "llpf_fast": 1,
            "provenance": provenance,
            "settings": self.settings.as_dict(),
            "environment": environment.describe(self._device),
            "start_sha256": state_digest(self._start),
        }
        if self._end is not None:
            name = "destination" if leads_to_model(self.settings) else "sphere"
            record[f"{name}_sha256"] = state_digest(self._end)
        if not resume:
            folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="llpf-"))
            run = RunDirectory.create(folder, record)
            run.add_waypoint(0, self._start)
            return run
        if out is None:
            raise LLPFError("resume needs the folder of the run to continue")
        run = RunDirectory.open(out)
        for key in ("settings", "start_sha256", "destination_sha256", "sphere_sha256"):
            if run.run.get(key) != record.get(key):
                raise LLPFError(f"cannot resume {run.folder}: its {key} differ from those given now")
        environment.restore(run.run.get("environment", {}), self._device)
        self._load(run)
        return run

    def _load(self, run: RunDirectory) -> None:
        if run.complete:
            done = run.status or {}
            self._standing.tick, self._standing.rounds = done["ticks"], done["sgd_steps"]
            self._standing.seconds = done["seconds"]
            return
        standing = load_standing(run, self.flat, self._correction, self._optimizer, self._legs)
        if standing is None:
            run.truncate(waypoints=1, metrics=0)
            if not run.waypoints():
                run.add_waypoint(0, self._start)
            return
        self._standing, self._moments = standing, None
        self._schedule.phase, self._schedule.since = standing.phase, standing.since
        self._pace.scale = standing.pace
        self._legs.current(standing).mover.set_pace(standing.pace)

    def run(self) -> FindResult:
        """Search until arrival, ``max_ticks``, or the smallest step fails; returns at once when the run is complete."""
        settings, at, began = self.settings, self._standing, time.monotonic()
        if self._run.complete:
            return self._result(0.0)
        ended = "max_ticks"
        while at.tick < settings.max_ticks:
            at.tick += 1
            if not self._one_tick(began):
                ended = "stuck"
                break
            if at.point == at.tick and at.tick % settings.arrival_every == 0 and self._rest_is_low():
                ended = "arrived"
                break
            if at.tick % settings.checkpoint_every == 0:
                self._save(began)
        self._close(ended, began)
        return self._result(time.monotonic() - began)

    def _one_tick(self, began: float) -> bool:
        """Move, correct, judge. False where the smallest step has failed."""
        at, adaptive = self._standing, self.settings.pacing == "adaptive"
        self._legs.advance(at, self._schedule)
        route = self._legs.current(at)
        record = at.point - at.recorded >= self.settings.record_every
        # After a rollback the buffer holds a waypoint, and keeps its bits: it was projected when its stage was on.
        project_first = 0 < at.point == at.tick - 1
        self.flat.ensure()
        if adaptive:
            self._rollback.keep()
        moments = self._moments if route is self._legs.main else None
        route.tick(
            self.flat.data,
            project_first=project_first,
            waypoint=self._waypoint if record or adaptive else None,
            moments=moments,
        )
        self._moments = None
        if record:
            self._record(self._waypoint)
        scale = route.lr_scale(self.flat.data)
        if self._legs.scale_lr:
            self._correction.scale_lr(scale) if self._rates is None else self._rates.set(scale)
        corrected, passed = self._correct_until_low() if adaptive else (self._correct(), True)
        if passed:
            at.point, at.loss = at.tick, corrected.loss
            self._measure()
            self._report(corrected, began)
            if adaptive:
                self._pace.succeeded(corrected.rounds)
            return self._set_pace()
        self._rollback.back(self._waypoint)
        self._report(corrected, began, rolled_back=True)
        return self._pace.failed() and self._set_pace()

    def _set_pace(self) -> bool:
        at = self._standing
        if at.pace != self._pace.scale:
            at.pace = self._pace.scale
            self._legs.current(at).mover.set_pace(at.pace)
        return True

    def _correct_until_low(self) -> tuple[Corrected, bool]:
        """Correct, and where the screening set still finds the point too high, go on as far as the rounds allow.

        A window of few batches may meet the threshold by luck; training on is cheaper than going back.
        """
        most, rounds = self.settings.correction.max_rounds, 0
        while True:
            corrected = self._correct(go_on=rounds > 0)
            rounds += corrected.rounds
            here = self._as_recorded()
            passed = corrected.finite and self._is_low(here)
            if passed or not corrected.finite or rounds >= most:
                return replace(corrected, rounds=rounds), passed and self._chord_is_low(here)

    def _correct(self, go_on: bool = False) -> Corrected:
        at = self._standing
        key = key_of(self.settings.seed, 0, at.rounds, _STREAM_MODULE_RANDOMNESS)
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(key)
            try:
                corrected = self._correction.run(at.rounds, go_on=go_on, stop_at_nan=self.settings.pacing == "adaptive")
                at.rounds += corrected.rounds
                return corrected
            except LLPFError as error:
                raise LLPFError(f"tick {at.tick}: {error}{self._culprit()}") from error

    def _culprit(self) -> str:
        for name, view in self.flat.views(self.flat.data).items():
            if not bool(view.isfinite().all()):
                return f" (first layer with values that are not finite: {name})"
        return ""

    def _is_low(self, here: Tensor) -> bool:
        """Whether the projected point ``here [N]`` passes the screening set."""
        limit = self.settings.threshold * self.settings.pace.margin
        return self._screen.loss(here, self.flat.buffers()) <= limit

    def _chord_is_low(self, here: Tensor) -> bool:
        """With ``pace.chord``: whether the middle of the way to ``here [N]`` passes too, half the margin wider.

        Training on would not lower it; only shorter steps do.
        """
        if not self.settings.pace.chord:
            return True
        limit = self.settings.threshold * (1 + self.settings.pace.margin) / 2
        return self._screen.loss(torch.lerp(self._waypoint, here, 0.5), self.flat.buffers()) <= limit

    def _as_recorded(self) -> Tensor:
        """The point as the next tick would record it: blending spheres follow the way that it has come."""
        here = self.flat.data.clone()
        self._legs.project_as_recorded(self._standing, here, self._shares(self._legs.distances(here)))
        return here

    def _rest_is_low(self) -> bool:
        """Whether the straight way from the projected current point to its end stays below the threshold."""
        if not can_arrive(self.settings) or not self._legs.is_last(self._standing):
            return False
        route, here = self._legs.current(self._standing), self.flat.data.clone()
        route.project(here)
        # Counted from the destination's own loss up: a destination close below the threshold can be arrived at too.
        room = self.settings.threshold - self._end_loss
        limit = self._end_loss + room * self.settings.arrival_margin
        buffers = self.flat.buffers()
        if self._screen.loss(here, buffers) > limit:
            return False
        there = self._legs.rest(here)
        if self._end is None and self._screen.loss(there, buffers) > limit:
            return False
        return self._screen.chord(here, there, buffers, _CHORD_POINTS, limit) <= limit

    def _record(self, values: Tensor) -> None:
        at = self._standing
        self._run.add_waypoint(at.point, self.flat.state_dict(values))
        at.recorded = at.point

    def _close(self, ended: str, began: float) -> None:
        """Record the last point, and the destination where the rest of the way is low."""
        at = self._standing
        self.flat.ensure()
        route = self._legs.current(at)
        if at.point > at.recorded:
            if at.point == at.tick:
                route.project(self.flat.data)
            self._record(self.flat.data)
        if ended == "arrived":
            end = self._end if leads_to_model(self.settings) else None
            if end is None:
                end = self.flat.state_dict(self._legs.rest(self.flat.data))
            self._run.add_waypoint(at.tick + 1, end)
        # No checkpoint here: one that counts the destination would, after a kill just before finish, let a resume tick
        # on beyond it. Such a kill costs the ticks since the last checkpoint.
        self._run.finish(
            arrived=ended == "arrived",
            ended=ended,
            ticks=at.tick,
            sgd_steps=at.rounds,
            seconds=self._seconds(began),
            distance=at.distance,
            loss=at.loss,
        )

    def _measure(self) -> None:
        """Distances and variances of the point that the buffer holds; spheres that follow them."""
        at, route = self._standing, self._legs.main
        # The coming tick begins at this very point: its reduction pass is this one.
        self._moments = moments = route.moments(self.flat.data)
        distances, variances = self._legs.distances(self.flat.data, moments), route.spread.variance(moments)
        shares = self._shares(distances)
        self._legs.follow(at, shares)
        at.distance = route.total(distances)
        at.distances, at.shares, at.variances = distances.tolist(), shares.tolist(), variances.tolist()

    def _shares(self, distances: Tensor) -> Tensor:
        initial = self._legs.initial_distance
        return torch.where(initial > 0, distances / initial, 0.0)

    def _report(self, corrected: Corrected, began: float, rolled_back: bool = False) -> None:
        at, route = self._standing, self._legs.current(self._standing)
        record = {
            "tick": at.tick,
            "loss": corrected.loss,
            "rounds": corrected.rounds,
            "met": corrected.met,
            "sgd_steps": at.rounds,
            "distance": at.distance,
            "distances": [round(v, 9) for v in at.distances],
            "variances": [float(f"{v:.9g}") for v in at.variances],
            "step": route.mover.step.tolist(),
            "stage": self._schedule.phase,
            "lr": self.settings.correction.lr,
        }
        if rolled_back:
            record["rolled_back"] = True
        self._run.append_metrics(record)
        if self._progress:
            self._progress(
                TickProgress(
                    at.tick,
                    self.settings.max_ticks,
                    corrected.loss,
                    corrected.rounds,
                    at.rounds,
                    at.distance / self._legs.initial_total,
                    self._seconds(began),
                )
            )

    def _seconds(self, began: float) -> float:
        return self._standing.seconds + time.monotonic() - began

    def _save(self, began: float) -> None:
        at = self._standing
        at.phase, at.since = self._schedule.phase, self._schedule.since
        save_standing(self._run, at, self._seconds(began), self.flat, self._correction, self._optimizer, self._legs)

    def _result(self, seconds: float) -> FindResult:
        at, status = self._standing, self._run.status or {}
        arrived = bool(status.get("arrived"))
        return FindResult(
            self._run.folder,
            at.tick,
            at.rounds,
            at.seconds + seconds,
            str(status.get("ended") or ("arrived" if arrived else "max_ticks")),
            len(self._run.waypoints()),
        )
