"""``StackedFinder``: search many paths at once, trained as one stack."""

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
from ..types import LossFunction, OptimizerFactory
from .build import Common, PathTrainer, correction_arguments, make_chord_check, make_search, module_seed
from .phases import RoutePhases
from .record import FindResult, TickProgress
from .requests import ChordRequest, EvalRequest, Request
from .screening import BatchedScreening, ScreeningEvaluator
from .task import TrainingData, make_task

#: On a GPU: networks whose kernels leave most of it idle, and as many of them as fill it. Not measured yet.
_SMALL_GPU, _MOST_GPU = 1_000_000, 256
#: On a CPU a stack saves the fixed cost of each operation and nothing else. Gains over one path after the other, one
#: core, perceptrons of 9, 26, 51 and 85 thousand parameters: eight paths 2.0, 1.5, 1.2 and 1.3, sixteen 2.9, 2.1, 1.4
#: and 1.4; four of the smallest 1.0 to 1.1.
_SMALL_CPU, _LEAST_CPU, _MOST_CPU = 50_000, 8, 16


def choose_parallel(module: nn.Module, device: torch.device, paths: int) -> int:
    """Paths at a time for ``paths`` searches of this network; 1 where a stack would not be faster.

    The choice follows from size, kind and number alone, never from a clock, so that the same command gives the same
    bits. Networks with convolutions are not stacked on a CPU: LeNet5s train 0.7 times as fast as one after the other
    (benchmarks/cases/many_paths.py).
    """
    size = sum(parameter.numel() for parameter in module.parameters())
    if device.type == "cuda":
        return min(paths, _MOST_GPU) if size <= _SMALL_GPU and paths >= LEAST_GPU else 1
    convolves = any(isinstance(layer, nn.modules.conv._ConvNd) for layer in module.modules())
    return min(paths, _MOST_CPU) if size <= _SMALL_CPU and not convolves and paths >= _LEAST_CPU else 1


#: Fewer paths than this train one after the other: the fixed cost of a stacked iteration then exceeds what it saves
#: (digits perceptron on one core: two paths 0.6 times as fast as one after the other, four 1.1, sixteen 2.6).
LEAST_CPU, LEAST_GPU = 4, 2


@dataclass(frozen=True)
class SearchJob:
    """One of many searches.

    ``endpoints`` returns start and destination and is called when the search begins; the rest: see ``PathFinder``.
    """

    endpoints: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Tensor] | None]]
    out: str | os.PathLike[str]
    resume: bool = False
    provenance: dict[str, Any] | None = None
    progress: Callable[[TickProgress], None] | None = None


#: Of a request of a search: the result of a correction, a loss, where a chord may be high, or an error; None to begin.
Answer = CorrectionResult | float | LLPFError | None


@dataclass
class _ActiveSearch:
    """A search that has begun and not ended."""

    job: SearchJob
    flat: FlatParameters
    row: StackRow
    steps: Generator[Request, Any, FindResult]
    #: Of its last evaluation (:attr:`ScreeningEvaluator.numerators`); None where that was one of a batch.
    numerators: list[Tensor] | None = None


class StackedFinder:
    """Searches many paths with the decisions of :class:`~llpf_fast.find.finder.PathFinder`, ``parallel`` at a time.

    Each path has its gate, batches, step scale, waypoints and run directory. A path whose correction ends is evaluated,
    ticks and trains on in the next iteration; one that ends leaves its row to the next job. Its waypoints are those of
    the path alone up to the last bits of the forward and backward passes (see
    :class:`~llpf_fast.correct.stacked_correction.StackedCorrection`). The same jobs in the same order give the same
    bits.

    Args:
        module: the architecture; not modified.
        settings, loss_fn, device, is_norm: see ``PathFinder``.
        train: (inputs, targets) tensors.
        parallel: paths at a time, at least 1.
        optimizer: refused: a stack is trained by the fused SGD.

    Attributes:
        slow: an operation of the network that vmap repeats row by row, if there is one.

    Raises:
        LLPFError: settings or data that cannot work; a network that cannot be stacked.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        settings: Settings,
        train: TrainingData,
        parallel: int,
        loss_fn: LossFunction | None = None,
        device: torch.device | str = "cpu",
        is_norm: Callable[[nn.Module], bool] | None = None,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        settings = as_settings(settings)
        if parallel < 1:
            raise LLPFError(f"paths at a time must be at least 1, got {parallel}")
        if optimizer is not None or settings.optimizer:
            raise NotStackableError(
                "many paths at once train with the fused SGD only: leave the optimizer away, or search one after the "
                "other (--parallel 1)"
            )
        if settings.correction.precision != "float32" or settings.correction.compile:
            raise NotStackableError(
                "many paths at once train in float32 and uncompiled: leave correction.precision and correction.compile "
                "away, or search one after the other (--parallel 1)"
            )
        self.settings, self._parallel = settings, parallel
        self._common = Common.of(settings, checked_device(device), is_norm)
        device = self._common.device
        module = unwrapped(module)
        self._module = copied(module).to(device)
        self._task = task = make_task(settings, module, train, loss_fn, device)
        flat = self._common.flat(copied(self._module))
        batches = task.batches()
        if not isinstance(batches, TensorBatches):
            raise NotStackableError(
                "many paths at once draw their batches from tensors in memory, not from a Dataset or a loader: pass "
                "(inputs, targets), or search one after the other (--parallel 1)"
            )
        if not batches.draws_on_device or settings.statistics != "stored":
            what = "re-estimated statistics" if batches.draws_on_device else "labels that do not count (ignore_index)"
            raise NotStackableError(f"many paths at once cannot have {what}: search one after the other (--parallel 1)")
        least = LEAST_CPU if device.type == "cpu" else LEAST_GPU
        self.slow = check_stackable(flat, task.loss_fn, batches) if parallel >= least else None
        self._stacked = StackedCorrection(
            flat, task.loss_fn, batches, paths=parallel, least=least, **correction_arguments(settings)
        )
        self._screening = ScreeningEvaluator(self._module, task, **self._common.layout)
        self._chords = make_chord_check(self._module, task)
        self._batched_screening = BatchedScreening(flat, task)
        self._evaluate_batched = device.type == "cuda"

    def run(self, jobs: Iterable[SearchJob]) -> Iterator[tuple[SearchJob, FindResult | LLPFError]]:
        """Search them all; yields every job when it ends, with its result or with the error that ended it."""
        queue, active = iter(jobs), list[_ActiveSearch]()
        answers: list[tuple[_ActiveSearch, Answer]] = []
        while True:
            while len(active) < self._parallel and (job := next(queue, None)) is not None:
                try:
                    active.append(self._begin(job))
                except LLPFError as error:
                    yield job, error
                    continue
                answers.append((active[-1], None))
            if answers:
                for search, ended in self._advance(answers):
                    active.remove(search)
                    yield search.job, ended
                # Free rows are filled before any path trains on.
                answers = []
                continue
            if not active:
                return
            corrected = dict(self._stacked.iterate())
            answers = [(search, corrected[search.row]) for search in active if search.row in corrected]

    def _begin(self, job: SearchJob) -> _ActiveSearch:
        endpoints = self._common.endpoints(*job.endpoints())
        flat = self._common.flat(copied(self._module))
        target = endpoints.load(flat)
        rows: list[StackRow] = []

        def make_trainer(_: RoutePhases) -> PathTrainer:
            rows.append(self._stacked.take(flat))
            return rows[0], None, None

        try:
            search = make_search(
                self._common,
                self._task,
                self._screening,
                flat,
                endpoints,
                target,
                make_trainer,
                out=job.out,
                resume=job.resume,
                provenance=job.provenance,
                progress=job.progress,
                parallel=self._parallel,
            )
        except BaseException:
            for row in rows:
                self._stacked.drop(row)
            raise
        return _ActiveSearch(job, flat, rows[0], search.steps())

    def _advance(
        self, answers: list[tuple[_ActiveSearch, Answer]]
    ) -> Iterator[tuple[_ActiveSearch, FindResult | LLPFError]]:
        """Answer searches until all of them train again; yields those that end instead, and how."""
        while answers:
            requests: list[tuple[_ActiveSearch, EvalRequest]] = []
            suspects: list[tuple[_ActiveSearch, Answer]] = []
            for search, answer in answers:
                try:
                    request = search.steps.throw(answer) if isinstance(answer, LLPFError) else search.steps.send(answer)
                except (StopIteration, LLPFError) as end:
                    self._stacked.drop(search.row)
                    yield search, end if isinstance(end, LLPFError) else end.value
                    continue
                if isinstance(request, EvalRequest):
                    requests.append((search, request))
                elif isinstance(request, ChordRequest):
                    suspects.append((search, self._suspect(search, request)))
                else:
                    search.row.begin(
                        request.first_round,
                        continued=request.continued,
                        stop_at_nan=request.stop_at_nan,
                        seed=module_seed(self.settings.seed, request.first_round),
                    )
            answers = [*zip([search for search, _ in requests], self._evaluate(requests), strict=True), *suspects]

    def _suspect(self, search: _ActiveSearch, request: ChordRequest) -> float | LLPFError | None:
        try:
            return self._chords.suspect(request.first, request.second, request.at, search.numerators, request.limit)
        except LLPFError as error:
            return error

    def _evaluate(self, requests: list[tuple[_ActiveSearch, EvalRequest]]) -> list[float | LLPFError]:
        """The loss of each request, or the error that its evaluation ended with."""
        if self._evaluate_batched and len(requests) > 1:
            try:
                losses = self._evaluate_as_batch(requests)
                for search, _ in requests:
                    search.numerators = None
                return losses
            except LLPFError:
                # A network that trains as a stack need not run as one in eval mode.
                self._evaluate_batched = False
        losses = []
        for search, request in requests:
            try:
                losses.append(self._screening.loss(request.values, _buffers(search, request), request.stop_above))
                search.numerators = self._screening.numerators
            except LLPFError as error:
                losses.append(error)
        return losses

    def _evaluate_as_batch(self, requests: list[tuple[_ActiveSearch, EvalRequest]]) -> list[float | LLPFError]:
        values = [request.values for _, request in requests]
        buffers = [_buffers(search, request) for search, request in requests]
        return list(self._batched_screening.losses(values, buffers, [request.stop_above for _, request in requests]))


def _buffers(search: _ActiveSearch, request: EvalRequest) -> Mapping[str, Tensor]:
    return search.flat.persistent_buffers() if request.buffers is None else request.buffers
