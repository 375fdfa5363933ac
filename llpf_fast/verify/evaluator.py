"""``Evaluator``: loss and accuracy of a state dict on a fixed set, in eval mode."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from ..batches.data import TensorData, as_data
from ..batches.fixed_samples import FixedSamples, MaterializedData, materialize, try_network
from ..batches.forward import computing_dtype, default_batch_size, fixed_random_numbers, forward
from ..batches.loss import LossReduction, batch_loss, chosen_loss, is_classification
from ..batches.precision import checked_device, float32_products, loss_in, module_in
from ..batches.statistics import reestimate
from ..errors import LLPFError
from ..flat.copying import copied
from ..flat.wrappers import unwrapped
from ..path.state import compare_architectures
from ..types import LossFunction

Statistics = Literal["stored", "reestimated"]

#: Of the order in which samples are put together anew, to see whether the loss depends on it.
_ORDER_SEED = 1


@dataclass(frozen=True)
class Evaluation:
    """What one point measures on one set.

    ``loss`` is that of all ``samples``; NaN or infinite as it came out, and then ``not_finite`` says for how many
    samples (batches, where the loss gives no per-sample values). ``reduction`` is "exact" where the loss is one of
    torch's own, so that ``loss`` is the value of one call on the whole set; "batch means" where it is the mean of the
    batches' values, weighted by their numbers of samples. ``standard_error`` is that of ``loss``, regarding the samples
    as drawn at random; None where there are fewer than two values to judge from. ``accuracy`` (0..1, over the labelled
    samples) is None unless it is classification. ``statistics`` names the BatchNorm statistics used.
    """

    loss: float
    standard_error: float | None
    accuracy: float | None
    samples: int
    not_finite: int
    statistics: Statistics = "stored"
    reduction: Literal["exact", "batch means"] = "exact"


class Evaluator:
    """Measures state dicts of one architecture on one fixed set: eval mode, no autograd.

    Works on a copy of the module, one per thread that calls it, so the module given keeps values, mode and hooks, and
    states are copied in, never aliased. torch's global generators are left as they were.

    Args:
        module: the architecture; wrappers (torch.compile, DataParallel) are taken off.
        loss_fn: (model output, targets) -> scalar loss of a batch (:class:`~llpf_fast.batches.loss.LossReduction` says
            what that makes of the set); None: cross-entropy, where outputs and targets are those of classification.
        inputs, targets: samples; or any data that :func:`~llpf_fast.batches.data.as_data` takes and None. Batches of a
            loader stay as they come.
        batch_size: of samples: 125 on a CPU, 2,000 on a GPU when missing.
        device: where to compute.
        statistics: "stored" takes BatchNorm's running statistics from the state; "reestimated" computes them anew at
            every point from ``statistics_inputs`` (training data!).
        statistics_inputs: data as ``inputs``, or inputs ``[m, ...]`` alone.
        classification: whether to report accuracy, argmax over logits ``[B, C]`` against integer targets ``[B]``; when
            None, wherever shapes and dtypes say so.
        dtype: to compute in; when missing float64 for a network of float64, else float32.

    Attributes:
        loss_fn: the loss in use.
        mode: how the network is run.

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
            self._held = _held(inputs, targets)
            # oneDNN's convolutions and torch's pooling are 1.4 times faster so (LeNet5, one core).
            self.mode, output, some = try_network(
                self._copy(),
                self._held,
                device=self.device,
                dtype=self.dtype,
                channels_last=self.device.type == "cpu",
                batch_size=self.batch_size,
            )
            self.loss_fn = loss_in(chosen_loss(loss_fn, output, some), self.device, self.dtype)
            self._reduction = LossReduction(self.loss_fn)
            self._samples = self._fixed(self._held)
            self._weights = self._samples.weights(self._reduction)
            self._estimation: FixedSamples | None = None
            if statistics == "reestimated":
                if statistics_inputs is None:
                    raise LLPFError("statistics='reestimated' needs statistics_inputs: a part of the training data")
                self._estimation = self._fixed(_held_inputs(statistics_inputs))

    @property
    def samples(self) -> int:
        """How many samples one evaluation sees."""
        return self._samples.count

    @property
    def adds_up(self) -> bool:
        """Whether the loss is a sum over the samples, of which a part says nothing."""
        return self._reduction.kind == "sum"

    @property
    def loss_name(self) -> str:
        """What results call the loss."""
        return self._reduction.name

    def __call__(self, state: Mapping[str, Tensor]) -> Evaluation:
        """Measure ``state`` (names and shapes of the module's state dict; any float dtype, any device).

        Raises:
            LLPFError: the state is of another architecture; the model or the loss fails on the data.
        """
        return self._evaluate(state, self._samples, self._weights)

    def in_another_order(self, state: Mapping[str, Tensor]) -> float | None:
        """The loss of ``state`` with the samples put together into other batches.

        None where batches are given as such, and where the loss cannot take others (targets that name a batch's own
        samples).

        It differs by more than rounding where the network or the loss mixes the samples of a batch (normalization
        without statistics, negatives from the batch) or is no mean over samples: then no single number is *the* loss.
        """
        if not isinstance(self._held, TensorData) or len(self._samples) < 2:
            return None
        order = torch.randperm(self._held.count, generator=torch.Generator().manual_seed(_ORDER_SEED))
        samples = self._fixed(self._held.subset(order))
        try:
            return self._evaluate(state, samples, samples.weights(self._reduction)).loss
        except LLPFError:
            return None

    def _evaluate(self, state: Mapping[str, Tensor], samples: FixedSamples, weights: list[float]) -> Evaluation:
        twin = self._twin()
        self._load(state)
        with (
            fixed_random_numbers(self.device),
            float32_products("float32", self.device),
            torch.set_grad_enabled(self.mode.gradients),
        ):
            if self._estimation is not None:
                reestimate(twin, self._estimation)
            return self._measure(twin, samples, weights)

    def _measure(self, module: nn.Module, samples: FixedSamples, weights: list[float]) -> Evaluation:
        values: list[Tensor] = []
        numerators: list[Tensor] = []
        denominators: list[Tensor] = []
        hits: list[Tensor] = []
        labels: list[Tensor] = []
        for inputs, targets, _ in samples:
            output = forward(module, inputs)
            pair = self._reduction.values(output, targets)
            if pair is None:
                values.append(batch_loss(self.loss_fn, output, targets).detach().double().reshape(()))
            else:
                numerators.append(pair[0].detach())
                denominators.append(pair[1])
                values.append(numerators[-1].sum() / pair[1].sum())
            if self._counts_hits(output, targets):
                labelled = self._reduction.labelled(targets)
                hits.append(((output.argmax(1) == targets) & labelled).sum())
                labels.append(labelled.sum())
        # Transfers at the end only: .item() inside the loop would stop a GPU at every batch.
        exact = len(numerators) == len(values)
        if exact:
            above, below = torch.cat(numerators).cpu(), torch.cat(denominators).cpu()
            adds_up = self.adds_up
            loss = float(above.sum() if adds_up else above.sum() / below.sum())
            error = _standard_error(above, below, loss, total=adds_up)
            bad = int((~above.isfinite()).sum())
        else:
            each, sizes = torch.stack(values).cpu(), torch.tensor(weights, dtype=torch.float64)
            each, sizes = each[sizes > 0], sizes[sizes > 0]
            loss = float((each * sizes).sum() / sizes.sum())
            error = _batch_standard_error(each, sizes)
            bad = int((~each.isfinite()).sum())
        counted = int(torch.stack(labels).sum()) if len(labels) == len(samples) else 0
        accuracy = float(torch.stack(hits).sum()) / counted if counted else None
        reduction: Literal["exact", "batch means"] = "exact" if exact else "batch means"
        return Evaluation(loss, error, accuracy, samples.count, bad, self.statistics, reduction)

    def _counts_hits(self, output: Any, targets: Any) -> bool:
        if self._classification is not None:
            return self._classification
        return is_classification(output, targets) and output.dim() == 2

    def _fixed(self, held: MaterializedData) -> FixedSamples:
        return FixedSamples(
            held,
            batch_size=self.batch_size,
            device=self.device,
            dtype=self.dtype,
            channels_last=self.mode.channels_last,
        )

    def _copy(self) -> nn.Module:
        return module_in(copied(self._module), self.device, self.dtype).eval().requires_grad_(False)

    def _twin(self) -> nn.Module:
        """This thread's copy of the module."""
        if not hasattr(self._local, "twin"):
            twin = self._copy()
            if self.mode.channels_last:
                twin.to(memory_format=torch.channels_last)
            self._local.twin = twin
            self._local.values = {k: v for k, v in twin.state_dict().items() if isinstance(v, Tensor)}
        twin = self._local.twin
        assert isinstance(twin, nn.Module)
        return twin

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
    """Whether two ways to add up the same losses in ``dtype`` give values further apart than their rounding.

    The bound is wide of rounding: three other orders of 10,000 images left LeNet5's loss at every bit, one of 300
    changed ResNet18's by 2e-10 of its size (float32). A loss that mixes the samples of a batch changes by percents.
    """
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) != math.isnan(other)
    return abs(one - other) > (1e-10 if dtype == torch.float64 else 1e-5) * (1.0 + abs(one))


def _held(inputs: Any, targets: Any) -> MaterializedData:
    """Samples or batches in memory, from (inputs, targets), or from ``inputs`` alone where it is all of the data."""
    if targets is not None:
        return materialize(as_data((inputs, targets), "data set"))
    return inputs if isinstance(inputs, TensorData) else materialize(as_data(inputs, "data set"))


def _held_inputs(inputs: Any) -> MaterializedData:
    if isinstance(inputs, Tensor):
        return TensorData(inputs, torch.zeros(len(inputs)))
    return _held(inputs, None)


def _standard_error(numerators: Tensor, denominators: Tensor, loss: float, *, total: bool) -> float | None:
    """Of the ratio of two sums over n samples drawn at random (linearized), or of the sum itself.

    For the ratio r: sqrt(n / (n-1) sum (a - r b)^2) / sum b, which for b = 1 is the standard error of the mean.
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
    """From B batch means, weighted by their sizes w: sqrt(B / (B-1) * sum w^2 (m - mean)^2) / sum w."""
    batches = len(means)
    if batches < 2:
        return None
    centre = (means * sizes).sum() / sizes.sum()
    squared = (sizes * (means - centre)).square().sum() * batches / (batches - 1)
    return float(squared.sqrt() / sizes.sum())


Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerPool:
    """Applies a function to many items, in order, with ``workers`` threads of one CPU thread each.

    Points are independent, so whole points in parallel need no meeting inside an operation (on busy cores two threads
    inside operations were ten times slower than one, LeNet5). torch releases the GIL in its operations; threads, unlike
    processes, share the data set (MNIST: 188 MB) and need neither pickling nor a guard in the caller's script.
    With one worker everything happens in the calling thread, with its number of CPU threads.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> WorkerPool:
        if self._workers > 1:
            self._threads = torch.get_num_threads()
            # In a thread of its own, set_num_threads does not touch the caller's pool, only what new threads inherit.
            self._pool = ThreadPoolExecutor(self._workers, initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(self._threads)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        results: Iterable[Result] = map(function, items) if self._pool is None else self._pool.map(function, items)
        yield from results
