"""``verify_run``: the certificate of a run directory; ``RunOrigin``: what the run was made with."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..batches import Data, LossReduction, TensorData, as_data
from ..batches.batch import batch_length
from ..batches.data import BatchedData, repeats
from ..batches.fixed_samples import (
    MaterializedData,
    fixed_subset,
    materialize,
    materialized_digest,
    materialized_set_digest,
    sample_count,
)
from ..batches.forward import computing_dtype
from ..batches.loss import TORCH_LOSSES
from ..batches.precision import checked_device
from ..batches.statistics import STATISTICS_SIZE
from ..data import dataset_classes, dataset_names, load_dataset
from ..errors import LLPFError, unknown_name
from ..flat.wrappers import unwrapped
from ..models import build_model, check_images
from ..modes import MODES
from ..path import RunDirectory, compare_architectures
from ..path.fingerprint import digest, loss_identity
from ..types import LossFunction, ProgressCallback
from ..user_code import check_outside, file_digest, is_code, loss_function
from .certificate import Certificate, certify
from .evaluator import Evaluator, Statistics, differs_beyond_rounding
from .refinement import Refinement

#: Samples, a Dataset, a DataLoader, a list of batches: see :func:`llpf_fast.batches.as_data`.
Samples = Any


class RunOrigin:
    """What a run was made with, as its run.yaml records it.

    Attributes:
        settings, task, provenance: the entries of run.yaml of these names; empty where they are missing.
        seed: the search's seed; 0 where none is recorded.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self.settings: dict[str, Any] = run.run.get("settings") or {}
        self.task: dict[str, Any] = run.run.get("task") or {}
        self.provenance: dict[str, Any] = run.run.get("provenance") or {}
        seed = self.settings.get("seed")
        self.seed = seed if isinstance(seed, int) else 0

    def name(self, key: str) -> str:
        """The name of the "model" or the "data".

        Raises:
            LLPFError: run.yaml records none; the name is that of code inside the run's folder.
        """
        name = self.settings.get(key)
        if not isinstance(name, str) or not name:
            needed = "train= (and test=)" if key == "data" else f"{key}="
            raise LLPFError(f"{self._run.folder / 'run.yaml'} names no {key}; pass {needed} to verify_run")
        return self._checked(name)

    def model(self) -> nn.Module:
        """The network, with new initial values; errors as :meth:`name`."""
        # Outputs: those of a registered data set. The caller's own data may have any number.
        data = self.settings.get("data")
        classes = dataset_classes(data) if data in dataset_names() else None
        with torch.random.fork_rng(devices=[]):
            return build_model(self.name("model"), classes=classes)

    def data(self, data_dir: str | os.PathLike[str] | None = None) -> tuple[Samples, Samples | None]:
        """Training and test data, from ``data_dir`` or else the folder that the search read; errors as :meth:`name`."""
        recorded = self.provenance.get("data_dir")
        data = load_dataset(self.name("data"), recorded if data_dir is None else data_dir)
        return data.train, data.test

    def loss(self) -> LossFunction | None:
        """The search's loss; None where run.yaml records none (cross-entropy for classification).

        Raises:
            LLPFError: its name does not say what it computes: a callable of the caller's, or a loss of torch's with
                options.
        """
        name = self.provenance.get("loss")
        if isinstance(name, str):
            return loss_function(self._checked(name))
        loss = self.task.get("loss") or {}
        name = loss.get("name")
        if name is None:
            return None
        # Code of the caller's, which has a digest, may have the name of one of torch's losses.
        if not isinstance(name, str) or name not in TORCH_LOSSES or "sha256" in loss:
            raise LLPFError(
                f"the search of {self._run.folder} used the loss {name}, which cannot be made from its name; pass "
                "loss_fn="
            )
        return loss_function(name)

    def _checked(self, name: str) -> str:
        """``name``, where it may be executed; a warning where its file is not the one the search used."""
        if is_code(name):
            check_outside(name, self._run.folder)
            recorded = (self.provenance.get("code_sha256") or {}).get(name)
            if recorded is not None and file_digest(name) not in (None, recorded):
                warnings.warn(f"{name.rpartition(':')[0]} was changed since the search that used it", stacklevel=4)
        return name


#: Size of the subset of training samples on which a CPU screens all points.
SCREEN_SIZE = 10_000


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
    statistics: Statistics | None = None,
    batch_size: int | None = None,
    max_samples: int | None = None,
    interior: int | None = None,
    refinement: Refinement | None = None,
    straight_points: int = 21,
    workers: int | None = None,
    seed: int | None = None,
    progress: ProgressCallback | None = None,
) -> Certificate:
    """Certify the path in the run directory ``folder`` and write its certificate.json.

    The waypoints are checked first: no file may be missing, changed or foreign, and the first must be the start. All
    losses are computed again. Where loss, data, statistics or threshold are not those of the search,
    ``Certificate.differs`` says so.

    Args:
        model, loss_fn, train, test: what the run was made with; when missing, the model, data set and loss that
            run.yaml names. ``train`` and ``test`` are anything that :func:`llpf_fast.batches.as_data` takes; a
            loader's batches are used unchanged. Code that run.yaml names (``file.py:factory``) is executed, except
            where it lies inside the run's folder; a warning says where it has changed since the search.
        data_dir: folder of the data set; when missing, the one run.yaml names.
        threshold: when missing, run.yaml's.
        full: evaluate every point on the whole training set. When missing, only on a GPU; on a CPU a fixed stratified
            subset of 10,000 samples screens all points (see :func:`certify`).
        statistics: BatchNorm statistics "stored" (interpolated) or "reestimated" from training samples at each point;
            when missing, as in the search.
        batch_size: samples a forward pass; when missing, as in the search.
        max_samples: number of training and of test samples to read from a stream (``IterableDataset``).
        interior, refinement, straight_points, workers, seed, progress: see :func:`certify`.

    Returns:
        The certificate; ``connected`` is false, with a reason, where the run has not reached its destination.

    Raises:
        LLPFError: not a run; changed waypoints; no such model or data set; waypoints of another architecture; no
            ``loss_fn``, and run.yaml's name of the loss does not say what it computes.
    """
    run = RunDirectory.open(folder)
    run.check()
    origin = RunOrigin(run)
    settings, task = origin.settings, origin.task
    device = checked_device(device)
    limit = settings.get("threshold") if threshold is None else threshold
    if not isinstance(limit, (int, float)) or isinstance(limit, bool):
        raise LLPFError(f"{run.folder / 'run.yaml'} names no threshold; pass threshold=")
    module = origin.model() if model is None else unwrapped(model)
    if train is None:
        train, test_data = origin.data(data_dir)
        test = test_data if test is None else test
    waypoints = run.waypoints()
    first = waypoints[0].load()
    tensors = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    compare_architectures(first, tensors, f"the run {run.folder}", "the model")
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
    if batch_size is None and isinstance(task.get("evaluation_batch_size"), int):
        batch_size = task["evaluation_batch_size"]
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

    whole = evaluator(samples)
    screen = None
    if not (device.type == "cuda" if full is None else full) and not whole.adds_up:
        part = fixed_subset(samples, SCREEN_SIZE)
        screen = None if part is samples else evaluator(part)
    on_test = None
    if test is not None:
        test = as_data(test, "test data", batch_size=batch, limit=max_samples)
        on_test = evaluator(_read(test, max_samples, progress))
    differs = list(_differences(origin, whole, given, samples, statistics, computing_dtype(module)))
    if threshold is not None and threshold != settings.get("threshold"):
        differs.append(f"the threshold is {limit:g}, the search's was {settings.get('threshold')}")
    certificate = certify(
        waypoints,
        screen or whole,
        on_test,
        threshold=float(limit),
        full_train=screen and whole,
        interior=interior,
        refinement=refinement,
        straight_points=straight_points,
        parameter_names={name for name, _ in module.named_parameters()},
        workers=workers,
        seed=seed,
        progress=progress,
        also_wrong=_unreached(run),
        differs=differs,
        notes=list(_order_note(screen or whole, first)),
        about={
            "evaluation": {
                "data": settings.get("data") or None,
                "model": settings.get("model") or type(module).__name__,
                "loss": whole.loss_name,
                "data_sha256": materialized_digest(samples, computing_dtype(module)),
                "device": str(device),
                **({"tf32": False} if device.type == "cuda" else {}),
            },
            "run": {
                "mode": settings.get("mode"),
                "settings_sha256": digest(settings),
                "start_sha256": run.run.get("start_sha256"),
                "destination_sha256": run.run.get("destination_sha256"),
                "waypoint_index_sha256": run.index_digest(),
            },
        },
    )
    run.write_certificate(certificate.as_dict())
    return certificate


def _read(data: Data, limit: int | None, progress: ProgressCallback | None, seed: int = 0) -> MaterializedData:
    """``data`` in memory. With the search's seed, data in a random order have the order of the search."""
    text = f"reading {data.what}"
    reading = None if progress is None else lambda count: progress(count, max(limit or count, count), text)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return materialize(data, on_read=reading)


def _differences(
    origin: RunOrigin,
    evaluator: Evaluator,
    given: Data,
    samples: MaterializedData,
    statistics: Statistics,
    dtype: torch.dtype,
) -> Iterator[str]:
    """In what this evaluation is not the search's, as far as run.yaml records the search."""
    settings, task = origin.settings, origin.task
    recorded = task.get("loss") or {}
    reduction = LossReduction(evaluator.loss_fn)
    loss = loss_identity(evaluator.loss_fn, reduction.name, named=reduction.exact)
    if recorded and recorded.get("name") != loss["name"]:
        yield f"the loss is {loss['name']}, the search's was {recorded.get('name')}"
    elif recorded and ("sha256" in recorded) != ("sha256" in loss):
        now, before = ("other code", "torch's") if "sha256" in loss else ("torch's", "other code")
        yield f"the loss {loss['name']} is {now}, the search's was {before} of that name"
    elif recorded and None not in (recorded.get("sha256"), loss.get("sha256")) and recorded["sha256"] != loss["sha256"]:
        yield f"the code of the loss {loss['name']} has changed since the search"
    yield from _data_differences(task.get("data") or {}, given, samples, dtype, origin.seed)
    if settings.get("statistics", "stored") != statistics:
        yield f"BatchNorm statistics are {statistics}, the search's were {settings.get('statistics', 'stored')}"
    if task.get("settings_sha256") not in (None, digest(settings)):
        yield "the settings in run.yaml were edited after the search"


def _data_differences(
    recorded: dict[str, Any], given: Data, samples: MaterializedData, dtype: torch.dtype, seed: int
) -> Iterator[str]:
    """In what the training data differ from the search's, which may have read a part of them only.

    Where the samples change from one pass to the next (a shuffling loader with a generator, augmentation by NumPy),
    only their numbers can be compared.
    """
    count, read, dataset_length = sample_count(samples), recorded.get("digest_of"), recorded.get("dataset")
    whole = recorded.get("samples")
    if whole is None and recorded.get("form") == "samples":
        whole = read
    given_length = given.dataset_length if isinstance(given, BatchedData) else count
    if isinstance(whole, int) and whole != count:
        yield f"the training data are {count} samples, the search's were {whole}"
    elif isinstance(dataset_length, int) and given_length is not None and dataset_length != given_length:
        yield f"the training data are {given_length} samples, the search's were {dataset_length}"
    elif isinstance(read, int) and count < read:
        yield f"the training data are {count} samples, the search read {read}"
    elif isinstance(read, int) and (part := _first_samples(samples, read)) is not None:
        if recorded.get("sha256") == materialized_digest(part, dtype):
            return
        were_batches, are_batches = recorded.get("form") == "batches", isinstance(given, BatchedData)
        if recorded.get("set_sha256") == materialized_set_digest(part, dtype):
            if were_batches == are_batches and repeats(given, (seed, seed)):
                yield "the training data are the search's in another order"
            return
        if read == count and not are_batches and repeats(given, (seed, seed)):
            yield "the training data are not the samples of the search"
            return
        if were_batches and not are_batches:
            return  # the search's batches may have been shuffled
        if repeats(given, (seed, seed if were_batches == are_batches else seed + 1)):
            yield "the training data are not the samples of the search, or are in another order"


def _first_samples(samples: MaterializedData, count: int) -> MaterializedData | None:
    """The first ``count`` samples; None where no batch ends there."""
    if isinstance(samples, TensorData):
        return samples if count == samples.count else samples.subset(torch.arange(count))
    total = 0
    for number, batch in enumerate(samples, 1):
        total += batch_length(*batch)
        if total >= count:
            return samples[:number] if total == count else None
    return None


def _order_note(evaluator: Evaluator, state: Any) -> Iterator[str]:
    """A note where the loss at ``state`` depends on the order of the samples."""
    other = evaluator.in_another_order(state)
    if other is None:
        return
    loss = evaluator(state).loss
    if differs_beyond_rounding(loss, other, evaluator.dtype):
        yield (
            f"the loss depends on which samples share a batch: at the start it is {loss:.4g} in batches of "
            f"{evaluator.batch_size} in the data's order, and {other:.4g} in another order; this certificate is about "
            "the data's order"
        )


def _unreached(run: RunDirectory) -> list[str]:
    """Why the polyline does not lead from the run's start to its destination (``check`` compared what is recorded).

    Where the search had no goal, the path is complete where it ended. The mode says so too: ``goal`` is not among the
    settings, whose digest shows an edit.
    """
    goals = {run.run.get("goal") or "model"}
    if (mode := MODES.get((run.run.get("settings") or {}).get("mode", ""))) is not None:
        goals.add(mode.goal)
    endpoints = ("start", "destination") if "model" in goals else ("start",)
    reasons = [
        f"run.yaml records no {endpoint}_sha256: the {endpoint} cannot be checked"
        for endpoint in endpoints
        if not run.run.get(f"{endpoint}_sha256")
    ]
    if not run.complete:
        reasons.append("the destination is not reached: the run is not finished; continue it with llpf find --resume")
    elif not run.arrived and goals != {"none"}:
        reasons.append("the destination is not reached: the search stopped before it arrived")
    return reasons
