"""``verify_run``: the certificate of a run directory, from its files alone."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..batches.fixed_samples import as_tensors, stratified_subset
from ..data import load_dataset
from ..errors import LLPFError
from ..models import check_images
from ..path import RunDirectory, compare_architectures
from .certificate import Progress, certify
from .evaluate import Evaluator, LossFunction, Statistics
from .recorded import recorded_folder, recorded_loss, recorded_model, recorded_name, recorded_settings
from .records import Certificate
from .refinement import Refinement

#: (inputs, targets) tensors, or an iterable of such batches.
Samples = tuple[Tensor, Tensor] | Iterable[Any]

#: Modes without a place to arrive at: the certificate is about the way gone.
_ENDLESS = ("m2o", "m2o-o", "infinity", "mean")
#: Training samples on which a CPU screens all points.
SCREEN_SIZE = 10_000
#: Training samples from which BatchNorm statistics are estimated anew.
STATISTICS_SIZE = 2_000


def verify_run(
    folder: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    loss_fn: LossFunction | None = None,
    train: Samples | None = None,
    test: Samples | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    threshold: float | None = None,
    full: bool | None = None,
    device: torch.device | str = "cpu",
    statistics: Statistics = "stored",
    interior: int | None = None,
    refinement: Refinement | None = None,
    straight_points: int = 21,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Certificate:
    """Certify the path in the run directory ``folder`` and write its certificate.json.

    The chain of waypoints is checked first (missing, changed or foreign files; the start). Only files are read: what
    the finder remembers of its losses plays no part.

    Args:
        model, loss_fn, train, test: what the run was made with; when missing, the model, data set and loss that
            run.yaml names (cross-entropy where it names none). ``train`` and ``test`` are (inputs, targets) tensors or
            an iterable of batches. Code that run.yaml names (``file.py:factory``) is executed, except where it lies in
            the run's own folder; a warning says where it has changed since the search.
        data_dir: folder of the data set; when missing, the one run.yaml names.
        threshold: when missing, run.yaml's.
        full: evaluate every point on the whole training set. When missing, only on a GPU; else a fixed stratified
            subset of 10,000 samples screens all points (see :func:`certify`).
        statistics: BatchNorm statistics "stored" (interpolated) or "reestimated" from training samples at each point.
        interior, refinement, straight_points, workers, progress: see :func:`certify`.

    Returns:
        The certificate; ``connected`` is false, with a reason, where the run has not reached its destination.

    Raises:
        LLPFError: not a run; tampered waypoints; no such model or data set; waypoints of another architecture.
    """
    run = RunDirectory.open(folder)
    run.check()
    settings = recorded_settings(run)
    device = torch.device(device)
    limit = settings.get("threshold") if threshold is None else threshold
    if not isinstance(limit, (int, float)):
        raise LLPFError(f"{run.folder / 'run.yaml'} names no threshold; pass threshold=")
    module = model or recorded_model(run)
    if train is None:
        data = load_dataset(recorded_name(run, "data"), data_dir or recorded_folder(run))
        train, test = data.train, test or data.test
    waypoints = run.waypoints()
    compare_architectures(waypoints[0].load(), module.state_dict(), f"the run {run.folder}", "the model")
    inputs, targets = as_tensors(train)
    if model is None and isinstance(inputs, Tensor):
        check_images(settings["model"], inputs)
    loss = loss_fn or recorded_loss(run)
    estimation: Any = None
    if statistics == "reestimated":
        estimation = inputs if targets is None else inputs[stratified_subset(targets, STATISTICS_SIZE)]

    def evaluator(inputs: Any, targets: Tensor | None) -> Evaluator:
        return Evaluator(
            module, loss, inputs, targets, device=device, statistics=statistics, statistics_inputs=estimation
        )

    whole = evaluator(inputs, targets)
    screen = None
    if not (device.type == "cuda" if full is None else full) and targets is not None and len(targets) > SCREEN_SIZE:
        chosen = stratified_subset(targets, SCREEN_SIZE)
        screen = evaluator(inputs[chosen], targets[chosen])
    certificate = certify(
        waypoints,
        screen or whole,
        None if test is None else evaluator(*as_tensors(test)),
        threshold=float(limit),
        full_train=None if screen is None else whole,
        interior=interior,
        refinement=refinement,
        straight_points=straight_points,
        parameter_names={name for name, _ in module.named_parameters()},
        workers=workers,
        progress=progress,
        also_wrong=_unreached(run),
        about={
            "evaluation": {
                "data": settings.get("data") or None,
                "model": settings.get("model") or type(module).__name__,
                "loss": getattr(loss, "__name__", type(loss).__name__),
                "device": str(device),
                **({"tf32": False} if device.type == "cuda" else {}),
            },
            "run": {
                "start_sha256": run.run.get("start_sha256"),
                "destination_sha256": run.run.get("destination_sha256"),
                "waypoint_index_sha256": run.index_digest(),
            },
        },
    )
    run.write_certificate(certificate.as_dict())
    return certificate


def _unreached(run: RunDirectory) -> list[str]:
    """Why the polyline does not lead from the run's start to its destination (``check`` compared what is known).

    Toward the origin, infinity or the mean there is no network to arrive at: such a run is whole where it ended.
    """
    mode = recorded_settings(run).get("mode", "m2m")
    ends = ("start", "destination") if mode == "m2m" else ("start",)
    reasons = [
        f"run.yaml does not say what the {end} is ({end}_sha256)" for end in ends if not run.run.get(f"{end}_sha256")
    ]
    if not run.complete:
        reasons.append("the destination is not reached: the run is not finished; continue it with llpf find --resume")
    elif not run.arrived and mode not in _ENDLESS:
        reasons.append("the destination is not reached: the search stopped before it arrived")
    return reasons
