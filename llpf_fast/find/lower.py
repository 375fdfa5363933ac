"""``lower_path``: the path of a run becomes a curve that is trained as a whole, to the lowest loss it gets."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..batches.loss import ForwardLoss
from ..batches.precision import check_precision, checked_device
from ..batches.statistics import normalization_layers, reestimate
from ..errors import LLPFError
from ..flat import copied
from ..flat.buffers import set_buffers
from ..flat.copying import materialize_expanded_buffers
from ..flat.wrappers import check_usable, unwrapped
from ..modes import MODES
from ..ops.info import describe
from ..path import LowLossPath, RunDirectory, state_digest
from ..path.endpoint import load_endpoint
from ..path.fingerprint import digest
from ..path.run_directory import FORMAT
from ..settings import LowerSettings, Settings
from ..tick import Route
from ..types import LossFunction, ProgressCallback, StateDict
from .build import Common
from .curve import Bezier, Curve, PolyChain, fitted
from .curve_training import CurveTrainer, set_point
from .resume import check_same_task, restore_environment
from .screening import ScreeningEvaluator
from .task import TrainingData, make_task

#: Points of the parent's path that a curve is fitted to.
_FIT_POINTS = 65
#: Pivots tried for a polygon, the fewest first.
_PIVOTS = (1, 3, 7, 15, 31)
#: Gradient steps, in multiples of those of the search, where no number is given.
_TIMES_THE_SEARCH = 7
#: Parts of the polyline between screened points, at least.
_SCREENED = 32
#: Gradient steps between two lines of metrics, two screenings for ``to``, two checkpoints.
_RECORD_EVERY, _CHECK_EVERY, _CHECKPOINT_EVERY = 20, 100, 200
_BUFFER = "buffer/"


@dataclass(frozen=True)
class LowerResult:
    """What a lowering did.

    Attributes:
        steps, sgd_steps: gradient steps of the lowering, and with those of the search before it.
        seconds: of the lowering, sessions before a resume included.
        loss: the highest screened loss: of all waypoints, and of points between them.
        goal: the loss to get to: ``to``, or the run's threshold.
    """

    folder: Path
    steps: int
    sgd_steps: int
    seconds: float
    loss: float
    goal: float
    waypoints: int

    @property
    def low_enough(self) -> bool:
        return self.loss <= self.goal


class PathLowering:
    """Trains the path of a complete run as a whole: a curve with fixed ends (:class:`~.curve_training.CurveTrainer`).

    Args:
        module: the architecture; its values are replaced, its device is ``device``.
        run: the folder of the run whose path is lowered.
        train, loss_fn, device: as of :class:`~.finder.PathFinder`.
        out: the run directory to write.
        resume: continue the run that ``out`` holds.
        provenance: plain values to record in run.yaml.

    Attributes:
        steps: how many will be done.

    Raises:
        LLPFError: a run that is not complete, or was changed; other data or another loss than its search's; settings
            that do not fit it.
    """

    def __init__(
        self,
        module: nn.Module,
        run: str | os.PathLike[str],
        *,
        settings: LowerSettings,
        train: TrainingData,
        out: str | os.PathLike[str],
        loss_fn: LossFunction | None = None,
        device: torch.device | str = "cpu",
        resume: bool = False,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        self.settings, self._device = settings, checked_device(device)
        self._parent = RunDirectory.open(run)
        _check_parent(self._parent)
        status = self._parent.status or {}
        self._first_round = int(status.get("sgd_steps") or 0)
        self.steps = settings.steps or _TIMES_THE_SEARCH * self._first_round
        if not self.steps:
            raise LLPFError(f"{self._parent.folder} records no gradient steps of its search: pass steps (--steps N)")
        module = unwrapped(module)
        check_usable(module)
        materialize_expanded_buffers(module)
        search = search_settings(self._parent)
        if next(normalization_layers(module), None) is not None:
            search = search.changed(statistics="reestimated")
        self._search = search
        common = Common.of(search, self._device, None)
        self._flat = common.flat(module)
        self._task = make_task(search, module, train, loss_fn, self._device)
        check_same_task(self._parent.run.get("task"), self._task.summary, self._parent.folder, "lower")
        self._screening = ScreeningEvaluator(module, self._task, **common.layout)
        waypoints = self._parent.waypoints()
        self._ends = [load_endpoint(w.load(), module, str(w.path)) for w in (waypoints[0], waypoints[-1])]
        self._flat.load(self._ends[0])
        spheres = self._route(common) if settings.spheres else None
        correction = search.correction
        check_precision(correction.precision, self._device)
        self._lr = settings.lr or correction.lr / max(1 - correction.momentum, 0.01)
        curve, nodes = self._begin()
        self._trainer = CurveTrainer(
            self._flat,
            ForwardLoss(module, self._task.loss_fn, precision=correction.precision, compile=correction.compile),
            self._task.batches(),
            curve,
            nodes,
            steps=self.steps,
            lr=self._lr,
            momentum=settings.momentum,
            favor=settings.favor,
            first_round=self._first_round,
            seed=search.seed,
            precision=correction.precision,
            project=None if spheres is None else spheres.project,
        )
        self._seconds = 0.0
        self._open(out, resume, provenance or {})

    # What is trained

    def _begin(self) -> tuple[Curve, Tensor]:
        """The curve and its first nodes ``[n, N]``."""
        path, bends = LowLossPath(self._parent), self.settings.bends
        if self.settings.curve == "bezier":
            curve: Curve = Bezier(bends or 1)
            count = max(_FIT_POINTS, curve.nodes)
            return curve, fitted(curve, self._points(path, count), count)
        for count in (bends,) if bends else _PIVOTS:
            curve = PolyChain(count)
            nodes = torch.stack(list(self._points(path, count + 2)))
            if bends or self._peak(curve, nodes, self._search.threshold) <= self._search.threshold:
                break
        return curve, nodes

    def _points(self, path: LowLossPath, count: int) -> Iterator[Tensor]:
        """``count`` points ``[N]`` of the parent's path at equal distances, its ends included."""
        lengths = path.lengths()
        whole, before, segment = math.fsum(lengths), 0.0, 0
        for i in range(count):
            if i in (0, count - 1):
                yield self._flat.flatten(self._ends[0 if i == 0 else -1])
                continue
            at = whole * i / (count - 1)
            while segment < len(lengths) - 1 and before + lengths[segment] < at:
                before += lengths[segment]
                segment += 1
            inside = min(max((at - before) / lengths[segment], 0.0), 1.0) if lengths[segment] else 0.0
            yield self._flat.flatten(path.interpolate(segment + inside))

    def _route(self, common: Common) -> Route:
        """What puts a point back on the start's variance spheres."""
        if not MODES[self._search.mode].projects:
            raise LLPFError(f"lower.spheres belongs to mode m2m, not to {self._search.mode}")
        if self.settings.curve != "polygon":
            raise LLPFError("lower.spheres needs lower.curve: polygon: the node of a Bezier curve is no point of it")
        step = self._search.step
        destination = self._flat.flatten(self._ends[-1])
        return Route(self._flat, common.rule, destination, fixed=step.fixed, relative=step.relative)

    @property
    def memory_bytes(self) -> int:
        """Of nodes, momentum and gradients, and of one point with its gradient; activations come on top."""
        return self._trainer.memory_bytes

    @property
    def disk_bytes(self) -> int:
        """Of the waypoints and of a checkpoint."""
        state = sum(value.numel() * value.element_size() for value in self._ends[0].values())
        rows = sum(row.numel() * row.element_size() for row in self._trainer.rows().values())
        return len(self._positions(self._trainer.curve)) * state + rows

    # The run directory

    def _open(self, out: str | os.PathLike[str], resume: bool, provenance: dict[str, Any]) -> None:
        """Create the run, or go back to its checkpoint."""
        lower = {**asdict(self.settings), "steps": self.steps, "lr": self._lr, "bends": self._trainer.curve.nodes - 2}
        settings = {**self._certified(self._search).as_dict(), "lower": lower}
        parent = self._parent
        content: dict[str, Any] = {
            "llpf_fast": FORMAT,
            "provenance": {
                **{k: v for k, v in (parent.run.get("provenance") or {}).items() if not k.startswith("lowered_")},
                **provenance,
                "lowered_from": str(parent.folder.resolve()),
                "lowered_index_sha256": parent.index_digest(),
            },
            "settings": settings,
            "goal": parent.run.get("goal") or self._search.goal,
            "environment": describe(self._device),
            "task": {**self._task.summary, "settings_sha256": digest(settings)},
            "start_sha256": state_digest(self._ends[0]),
        }
        content |= {k: v for k, v in parent.run.items() if k in ("destination_sha256", "sphere_sha256")}
        if not resume:
            self._run = RunDirectory.create(out, content)
            self._run.add_waypoint(0, self._ends[0])
            return
        self._run = RunDirectory.open(out)
        recorded = self._run.run
        source = (recorded.get("provenance") or {}).get("lowered_index_sha256")
        if source != content["provenance"]["lowered_index_sha256"]:
            raise LLPFError(f"cannot resume {out}: it does not come from the path that is in {parent.folder} now")
        if recorded.get("settings") != settings:
            raise LLPFError(f"cannot resume {out}: its settings differ from those given now")
        check_same_task(recorded.get("task"), content["task"], out)
        restore_environment(recorded.get("environment", {}), self._device)
        if not self._run.complete:
            self._restore()

    def _certified(self, search: Settings) -> Settings:
        """The settings to record: with ``to`` for a threshold, which the certificate is then about."""
        goal, correction = self.settings.to, search.correction.threshold
        if goal is None:
            return search
        return search.changed(
            threshold=goal, correction={"threshold": None if correction is None else min(correction, goal)}
        )

    def _restore(self) -> None:
        saved = self._run.load_checkpoint()
        if saved is None:
            self._run.truncate(waypoints=1, metrics=0)
            if not self._run.waypoints():
                self._run.add_waypoint(0, self._ends[0])
            return
        tensors, values = saved
        buffers = {key.removeprefix(_BUFFER): value for key, value in tensors.items() if key.startswith(_BUFFER)}
        # A buffer that a forward pass had set to None is in no file.
        set_buffers(self._flat.module, {**dict.fromkeys(self._flat.buffers()), **buffers})
        self._trainer.restore(tensors, values)
        self._seconds = values["seconds"]

    def _save(self, seconds: float) -> None:
        # A network may read its buffers in training too.
        buffers = {f"{_BUFFER}{name}": value for name, value in self._flat.buffers().items()}
        self._run.save_checkpoint({**self._trainer.rows(), **buffers}, {**self._trainer.values(), "seconds": seconds})

    # Training

    def run(self, progress: ProgressCallback | None = None) -> LowerResult:
        """Lower the path; returns at once where the run is complete. LLPFError where a loss is not finite."""
        if self._run.complete:
            return self._result()
        trainer, goal, began = self._trainer, self.settings.to, time.monotonic() - self._seconds
        self._flat.module.train()
        recent: list[float] = []
        stopped = False
        while trainer.done < self.steps and not stopped:
            rate = trainer.rate
            recent.append(trainer.step())
            if trainer.done % _RECORD_EVERY == 0 or trainer.done == self.steps:
                mean = math.fsum(recent) / len(recent)
                record = {"tick": trainer.done, "loss": mean, "sgd_steps": self._first_round + trainer.done, "lr": rate}
                self._run.append_metrics({**record, "parts": trainer.losses})
                recent = []
                if progress is not None:
                    progress(
                        trainer.done, self.steps, f"loss {mean:.4f}, in the highest part {max(trainer.losses):.4f}"
                    )
            if goal is not None and trainer.done % _CHECK_EVERY == 0:
                stopped = self._peak(trainer.curve, trainer.nodes, goal, trainer.losses) <= goal
            if trainer.done % _CHECKPOINT_EVERY == 0:
                self._save(time.monotonic() - began)
        self._finish(began)
        return self._result()

    # The result

    def _positions(self, curve: Curve) -> list[float]:
        """t of every waypoint."""
        last = curve.nodes - 1 if isinstance(curve, PolyChain) else max(self.settings.waypoints, 2) - 1
        return [i / last for i in range(last + 1)]

    def _peak(
        self, curve: Curve, nodes: Tensor, stop_above: float = math.inf, losses: Sequence[float] = (1.0,)
    ) -> float:
        """The highest screened loss on the polyline through the waypoints: at these, midway, and at 33 points at least.

        The first above ``stop_above`` ends it; parts of the highest ``losses`` come first.
        """
        weights = [curve.weights(t) for t in self._positions(curve)]
        sides = len(weights) - 1
        each = max(2, math.ceil(_SCREENED / sides))
        count = sides * each
        order = sorted(range(count + 1), key=lambda i: -losses[min(i * len(losses) // count, len(losses) - 1)])
        buffers, highest, point = self._flat.persistent_buffers(), -math.inf, torch.empty_like(nodes[0])
        for i in order:
            side, inside = min(i // each, sides - 1), i / each - min(i // each, sides - 1)
            pairs = zip(weights[side], weights[side + 1], strict=True)
            set_point(point, [(1 - inside) * one + inside * other for one, other in pairs], nodes)
            highest = max(highest, self._screening.loss(point, buffers, stop_above))
            if highest > stop_above:
                break
        return highest

    def _finish(self, began: float) -> None:
        """Write the waypoints and complete the run."""
        trainer, positions = self._trainer, self._positions(self._trainer.curve)
        self._save(time.monotonic() - began)
        peak = self._peak(trainer.curve, trainer.nodes)
        for number, t in list(enumerate(positions))[1:-1]:
            self._run.add_waypoint(number, self._state_at(t))
        self._run.add_waypoint(len(positions) - 1, self._ends[-1])
        self._run.finish(
            arrived=self._parent.arrived,
            ended="lowered",
            ticks=trainer.done,
            sgd_steps=self._first_round + trainer.done,
            seconds=time.monotonic() - began,
            lower_steps=trainer.done,
            loss=peak,
        )

    def _state_at(self, t: float) -> StateDict:
        """The state dict at t: statistics re-estimated there, all other buffers the start's."""
        module = self._flat.module
        self._flat.load(self._ends[0])
        set_point(self._flat.data, self._trainer.curve.weights(t), self._trainer.nodes)
        if self._task.estimation is not None:
            with torch.set_grad_enabled(self._task.mode.gradients):
                reestimate(module, self._task.estimation)
        return self._flat.state_dict()

    def _result(self) -> LowerResult:
        status = self._run.status or {}
        goal = self._search.threshold if self.settings.to is None else self.settings.to
        return LowerResult(
            self._run.folder,
            int(status["lower_steps"]),
            int(status["sgd_steps"]),
            float(status["seconds"]),
            float(status["loss"]),
            goal,
            len(self._run.waypoints()),
        )


def search_settings(run: RunDirectory) -> Settings:
    """The settings of the search that made ``run``; LLPFError where they are damaged."""
    recorded = run.run.get("settings") or {}
    known = Settings().as_dict()
    return Settings(**{key: value for key, value in recorded.items() if key in known})


def _check_parent(run: RunDirectory) -> None:
    """LLPFError where the path of ``run`` is not complete, or its files are not those of its index."""
    if not run.complete:
        raise LLPFError(f"{run.folder} is not finished; continue it with llpf find --resume")
    if not run.arrived and (run.run.get("goal") or "model") != "none":
        raise LLPFError(f"{run.folder} has not arrived at its destination: there is no path to lower")
    run.check()
    if len(run.waypoints()) < 2:
        raise LLPFError(f"{run.folder} has one waypoint only: there is no path to lower")


def lower_path(
    model: nn.Module,
    run: str | os.PathLike[str],
    *,
    data: TrainingData,
    out: str | os.PathLike[str],
    loss_fn: LossFunction | None = None,
    settings: LowerSettings | None = None,
    device: torch.device | str = "cpu",
    progress: ProgressCallback | None = None,
    resume: bool = False,
    **changes: Any,
) -> LowLossPath:
    """Lower the loss along the path of a complete run: train a curve that begins as that path, its ends fixed.

    Args:
        model: the architecture; not modified.
        run: folder of the run, which is not changed.
        data, loss_fn, device: as for :func:`find_path`; the search's own.
        out: folder of the new run.
        settings: see :class:`LowerSettings`; ``changes`` replace some of it (``steps=2000``, ``to=0.04``).
        progress: called with the steps done, their number and a line about the losses.
        resume: continue the run in ``out``.

    Returns:
        The path, as written to ``out``. It carries no certificate yet: :func:`llpf_fast.verify_run` computes it.

    Raises:
        LLPFError: wrong input, named in one line; a loss that became NaN or infinite.
    """
    chosen = {**(asdict(settings) if settings is not None else {}), **changes}
    lowering = PathLowering(
        copied(unwrapped(model)),
        run,
        settings=LowerSettings(**chosen),
        train=data,
        out=out,
        loss_fn=loss_fn,
        device=device,
        resume=resume,
    )
    return LowLossPath(lowering.run(progress).folder)
