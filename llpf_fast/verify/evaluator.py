"""``Evaluator``: loss and accuracy of a state dict on a fixed set, in eval mode."""

from __future__ import annotations

import contextlib
import copy
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..batches.batch import tensors_of
from ..batches.data import TensorData, as_data
from ..batches.fixed_samples import FixedSamples, MaterializedData, materialize, try_network
from ..batches.forward import computing_dtype, default_batch_size, fixed_random_numbers, forward
from ..batches.loss import LossReduction, batch_loss, chosen_loss, is_classification
from ..batches.precision import checked_device, float32_products, loss_in, module_in
from ..batches.statistics import normalization_layers, reestimate
from ..errors import LLPFError
from ..flat.copying import copied
from ..flat.tensors import same_bits
from ..flat.wrappers import unwrapped
from ..path.state import compare_architectures
from ..types import LossFunction
from .counters import counters, forbid_reading

Statistics = Literal["stored", "reestimated"]

#: Seed of the other order of samples, by which the loss is checked not to depend on their order.
_ORDER_SEED = 1


@dataclass(frozen=True)
class Evaluation:
    """The loss of one point on one set.

    Attributes:
        loss: of all ``samples``; may be NaN or infinite.
        standard_error: of ``loss``, for samples drawn at random; None for fewer than two values.
        accuracy: 0..1, over the labelled samples; None unless it is classification.
        samples: number of samples.
        not_finite: number of samples with a loss that is not finite (of batches, where there are no losses of single
            samples).
        statistics: the BatchNorm statistics used.
        reduction: "exact" for torch's own losses: ``loss`` is the value of one call on the whole set. Otherwise it is
            the mean of the batches' values, weighted by their numbers of samples.
    """

    loss: float
    standard_error: float | None
    accuracy: float | None
    samples: int
    not_finite: int
    statistics: Statistics = "stored"
    reduction: Literal["exact", "batch means"] = "exact"


@dataclass(frozen=True)
class UnitLosses:
    """The losses of one point, in the parts that its evaluation computed; on the evaluator's device.

    Attributes:
        numerators: float64, one tensor a batch: ``[b]`` of its samples, or ``[1]`` where the loss has no values of
            single samples.
        weights: likewise, what each counts in a mean (labels by class weight, elements, samples).
        logits: of the same batches, ``[b, C]``, where the loss is cross-entropy of whole-number labels; else None.
    """

    numerators: list[Tensor]
    weights: list[Tensor]
    logits: list[Tensor | None]


class Evaluator:
    """Evaluates state dicts of one architecture on one fixed set: eval mode, no autograd.

    Each thread that calls it works on its copy of the module, into which states are copied. The caller's module and
    torch's global generators do not change.

    Args:
        module: the architecture; wrappers (torch.compile, DataParallel) are removed.
        loss_fn: (model output, targets) -> scalar loss of a batch (:class:`~llpf_fast.batches.loss.LossReduction` says
            how the loss of the set follows); None: cross-entropy, where outputs and targets are those of
            classification.
        inputs, targets: samples; or any data that :func:`~llpf_fast.batches.data.as_data` takes, and None. A loader's
            batches are used unchanged.
        batch_size: of samples: 125 on a CPU, 2,000 on a GPU when missing.
        device: where to compute.
        statistics: "stored" takes BatchNorm's running statistics from the state; "reestimated" computes them at every
            point from ``statistics_inputs``, which must be training data.
        statistics_inputs: data as ``inputs``, or inputs ``[m, ...]`` alone.
        classification: whether to report accuracy, argmax over logits ``[B, C]`` against integer targets ``[B]``; when
            None, wherever shapes and dtypes say so.
        dtype: to compute in; when missing float64 for a network of float64, else float32.

    Attributes:
        loss_fn: the loss in use.
        mode: how the network is run.
        counters: names of the state's counts of batches, on which no loss depends.
        by_sample: whether the units of the loss are samples. Otherwise they are batches: those of a loader, or of
            ``batch_size`` samples where the loss has no values of single samples.

    Raises:
        LLPFError: empty data; ``statistics_inputs`` missing; a module that cannot be copied; a forward that fails on
            the data; no loss, and no classification.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: LossFunction | None,
        inputs: Any,
        targets: Any = None,
        *,
        batch_size: int | None = None,
        device: torch.device | str = "cpu",
        statistics: Statistics = "stored",
        statistics_inputs: Any = None,
        classification: bool | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.device, self.statistics = checked_device(device), statistics
        self._module = unwrapped(module)
        self.dtype = computing_dtype(self._module) if dtype is None else dtype
        self.batch_size = batch_size if batch_size is not None else default_batch_size(self.device)
        if self.batch_size < 1:
            raise LLPFError(f"batch_size must be at least 1, got {self.batch_size}")
        self._classification = classification
        self._local = threading.local()
        with fixed_random_numbers(self.device):
            self._data = _in_memory(inputs, targets)
            self._check_input_stays()
            # oneDNN's convolutions and torch's pooling are 1.4 times faster so (LeNet5, one core).
            self.mode, output, some = try_network(
                self._copy(),
                self._data,
                device=self.device,
                dtype=self.dtype,
                channels_last=self.device.type == "cpu",
                batch_size=self.batch_size,
            )
            self.loss_fn = loss_in(chosen_loss(loss_fn, output, some), self.device, self.dtype)
            self._reduction = LossReduction(self.loss_fn)
            self._samples = self._cut(self._data)
            self._weights = self._samples.weights(self._reduction)
            self._has_sample_losses = self._reduction.values(output, some) is not None
            self.by_sample = isinstance(self._data, TensorData) and self._has_sample_losses
            self._estimation: FixedSamples | None = None
            if statistics == "reestimated":
                if statistics_inputs is None:
                    raise LLPFError("statistics='reestimated' needs statistics_inputs: a part of the training data")
                self._estimation = self._cut(_inputs_in_memory(statistics_inputs))
            self.counters = self._unread_counters()

    @property
    def samples(self) -> int:
        """Number of samples of one evaluation."""
        return self._samples.count

    @property
    def adds_up(self) -> bool:
        """Whether the loss is a sum over the samples: the sum over a subset is no estimate of it."""
        return self._reduction.kind == "sum"

    @property
    def loss_name(self) -> str:
        """Name of the loss in results and messages."""
        return self._reduction.name

    @property
    def loss_is_named(self) -> bool:
        """Whether its name says what the loss computes: it is one of torch's."""
        return self._reduction.exact

    def __call__(self, state: Mapping[str, Tensor]) -> Evaluation:
        """Evaluate ``state`` (names and shapes of the module's state dict; any float dtype, any device).

        Raises:
            LLPFError: the state is of another architecture; the model or the loss fails on the data.
        """
        return self._evaluate(state, self._samples, self._weights)[0]

    def with_losses(self, state: Mapping[str, Tensor]) -> tuple[Evaluation, UnitLosses]:
        """The evaluation of ``state``, and the losses that make it up; errors as of a call."""
        return self._evaluate(state, self._samples, self._weights)

    @property
    def units(self) -> int:
        """Number of units of the loss: samples or batches (``by_sample``)."""
        return self._samples.count if self.by_sample else len(self._samples)

    def unit_denominators(self) -> Tensor:
        """Denominators of all units, float64 ``[units]``, on the CPU."""
        if self.adds_up:
            return torch.full((self.units,), 1 / self.units, dtype=torch.float64)
        if not self.by_sample:
            return torch.tensor(self._weights, dtype=torch.float64)
        return torch.cat([self._reduction.denominators(targets) for _, targets, _ in self._samples]).cpu()

    @property
    def data(self) -> MaterializedData:
        """The samples, or the batches of a loader, as they were given."""
        return self._data

    @property
    def batches(self) -> Sequence[tuple[Any, Any, int]]:
        """(inputs, targets, number of samples) of each batch on the device."""
        return self._samples.batches

    def module_copy(self) -> nn.Module:
        """A new copy of the module on the device, in eval mode, in the usual order of memory."""
        return self._copy()

    def by_unit(self, parts: list[Tensor]) -> Tensor:
        """Numerators or weights of :class:`UnitLosses` as one number a unit, float64 ``[units]``, on the CPU."""
        return (torch.cat(parts) if self.by_sample else torch.stack([part.sum() for part in parts])).cpu()

    def on_units(self, index: Tensor) -> Evaluator:
        """The evaluator of the units ``index`` (int64 ``[n]``) alone, in that order; it shares the module's copies."""
        part = copy.copy(self)
        if self.by_sample:
            assert isinstance(self._data, TensorData)
            part._data = self._data.subset(index)
        else:
            part._data = [self._samples.batches[i][:2] for i in index.tolist()]
        part._samples = self._cut(part._data)
        part._weights = part._samples.weights(self._reduction)
        return part

    def on_few(self, samples: int, seed: int) -> Evaluator:
        """The evaluator of about ``samples`` samples at most, chosen at random; of one batch at least."""
        units = max(1, round(self.units * min(1.0, samples / self.samples)))
        if units >= self.units:
            return self
        order = torch.randperm(self.units, generator=torch.Generator().manual_seed(seed))
        return self.on_units(order[:units].sort().values)

    def with_new_copies(self) -> Evaluator:
        """The same evaluator, which copies the module anew."""
        other = copy.copy(self)
        other._local = threading.local()
        return other

    def in_another_order(self, state: Mapping[str, Tensor]) -> float | None:
        """The loss of ``state`` with the samples in another order, and so in other batches.

        It differs by more than rounding where the network or the loss mixes the samples of a batch (normalization
        without statistics, negatives from the batch) or is no mean over samples: then the loss of a set is not defined.

        None where the data are batches, and where the loss fails on other batches (targets that are indices into their
        batch).
        """
        if not isinstance(self._data, TensorData) or len(self._samples) < 2:
            return None
        order = torch.randperm(self._data.count, generator=torch.Generator().manual_seed(_ORDER_SEED))
        other = copy.copy(self)
        other.batch_size = 2 * self.batch_size  # a network may read the size of its batch
        samples = other._cut(self._data.subset(order))
        try:
            return self._evaluate(state, samples, samples.weights(self._reduction))[0].loss
        except LLPFError:
            return None

    def _evaluate(
        self, state: Mapping[str, Tensor], samples: FixedSamples, weights: list[float]
    ) -> tuple[Evaluation, UnitLosses]:
        module = self._thread_module()
        self._load(state)
        with (
            fixed_random_numbers(self.device),
            float32_products("float32", self.device),
            torch.set_grad_enabled(self.mode.gradients),
        ):
            if self._estimation is not None:
                reestimate(module, self._estimation)
            return self._measure(module, samples, weights)

    def _measure(self, module: nn.Module, samples: FixedSamples, weights: list[float]) -> tuple[Evaluation, UnitLosses]:
        parts: list[tuple[Tensor, Tensor]] = []
        logits: list[Tensor | None] = []
        correct: list[Tensor] = []
        labels: list[Tensor] = []
        exact = True
        for (inputs, targets, _), weight in zip(samples, weights, strict=True):
            output = forward(module, inputs)
            pair = self._reduction.values(output, targets)
            if pair is None:
                exact = False
                value = batch_loss(self.loss_fn, output, targets).detach().double().reshape(1)
                # A batch without a label counts nothing, whatever its loss.
                pair = value * weight if weight else torch.zeros_like(value), torch.full_like(value, weight)
            parts.append((pair[0].detach(), pair[1]))
            softmax = self._reduction.is_softmax_cross_entropy and output.dim() == 2 and targets.dim() == 1
            logits.append(output.detach() if softmax else None)
            if self._is_classification(output, targets):
                labelled = self._reduction.labelled(targets)
                correct.append(((output.argmax(1) == targets) & labelled).sum())
                labels.append(labelled.sum())
        # Transfers at the end only: .item() inside the loop would stop a GPU at every batch.
        if exact:
            above, below = (torch.cat(each).cpu() for each in zip(*parts, strict=True))
            adds_up = self.adds_up
            loss = float(above.sum() if adds_up else above.sum() / below.sum())
            error = _standard_error(above, below, loss, total=adds_up)
        else:
            sums = [(above.sum(), below.sum()) for above, below in parts]
            above, below = (torch.stack(each).cpu() for each in zip(*sums, strict=True))
            loss = float(above.sum() / below.sum())
            error = _batch_standard_error(above[below > 0] / below[below > 0], below[below > 0])
        bad = int((~above.isfinite()).sum())
        counted = int(torch.stack(labels).sum()) if len(labels) == len(samples) else 0
        accuracy = float(torch.stack(correct).sum()) / counted if counted else None
        reduction: Literal["exact", "batch means"] = "exact" if exact else "batch means"
        evaluation = Evaluation(loss, error, accuracy, samples.count, bad, self.statistics, reduction)
        return evaluation, UnitLosses([pair[0] for pair in parts], [pair[1] for pair in parts], logits)

    def _is_classification(self, output: Any, targets: Any) -> bool:
        if self._classification is not None:
            return self._classification
        return is_classification(output, targets) and output.dim() == 2

    def _check_input_stays(self) -> None:
        """LLPFError where the network writes into its input, which may be the caller's data."""
        data = self._data
        few = data.subset(torch.arange(min(data.count, 8))) if isinstance(data, TensorData) else data[:1]
        inputs = FixedSamples(few, batch_size=8, device=self.device, dtype=self.dtype).batches[0][0]
        given = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
        with contextlib.suppress(LLPFError), torch.no_grad():
            forward(self._copy(), given)
        if any(not same_bits(x, y) for x, y in zip(tensors_of(given), tensors_of(inputs), strict=True)):
            raise LLPFError("the model's forward writes into its input: the samples would change at every evaluation")

    def _cut(self, data: MaterializedData) -> FixedSamples:
        return FixedSamples(
            data,
            batch_size=self.batch_size,
            device=self.device,
            dtype=self.dtype,
            channels_last=self.mode.channels_last,
        )

    def _copy(self) -> nn.Module:
        return module_in(copied(self._module), self.device, self.dtype).eval().requires_grad_(False)

    def _thread_module(self) -> nn.Module:
        """The calling thread's copy of the module."""
        if not hasattr(self._local, "module"):
            module = self._copy()
            if self.mode.channels_last:
                # Not module.to(memory_format=...), which fails on the weights of a Conv3d.
                for parameter in module.parameters():
                    if parameter.dim() == 4:
                        parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
            self._local.module = module
            self._local.values = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
            self._forbid_reading(module, self.counters)
        module = self._local.module
        assert isinstance(module, nn.Module)
        return module

    def _unread_counters(self) -> frozenset[str]:
        """The counts of batches that the network does not read, tried on the first batch; none where it reads one."""
        names = frozenset(name for name, _ in counters(self._module))
        if names:
            module = self._copy()
            self._forbid_reading(module, names)
            try:
                with torch.set_grad_enabled(self.mode.gradients):
                    forward(module, self._samples.batches[0][0])
            except LLPFError:
                return frozenset()
        return names

    def _forbid_reading(self, module: nn.Module, names: frozenset[str]) -> None:
        # Re-estimation sets those of the layers that it estimates anew, so that no loss depends on them.
        estimated = set(normalization_layers(module)) if self._estimation is not None else set()
        forbid_reading(module, names - {name for name, layer in counters(module) if layer in estimated})

    @torch.no_grad()
    def _load(self, state: Mapping[str, Tensor]) -> None:
        values: dict[str, Tensor] = self._local.values
        state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        if values.keys() != state.keys() or any(state[name].shape != value.shape for name, value in values.items()):
            compare_architectures(state, values, "the waypoint", "the model")
        for name, value in values.items():
            if state[name].is_complex() and not value.is_complex():
                raise LLPFError(f"tensor {name!r} is complex in the waypoint and real in the model")
            value.copy_(state[name])


def differs_beyond_rounding(one: float, other: float, dtype: torch.dtype) -> bool:
    """Whether two sums of the same losses, computed in ``dtype``, differ by more than rounding.

    The bound is far above rounding: in float32, another order of 10,000 images changed no bit of LeNet5's loss, and one
    of 300 images changed ResNet18's by 2e-10 of its size. A loss that mixes the samples of a batch changes by percents.
    """
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) != math.isnan(other)
    return abs(one - other) > (1e-10 if dtype == torch.float64 else 1e-5) * (1.0 + abs(one))


def _in_memory(inputs: Any, targets: Any) -> MaterializedData:
    """Samples or batches in memory, from (inputs, targets), or from ``inputs`` alone where ``targets`` is None."""
    if targets is not None:
        return materialize(as_data((inputs, targets), "data set"))
    return inputs if isinstance(inputs, TensorData) else materialize(as_data(inputs, "data set"))


def _inputs_in_memory(inputs: Any) -> MaterializedData:
    if isinstance(inputs, Tensor):
        return TensorData(inputs, torch.zeros(len(inputs)))
    return _in_memory(inputs, None)


def _standard_error(numerators: Tensor, denominators: Tensor, loss: float, *, total: bool) -> float | None:
    """Standard error of r = sum(a) / sum(b) over n samples drawn at random (linearized), or of sum(a) with ``total``.

    Of the ratio: sqrt(n / (n-1) sum (a - r b)^2) / sum b, which for b = 1 is the standard error of the mean.
    """
    count = len(numerators)
    if count < 2:
        return None
    if not math.isfinite(loss):
        return math.nan
    if total:
        return float(numerators.std(correction=1)) * math.sqrt(count)
    squared = (numerators - loss * denominators).square().sum() * count / (count - 1)
    return float(squared.sqrt() / denominators.sum())


def _batch_standard_error(means: Tensor, sizes: Tensor) -> float | None:
    """Standard error from B batch means, weighted by their sizes w: sqrt(B / (B-1) * sum w^2 (m - mean)^2) / sum w."""
    batches = len(means)
    if batches < 2:
        return None
    centre = (means * sizes).sum() / sizes.sum()
    squared = (sizes * (means - centre)).square().sum() * batches / (batches - 1)
    return float(squared.sqrt() / sizes.sum())
