"""Training one network: an endpoint of a path."""

from __future__ import annotations

import contextlib
import functools
import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from ..batches.batch import move_batch
from ..batches.data import BatchedData, DatasetData, TensorData, as_data
from ..batches.forward import forward
from ..batches.loss import NO_GRADIENT, LossReduction, batch_loss, chosen_loss
from ..batches.precision import Precision, check_precision, float32_products
from ..batches.sampling import round_key
from ..errors import LLPFError, describe_error, first_line
from ..types import LossFunction

OptimizerName = Literal["sgd", "adamw"]
ScheduleName = Literal["constant", "cosine", "steps", "one-cycle"]


@dataclass(frozen=True)
class TrainingProgress:
    """What ``train_model`` reports after each epoch; ``loss`` is the mean over the epoch's batches.

    ``state()`` is what ``train_model(..., resume=...)`` takes to go on after that epoch: tensors, numbers and texts in
    dictionaries and lists, for ``torch.save``. The tensors are those that train: save or copy them inside the callback.
    """

    epoch: int
    epochs: int
    loss: float
    state: Callable[[], dict[str, Any]]


def train_model(
    model: nn.Module,
    inputs: Any,
    targets: Any = None,
    *,
    seed: int,
    loss_fn: LossFunction | None = None,
    epochs: int = 20,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    batch_size: int = 64,
    optimizer: OptimizerName = "sgd",
    schedule: ScheduleName = "constant",
    lr_epochs: Sequence[int] = (),
    warmup_epochs: int = 0,
    label_smoothing: float = 0.0,
    augment: Callable[[Tensor, int], Tensor] | None = None,
    augment_epochs: int | None = None,
    precision: Precision = "float32",
    channels_last: bool = False,
    progress: Callable[[TrainingProgress], None] | None = None,
    resume: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Train ``model`` in place; returns it in eval mode.

    The defaults are the LLPF authors' for LeNet5 (20 epochs of SGD, lr 0.01, momentum 0.9, batches of 64; arXiv
    2505.02604). Samples are permuted anew each epoch, by a generator that ``seed`` seeds; the last batch of an epoch
    may be smaller. A loader is read once an epoch, in its order.

    On a GPU the host waits once an epoch, for the mean loss. It waits at each step where batches may lack labels.

    Args:
        inputs, targets: samples; or any data that :func:`~llpf_fast.batches.data.as_data` takes, and None. Floating
            values are converted to the dtype of the model's parameters.
        loss_fn: (model output, targets) -> mean loss. None is cross-entropy, where outputs and targets are those of
            classification.
        momentum: of SGD; AdamW keeps torch's betas.
        schedule: of the learning rate, applied at each step: "constant"; "cosine" from ``lr`` to 0; "steps", a tenth
            after each of ``lr_epochs``; "one-cycle", torch's OneCycleLR with ``lr`` as its highest.
        warmup_epochs: the learning rate rises linearly from a hundredth in these epochs. Not for "one-cycle", which
            has its own rise.
        label_smoothing: of cross-entropy.
        augment: (images of a batch, 32-bit key) -> images, as :func:`llpf_fast.batches.augment.augmentation` gives it.
        augment_epochs: the images are augmented in this many epochs and not in those after; None for all. Without
            augmentation at the end, the training loss becomes lower.
        precision: of forward and backward passes, as ``correction.precision``: "bfloat16" is autocast, "tf32" is for
            GPUs. Parameters, gradients and updates have the parameters' dtype.
        channels_last: while the network trains, convolutions have their channels last in memory, which is faster on
            tensor cores.
        progress: called after each epoch. The model is in train mode then and may be saved.
        resume: what ``TrainingProgress.state()`` gave in a training with the same arguments. The weights are taken from
            it, and on a CPU the rest has the bits of a training that was not interrupted, where a loader draws from
            torch's global generator only.

    Raises:
        LLPFError: before the first step, options that contradict each other, and a network or a loss that fails on a
            batch or on the smaller last one of an epoch (BatchNorm takes no batch of one sample); a state of another
            training to resume; later, a loss that
            is not finite, and an epoch without a batch to train on. Batches without a label that counts are skipped.
    """
    if not isinstance(batch_size, numbers.Integral) or batch_size < 1:
        raise LLPFError(f"batch_size must be a whole number above 0, got {batch_size}")
    if label_smoothing and loss_fn not in (None, F.cross_entropy):
        raise LLPFError("label smoothing is part of cross-entropy: leave it out, or the loss")
    epoch_batches = _epochs(model, inputs if targets is None else (inputs, targets), batch_size, seed)
    device = epoch_batches.device
    check_precision(precision, device, "precision")
    updates = _optimizer(model, optimizer, lr, momentum, weight_decay)
    rates = _schedule(updates, schedule, epochs, epoch_batches.steps, lr, lr_epochs, warmup_epochs)
    model.train()
    epoch_batches.check_last_batch(model, loss_fn)
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    if precision == "bfloat16":
        # A cache of converted weights saves nothing: a pass uses each weight once.
        autocast = functools.partial(torch.autocast, device.type, torch.bfloat16, cache_enabled=False)
    state = _TrainingState(model, updates, rates, epoch_batches)
    reduction, may_lack_labels = None, False
    with _memory_order(model, channels_last), float32_products(precision, device):
        done, step = (0, 0) if resume is None else state.restore(resume)
        for epoch in range(done + 1, epochs + 1):
            total, steps, batches = torch.zeros((), device=device), 0, 0
            for batches, (batch, batch_targets) in enumerate(epoch_batches(), 1):  # noqa: B007
                if augment is not None and (augment_epochs is None or epoch <= augment_epochs):
                    batch = augment(batch, round_key(seed, 0, step, 1))
                updates.zero_grad(set_to_none=True)
                with autocast():
                    output = _output(model, batch, channels_last)
                    if reduction is None:
                        loss_fn = _choose_loss(loss_fn, output, batch_targets, epoch_batches.all_targets)
                        if label_smoothing:
                            loss_fn = functools.partial(F.cross_entropy, label_smoothing=label_smoothing)
                        reduction = LossReduction(loss_fn)
                        may_lack_labels = reduction.may_lack_labels(epoch_batches.all_targets)
                    assert loss_fn is not None
                    if may_lack_labels and not reduction.weight(batch_targets, 1):
                        continue  # a mean over no label
                    loss = batch_loss(loss_fn, output, batch_targets)
                _step(loss, updates)
                if step < epochs * epoch_batches.steps:  # a stream may grow
                    rates.step()
                step, steps = step + 1, steps + 1
                total += loss.detach().reshape(())
            if not steps:
                what = "with a label that counts for the loss" if batches else "(can they be read only once?)"
                raise LLPFError(f"the training data gave no batch {what} in epoch {epoch}")
            mean = float(total) / steps
            if not math.isfinite(mean):
                raise LLPFError(_diverged(epoch, mean, lr))
            if progress is not None:
                progress(TrainingProgress(epoch, epochs, mean, functools.partial(state.save, epoch, step)))
    return model.eval()


@dataclass(frozen=True)
class _TrainingState:
    """Everything that changes while a network trains."""

    model: nn.Module
    updates: torch.optim.Optimizer
    rates: lr_scheduler.LRScheduler
    batches: _Epochs

    def save(self, epoch: int, step: int) -> dict[str, Any]:
        cuda = self.batches.device.type == "cuda"
        return {
            "epoch": epoch,
            "step": step,
            "model": self.model.state_dict(),
            # Those that are not persistent are in no state dict.
            "buffers": dict(self.model.named_buffers()),
            "optimizer": self.updates.state_dict(),
            "schedule": self.rates.state_dict(),
            "order": self.batches.generator_state(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.batches.device) if cuda else None,
        }

    def restore(self, saved: Mapping[str, Any]) -> tuple[int, int]:
        """Restore everything; returns the epochs and the steps that are done."""
        try:
            self.model.load_state_dict(saved["model"])
            with torch.no_grad():
                for name, buffer in self.model.named_buffers():
                    buffer.copy_(saved["buffers"][name])
            self.updates.load_state_dict(saved["optimizer"])
            self.rates.load_state_dict(saved["schedule"])
            self.batches.set_generator_state(saved["order"])
            torch.set_rng_state(saved["random"])
            if saved["cuda_random"] is not None and self.batches.device.type == "cuda":
                torch.cuda.set_rng_state(saved["cuda_random"], self.batches.device)
            return saved["epoch"], saved["step"]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise LLPFError(f"the state to resume is of another training: {describe_error(error)}") from error


class _Epochs:
    """Each call gives the batches of one epoch, on the model's device and in its dtype."""

    #: Optimizer steps in one epoch.
    steps: int
    #: Targets of all samples; None where they are not in memory.
    all_targets: Any = None

    def __init__(self, model: nn.Module) -> None:
        parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
        self.device, self.dtype = parameter.device, parameter.dtype

    def __call__(self) -> Iterator[tuple[Any, Any]]:
        raise NotImplementedError

    def generator_state(self) -> Tensor | None:
        """The state of the generator of the order; None where that is torch's global one."""

    def set_generator_state(self, state: Tensor | None) -> None:
        """Restore what ``generator_state`` returned."""

    def check_last_batch(self, model: nn.Module, loss_fn: LossFunction | None) -> None:
        """Raise LLPFError where ``model`` takes whole batches, but not the smaller last one of an epoch."""


class _SampleEpochs(_Epochs):
    """Batches of samples, which each epoch permutes anew."""

    def __init__(self, model: nn.Module, data: TensorData | DatasetData, batch_size: int, seed: int) -> None:
        super().__init__(model)
        self._data = data.to(self.device, self.dtype) if isinstance(data, TensorData) else data
        if isinstance(self._data, TensorData):
            self.all_targets = self._data.targets
        self._batch_size, self.steps = batch_size, math.ceil(data.count / batch_size)
        self._generator = torch.Generator().manual_seed(seed)

    def _take(self, index: Tensor) -> tuple[Any, Any]:
        if isinstance(self._data, TensorData):
            return self._data.take(index.to(self.device))
        return move_batch(*self._data.take(index), self.device, self.dtype)

    def __call__(self) -> Iterator[tuple[Any, Any]]:
        order = torch.randperm(self._data.count, generator=self._generator)
        if isinstance(self._data, TensorData):
            order = order.to(self.device)
        yield from map(self._take, order.split(self._batch_size))

    def generator_state(self) -> Tensor:
        return self._generator.get_state()

    def set_generator_state(self, state: Tensor | None) -> None:
        assert state is not None
        self._generator.set_state(state)

    def check_last_batch(self, model: nn.Module, loss_fn: LossFunction | None) -> None:
        count, size = self._data.count, self._batch_size
        rest = count % size
        if count < size or rest == 0:
            return

        def run(samples: int) -> None:
            inputs, targets = self._take(torch.arange(samples))
            output = forward(model, inputs)
            batch_loss(_choose_loss(loss_fn, output, targets, self.all_targets), output, targets)

        with _restored(model, self.device):
            try:
                run(rest)
            except LLPFError as error:
                run(size)
                raise LLPFError(
                    f"the last batch of an epoch would hold {rest:,} of {count:,} samples, and {error}; choose another "
                    f"batch size than {size}"
                ) from error


class _LoaderEpochs(_Epochs):
    """The batches of a loader, which each epoch reads once."""

    def __init__(self, model: nn.Module, data: BatchedData) -> None:
        super().__init__(model)
        self._data = data
        # The schedule of the learning rate needs the number of steps: a stream without a length is read to count it.
        self.steps = len(data.source) if data.has_length else len(data.materialize())  # type: ignore[arg-type]
        if not self.steps:
            raise LLPFError("the training data is empty")

    def __call__(self) -> Iterator[tuple[Any, Any]]:
        for batch in self._data:
            yield move_batch(*batch, self.device, self.dtype)


def _epochs(model: nn.Module, data: Any, batch_size: int, seed: int) -> _Epochs:
    data = as_data(data, batch_size=batch_size)
    return _LoaderEpochs(model, data) if isinstance(data, BatchedData) else _SampleEpochs(model, data, batch_size, seed)


@contextlib.contextmanager
def _memory_order(model: nn.Module, channels_last: bool) -> Iterator[None]:
    """With ``channels_last``, convolutions have their channels last in memory inside; the usual order afterwards."""
    weights = [parameter for parameter in model.parameters() if channels_last and parameter.dim() == 4]
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for weight in weights:
            weight.data = weight.data.contiguous()


def _output(model: nn.Module, batch: Any, channels_last: bool) -> Any:
    try:
        return forward(model, batch)
    except LLPFError as error:
        if channels_last:
            raise LLPFError(f"{error}; does it run without channels last? (.view() after a convolution)") from error
        raise


def _diverged(epoch: int, loss: float, lr: float) -> str:
    data = "look for NaN in the data and for batches of which the loss has no mean, or " if loss != loss else ""
    return f"training diverged in epoch {epoch} (loss {loss}); {data}lower the learning rate ({lr})"


def _step(loss: Tensor, updates: torch.optim.Optimizer) -> None:
    if not loss.requires_grad:
        raise LLPFError(NO_GRADIENT)
    try:
        loss.backward()
        updates.step()
    except RuntimeError as error:
        raise LLPFError(f"no gradient step can be taken: {first_line(error)}") from error


def _choose_loss(loss_fn: LossFunction | None, output: Any, targets: Any, all_targets: Any) -> LossFunction:
    """The loss for ``output`` and ``targets`` of a batch; ``all_targets`` are those of all samples, or None."""
    loss_fn = chosen_loss(loss_fn, output, targets)
    known = targets if all_targets is None else all_targets
    tensors = isinstance(output, Tensor) and isinstance(known, Tensor)
    if loss_fn is F.cross_entropy and tensors and not known.is_floating_point():
        _check_classes(output, known)
    return loss_fn


def _check_classes(output: Tensor, targets: Tensor) -> None:
    """Raise LLPFError where a class has no output: on a GPU, cross-entropy would end the process."""
    highest = int(targets.max())
    if output.dim() > 1 and highest >= output.shape[1]:
        raise LLPFError(
            f"the network has {output.shape[1]} outputs, but the targets name classes up to {highest}: give it at "
            f"least {highest + 1}"
        )


@contextlib.contextmanager
def _restored(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore the model's buffers and torch's random states afterwards."""
    values = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            with torch.no_grad():
                for module, name, buffer, value in values:
                    module._buffers[name] = buffer.copy_(value)


def _optimizer(
    model: nn.Module, name: str, lr: float, momentum: float, weight_decay: float
) -> torch.optim.SGD | torch.optim.AdamW:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise LLPFError("the network has no parameter that trains: are all frozen?")
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    raise LLPFError(f"optimizer must be one of {', '.join(get_args(OptimizerName))}, got {name!r}")


def _schedule(
    optimizer: torch.optim.Optimizer,
    name: str,
    epochs: int,
    epoch_steps: int,
    lr: float,
    lr_epochs: Sequence[int],
    warmup_epochs: int,
) -> lr_scheduler.LRScheduler:
    """The schedule ``name``, to be stepped after every batch."""
    if name not in get_args(ScheduleName):
        raise LLPFError(f"lr schedule must be one of {', '.join(get_args(ScheduleName))}, got {name!r}")
    if bool(lr_epochs) != (name == "steps"):
        raise LLPFError(f"lr schedule {name!r} {'needs' if name == 'steps' else 'takes no'} epochs at which to step")
    if name == "one-cycle":
        if warmup_epochs:
            raise LLPFError("lr schedule 'one-cycle' has its own rise: leave out the warm-up epochs")
        # One step more than batches, because the schedule is advanced after the last one too.
        return lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * epoch_steps + 1)
    if not 0 <= warmup_epochs < min([max(epochs, 1), *lr_epochs]):
        raise LLPFError(f"warm-up of {warmup_epochs} epochs must end before epoch {min([epochs, *lr_epochs])}")
    warmup = warmup_epochs * epoch_steps
    main: lr_scheduler.LRScheduler
    if name == "cosine":
        main = lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(epochs * epoch_steps - warmup, 1))
    elif name == "steps":
        main = lr_scheduler.MultiStepLR(optimizer, [at * epoch_steps - warmup for at in lr_epochs])
    else:
        main = lr_scheduler.ConstantLR(optimizer, factor=1.0)
    if not warmup:
        return main
    rise = lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [rise, main], milestones=[warmup])


@torch.no_grad()
def accuracy(model: nn.Module, inputs: Tensor, targets: Tensor, *, batch_size: int = 1000) -> float:
    """Fraction of ``inputs [n, ...]`` that ``model``, in its present mode, assigns to class ``targets [n]``."""
    correct = sum(
        int((forward(model, x).argmax(1) == y).sum())
        for x, y in zip(inputs.split(batch_size), targets.split(batch_size), strict=True)
    )
    return correct / len(inputs)
