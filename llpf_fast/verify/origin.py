"""``RunOrigin``: what a run was made with, as its run.yaml records it."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import nn

from ..batches.loss import TORCH_LOSSES
from ..data import dataset_classes, dataset_names, load_dataset
from ..errors import LLPFError
from ..models import build_model
from ..path import RunDirectory
from ..types import LossFunction
from ..user_code import check_outside, file_digest, is_code, loss_function

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
