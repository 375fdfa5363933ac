"""``Task``: what a search trains on and evaluates with: data, loss, screening samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
from ..errors import LLPFError
from ..flat.copying import copied
from ..path.fingerprint import loss_identity
from ..settings import Settings
from ..types import LossFunction
from ..verify.evaluator import Evaluator

#: Samples, a Dataset, a DataLoader, a list of batches: see :func:`llpf_fast.batches.as_data`.
TrainingData = Any
#: Samples whose mean loss must be known before a point is given up.
_MIN_SAMPLES = 500
#: What stands for no label in images of labels, beside negative numbers.
_NO_LABEL = 255


@dataclass(frozen=True)
class Task:
    """What all searches of a finder train on and evaluate with.

    Attributes:
        dtype: of the parameters.
        loss_fn: the loss in use, the default included.
        reduction: how the losses of batches make up that of a set.
        mode: how points are evaluated.
        screened, samples: the fixed screening samples, in memory and in batches on the device.
        estimated, estimation: likewise those that BatchNorm statistics are re-estimated from; None where stored ones
            are used.
        summary: what run.yaml records of loss and data.
    """

    settings: Settings
    data: Data
    device: torch.device
    dtype: torch.dtype
    loss_fn: LossFunction
    reduction: LossReduction
    mode: ForwardMode
    screened: MaterializedData
    samples: FixedSamples
    estimated: MaterializedData | None
    estimation: FixedSamples | None
    summary: dict[str, Any]

    def batches(self) -> IndexedBatches | LoaderBatches:
        """Mini-batches, augmented as the settings say; equal for all paths of one seed."""
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
    def min_samples(self) -> int:
        """Samples whose mean loss must be known before a point is given up; one batch of a loader is enough."""
        return 1 if isinstance(self.data, BatchedData) else _MIN_SAMPLES

    def evaluator(self, module: nn.Module, data: MaterializedData) -> Evaluator:
        """The certificate's evaluator of ``data``, with the loss, arithmetic and statistics of the search."""
        return Evaluator(
            module,
            self.loss_fn,
            data,
            batch_size=self.summary["evaluation_batch_size"],
            device=self.device,
            statistics="stored" if self.estimated is None else "reestimated",
            statistics_inputs=self.estimated,
            dtype=self.dtype,
        )

    def evaluator_of_all(self, module: nn.Module) -> Evaluator:
        """Likewise of all training samples; of the screening samples where the data may be a stream without an end."""
        data = self.data
        ends = not isinstance(data, BatchedData) or data.dataset_length is not None or isinstance(data.source, list)
        return self.evaluator(module, materialize(data) if ends else self.screened)

    def run_once(self, module: nn.Module) -> None:
        """One forward pass on two screening samples (the first batch of a loader), to trace the data flow."""
        inputs, _, _ = self.samples.batches[0]
        if not isinstance(self.data, BatchedData):
            inputs = pytree.tree_map(lambda leaf: leaf[:2], inputs)
        forward(module, inputs)


def make_task(
    settings: Settings, module: nn.Module, train: TrainingData, loss_fn: LossFunction | None, device: torch.device
) -> Task:
    """Check network, data and loss against each other and make the :class:`Task`.

    Raises:
        LLPFError: data of no known form; parameters of 16 bits; a forward or loss that fails on the data; a loss that
            is missing where outputs and targets are not a classification, that is a sum over the batch, or that is NaN.
    """
    data = as_data(train, batch_size=settings.correction.batch_size)
    dtype = _parameter_dtype(module)
    with torch.random.fork_rng(devices=[]):
        # So that a shuffling loader gives the same screening samples every time.
        torch.default_generator.manual_seed(settings.seed)
        read = materialize(data, settings.screening.samples or None)
    screened = fixed_subset(read, settings.screening.samples)
    batch_size = settings.evaluation_batch_size or default_batch_size(device)
    mode, output, targets = try_network(
        copied(module).to(device).eval(),
        screened,
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
            f"the loss {reduction.name} adds up over a batch, so a batch cannot be compared with the threshold of the "
            "set: take the mean"
        )
    options: dict[str, Any] = {"batch_size": batch_size, "device": device, "dtype": dtype}
    options["channels_last"] = mode.channels_last
    estimated = fixed_subset(read, STATISTICS_SIZE) if settings.statistics == "reestimated" else None
    estimation = None if estimated is None else FixedSamples(estimated, **options)
    summary = {
        "loss": loss_identity(loss_fn, reduction.name, named=reduction.exact),
        "data": _summarize_data(data, read, dtype),
        "evaluation_batch_size": batch_size,
    }
    samples = FixedSamples(screened, **options)
    samples.weights(reduction)  # refuses data without labels before anything is searched
    _refuse_nan(module, samples, loss_fn, reduction, mode)
    if isinstance(data, TensorData):
        data = data.to(device, dtype)
    return Task(
        settings, data, device, dtype, loss_fn, reduction, mode, screened, samples, estimated, estimation, summary
    )


def channels_last(settings: Settings, device: torch.device) -> bool:
    """Whether images are channels last in memory on ``device``, if the network runs on them."""
    chosen = settings.correction.channels_last
    return device.type == "cpu" if chosen is None else chosen


def _refuse_nan(
    module: nn.Module, samples: FixedSamples, loss_fn: LossFunction, reduction: LossReduction, mode: ForwardMode
) -> None:
    """LLPFError where the data make the loss NaN: training further or a higher threshold would not help.

    Checked where the data have NaN, and where a user's loss could be a mean over no label: where whole-number targets
    have values that usually stand for no label.
    """
    broken = [
        side
        for side, index in (("inputs", 0), ("targets", 1))
        if any(_has_nan(leaf) for batch in samples.batches for leaf in pytree.tree_leaves(batch[index]))
    ]
    unlabelled = any(_may_lack_labels(leaf) for batch in samples.batches for leaf in pytree.tree_leaves(batch[1]))
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


def _may_lack_labels(leaf: Any) -> bool:
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


def _summarize_data(data: Data, read: MaterializedData, dtype: torch.dtype) -> dict[str, Any]:
    """What run.yaml records of the data: how many samples there are, and the digest of those that were read.

    ``dataset``: length of the data set behind batches, where known; only part of it may have been read.
    """
    form = "batches" if isinstance(data, BatchedData) else "samples"
    count = sample_count(read)
    everything = not isinstance(data, BatchedData) and count == data.count
    return {
        "form": form,
        "in_memory": isinstance(data, TensorData),
        "samples": count if everything else None,
        **({"dataset": data.dataset_length} if isinstance(data, BatchedData) else {}),
        "digest_of": count,
        "sha256": materialized_digest(read, dtype),
        "set_sha256": materialized_set_digest(read, dtype),
    }
