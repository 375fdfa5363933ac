"""``verify_run``: the certificate of a run directory, from its files alone."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import dataset_classes, dataset_names, load_dataset
from ..errors import LLPFError
from ..models import build_model, check_images
from ..path import RunDirectory, compare_architectures
from ..user_code import check_outside, file_digest, is_code, loss_function
from .certificate import Progress, certify
from .evaluate import Evaluator, LossFunction, Statistics
from .records import Certificate
from .refinement import Refinement
from .samples import as_tensors
from .subset import stratified_subset

#: (inputs, targets) tensors, or an iterable of such batches.
Samples = tuple[Tensor, Tensor] | Iterable[Any]

#: Modes without a place to arrive at: the certificate is about the way gone.
_ENDLESS = ("m2o", "m2o-o", "infinity", "mean")
#: Training samples on which a CPU screens all points.
SCREEN_SIZE = 10_000
#: Training samples from which BatchNorm statistics are estimated anew.
_STATISTICS_SIZE = 2_000


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
    settings = run.run.get("settings") or {}
    device = torch.device(device)
    limit = settings.get("threshold") if threshold is None else threshold
    if not isinstance(limit, (int, float)):
        raise LLPFError(f"{run.folder / 'run.yaml'} names no threshold; pass threshold=")
    with torch.random.fork_rng(devices=[]):  # initial values, drawn only to be replaced
        module = model or build_model(_named(run, settings, "model"), classes=_classes(settings))
    if train is None:
        data = load_dataset(_named(run, settings, "data"), data_dir or _recorded_folder(run))
        train, test = data.train, test or data.test
    waypoints = run.waypoints()
    compare_architectures(waypoints[0].load(), module.state_dict(), f"the run {run.folder}", "the model")
    inputs, targets = as_tensors(train)
    if model is None and isinstance(inputs, Tensor):
        check_images(settings["model"], inputs)
    loss = loss_fn or _recorded_loss(run)
    estimation: Any = None
    if statistics == "reestimated":
        estimation = inputs if targets is None else inputs[stratified_subset(targets, _STATISTICS_SIZE)]

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
                **({"tf32": torch.backends.cudnn.allow_tf32} if device.type == "cuda" else {}),
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


def _named(run: RunDirectory, settings: dict[str, Any], key: str) -> str:
    name = settings.get(key)
    if not isinstance(name, str) or not name:
        needed = "train= (and test=)" if key == "data" else f"{key}="
        raise LLPFError(f"{run.folder / 'run.yaml'} names no {key}; pass {needed} to verify_run")
    return _checked(run, name)


def _checked(run: RunDirectory, name: str) -> str:
    """``name``, where it may be executed; a warning where its file is not the one the search used."""
    if is_code(name):
        check_outside(name, run.folder)
        recorded = ((run.run.get("provenance") or {}).get("code_sha256") or {}).get(name)
        if recorded is not None and file_digest(name) not in (None, recorded):
            warnings.warn(f"{name.rpartition(':')[0]} was changed since the search that used it", stacklevel=3)
    return name


def _recorded_loss(run: RunDirectory) -> LossFunction:
    name = (run.run.get("provenance") or {}).get("loss")
    return loss_function(_checked(run, name)) if isinstance(name, str) else F.cross_entropy


def _classes(settings: dict[str, Any]) -> int | None:
    """Outputs of the network: those of the run's data set, where it is a registered one (a caller may bring data)."""
    name = settings.get("data")
    return dataset_classes(name) if name in dataset_names() else None


def _recorded_folder(run: RunDirectory) -> str | None:
    folder = (run.run.get("provenance") or {}).get("data_dir")
    return folder if isinstance(folder, str) else None


def _unreached(run: RunDirectory) -> list[str]:
    """Why the polyline does not lead from the run's start to its destination (``check`` compared what is known).

    Toward the origin, infinity or the mean there is no network to arrive at: such a run is whole where it ended.
    """
    mode = (run.run.get("settings") or {}).get("mode", "m2m")
    ends = ("start", "destination") if mode == "m2m" else ("start",)
    reasons = [
        f"run.yaml does not say what the {end} is ({end}_sha256)" for end in ends if not run.run.get(f"{end}_sha256")
    ]
    if not run.complete:
        reasons.append("the destination is not reached: the run is not finished; continue it with llpf find --resume")
    elif not run.arrived and mode not in _ENDLESS:
        reasons.append("the destination is not reached: the search stopped before it arrived")
    return reasons
