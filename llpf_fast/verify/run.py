"""What a run was made with, from the names in its run.yaml."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

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
from ..errors import LLPFError
from ..flat.wrappers import unwrapped
from ..models import build_model, check_images
from ..path import RunDirectory, compare_architectures
from ..path.fingerprint import digest, loss_identity
from ..types import LossFunction, ProgressCallback
from ..user_code import check_outside, file_digest, is_code, loss_function
from .certificate import Certificate, certify
from .evaluator import Evaluator, Statistics, differs_beyond_rounding
from .refinement import Refinement


def recorded_settings(run: RunDirectory) -> dict[str, Any]:
    return run.run.get("settings") or {}


def recorded_name(run: RunDirectory, key: str) -> str:
    """The name of ``model`` or ``data`` in run.yaml; LLPFError where it names none, or code inside the run."""
    name = recorded_settings(run).get(key)
    if not isinstance(name, str) or not name:
        needed = "train= (and test=)" if key == "data" else f"{key}="
        raise LLPFError(f"{run.folder / 'run.yaml'} names no {key}; pass {needed} to verify_run")
    return _checked(run, name)


def recorded_model(run: RunDirectory) -> nn.Module:
    """The network that run.yaml names, with whatever initial values."""
    with torch.random.fork_rng(devices=[]):  # initial values, drawn only to be replaced
        return build_model(recorded_name(run, "model"), classes=_classes(run))


def recorded_loss(run: RunDirectory) -> LossFunction | None:
    """The loss that the run was found with; None where run.yaml says nothing of it (cross-entropy, if anything).

    Raises:
        LLPFError: it was a callable of the caller's, or one of torch's with options: that cannot be made from a name.
    """
    name = recorded_provenance(run).get("loss")
    if isinstance(name, str):
        return loss_function(_checked(run, name))
    loss = recorded_task(run).get("loss") or {}
    name = loss.get("name")
    if name is None:
        return None
    # A digest is that of code of the caller's own, which may be called as one of torch's is.
    if not isinstance(name, str) or name not in TORCH_LOSSES or "sha256" in loss:
        raise LLPFError(f"{run.folder} was found with the loss {name}, which a name cannot bring back; pass loss_fn=")
    return loss_function(name)


def recorded_task(run: RunDirectory) -> dict[str, Any]:
    """What run.yaml records of loss and data."""
    task = run.run.get("task")
    return task if isinstance(task, dict) else {}


def recorded_folder(run: RunDirectory) -> str | None:
    """The folder that the data came from."""
    folder = recorded_provenance(run).get("data_dir")
    return folder if isinstance(folder, str) else None


def recorded_provenance(run: RunDirectory) -> dict[str, Any]:
    return run.run.get("provenance") or {}


def _checked(run: RunDirectory, name: str) -> str:
    """``name``, where it may be executed; a warning where its file is not the one the search used."""
    if is_code(name):
        check_outside(name, run.folder)
        recorded = (recorded_provenance(run).get("code_sha256") or {}).get(name)
        if recorded is not None and file_digest(name) not in (None, recorded):
            warnings.warn(f"{name.rpartition(':')[0]} was changed since the search that used it", stacklevel=4)
    return name


def _classes(run: RunDirectory) -> int | None:
    """Outputs of the network: those of the run's data set, where it is a registered one (a caller may bring data)."""
    name = recorded_settings(run).get("data")
    return dataset_classes(name) if name in dataset_names() else None


#: Samples, a Dataset, a DataLoader, a list of batches: see :func:`llpf_fast.batches.as_data`.
Samples = Any

#: Modes without a place to arrive at: the certificate is about the way gone.
_ENDLESS = ("m2o", "m2o-o", "infinity", "mean")
#: Training samples on which a CPU screens all points.
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

    The chain of waypoints is checked first (missing, changed or foreign files; the start). Only files are read: what
    the finder remembers of its losses plays no part. Where loss, data, statistics or threshold are not those that the
    search was made with, ``Certificate.differs`` says so.

    Args:
        model, loss_fn, train, test: what the run was made with; when missing, the model, data set and loss that
            run.yaml names. ``train`` and ``test`` are anything that :func:`llpf_fast.batches.as_data` takes; the
            batches of a loader are evaluated as they come. Code that run.yaml names (``file.py:factory``) is executed,
            except where it lies in the run's own folder; a warning says where it has changed since the search.
        data_dir: folder of the data set; when missing, the one run.yaml names.
        threshold: when missing, run.yaml's.
        full: evaluate every point on the whole training set. When missing, only on a GPU; else a fixed stratified
            subset of 10,000 samples screens all points (see :func:`certify`).
        statistics: BatchNorm statistics "stored" (interpolated) or "reestimated" from training samples at each point;
            when missing, as in the search.
        batch_size: samples a forward pass; when missing, as in the search.
        max_samples: of a stream (``IterableDataset``), read only so many training and test samples.
        interior, refinement, straight_points, workers, seed, progress: see :func:`certify`.

    Returns:
        The certificate; ``connected`` is false, with a reason, where the run has not reached its destination.

    Raises:
        LLPFError: not a run; tampered waypoints; no such model or data set; waypoints of another architecture; a loss
            that is not given and that run.yaml does not name well enough to make it again.
    """
    run = RunDirectory.open(folder)
    run.check()
    settings, task = recorded_settings(run), recorded_task(run)
    device = checked_device(device)
    limit = settings.get("threshold") if threshold is None else threshold
    if not isinstance(limit, (int, float)) or isinstance(limit, bool):
        raise LLPFError(f"{run.folder / 'run.yaml'} names no threshold; pass threshold=")
    module = recorded_model(run) if model is None else unwrapped(model)
    if train is None:
        data = load_dataset(recorded_name(run, "data"), recorded_folder(run) if data_dir is None else data_dir)
        train, test = data.train, data.test if test is None else test
    waypoints = run.waypoints()
    first = waypoints[0].load()
    own = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    compare_architectures(first, own, f"the run {run.folder}", "the model")
    loss = recorded_loss(run) if loss_fn is None else loss_fn
    batch = (settings.get("correction") or {}).get("batch_size") or 64
    given = as_data(train, "training data", batch_size=batch, limit=max_samples)
    held = _read(given, max_samples, progress, _recorded_seed(run))
    if model is None and isinstance(held, TensorData) and isinstance(held.inputs, Tensor):
        check_images(settings["model"], held.inputs)
    if statistics is None:
        statistics = "reestimated" if settings.get("statistics") == "reestimated" else "stored"
    if batch_size is None and isinstance(task.get("evaluation_batch_size"), int):
        batch_size = task["evaluation_batch_size"]
    estimation = fixed_subset(held, STATISTICS_SIZE) if statistics == "reestimated" else None

    def evaluator(samples: MaterializedData) -> Evaluator:
        return Evaluator(
            module,
            loss,
            samples,
            device=device,
            statistics=statistics,
            statistics_inputs=estimation,
            batch_size=batch_size,
        )

    whole = evaluator(held)
    screen = None
    # A part of a sum is no estimate of the sum.
    if not (device.type == "cuda" if full is None else full) and not whole.adds_up:
        part = fixed_subset(held, SCREEN_SIZE)
        screen = None if part is held else evaluator(part)
    certificate = certify(
        waypoints,
        screen or whole,
        None
        if test is None
        else evaluator(_read(as_data(test, "test data", batch_size=batch, limit=max_samples), max_samples, progress)),
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
        differs=[
            *_differences(run, whole, given, held, statistics, computing_dtype(module)),
            *([] if threshold is None or threshold == settings.get("threshold") else [_other_threshold(run, limit)]),
        ],
        notes=list(_order_note(screen or whole, first)),
        about={
            "evaluation": {
                "data": settings.get("data") or None,
                "model": settings.get("model") or type(module).__name__,
                "loss": whole.loss_name,
                "data_sha256": materialized_digest(held, computing_dtype(module)),
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
    """``data`` in memory, in the order that the search read them in where ``seed`` is its seed."""
    text = f"reading {data.what}"
    reading = None if progress is None else lambda count: progress(count, max(limit or count, count), text)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return materialize(data, on_read=reading)


def _differences(
    run: RunDirectory,
    evaluator: Evaluator,
    given: Data,
    held: MaterializedData,
    statistics: Statistics,
    dtype: torch.dtype,
) -> Iterator[str]:
    """In what this evaluation is not the search's, as far as run.yaml says what the search was made with."""
    settings, task = recorded_settings(run), recorded_task(run)
    was = task.get("loss") or {}
    reduction = LossReduction(evaluator.loss_fn)
    now = loss_identity(evaluator.loss_fn, reduction.name, named=reduction.exact)
    if was and was.get("name") != now["name"]:
        yield f"the loss is {now['name']}, the search's was {was.get('name')}"
    elif was and ("sha256" in was) != ("sha256" in now):
        ours, theirs = ("code of that name", "torch's own") if "sha256" in now else ("torch's own", "code of that name")
        yield f"the loss {now['name']} is {ours}, the search's was {theirs}"
    elif was and None not in (was.get("sha256"), now.get("sha256")) and was["sha256"] != now["sha256"]:
        yield f"the loss {now['name']} may compute something else than in the search: its code has changed"
    yield from _other_data(task.get("data") or {}, given, held, dtype, _recorded_seed(run))
    if settings.get("statistics", "stored") != statistics:
        yield f"BatchNorm statistics are {statistics}, the search's were {settings.get('statistics', 'stored')}"
    if task.get("settings_sha256") not in (None, digest(settings)):
        yield "the settings in run.yaml were edited after the search"


def _other_data(
    recorded: dict[str, Any], given: Data, held: MaterializedData, dtype: torch.dtype, seed: int
) -> Iterator[str]:
    """In what the training data differ from the search's, of which it may have read a part only.

    Where the samples are not the same from one pass to the next (a shuffling loader with a generator of its own,
    augmentation by NumPy), their numbers are compared, and nothing else can be.
    """
    count, read, behind = sample_count(held), recorded.get("digest_of"), recorded.get("dataset")
    whole = recorded.get("samples")
    if whole is None and recorded.get("form") == "samples":
        whole = read
    now_behind = given.dataset_length if isinstance(given, BatchedData) else count
    if isinstance(whole, int) and whole != count:
        yield f"the training data are {count} samples, the search's were {whole}"
    elif isinstance(behind, int) and now_behind is not None and behind != now_behind:
        yield f"the training data are {now_behind} samples, the search's were {behind}"
    elif isinstance(read, int) and count < read:
        yield f"the training data are {count} samples, the search read {read}"
    elif isinstance(read, int) and (part := _first(held, read)) is not None:
        if recorded.get("sha256") == materialized_digest(part, dtype):
            return
        batches, now_batches = recorded.get("form") == "batches", isinstance(given, BatchedData)
        if recorded.get("set_sha256") == materialized_set_digest(part, dtype):
            if batches == now_batches and repeats(given, (seed, seed)):
                yield "the training data are the search's in another order"
            return
        if read == count and not now_batches and repeats(given, (seed, seed)):
            yield "the training data are other samples than the search's"
            return
        if batches and not now_batches:
            return  # the search's may have been shuffled
        if repeats(given, (seed, seed if batches == now_batches else seed + 1)):
            yield "the training data are other samples than the search's, or in another order"


def _first(held: MaterializedData, count: int) -> MaterializedData | None:
    """The first ``count`` samples; None where no batch ends there."""
    if isinstance(held, TensorData):
        return held if count == held.count else held.subset(torch.arange(count))
    seen = 0
    for place, batch in enumerate(held, 1):
        seen += batch_length(*batch)
        if seen >= count:
            return held[:place] if seen == count else None
    return None


def _recorded_seed(run: RunDirectory) -> int:
    seed = recorded_settings(run).get("seed")
    return seed if isinstance(seed, int) else 0


def _other_threshold(run: RunDirectory, limit: float) -> str:
    return f"the threshold is {limit:g}, the search's was {recorded_settings(run).get('threshold')}"


def _order_note(evaluator: Evaluator, state: Any) -> Iterator[str]:
    other = evaluator.in_another_order(state)
    if other is None:
        return
    loss = evaluator(state).loss
    if differs_beyond_rounding(loss, other, evaluator.dtype):
        yield (
            f"the loss depends on which samples share a batch: at the start {loss:.4g} in batches of "
            f"{evaluator.batch_size} in the order given, {other:.4g} in another order; this certificate is about the "
            "batches in the order given"
        )


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
