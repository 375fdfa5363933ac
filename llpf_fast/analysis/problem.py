"""``Problem``: network, loss and data of an analysis, and everything that is measured with them."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..batches import (
    FixedSamples,
    IndexedBatches,
    LoaderBatches,
    LossReduction,
    TensorData,
    as_data,
    materialize,
    training_batches,
)
from ..batches.batch import batch_length
from ..batches.digest import data_digest
from ..batches.fixed_samples import MaterializedData, fixed_subset, materialized_digest, sample_count, try_network
from ..batches.forward import computing_dtype, default_batch_size
from ..batches.loss import chosen_loss
from ..batches.precision import checked_device, loss_in, module_in
from ..batches.statistics import STATISTICS_SIZE, normalization_layers, reestimate
from ..data import dataset_classes, load_dataset
from ..errors import LLPFError
from ..flat.copying import copied
from ..flat.wrappers import unwrapped
from ..models import build_model, check_images
from ..path import RunDirectory
from ..path.fingerprint import Unidentifiable, describe_loss, describe_module, digest, loss_identity
from ..types import LossFunction, StateDict
from ..user_code import loss_function
from ..verify import Evaluator
from ..verify.evaluator import Statistics
from ..verify.origin import RunOrigin, Samples
from .cache import CachedEvaluator, Evaluate, cached_numbers, cached_training, evaluating_code
from .networks import Networks, Source, load_networks, load_state
from .vector_loss import VectorLoss

#: Training samples that the commands measure on by default on a CPU.
_CPU_SAMPLES = 10_000

Split = Literal["train", "test"]


class Problem:
    """A network, a loss and data in memory.

    The loss of a set is the one of search and certificate: of torch's losses the value of one call on the
    whole set, of any other callable the mean of its values on the batches.

    Args:
        module: the architecture; its values are not used. Wrappers (torch.compile, DataParallel) are removed.
        loss_fn: (model output, targets) -> scalar loss of a batch; None: cross-entropy, where outputs and targets are
            those of classification.
        train, test: anything that :func:`llpf_fast.batches.as_data` takes: (inputs, targets), a Dataset, a DataLoader,
            a list of batches. Read once into memory; batches are not cut anew.
        samples: training samples that are measured on, a fixed stratified subset (of batches: whole ones, evenly
            spread); None or 0 for all.
        seed: of mini-batches and other draws.
        device: where to compute. The dtype is float64 for a network of float64, else float32.
        cache: folder in which evaluations are cached by content hash; None for no cache.
        names: of model and data in results (``{"model": "lenet5", "data": "mnist"}``), and of the loss, where it has
            one (``"loss": "file.py:function"``).
        batch_size: samples a forward pass where points are measured: 125 on a CPU, 2,000 on a GPU when missing.
        usual_statistics: BatchNorm statistics ("stored" or "reestimated") where an analysis measures with one kind.

    Attributes:
        module, loss_fn: those in use.
        train, measured, test: samples (``TensorData``) or a list of batches, in memory; ``test`` may be None.
        dtype: to compute in.
        mode: how the network is run (:class:`~llpf_fast.batches.forward.ForwardMode`).

    Raises:
        LLPFError: data of no known form; empty data; a forward that fails on the data; no loss, and no classification.
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
        batch_size: int | None = None,
        usual_statistics: Statistics = "stored",
    ) -> None:
        if samples is not None and samples < 0:
            raise LLPFError(f"samples must be 0 (all) or more, got {samples}")
        self.module = unwrapped(module)
        self.seed, self.device, self.cache = seed, checked_device(device), cache
        self.dtype = computing_dtype(self.module)
        self.batch_size = default_batch_size(self.device) if batch_size is None else batch_size
        self.usual_statistics: Statistics = usual_statistics
        self._names = names or {}
        #: All training samples, from which mini-batches are drawn.
        self.train = _in_memory(train, "training data")
        self.test = None if test is None else _in_memory(test, "test data")
        #: The training samples that are measured on.
        self.measured = fixed_subset(self.train, samples or 0)
        twin = module_in(copied(self.module, "the model"), self.device, self.dtype).eval().requires_grad_(False)
        self.mode, output, targets = try_network(
            twin, self.measured, device=self.device, dtype=self.dtype, channels_last=self.device.type == "cpu"
        )
        self.loss_fn = chosen_loss(loss_fn, output, targets)
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

        Points are measured as the search did: its loss, BatchNorm statistics, samples a forward pass. ``options``:
        samples, seed, device, cache, batch_size, usual_statistics.
        """
        origin = RunOrigin(RunDirectory.open(folder))
        settings, task = origin.settings, origin.task
        names = {key: value for key in ("model", "data") if isinstance(value := settings.get(key), str)}
        module = origin.model() if model is None else model
        if train is None:
            train_data, test_data = origin.data(data_dir)
            train, test = _in_memory(train_data, "training data"), test_data if test is None else test
            if model is None:
                _check_images(origin.name("model"), train)
        if isinstance(task.get("evaluation_batch_size"), int):
            options.setdefault("batch_size", task["evaluation_batch_size"])
        if settings.get("statistics") == "reestimated":
            options.setdefault("usual_statistics", "reestimated")
        named = origin.provenance.get("loss")
        if loss_fn is None and isinstance(named, str):
            names["loss"] = named
        loss = origin.loss() if loss_fn is None else loss_fn
        return cls(module, loss, train=train, test=test, names=names, **options)

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
        """The problem of registered names, or of the user's code (``file.py:name``), as ``llpf find`` takes them.

        ``options``: samples, seed, device, cache. LLPFError for unknown names and data that do not fit the network.
        """
        with torch.random.fork_rng(devices=[]):  # initial values, drawn only for their shapes
            module = build_model(model, classes=dataset_classes(data))
        loss_fn = None if loss is None else loss_function(loss)
        loaded = load_dataset(data, data_dir, download=download)
        train = _in_memory(loaded.train, "training data")
        _check_images(model, train)
        names = {"model": model, "data": data} | ({} if loss is None else {"loss": loss})
        return cls(module, loss_fn, train=train, test=loaded.test, names=names, **options)

    def like(self, *, module: nn.Module | None = None, samples: int | None = None) -> Problem:
        """The same with another ``module`` (whose loss is then the one in use here), or measured on other samples.

        ``samples``: as for :class:`Problem`; None for the same samples.
        """
        other = Problem(
            self.module if module is None else module,
            self.loss_fn,
            train=self.train,
            test=self.test,
            samples=sample_count(self.measured) if samples is None else samples,
            seed=self.seed,
            device=self.device,
            cache=self.cache,
            names=self._names,
            batch_size=self.batch_size,
            usual_statistics=self.usual_statistics,
        )
        if samples is None:
            other.measured = self.measured
        return other

    def networks(self, sources: Sequence[Source], *, fewest: int = 2, names: Sequence[str] | None = None) -> Networks:
        """The networks that ``sources`` name, checked against this architecture; see ``load_networks``."""
        return load_networks(sources, self.module, fewest=fewest, names=names)

    def vector_loss(self, *, train: bool = False, dtype: torch.dtype | None = None) -> VectorLoss:
        """The loss as a function of one flat vector, on the device and in ``dtype`` (the problem's when missing)."""
        return VectorLoss(
            self.module,
            self.loss_fn,
            train=train,
            device=self.device,
            dtype=self.dtype if dtype is None else dtype,
            gradients=self.mode.gradients,
        )

    def copy(self, dtype: torch.dtype | None = None) -> nn.Module:
        """A copy of the module on the device, in ``dtype`` (the problem's when missing)."""
        return module_in(copied(self.module, "the model"), self.device, self.dtype if dtype is None else dtype)

    @property
    def has_statistics(self) -> bool:
        """Whether the network has BatchNorm layers, so that stored and re-estimated statistics differ."""
        return next(normalization_layers(self.module), None) is not None

    @property
    def statistics(self) -> tuple[Statistics, ...]:
        """The statistics worth measuring with: both where there are BatchNorm layers, else the stored alone."""
        return ("stored", "reestimated") if self.has_statistics else ("stored",)

    @property
    def reduction(self) -> LossReduction:
        """How the loss of a set is made of the losses of its batches."""
        return LossReduction(self.loss_fn)

    def estimation(self) -> MaterializedData:
        """The training samples from which BatchNorm statistics are re-estimated: a fixed subset of 2,000."""
        return fixed_subset(self.train, STATISTICS_SIZE)

    def samples(self, split: Split) -> MaterializedData:
        """What ``evaluator(split)`` measures on; LLPFError where there is no test set."""
        if split == "train":
            return self.measured
        if self.test is None:
            raise LLPFError("there is no test set; pass test=")
        return self.test

    def fixed(
        self, data: MaterializedData, *, batch_size: int | None = None, dtype: torch.dtype | None = None
    ) -> FixedSamples:
        """``data`` in batches on the device, placed as the evaluator places them."""
        return FixedSamples(
            data,
            batch_size=self.batch_size if batch_size is None else batch_size,
            device=self.device,
            dtype=self.dtype if dtype is None else dtype,
            channels_last=self.mode.channels_last,
        )

    def evaluator(
        self,
        split: Split = "train",
        *,
        statistics: Statistics | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
    ) -> Evaluate:
        """state dict -> Evaluation on ``samples(split)``: eval mode; answers come from the cache where there is one.

        ``statistics`` (``usual_statistics``), ``dtype`` and ``batch_size`` are the problem's when missing.
        """
        statistics = self.usual_statistics if statistics is None else statistics
        evaluator = self.new_evaluator(split, statistics=statistics, dtype=dtype, batch_size=batch_size)
        about = self.identity(split)
        if self.cache is None or about is None:
            return evaluator
        if statistics == "reestimated":
            about["statistics_inputs"] = self._digest("statistics", self.estimation())
        return CachedEvaluator(evaluator, self.cache, about)

    def new_evaluator(
        self,
        split: Split = "train",
        *,
        statistics: Statistics,
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
    ) -> Evaluator:
        """:meth:`evaluator` without the cache."""
        dtype = self.dtype if dtype is None else dtype
        return Evaluator(
            self.module,
            loss_in(self.loss_fn, self.device, dtype),
            self.samples(split),
            device=self.device,
            statistics=statistics,
            statistics_inputs=self.estimation() if statistics == "reestimated" else None,
            dtype=dtype,
            batch_size=self.batch_size if batch_size is None else batch_size,
        )

    def identity(self, split: Split = "train") -> dict[str, Any] | None:
        """What a measurement on ``samples(split)`` depends on besides the state, as digests: for cache keys.

        The architecture, the loss with its options, the samples and how they came in batches, how they are run, and
        the code that forms the loss of a set. None, with a warning, where the network or the loss has no source that
        identifies it (a lambda typed at a prompt): then nothing is cached.
        """
        try:
            if self._about is None:
                self._about = {
                    "architecture": digest(describe_module(self.module)),
                    "loss": digest(describe_loss(self.loss_fn)),
                }
        except Unidentifiable as error:
            if self.cache is not None:
                warnings.warn(f"nothing is cached: {error}, so that it cannot be identified", stacklevel=2)
                self.cache = None
            return None
        return {
            **self._about,
            "data": self._digest(split, self.samples(split)),
            "dtype": str(self.dtype),
            "batch_size": self.batch_size,
            "mode": str(self.mode),
            "usual_statistics": self.usual_statistics,
            "code": evaluating_code(),
        }

    def training_identity(self) -> dict[str, Any] | None:
        """What training on this problem depends on: all training samples (:meth:`identity` has those that are measured
        on); which parameters are frozen; the device. None as there."""
        identity = self.identity()
        if identity is None:
            return None
        frozen = [name for name, parameter in self.module.named_parameters() if not parameter.requires_grad]
        whole = identity["data"] if self.measured is self.train else self._digest("training", self.train)
        return {**identity, "data": whole, "frozen": frozen, "device": str(self.device)}

    def _digest(self, what: str, data: MaterializedData) -> str:
        """Of the samples, in the dtypes in which they came, and of how they came in batches."""
        if what not in self._digests:
            if isinstance(data, TensorData):
                self._digests[what] = data.sha256
            else:
                self._digests[what] = digest([data_digest(data), [batch_length(*batch) for batch in data]])
        return self._digests[what]

    def batches(self, batch_size: int, *, path: int = 0, seed: int | None = None) -> IndexedBatches | LoaderBatches:
        """Mini-batches of all training samples on the device: a function of (seed, path, round) alone.

        Where the data came in batches, those batches in their order.
        """
        seed = self.seed if seed is None else seed
        data = as_data(self.train)
        return training_batches(
            data, batch_size, self.device, self.dtype, seed=seed, path=path, reduction=self.reduction
        )

    def batches_per_epoch(self, batch_size: int) -> int:
        """How many mini-batches have as many samples as the training set."""
        return math.ceil(self.train.count / batch_size) if isinstance(self.train, TensorData) else len(self.train)

    def reestimated(self, states: Sequence[StateDict]) -> list[dict[str, Tensor]]:
        """``states`` with BatchNorm statistics re-estimated at each; on the CPU, in the states' dtypes."""
        if not self.has_statistics:
            return [dict(state) for state in states]
        module, samples = self.copy(), self.fixed(self.estimation())
        results = []
        for state in states:
            load_state(module, state)
            with torch.set_grad_enabled(self.mode.gradients):
                reestimate(module, samples)
            values = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
            results.append(
                {name: value.detach().to("cpu", state[name].dtype, copy=True) for name, value in values.items()}
            )
        return results

    def cached_numbers(
        self, key: Mapping[str, Any], compute: Callable[[], dict[str, Any]], split: Split = "train"
    ) -> dict[str, Any]:
        """``compute()``, or what it gave before under the same ``key``, on the same problem.

        ``key`` names everything else that the numbers depend on: settings, digests of states, the code.
        """
        identity = self.identity(split)
        if self.cache is None or identity is None:
            return compute()
        return cached_numbers({**key, "problem": identity, "device": str(self.device)}, self.cache, compute)

    def cached_training(
        self, key: Mapping[str, Any], train: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """As :meth:`cached_numbers`, for the state dict that a training on this problem gives."""
        identity = self.training_identity()
        if self.cache is None or identity is None:
            return train()
        return cached_training({**key, "problem": identity}, self.cache, train)

    def task(self) -> dict[str, Any]:
        """What run.yaml records of loss and data, as a search does."""
        data = self.train
        return {
            "loss": loss_identity(self.loss_fn, self.reduction.name, named=self.reduction.exact),
            "data": {
                "form": "samples" if isinstance(data, TensorData) else "batches",
                "samples": sample_count(data),
                "digest_of": sample_count(data),
                "sha256": materialized_digest(data, self.dtype),
            },
            "evaluation_batch_size": self.batch_size,
        }

    def recorded_loss(self) -> dict[str, str]:
        """``{"loss": name}`` where the loss has a name by which a command can load it, else empty."""
        return {"loss": self._names["loss"]} if "loss" in self._names else {}

    def about(self) -> dict[str, Any]:
        """Plain values that identify the problem in results."""
        if "about" not in self._digests:
            self._digests["about"] = materialized_digest(self.measured, self.dtype)
        return {
            "model": self._names.get("model", type(self.module).__name__),
            "data": self._names.get("data"),
            "loss": self.reduction.name,
            "training_samples": sample_count(self.train),
            "training_samples_measured": sample_count(self.measured),
            "test_samples": None if self.test is None else sample_count(self.test),
            "seed": self.seed,
            "device": str(self.device),
            "data_sha256": self._digests["about"],
        }


def default_samples(device: torch.device | str) -> int:
    """Training samples that the commands measure on by default: all (0) on a GPU, 10,000 on a CPU."""
    return 0 if torch.device(device).type == "cuda" else _CPU_SAMPLES


def _check_images(model: str, data: MaterializedData) -> None:
    if isinstance(data, TensorData) and isinstance(data.inputs, Tensor):
        check_images(model, data.inputs)


def _in_memory(data: Samples, what: str) -> MaterializedData:
    with torch.random.fork_rng(devices=[]):
        # A shuffling loader gives the samples that the certificate uses.
        torch.default_generator.manual_seed(0)
        return materialize(as_data(data, what))
