"""``PathFinder``: LLPF from model to model, composed from the rooms below."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..correct import Corrected, Correction, LoaderBatches, LossFunction, TensorBatches
from ..correct.augment import augmentation
from ..correct.draw import key_of
from ..errors import LLPFError
from ..flat import FlatParameters
from ..path import RunDirectory, check_finite, state_digest
from ..tick import Mover, m2m_flags, match_layers, variance_of
from . import environment, optimizer_state
from .screen import Screen, screen_batches
from .settings import Settings

#: Interior points at which a straight rest of the way is judged; the certificate looks closer.
_CHORD_POINTS = 7
_STREAM_MODULE_RANDOMNESS = 2

TrainingData = tuple[Tensor, Tensor] | Iterable[Any]
OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class TickProgress:
    """Where a search stands: ``distance`` is the share of the start's distance that is left, ``seconds`` this run's."""

    tick: int
    max_ticks: int
    loss: float
    rounds: int
    steps: int
    distance: float
    seconds: float


@dataclass(frozen=True)
class FindResult:
    """What a search did. ``sgd_steps`` and ``ticks`` count the whole search, ``seconds`` the time spent in it."""

    folder: Path
    ticks: int
    sgd_steps: int
    seconds: float
    arrived: bool
    waypoints: int


class PathFinder:
    """Search a low-loss path from one trained model to another and write it to a run directory.

    Per tick (LLPF, arXiv 2505.02604): every active layer steps toward the destination, is rescaled onto the start's
    variance sphere, trains until the loss is back under the threshold, and is rescaled again. The search has arrived
    when the straight rest of the way stays below the threshold; that rest is the path's last segment.

    Args:
        module: the architecture; its values are replaced, its device is ``device``.
        start, destination: complete state dicts.
        settings: see :class:`~llpf_fast.find.settings.Settings`.
        train: (inputs, targets) tensors, or a re-iterable of such batches (DataLoader).
        loss_fn: (model output, targets) -> mean loss; cross-entropy when missing.
        optimizer: makes any torch optimiser for the correction from the parameters; the fused SGD when missing.
        device: where to compute.
        out: the run directory; a new temporary folder when missing.
        progress: called after every tick.
        resume: continue the run that ``out`` holds.
        provenance: plain values to record in run.yaml (file names of the endpoints, recipe).

    Raises:
        LLPFError: input that cannot work; the message names it.
    """

    def __init__(
        self,
        module: nn.Module,
        start: Mapping[str, Tensor],
        destination: Mapping[str, Tensor],
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
    ) -> None:
        settings.validate()
        self.settings = settings
        self._device = torch.device(device)
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise LLPFError("device cuda was asked for, but torch sees no GPU; use cpu")
        self._progress = progress
        self._start, self._destination = dict(start), dict(destination)
        check_finite(self._start, "start")
        check_finite(self._destination, "destination")
        self._loss_fn = loss_fn or nn.functional.cross_entropy
        self._train = _on_device(train, self._device)

        self.flat = FlatParameters(module.to(self._device), join_bias=settings.step.join_bias)
        self._goal = self.flat.flatten(self._destination)
        self.flat.load(self._start)
        if torch.equal(self._goal, self.flat.data):
            raise LLPFError("start and destination have equal parameters: there is no path to find")
        for stage in settings.stages:
            match_layers(self.flat.table.names, stage.layers)
        self._mover = self._make_mover()
        self._initial_distance = self._distance()
        self._optimizer = optimizer(module.parameters()) if optimizer else None
        self._correction = self._make_correction()
        self._screen = Screen(
            module,
            self._loss_fn,
            screen_batches(self._train, settings.screen_size, self._device),
            join_bias=settings.step.join_bias,
        )
        self._check_endpoints()
        self._waypoint = torch.zeros_like(self.flat.data)
        self._scratch = self.flat.table.scratch()
        self._last: dict[str, float] = {}
        self._tick = self._rounds = 0
        self._stage_start: int | None = None
        self._earlier_seconds = 0.0
        self._run = self._open(out, resume, provenance or {})

    def _make_mover(self) -> Mover:
        table, step = self.flat.table, self.settings.step
        start = ops.moments(self.flat.data, None, table.segments, table.chunks, table.scratch())
        return Mover(
            table,
            variance_of(start, table.segments),
            self._goal,
            fixed=step.fixed,
            relative=step.relative,
            combine_sum=step.combine == "sum",
            clamp=step.clamp,
            epsilon=step.epsilon,
        )

    def _make_correction(self) -> Correction:
        c = self.settings.correction
        batches: Any
        if isinstance(self._train, tuple):
            inputs, targets = self._train
            augment = augmentation(self.settings.augmentation)
            batches = TensorBatches(inputs, targets, c.batch_size, seed=self.settings.seed, augment=augment)
        else:
            batches = LoaderBatches(self._train, self._device)
        return Correction(
            self.flat,
            self._loss_fn,
            batches,
            threshold=c.threshold,
            min_rounds=c.min_rounds,
            max_rounds=c.max_rounds,
            lr=c.lr,
            momentum=c.momentum,
            weight_decay=c.weight_decay,
            nesterov=c.nesterov,
            keep_momentum=c.keep_momentum,
            optimizer=self._optimizer,
        )

    def _check_endpoints(self) -> None:
        for name, values, state in (
            ("start", self.flat.data, self._start),
            ("destination", self._goal, self._destination),
        ):
            loss = self._screen.loss(values, state)
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
            "destination_sha256": state_digest(self._destination),
        }
        if not resume:
            folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="llpf-"))
            run = RunDirectory.create(folder, record)
            run.add_waypoint(0, self._start)
            return run
        if out is None:
            raise LLPFError("resume needs the folder of the run to continue")
        run = RunDirectory.open(out)
        for key in ("settings", "start_sha256", "destination_sha256"):
            if run.run.get(key) != record[key]:
                raise LLPFError(f"cannot resume {run.folder}: its {key} differ from those given now")
        environment.restore(run.run.get("environment", {}), self._device)
        self._load(run)
        return run

    def run(self) -> FindResult:
        """Search until arrival or ``max_ticks``; returns at once when the run is complete already."""
        settings, began = self.settings, time.monotonic()
        if self._run.complete:
            return self._result(self._run.arrived, 0.0)
        arrived = False
        while self._tick < settings.max_ticks:
            self._tick += 1
            self._one_tick(began)
            if self._tick % settings.arrival_every == 0 and self._rest_is_low():
                arrived = True
                break
            if self._tick % settings.checkpoint_every == 0:
                self._save(began)
        self._close(arrived, began)
        return self._result(arrived, time.monotonic() - began)

    def _one_tick(self, began: float) -> None:
        self._enter_stage()
        trained = self._tick > 1
        record = trained and (self._tick - 1) % self.settings.record_every == 0
        self.flat.ensure()
        self._mover.tick(self.flat.data, project_first=trained, waypoint=self._waypoint if record else None)
        if record:
            self._run.add_waypoint(self._tick - 1, self.flat.state_dict(self._waypoint))
        corrected = self._correct()
        self._rounds += corrected.rounds
        self._report(corrected, began)

    def _correct(self) -> Corrected:
        key = key_of(self.settings.seed, 0, self._rounds, _STREAM_MODULE_RANDOMNESS)
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(key)
            try:
                return self._correction.run(self._rounds)
            except LLPFError as error:
                raise LLPFError(f"tick {self._tick}: {error}{self._culprit()}") from error

    def _culprit(self) -> str:
        for name, view in self.flat.views(self.flat.data).items():
            if not bool(view.isfinite().all()):
                return f" (first layer with values that are not finite: {name})"
        return ""

    def _enter_stage(self) -> None:
        """Apply the flags of the stage the tick belongs to."""
        stage = max((s for s in self.settings.stages if s.start < self._tick), key=lambda s: s.start, default=None)
        if stage is None:
            raise LLPFError("the first stage must start at tick 0: nothing would move")
        if stage.start == self._stage_start:
            return
        active = match_layers(self.flat.table.names, stage.layers)
        own = [row.flags for row in self.flat.table.rows]
        self._mover.set_flags(m2m_flags(self.flat.kinds, own, self._mover.target_variance, active))
        self._stage_start = stage.start

    def _rest_is_low(self) -> bool:
        """Whether the straight way from the projected current point to the destination stays below the threshold."""
        here = self.flat.data.clone()
        self._mover.project(here)
        limit = self.settings.threshold * self.settings.arrival_margin
        buffers = self.flat.buffers()
        if self._screen.loss(here, buffers) > limit:
            return False
        return self._screen.chord(here, self._goal, buffers, _CHORD_POINTS, limit) <= limit

    def _close(self, arrived: bool, began: float) -> None:
        """Record the last point, and the destination where the rest of the way is low."""
        self.flat.ensure()
        self._mover.project(self.flat.data)
        self._run.add_waypoint(self._tick, self.flat.state_dict(self.flat.data))
        if arrived:
            self._run.add_waypoint(self._tick + 1, self._destination)
        # No checkpoint here: one that counts the destination would, after a kill just before finish, let a resume tick
        # on beyond it. Such a kill costs the ticks since the last checkpoint.
        self._run.finish(
            arrived=arrived, ticks=self._tick, sgd_steps=self._rounds, seconds=self._seconds(began), **self._last
        )

    def _report(self, corrected: Corrected, began: float) -> None:
        table = self.flat.table
        moments = ops.moments(self.flat.data, self._goal, table.segments, table.chunks, self._scratch)
        count = table.segments[:, 1].double()
        squared = moments[:, 4] + count * moments[:, 1] ** 2
        variance = moments[:, 2] / (count - 1).clamp(min=1)
        distance = float(squared.sum().sqrt())
        self._last = {"loss": corrected.loss, "distance": distance}
        self._run.append_metrics(
            {
                "tick": self._tick,
                "loss": corrected.loss,
                "rounds": corrected.rounds,
                "met": corrected.met,
                "sgd_steps": self._rounds,
                "distance": distance,
                "distances": [round(v, 9) for v in squared.sqrt().tolist()],
                "variances": [float(f"{v:.9g}") for v in variance.tolist()],
                "step": self._mover.step.tolist(),
                "lr": self.settings.correction.lr,
            }
        )
        if self._progress:
            self._progress(
                TickProgress(
                    self._tick,
                    self.settings.max_ticks,
                    corrected.loss,
                    corrected.rounds,
                    self._rounds,
                    distance / self._initial_distance,
                    self._seconds(began),
                )
            )

    def _distance(self) -> float:
        return float(self._mover.squared_distances(self.flat.data).sum().sqrt())

    def _seconds(self, began: float) -> float:
        return self._earlier_seconds + time.monotonic() - began

    def _save(self, began: float) -> None:
        """A checkpoint: everything the coming ticks depend on."""
        tensors = {"values": self.flat.data}
        tensors |= {f"buffer/{name}": b for name, b in self.flat.buffers().items()}
        if self._correction.momentum_buffer is not None and self.settings.correction.keep_momentum:
            tensors["momentum"] = self._correction.momentum_buffer
        state: dict[str, Any] = {
            "tick": self._tick,
            "rounds": self._rounds,
            "seconds": self._seconds(began),
        }
        if self._optimizer is not None:
            more, state["optimizer"] = optimizer_state.pack(self._optimizer)
            tensors |= more
        self._run.save_checkpoint(tensors, state)

    def _load(self, run: RunDirectory) -> None:
        if run.complete:
            done = run.status or {}
            self._tick, self._rounds, self._earlier_seconds = done["ticks"], done["sgd_steps"], done["seconds"]
            return
        saved = run.load_checkpoint()
        if saved is None:
            run.truncate(waypoints=1, metrics=0)
            if not run.waypoints():
                run.add_waypoint(0, self._start)
            return
        tensors, state = saved
        with torch.no_grad():
            self.flat.data.copy_(tensors["values"])
            for name, buffer in self.flat.buffers().items():
                buffer.copy_(tensors[f"buffer/{name}"])
        if "momentum" in tensors and self._correction.momentum_buffer is not None:
            self._correction.momentum_buffer.copy_(tensors["momentum"])
        if self._optimizer is not None:
            optimizer_state.unpack(self._optimizer, tensors, state["optimizer"])
        self._tick, self._rounds = state["tick"], state["rounds"]
        self._earlier_seconds = state["seconds"]

    def _result(self, arrived: bool, seconds: float) -> FindResult:
        return FindResult(
            self._run.folder,
            self._tick,
            self._rounds,
            self._earlier_seconds + seconds,
            arrived,
            len(self._run.waypoints()),
        )


def _on_device(train: TrainingData, device: torch.device) -> TrainingData:
    if isinstance(train, tuple) and len(train) == 2 and isinstance(train[0], Tensor):
        return train[0].to(device), train[1].to(device)
    return train
