"""``Problem``: network, loss and data of an analysis, and everything that is measured with them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..batches import TensorBatches, TensorData, as_data, hold, stratified_subset
from ..batches.statistics import STATISTICS_SIZE, normalization_layers
from ..data import dataset_classes, load_dataset
from ..errors import LLPFError
from ..models import build_model, check_images
from ..path import RunDirectory
from ..path.fingerprint import Unidentifiable, describe_loss, describe_module, digest, tensor_digest
from ..user_code import loss_function
from ..verify import Evaluator
from ..verify.evaluate import LossFunction, Statistics
from ..verify.recorded import recorded_folder, recorded_loss, recorded_model, recorded_name, recorded_settings
from ..verify.run import SCREEN_SIZE, Samples
from .cache import CachedEvaluator, Evaluate
from .networks import Networks, Source, load_networks

Split = Literal["train", "test"]


class Problem:
    """A network, a loss and data in memory.

    Args:
        module: the architecture; its values play no part.
        loss_fn: (model output, targets) -> scalar mean loss; cross-entropy when missing.
        train, test: (inputs ``[n, ...]``, targets ``[n, ...]``), or an iterable of batches that stack into such.
        samples: training samples that are measured on, a fixed stratified subset; None or 0 for all.
        seed: of mini-batches and other draws.
        device: where to compute.
        cache: folder in which measurements are kept by content hash; None keeps none.
        names: what results call model, data and loss (``{"model": "lenet5", "data": "mnist"}``).

    Raises:
        LLPFError: data that do not stack; empty data.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: LossFunction | None = None,
        *,
        train: Samples,
        test: Samples | None = None,
        samples: int | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
        cache: str | os.PathLike[str] | None = None,
        names: dict[str, str] | None = None,
    ) -> None:
        if samples is not None and samples < 0:
            raise LLPFError(f"samples must be 0 (all) or more, got {samples}")
        self.module, self.loss_fn = module, loss_fn or F.cross_entropy
        self.seed, self.device, self.cache = seed, torch.device(device), cache
        self._names = names or {}
        #: All training samples; what the mini-batches come from.
        self.train = _tensors(train, "training")
        self.test = None if test is None else _tensors(test, "test")
        chosen = stratified_subset(self.train[1], samples or 0)
        whole = len(chosen) == len(self.train[1])
        #: The training samples that are measured on.
        self.measured = self.train if whole else (self.train[0][chosen], self.train[1][chosen])
        self._about: dict[str, Any] | None = None
        self._digests: dict[str, str] = {}

    @classmethod
    def from_run(
        cls,
        folder: str | os.PathLike[str],
        *,
        model: nn.Module | None = None,
        loss_fn: LossFunction | None = None,
        train: Samples | None = None,
        test: Samples | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> Problem:
        """What the run in ``folder`` was made with; what is given replaces what run.yaml names. Errors as verify_run.

        ``options``: samples, seed, device, cache.
        """
        run = RunDirectory.open(folder)
        settings = recorded_settings(run)
        names = {key: value for key in ("model", "data") if isinstance(value := settings.get(key), str)}
        module = model or recorded_model(run)
        if train is None:
            data = load_dataset(recorded_name(run, "data"), data_dir or recorded_folder(run))
            if model is None:
                check_images(recorded_name(run, "model"), data.train_inputs)
            train, test = data.train, test or data.test
        return cls(module, loss_fn or recorded_loss(run), train=train, test=test, names=names, **options)

    @classmethod
    def from_names(
        cls,
        model: str,
        data: str,
        *,
        data_dir: str | os.PathLike[str] | None = None,
        loss: str | None = None,
        download: bool = False,
        **options: Any,
    ) -> Problem:
        """Registered names, or code of one's own (``file.py:name``), as ``llpf find`` takes them.

        ``options``: samples, seed, device, cache. LLPFError for unknown names and data that do not fit the network.
        """
        with torch.random.fork_rng(devices=[]):  # initial values, drawn only for their shapes
            module = build_model(model, classes=dataset_classes(data))
        loss_fn = None if loss is None else loss_function(loss)
        loaded = load_dataset(data, data_dir, download=download)
        check_images(model, loaded.train_inputs)
        names = {"model": model, "data": data}
        return cls(module, loss_fn, train=loaded.train, test=loaded.test, names=names, **options)

    def networks(self, sources: Sequence[Source], *, fewest: int = 2, names: Sequence[str] | None = None) -> Networks:
        """The networks that ``sources`` name, checked against this architecture; see ``load_networks``."""
        return load_networks(sources, self.module, fewest=fewest, names=names)

    @property
    def has_statistics(self) -> bool:
        """Whether the network has BatchNorm layers, so that stored and re-estimated statistics differ."""
        return next(normalization_layers(self.module), None) is not None

    @property
    def statistics(self) -> tuple[Statistics, ...]:
        """The statistics worth measuring with: both where there are BatchNorm layers, else the stored alone."""
        return ("stored", "reestimated") if self.has_statistics else ("stored",)

    def statistics_inputs(self) -> Tensor:
        """The training inputs from which BatchNorm statistics are re-estimated: a fixed stratified subset of 2,000."""
        return self.train[0][stratified_subset(self.train[1], STATISTICS_SIZE)]

    def samples(self, split: Split) -> tuple[Tensor, Tensor]:
        """(inputs, targets) that ``evaluator(split)`` measures on; LLPFError where there is no test set."""
        if split == "train":
            return self.measured
        if self.test is None:
            raise LLPFError("there is no test set; pass test=")
        return self.test

    def evaluator(
        self,
        split: Split = "train",
        *,
        statistics: Statistics = "stored",
        dtype: torch.dtype = torch.float32,
        batch_size: int | None = None,
    ) -> Evaluate:
        """state dict -> Evaluation on ``samples(split)``: eval mode; answers come from the cache where there is one."""
        inputs, targets = self.samples(split)
        evaluator = Evaluator(
            self.module,
            self.loss_fn,
            inputs,
            targets,
            device=self.device,
            statistics=statistics,
            statistics_inputs=self.statistics_inputs() if statistics == "reestimated" else None,
            dtype=dtype,
            batch_size=batch_size,
        )
        about = self.identity(split)
        if self.cache is None or about is None:
            return evaluator
        if statistics == "reestimated":
            about["statistics_inputs"] = self._digest("statistics", self.statistics_inputs)
        return CachedEvaluator(evaluator, self.cache, about)

    def identity(self, split: Split = "train") -> dict[str, Any] | None:
        """What a measurement on ``samples(split)`` depends on besides the state, as digests: for cache keys.

        None, with a warning, where the network or the loss cannot be told from another by what Python shows of it (a
        lambda typed at a prompt): then nothing is cached.
        """
        try:
            if self._about is None:
                self._about = {
                    "architecture": digest(describe_module(self.module)),
                    "loss": digest(describe_loss(self.loss_fn)),
                }
        except Unidentifiable as error:
            if self.cache is not None:
                warnings.warn(f"nothing is cached: {error}, so it could not be told from another", stacklevel=2)
                self.cache = None
            return None
        return {**self._about, "data": self._digest(split, lambda: self.samples(split))}

    def _digest(self, what: str, tensors: Callable[[], Any]) -> str:
        if what not in self._digests:
            found = tensors()
            self._digests[what] = tensor_digest(*(found if isinstance(found, tuple) else (found,)))
        return self._digests[what]

    def batches(self, batch_size: int, *, path: int = 0, seed: int | None = None) -> TensorBatches:
        """Mini-batches of all training samples on the device: a function of (seed, path, round) alone."""
        inputs, targets = (part.to(self.device) for part in self.train)
        return TensorBatches(inputs, targets, batch_size, seed=self.seed if seed is None else seed, path=path)

    def about(self) -> dict[str, Any]:
        """What results say of the problem."""
        identity = self.identity("train")
        return {
            "model": self._names.get("model", type(self.module).__name__),
            "data": self._names.get("data"),
            "loss": getattr(self.loss_fn, "__name__", type(self.loss_fn).__name__),
            "training_samples": len(self.train[1]),
            "training_samples_measured": len(self.measured[1]),
            "test_samples": None if self.test is None else len(self.test[1]),
            "seed": self.seed,
            "device": str(self.device),
            "data_sha256": None if identity is None else identity["data"],
        }


def default_samples(device: torch.device | str) -> int:
    """Training samples that the commands measure on when nothing is said: all (0) on a GPU, 10,000 on a CPU."""
    return 0 if torch.device(device).type == "cuda" else SCREEN_SIZE


def _tensors(data: Samples, kind: str) -> tuple[Tensor, Tensor]:
    held = hold(as_data(data, f"{kind} data"))
    if not (isinstance(held, TensorData) and isinstance(held.inputs, Tensor) and isinstance(held.targets, Tensor)):
        raise LLPFError(f"the {kind} data must be tensors (inputs, targets), or a Dataset of such")
    return held.inputs, held.targets
