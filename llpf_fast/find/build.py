"""The optimiser and the norm rule that a caller hands over, or that the settings name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..batches import Data, FixedSamples, IndexedBatches, LoaderBatches, LossReduction, as_data
from ..batches import training_batches as make_batches
from ..batches.augment import augmentation
from ..batches.data import BatchedData, TensorData
from ..batches.fixed_samples import (
    MaterializedData,
    fixed_subset,
    materialize,
    materialized_digest,
    materialized_set_digest,
    sample_count,
    try_network,
)
from ..batches.forward import ForwardMode, default_batch_size, fixed_random_numbers, forward
from ..batches.loss import batch_loss, chosen_loss
from ..batches.precision import loss_in
from ..batches.statistics import STATISTICS_SIZE
from ..correct import Correction
from ..errors import LLPFError
from ..flat import FlatParameters
from ..flat.copying import copied
from ..path.fingerprint import loss_identity
from ..settings import Settings
from ..types import LossFunction, OptimizerFactory
from ..user_code import checked_norm_rule, checked_optimizer, norm_rule, optimizer_factory

IsNorm = Callable[[nn.Module], bool]
Own = TypeVar("Own")


def own_optimizer(settings: Settings, given: OptimizerFactory | None = None) -> OptimizerFactory | None:
    """What makes the correction's optimiser; None for the fused SGD. LLPFError: given twice, or no such code."""
    checked = None if given is None else checked_optimizer(given)
    return _one("optimizer", settings.optimizer, checked, optimizer_factory)


def own_norm_rule(settings: Settings, given: IsNorm | None = None) -> IsNorm | None:
    """What counts more modules as normalization layers; LLPFError: given twice, no rule, or no such code."""
    checked = None if given is None else checked_norm_rule(given)
    return _one("is_norm", settings.is_norm, checked, norm_rule)


def _one(key: str, named: str, given: Own | None, load: Callable[[str], Own]) -> Own | None:
    if not named:
        return given
    if given is not None:
        raise LLPFError(f"{key} is given twice, as an argument and by name in the settings; leave one out")
    return load(named)


#: Samples, a Dataset, a DataLoader, a list of batches: see :func:`llpf_fast.batches.as_data`.
TrainingData = Any
#: Samples of which the mean must be known before a point is given up.
_FEWEST = 500
#: Beside negative numbers, what stands for no label in images of labels.
_NO_LABEL = 255


@dataclass(frozen=True)
class Task:
    """What a search trains and evaluates with, whichever path it is.

    ``loss_fn`` is the one in use; ``mode`` how points are evaluated; ``samples`` the fixed samples that points are
    screened on and ``estimation`` those that BatchNorm statistics are re-estimated from, where they are; ``about`` what
    run.yaml records of loss and data.
    """

    settings: Settings
    data: Data
    device: torch.device
    dtype: torch.dtype
    loss_fn: LossFunction
    reduction: LossReduction
    mode: ForwardMode
    samples: FixedSamples
    estimation: FixedSamples | None
    about: dict[str, Any]

    def batches(self) -> IndexedBatches | LoaderBatches:
        """Mini-batches, augmented as the settings ask; equal for all paths of one seed."""
        return make_batches(
            self.data,
            self.settings.correction.batch_size,
            self.device,
            self.dtype,
            seed=self.settings.seed,
            augment=augmentation(self.settings.augmentation),
            channels_last=self.mode.channels_last,
            reduction=self.reduction,
        )

    @property
    def fewest(self) -> int:
        """Samples of which the mean must be known before a point is given up; of a loader any batch will do."""
        return 1 if isinstance(self.data, BatchedData) else _FEWEST

    def run_once(self, module: nn.Module) -> None:
        """One forward pass on two screening samples (the first batch of a loader), for whoever watches it."""
        inputs, _, _ = self.samples.batches[0]
        if not isinstance(self.data, BatchedData):
            inputs = pytree.tree_map(lambda leaf: leaf[:2], inputs)
        forward(module, inputs)


def make_task(
    settings: Settings, module: nn.Module, train: TrainingData, loss_fn: LossFunction | None, device: torch.device
) -> Task:
    """Look at network, data and loss together, once.

    Raises:
        LLPFError: data of no known form; parameters of 16 bits; a forward or loss that fails on the data; no loss, and
            no classification; a loss that adds up over the batch.
    """
    data = as_data(train, batch_size=settings.correction.batch_size)
    dtype = _parameter_dtype(module)
    with torch.random.fork_rng(devices=[]):
        # A shuffling loader gives the same screening samples every time.
        torch.default_generator.manual_seed(settings.seed)
        held = materialize(data, settings.screening.samples or None)
    few = fixed_subset(held, settings.screening.samples)
    batch_size = settings.evaluation_batch_size or default_batch_size(device)
    mode, output, targets = try_network(
        copied(module).to(device).eval(),
        few,
        device=device,
        dtype=dtype,
        channels_last=channels_last(settings, device),
        batch_size=batch_size,
        training=settings.correction.batch_size,
    )
    if settings.correction.channels_last and not mode.channels_last:
        raise LLPFError(
            "the model cannot run with correction.channels_last (does it use .view() after a convolution?): leave it "
            "null"
        )
    loss_fn = loss_in(chosen_loss(loss_fn, output, targets), device, dtype)
    reduction = LossReduction(loss_fn)
    if reduction.kind == "sum":
        raise LLPFError(
            f"the loss {reduction.name} adds up over a batch, so a batch cannot be held against the threshold of the "
            "set: take the mean"
        )
    placed: dict[str, Any] = {"batch_size": batch_size, "device": device, "dtype": dtype}
    placed["channels_last"] = mode.channels_last
    estimation = None
    if settings.statistics == "reestimated":
        estimation = FixedSamples(fixed_subset(held, STATISTICS_SIZE), **placed)
    about = {
        "loss": loss_identity(loss_fn, reduction.name, named=reduction.exact),
        "data": _about_data(data, held, dtype),
        "evaluation_batch_size": batch_size,
    }
    samples = FixedSamples(few, **placed)
    samples.weights(reduction)  # refuses data without labels before anything is searched
    _refuse_nan(module, samples, loss_fn, reduction, mode)
    if isinstance(data, TensorData):
        data = data.to(device, dtype)
    return Task(settings, data, device, dtype, loss_fn, reduction, mode, samples, estimation, about)


def channels_last(settings: Settings, device: torch.device) -> bool:
    """Whether images are to lie so in memory on ``device``, where the network can be run on them."""
    chosen = settings.correction.channels_last
    return device.type == "cpu" if chosen is None else chosen


def make_correction(task: Task, flat: FlatParameters, optimizer: torch.optim.Optimizer | None) -> Correction:
    """The correction of one path, by the fused SGD or by ``optimizer``."""
    c = task.settings.correction
    return Correction(
        flat,
        task.loss_fn,
        task.batches(),
        optimizer=optimizer,
        precision=c.precision,
        compile=c.compile,
        **training(task.settings),
    )


def rounds_at_once(settings: Settings) -> int:
    """Gradient steps after which a correction hands back at the latest: one window where its points are averaged."""
    averages = settings.pacing.kind == "adaptive" and settings.pacing.iterate_average is not None
    return settings.correction.window if averages else settings.correction.max_steps


def training(settings: Settings) -> dict[str, Any]:
    """The arguments that a correction of one path and a stacked one have in common."""
    c = settings.correction
    return {
        "threshold": settings.correction_threshold,
        "min_rounds": c.window,
        "max_rounds": rounds_at_once(settings),
        "lr": c.lr,
        "momentum": c.momentum,
        "weight_decay": c.weight_decay,
        "nesterov": c.nesterov,
        "keep_momentum": c.keep_momentum,
        "capture": c.cuda_graph,
    }


def _refuse_nan(
    module: nn.Module, samples: FixedSamples, loss_fn: LossFunction, reduction: LossReduction, mode: ForwardMode
) -> None:
    """LLPFError where the data make the loss NaN: training further or a higher threshold would not help.

    Looked for where the data have such values, and where a loss of the caller's own could have a mean over nothing:
    where whole-number targets hold what usually stands for no label.
    """
    broken = [
        side
        for side, place in (("inputs", 0), ("targets", 1))
        if any(_has_nan(leaf) for batch in samples.batches for leaf in pytree.tree_leaves(batch[place]))
    ]
    unlabelled = any(_may_lack(leaf) for batch in samples.batches for leaf in pytree.tree_leaves(batch[1]))
    if not broken and (reduction.exact or not unlabelled):
        return
    device = next(module.parameters()).device
    twin = copied(module).eval()
    with fixed_random_numbers(device), torch.set_grad_enabled(mode.gradients):
        for number, (inputs, targets, size) in enumerate(samples.batches, 1):
            output = forward(twin, inputs)
            if not bool(batch_loss(loss_fn, output, targets).isnan()):
                continue
            if broken:
                raise LLPFError(
                    f"the loss {reduction.name} is NaN, and {' and '.join(broken)} of the training data have NaN: "
                    "leave those samples out, or pass a loss that leaves them out"
                )
            if not any(_has_nan(leaf) for leaf in pytree.tree_leaves(output)):
                raise LLPFError(
                    f"the loss {reduction.name} is NaN on batch {number} of {len(samples)} ({size} samples), where the "
                    "network's output is not: is that the mean over no label? Return 0 there, or pass one of torch's "
                    "own losses (nn.CrossEntropyLoss(ignore_index=...)), of which such batches are left out"
                )


def _may_lack(leaf: Any) -> bool:
    whole = isinstance(leaf, Tensor) and not (leaf.is_floating_point() or leaf.is_complex())
    return whole and bool(((leaf.long() < 0) | (leaf == _NO_LABEL)).any())


def _has_nan(leaf: Any) -> bool:
    floating = isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
    return floating and bool(leaf.isnan().any())


def _parameter_dtype(module: nn.Module) -> torch.dtype:
    dtypes = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    narrow = dtypes & {torch.bfloat16, torch.float16}
    if narrow:
        raise LLPFError(
            f"the model's parameters are {min(map(str, narrow)).removeprefix('torch.')}, in which steps of a "
            "thousandth are lost: call .float() on it (correction.precision: bfloat16 runs the passes in 16 bits)"
        )
    return torch.float64 if torch.float64 in dtypes else torch.float32


def _about_data(data: Data, held: MaterializedData, dtype: torch.dtype) -> dict[str, Any]:
    """What run.yaml says of the data: how many samples, and the digest of those that were read.

    ``dataset``: of batches, the samples behind them, where the source says so; part of them only may have been read.
    """
    form = "batches" if isinstance(data, BatchedData) else "samples"
    read = sample_count(held)
    everything = not isinstance(data, BatchedData) and read == data.count
    return {
        "form": form,
        "in_memory": isinstance(data, TensorData),
        "samples": read if everything else None,
        **({"dataset": data.dataset_length} if isinstance(data, BatchedData) else {}),
        "digest_of": read,
        "sha256": materialized_digest(held, dtype),
        "set_sha256": materialized_set_digest(held, dtype),
    }
