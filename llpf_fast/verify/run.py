"""``verify_run``: the certificate of a run directory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..batches import Data, TensorData, as_data
from ..batches.fixed_samples import MaterializedData, fixed_subset, materialize, materialized_digest
from ..batches.precision import checked_device
from ..batches.statistics import STATISTICS_SIZE
from ..errors import LLPFError, unknown_name
from ..flat.wrappers import unwrapped
from ..models import check_images
from ..path import RunDirectory, compare_architectures
from ..path.fingerprint import Unidentifiable, describe_module, digest, loss_identity
from ..types import LossFunction, ProgressCallback
from .binding import differences, unreached, way
from .certificate import Certificate, certify
from .enclosure.bisection import Limits
from .evaluator import Evaluator, Statistics
from .origin import RunOrigin, Samples
from .verdict import Level

#: Training samples above which a CPU verifies on chosen ones where no level is given.
SAMPLED_ABOVE = 10_000


def verify_run(
    folder: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    loss_fn: LossFunction | None = None,
    train: Samples | None = None,
    test: Samples | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    threshold: float | None = None,
    level: Level | None = None,
    device: torch.device | str = "cpu",
    statistics: Statistics | None = None,
    batch_size: int | None = None,
    max_samples: int | None = None,
    other_data: bool = False,
    other_loss: bool = False,
    other_settings: bool = False,
    limits: Limits | None = None,
    straight_points: int = 21,
    workers: int | None = None,
    seed: int | None = None,
    progress: ProgressCallback | None = None,
) -> Certificate:
    """Certify the path in the run directory ``folder`` and write its certificate.json.

    The waypoints are checked first: no file may be missing, changed or foreign, and the first must be the start. All
    losses are computed again. Data, loss and settings are compared with what run.yaml records of the search; where they
    are others, or cannot be compared, the path is not connected unless that is allowed by name.

    Args:
        model, loss_fn, train, test: what the run was made with; when missing, the model, data set and loss that
            run.yaml names. ``train`` and ``test`` are anything that :func:`llpf_fast.batches.as_data` takes; a
            loader's batches are used unchanged. Code that run.yaml names (``file.py:factory``) is executed, except
            where it lies inside the run's folder; a warning says where it has changed since the search.
        data_dir: folder of the data set; when missing, the one run.yaml names.
        threshold: when missing, run.yaml's.
        level: "full" or "sampled" (see :func:`certify`). When missing, sampled on a CPU for more than 10,000 training
            samples, else full.
        statistics: BatchNorm statistics "stored" (interpolated) or "reestimated" from training samples at each point;
            when missing, as in the search.
        batch_size: samples a forward pass; when missing, as in the search.
        max_samples: number of training and of test samples to read from a stream (``IterableDataset``).
        other_data: the training data may be others than the search's.
        other_loss: so may the loss.
        other_settings: so may the statistics; the threshold may be higher; the settings may have been edited.
        limits, straight_points, workers, seed, progress: see :func:`certify`.

    Returns:
        The certificate; ``connected`` is false, with a reason, where the run has not reached its destination.

    Raises:
        LLPFError: not a run; changed waypoints; no such model or data set; waypoints of another architecture; no
            ``loss_fn``, and run.yaml's name of the loss does not say what it computes.
    """
    run = RunDirectory.open(folder)
    run.check()
    task = Task.of(
        run,
        model=model,
        loss_fn=loss_fn,
        train=train,
        test=test,
        data_dir=data_dir,
        device=checked_device(device),
        statistics=statistics,
        batch_size=batch_size,
        max_samples=max_samples,
        progress=progress,
    )
    settings = task.origin.settings
    limit = settings.get("threshold") if threshold is None else threshold
    if not isinstance(limit, (int, float)) or isinstance(limit, bool):
        raise LLPFError(f"{run.folder / 'run.yaml'} names no threshold; pass threshold=")
    if level is None:
        small = task.train.device.type == "cuda" or task.train.samples <= SAMPLED_ABOVE
        level = "full" if small else "sampled"
    deviations = list(
        differences(task.origin, task.train, task.given, task.samples, task.train.statistics, float(limit))
    )
    allowed = {"data": other_data, "loss": other_loss, "settings": other_settings}
    blocking = [each.reason for each in deviations if each.matters and not allowed[each.kind]]
    certificate = certify(
        run.waypoints(),
        task.train,
        task.test,
        threshold=float(limit),
        level=level,
        limits=limits,
        straight_points=straight_points,
        parameter_names={name for name, _ in task.module.named_parameters()},
        workers=workers,
        seed=seed,
        progress=progress,
        also_wrong=[*unreached(run), *blocking],
        way=way(run),
        differs=[each.text for each in deviations if each.known],
        notes=[each.text for each in deviations if not each.known],
        about={"evaluation": task.evaluation(), "run": task.binding(run)},
    )
    run.write_certificate(certificate.as_dict())
    return certificate


@dataclass(frozen=True)
class Task:
    """Network, data and loss of a verification.

    Attributes:
        given: the training data in their form.
        samples, test_samples: the data in memory.
        train, test: their evaluators.
    """

    origin: RunOrigin
    module: nn.Module
    given: Data
    samples: MaterializedData
    test_samples: MaterializedData | None
    train: Evaluator
    test: Evaluator | None

    @classmethod
    def of(
        cls,
        run: RunDirectory,
        *,
        model: nn.Module | None,
        loss_fn: LossFunction | None,
        train: Samples | None,
        test: Samples | None,
        data_dir: str | os.PathLike[str] | None,
        device: torch.device,
        statistics: Statistics | None,
        batch_size: int | None,
        max_samples: int | None,
        progress: ProgressCallback | None,
    ) -> Task:
        """What was given, and for the rest what run.yaml names; arguments and errors as of :func:`verify_run`."""
        origin = RunOrigin(run)
        settings = origin.settings
        module = origin.model() if model is None else unwrapped(model)
        if train is None:
            train, test_data = origin.data(data_dir)
            test = test_data if test is None else test
        tensors = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
        compare_architectures(run.waypoints()[0].load(), tensors, f"the run {run.folder}", "the model")
        loss = origin.loss() if loss_fn is None else loss_fn
        batch = (settings.get("correction") or {}).get("batch_size") or 64
        given = as_data(train, "training data", batch_size=batch, limit=max_samples)
        samples = _read(given, max_samples, progress, origin.seed)
        if model is None and isinstance(samples, TensorData) and isinstance(samples.inputs, Tensor):
            check_images(settings["model"], samples.inputs)
        if statistics is None:
            statistics = "reestimated" if settings.get("statistics") == "reestimated" else "stored"
        elif statistics not in get_args(Statistics):
            raise LLPFError(unknown_name("statistics", str(statistics), get_args(Statistics)))
        if batch_size is None and isinstance(origin.task.get("evaluation_batch_size"), int):
            batch_size = origin.task["evaluation_batch_size"]
        estimation = fixed_subset(samples, STATISTICS_SIZE) if statistics == "reestimated" else None

        def evaluator(data: MaterializedData) -> Evaluator:
            return Evaluator(
                module,
                loss,
                data,
                device=device,
                statistics=statistics,
                statistics_inputs=estimation,
                batch_size=batch_size,
            )

        on_train, on_test, test_samples = evaluator(samples), None, None
        if test is not None:
            test_samples = _read(as_data(test, "test data", batch_size=batch, limit=max_samples), max_samples, progress)
            on_test = evaluator(test_samples)
        return cls(origin, module, given, samples, test_samples, on_train, on_test)

    def evaluation(self) -> dict[str, Any]:
        """What was evaluated on what, for the certificate: names and digests."""
        settings, train = self.origin.settings, self.train
        try:
            architecture = digest(describe_module(self.module))
        except Unidentifiable:
            architecture = None
        return {
            "data": settings.get("data") or None,
            "model": settings.get("model") or type(self.module).__name__,
            "model_sha256": architecture,
            "loss": train.loss_name,
            "loss_sha256": loss_identity(train.loss_fn, train.loss_name, named=train.loss_is_named).get("sha256"),
            "data_sha256": materialized_digest(self.samples, train.dtype),
            "test_sha256": None if self.test_samples is None else materialized_digest(self.test_samples, train.dtype),
            "device": str(train.device),
            **({"tf32": False} if train.device.type == "cuda" else {}),
        }

    @staticmethod
    def binding(run: RunDirectory) -> dict[str, Any]:
        """What of the run the certificate is about."""
        settings = run.run.get("settings") or {}
        return {
            "mode": settings.get("mode"),
            "run_sha256": digest(run.run),
            "settings_sha256": digest(settings),
            "start_sha256": run.run.get("start_sha256"),
            "destination_sha256": run.run.get("destination_sha256"),
            "waypoint_index_sha256": run.index_digest(),
        }


def _read(data: Data, limit: int | None, progress: ProgressCallback | None, seed: int = 0) -> MaterializedData:
    """``data`` in memory. With the search's seed, data in a random order have the order of the search."""
    text = f"reading {data.what}"
    reading = None if progress is None else lambda count: progress(count, max(limit or count, count), text)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return materialize(data, on_read=reading)
