"""``PathFinder`` and ``find_path``: search one path."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..batches.forward import fixed_random_numbers
from ..batches.precision import checked_device
from ..correct import CorrectionResult
from ..errors import LLPFError, shown
from ..flat import copied
from ..flat.copying import materialize_expanded_buffers
from ..flat.wrappers import check_usable, unwrapped
from ..path import LowLossPath
from ..path.endpoint import Source, load_endpoint
from ..settings import Settings, as_settings
from ..types import LossFunction, OptimizerFactory
from .build import (
    Common,
    PathTrainer,
    make_chord_check,
    make_correction,
    make_optimizer,
    make_search,
    module_seed,
    user_optimizer,
)
from .phases import RoutePhases
from .record import FindResult, TickProgress
from .requests import ChordRequest, EvalRequest, TrainRequest
from .screening import ScreeningEvaluator
from .task import TrainingData, make_task


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
            ``None`` for the other modes, and for spheres given by ``settings.spheres.radii``.
        settings: see :class:`~llpf_fast.settings.Settings`.
        train: samples, a Dataset, a DataLoader, a list of batches: see :func:`llpf_fast.batches.as_data`.
        loss_fn: (model output, targets) -> mean loss; when missing cross-entropy, where outputs and targets are those
            of a classification.
        optimizer: makes any torch optimiser for the correction from the parameters (from one group for each where a
            learning-rate rule is on); the fused SGD when missing.
        device: where to compute.
        out: the run directory; a new temporary folder when missing.
        progress: called after every tick.
        resume: continue the run that ``out`` holds; mend it where it is complete and its certificate refutes it
            (:class:`~llpf_fast.find.mend.PathMender`).
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
        settings = as_settings(settings)
        self.settings = settings
        self._device = checked_device(device)
        if progress is not None and not callable(progress):
            raise LLPFError(f"progress must be a function of a TickProgress, got {shown(progress)}")
        self._progress = progress
        common = Common.of(settings, self._device, is_norm)
        endpoints = common.endpoints(start, destination)
        module = unwrapped(module)
        check_usable(module)
        materialize_expanded_buffers(module)
        self.flat = common.flat(module)
        target = endpoints.load(self.flat)
        task = make_task(settings, module, train, loss_fn, self._device)
        self._screening = ScreeningEvaluator(module, task, **common.layout)
        self._chords = make_chord_check(module, task)

        def make_trainer(phases: RoutePhases) -> PathTrainer:
            factory = user_optimizer(settings, optimizer)
            self._optimizer, rates = make_optimizer(factory, self.flat, phases.scales_lr)
            self._correction = make_correction(task, self.flat, self._optimizer)
            return self._correction, self._optimizer, rates

        self._search = make_search(
            common,
            task,
            self._screening,
            self.flat,
            endpoints,
            target,
            make_trainer,
            out=out,
            resume=resume,
            provenance=provenance,
            progress=lambda at: self._progress(at) if self._progress else None,
        )

    def run(self) -> FindResult:
        """Search until arrival, ``max_ticks``, or the smallest step fails; a complete run is at most mended."""
        steps = self._search.steps()
        try:
            request = next(steps)
            while True:
                if isinstance(request, ChordRequest):
                    suspect = self._chords.suspect(
                        request.first, request.second, request.at, self._screening.numerators, request.limit
                    )
                    del request
                    request = steps.send(suspect)
                    continue
                if isinstance(request, EvalRequest):
                    buffers = self.flat.persistent_buffers() if request.buffers is None else request.buffers
                    loss = self._screening.loss(request.values, buffers, request.stop_above)
                    # Otherwise the point would stay in memory until the next request is there.
                    del request
                    request = steps.send(loss)
                    continue
                try:
                    corrected = self._correct(request)
                except LLPFError as error:
                    request = steps.throw(error)
                else:
                    request = steps.send(corrected)
        except StopIteration as end:
            result: FindResult = end.value
            return result

    def _correct(self, request: TrainRequest) -> CorrectionResult:
        with fixed_random_numbers(self._device, module_seed(self.settings.seed, request.first_round)):
            return self._correction.run(
                request.first_round, continued=request.continued, stop_at_nan=request.stop_at_nan
            )


def find_path(
    model: nn.Module,
    start: Source,
    destination: Source | None = None,
    *,
    data: TrainingData,
    loss_fn: LossFunction | None = None,
    optimizer: OptimizerFactory | None = None,
    settings: Settings | None = None,
    out: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[TickProgress], None] | None = None,
    resume: bool = False,
    is_norm: Callable[[nn.Module], bool] | None = None,
    **changes: Any,
) -> LowLossPath:
    """Search a path of low training loss from a trained network (LLPF, arXiv 2505.02604).

    ``mode`` says where to: another trained network (m2m, the default), the origin (m2o; m2o-o leaves normalization
    layers out), infinity, each layer's mean, or a sphere; see :class:`Settings`.

    Args:
        model: the architecture; not modified.
        start, destination: a module, a state dict, or a checkpoint file each; the destination of m2m, or a network that
            lies on the spheres to go to, and ``None`` otherwise.
        data: (inputs, targets) tensors or arrays, a Dataset, a DataLoader, a list of batches; see
            :func:`llpf_fast.batches.as_data`.
        loss_fn: (model output, targets) -> scalar mean loss; when missing cross-entropy, where outputs and targets are
            those of a classification.
        optimizer: for the correction, e.g. ``lambda ps: torch.optim.AdamW(ps, lr=1e-3)``; the fused SGD when missing.
        settings: see :class:`Settings`; ``changes`` replace some of it (``seed=3``, ``arrival={"every": 5}``).
        out: folder of the run; a new temporary folder when missing.
        device: "cpu" or "cuda".
        progress: called after every tick with a :class:`TickProgress`.
        resume: continue the run in ``out``, or mend it where it is complete and ``verify_run`` refuted it.
        is_norm: also counts a module for which it returns True as a normalization layer.

    Returns:
        The path, as written to ``out``. It carries no certificate yet: :func:`llpf_fast.verify_run` computes it.

    Raises:
        LLPFError: wrong input, named in one line; or a search toward a model or sphere that ended without arriving.
    """
    base = (Settings() if settings is None else as_settings(settings)).changed(**changes)
    # Before anything is loaded: that a module cannot be copied explains more than that names differ.
    network = copied(unwrapped(model))
    first = load_endpoint(start, network, "start")
    last = None if destination is None else load_endpoint(destination, network, "destination")
    finder = PathFinder(
        network,
        first,
        last,
        settings=base,
        train=data,
        loss_fn=loss_fn,
        optimizer=optimizer,
        device=device,
        out=out,
        progress=progress,
        resume=resume,
        is_norm=is_norm,
    )
    result = finder.run()
    if not result.arrived and base.goal != "none":
        if result.ended == "stuck":
            why = f"got stuck after {result.ticks} ticks"
            remedy = "raise the threshold or correction.max_steps"
        else:
            why, remedy = f"did not arrive within max_ticks={base.max_ticks}", "raise max_ticks or step.relative"
        raise LLPFError(f"the path {why}; its waypoints are in {result.folder}: {remedy}")
    return LowLossPath(result.folder)
