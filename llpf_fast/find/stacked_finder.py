"""How many paths are searched at once where nobody says a number."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import TensorBatches
from ..batches.precision import checked_device
from ..correct import CorrectionResult
from ..correct.stackable import NotStackableError, check_stackable
from ..correct.stacked_correction import StackedCorrection, StackRow
from ..errors import LLPFError
from ..flat import FlatParameters
from ..flat.copying import copied
from ..flat.wrappers import unwrapped
from ..settings import Settings, as_settings
from ..tick.rule import resolve
from ..types import LossFunction, OptimizerFactory
from .build import TrainingData, make_task, own_norm_rule, training
from .endpoints import Endpoints
from .phases import RoutePhases, make_schedule
from .record import FindResult, Record, TickProgress
from .screening import BatchedScreening, ScreeningEvaluator
from .search import EvalRequest, PathSearch, TrainRequest

#: On a GPU: networks whose kernels leave most of it idle, and as many of them as fill it. Not measured yet.
_SMALL_GPU, _MOST_GPU = 1_000_000, 256
#: On a CPU a stack saves the fixed cost of each operation and nothing else. Gains over the same paths in turn, one
#: core, perceptrons of 9, 26, 51 and 85 thousand parameters: eight paths 2.0, 1.5, 1.2 and 1.3, sixteen 2.9, 2.1, 1.4
#: and 1.4; four of the smallest 1.0 to 1.1.
_SMALL_CPU, _LEAST_CPU, _MOST_CPU = 50_000, 8, 16


def choose_together(module: nn.Module, device: torch.device, paths: int) -> int:
    """Paths at a time for ``paths`` searches of this network; 1 where a stack would not be faster.

    A choice by size, kind and number alone, never by a clock: the same command gives the same bits. Networks with
    convolutions are left alone on a CPU: LeNet5s as a stack train 0.7 times as fast as in turn
    (benchmarks/cases/many_paths.py).
    """
    size = sum(parameter.numel() for parameter in module.parameters())
    if device.type == "cuda":
        return min(paths, _MOST_GPU) if size <= _SMALL_GPU and paths >= LEAST_GPU else 1
    convolves = any(isinstance(layer, nn.modules.conv._ConvNd) for layer in module.modules())
    return min(paths, _MOST_CPU) if size <= _SMALL_CPU and not convolves and paths >= _LEAST_CPU else 1


#: Fewer paths than this train in turn: the fixed cost of a stacked iteration then exceeds what it saves (digits
#: perceptron on one core: two paths 0.6 times as fast as in turn, four 1.1, sixteen 2.6).
LEAST_CPU, LEAST_GPU = 4, 2


@dataclass(frozen=True)
class SearchJob:
    """One of many searches. ``ends`` gives start and destination, when its turn comes; the rest: see ``PathFinder``."""

    ends: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None]]
    out: str | os.PathLike[str]
    resume: bool = False
    provenance: dict[str, Any] | None = None
    progress: Callable[[TickProgress], None] | None = None


#: To a request of a search: how a correction went, a loss, or the error that either ended with; None to begin.
Answer = CorrectionResult | float | LLPFError | None


@dataclass
class _ActiveSearch:
    """A search under way."""

    job: SearchJob
    flat: FlatParameters
    path: StackRow
    steps: Generator[TrainRequest | EvalRequest, Any, FindResult]


class StackedFinder:
    """Searches many paths with the decisions of :class:`~llpf_fast.find.finder.PathFinder`, ``together`` at a time.

    Each path keeps its own gate, rounds, pace, waypoints and run directory. A path whose correction ends ticks, is
    judged and trains on in the next iteration; one that ends leaves its row to the next job. Its waypoints are those
    of the path alone up to the last bits of the forward and backward passes (see
    :class:`~llpf_fast.correct.stacked_correction.StackedCorrection`); the same jobs in the same order give the same
    bits.

    Args:
        module: the architecture; not modified.
        settings, loss_fn, device, is_norm: see ``PathFinder``.
        train: (inputs, targets) tensors.
        together: paths at a time, at least 1.
        optimizer: refused: a stack is trained by the fused SGD.

    Attributes:
        slow: an operation of the network that vmap only repeats row by row, if there is one.

    Raises:
        LLPFError: settings or data that cannot work; a network that cannot be stacked.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        settings: Settings,
        train: TrainingData,
        together: int,
        loss_fn: LossFunction | None = None,
        device: torch.device | str = "cpu",
        is_norm: Callable[[nn.Module], bool] | None = None,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        settings = as_settings(settings)
        if together < 1:
            raise LLPFError(f"paths at a time must be at least 1, got {together}")
        if optimizer is not None or settings.optimizer:
            raise NotStackableError(
                "many paths at once train with the fused SGD only: leave the optimizer away, or search one after the "
                "other (--together 1)"
            )
        if settings.correction.precision != "float32" or settings.correction.compile:
            raise NotStackableError(
                "many paths at once train in float32 and uncompiled: leave correction.precision and correction.compile "
                "away, or search one after the other (--together 1)"
            )
        self.settings, self._together = settings, together
        self._is_norm = is_norm = own_norm_rule(settings, is_norm)
        self._device = checked_device(device)
        module = unwrapped(module)
        self._rule = resolve(settings)
        self._layout: dict[str, Any] = {"join_bias": settings.step.join_bias, "cut_attention": self._rule.values_only}
        self._module = copied(module).to(self._device)
        self._task = task = make_task(settings, module, train, loss_fn, self._device)
        flat = FlatParameters(copied(self._module), is_norm=is_norm, **self._layout)
        batches = task.batches()
        if not isinstance(batches, TensorBatches):
            raise NotStackableError(
                "many paths at once draw their batches from tensors in memory, not from a Dataset or a loader: pass "
                "(inputs, targets), or search one after the other (--together 1)"
            )
        if not batches.draws_on_device or settings.statistics != "stored":
            what = "re-estimated statistics" if batches.draws_on_device else "labels that do not count (ignore_index)"
            raise NotStackableError(f"many paths at once know no {what}: search one after the other (--together 1)")
        least = LEAST_CPU if self._device.type == "cpu" else LEAST_GPU
        self.slow = check_stackable(flat, task.loss_fn, batches) if together >= least else None
        self._stacked = StackedCorrection(
            flat, task.loss_fn, batches, paths=together, least=least, **training(settings)
        )
        self._screen = ScreeningEvaluator(self._module, task, **self._layout)
        self._screens = BatchedScreening(flat, task)
        self._judge_at_once = self._device.type == "cuda"

    def run(self, jobs: Iterable[SearchJob]) -> Iterator[tuple[SearchJob, FindResult | LLPFError]]:
        """Search them all; every job, as it ends, with its result or with the error that ended it."""
        queue, lanes = iter(jobs), list[_ActiveSearch]()
        answers: list[tuple[_ActiveSearch, Answer]] = []
        while True:
            while len(lanes) < self._together and (job := next(queue, None)) is not None:
                try:
                    lanes.append(self._begin(job))
                except LLPFError as error:
                    yield job, error
                    continue
                answers.append((lanes[-1], None))
            if answers:
                for lane, ended in self._advance(answers):
                    lanes.remove(lane)
                    yield lane.job, ended
                # Rows that have become free are filled before any path trains on.
                answers = []
                continue
            if not lanes:
                return
            corrected = dict(self._stacked.iterate())
            answers = [(lane, corrected[lane.path]) for lane in lanes if lane.path in corrected]

    def _begin(self, job: SearchJob) -> _ActiveSearch:
        settings, ends = self.settings, Endpoints(self.settings, *job.ends())
        flat = FlatParameters(copied(self._module), is_norm=self._is_norm, **self._layout)
        like = ends.load(flat)
        legs = RoutePhases(settings, self._rule, flat, like)
        ends.check_losses(self._screen.loss, flat.data, like)
        schedule = make_schedule(settings, flat, legs.main.may_move(), lambda: self._task.run_once(flat.module))
        record = Record(
            settings,
            ends,
            self._device,
            out=job.out,
            resume=job.resume,
            provenance=job.provenance,
            together=self._together,
            task=self._task.about,
            progress=job.progress,
        )
        path = self._stacked.take(flat)
        try:
            search = PathSearch(settings, flat, ends, legs, schedule, path, record)
        except LLPFError:
            self._stacked.drop(path)
            raise
        return _ActiveSearch(job, flat, path, search.steps())

    def _advance(
        self, answers: list[tuple[_ActiveSearch, Answer]]
    ) -> Iterator[tuple[_ActiveSearch, FindResult | LLPFError]]:
        """Let searches go on until all of them train again; those that end instead, and how."""
        while answers:
            asked: list[tuple[_ActiveSearch, EvalRequest]] = []
            for lane, answer in answers:
                try:
                    request = lane.steps.throw(answer) if isinstance(answer, LLPFError) else lane.steps.send(answer)
                except (StopIteration, LLPFError) as end:
                    self._stacked.drop(lane.path)
                    yield lane, end if isinstance(end, LLPFError) else end.value
                    continue
                if isinstance(request, EvalRequest):
                    asked.append((lane, request))
                else:
                    lane.path.begin(request.first_round, go_on=request.go_on, stop_at_nan=request.stop_at_nan)
            answers = list(zip([lane for lane, _ in asked], self._judge(asked), strict=True))

    def _judge(self, asked: list[tuple[_ActiveSearch, EvalRequest]]) -> list[float | LLPFError]:
        if self._judge_at_once and len(asked) > 1:
            return self._judge_stacked(asked)
        found: list[float | LLPFError] = []
        for lane, request in asked:
            try:
                found.append(self._screen.loss(request.values, _buffers(lane, request), request.stop_above))
            except LLPFError as error:
                found.append(error)
        return found

    def _judge_stacked(self, asked: list[tuple[_ActiveSearch, EvalRequest]]) -> list[float | LLPFError]:
        values = [request.values for _, request in asked]
        buffers = [_buffers(lane, request) for lane, request in asked]
        try:
            return list(self._screens.losses(values, buffers, [request.stop_above for _, request in asked]))
        except LLPFError:
            # What trains as a stack need not be able to do so in eval mode.
            self._judge_at_once = False
            return self._judge(asked)


def _buffers(lane: _ActiveSearch, request: EvalRequest) -> Mapping[str, Tensor]:
    return lane.flat.persistent_buffers() if request.buffers is None else request.buffers
