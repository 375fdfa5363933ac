"""What a run was made with, from the names in its run.yaml."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

from ..batches import LossFunction
from ..batches.loss import TORCH_LOSSES
from ..data import dataset_classes, dataset_names
from ..errors import LLPFError
from ..models import build_model
from ..path import RunDirectory
from ..user_code import check_outside, file_digest, is_code, loss_function


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
