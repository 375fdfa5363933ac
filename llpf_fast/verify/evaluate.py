"""``Evaluator``: loss and accuracy of a state dict on a fixed set, in eval mode."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..batches.fixed_samples import FixedSamples, call
from ..batches.precision import float32_products
from ..errors import LLPFError
from ..path.state import compare_architectures
from .statistics import reestimate

#: (model output, target) -> scalar mean over the batch.
LossFunction = Callable[[Any, Any], Tensor]
Statistics = Literal["stored", "reestimated"]

#: LeNet5 on one core, 10,000 images: 0.44 s of processor time at 125 a batch, 0.52 at 32 (calls), 0.53 at 250 and more
#: (glibc then gives each activation back to the system, and every page faults again).
_BATCH_CPU, _BATCH_GPU = 125, 2000
#: Of the global generators during an evaluation, so that a model that draws numbers even in eval mode repeats.
_SEED = 0


@dataclass(frozen=True)
class Evaluation:
    """What one point measures on one set.

    ``loss`` is the mean over all ``samples``; NaN or infinite as it came out, and then ``not_finite`` says for how many
    samples (batches, where the loss gives no per-sample values). ``standard_error`` is that of the mean, regarding the
    samples as drawn at random; None where there are fewer than two values to judge from. ``accuracy`` (0..1) is None
    unless it is classification. ``statistics`` names the BatchNorm statistics used.
    """

    loss: float
    standard_error: float | None
    accuracy: float | None
    samples: int
    not_finite: int
    statistics: Statistics = "stored"


class Evaluator:
    """Measures state dicts of one architecture on one fixed set: eval mode, float32, no autograd.

    Works on a copy of the module, one per thread that calls it, so the module given keeps values, mode and hooks, and
    states are copied in, never aliased. torch's global generators are left as they were.

    Args:
        module: the architecture.
        loss_fn: (model output, target) -> mean loss of a batch; what is reported is their mean, weighted by batch size.
        inputs, targets: tensors ``[n, ...]``; or an iterable of (input, target) batches and None.
        batch_size: 125 on a CPU, 2,000 on a GPU when missing.
        device: where to compute.
        statistics: "stored" takes BatchNorm's running statistics from the state; "reestimated" computes them anew at
            every point from ``statistics_inputs`` (training data!).
        statistics_inputs: tensor ``[m, ...]``, or an iterable of (input, target) batches.
        classification: whether to report accuracy, argmax over logits ``[B, C]`` against integer targets ``[B]``; when
            None, wherever shapes and dtypes say so.
        dtype: to compute in.

    Raises:
        LLPFError: empty data; ``statistics_inputs`` missing; a module that cannot be copied.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: LossFunction,
        inputs: Any,
        targets: Any = None,
        *,
        batch_size: int | None = None,
        device: torch.device | str = "cpu",
        statistics: Statistics = "stored",
        statistics_inputs: Any = None,
        classification: bool | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device, self.dtype, self.statistics = torch.device(device), dtype, statistics
        self.batch_size = batch_size or (_BATCH_CPU if self.device.type == "cpu" else _BATCH_GPU)
        self._module, self._loss_fn, self._classification = module, loss_fn, classification
        self._per_sample = per_sample_loss(loss_fn)
        self._local = threading.local()
        with self._random_state():
            self._samples = self._hold(inputs, targets)
            self._estimation: FixedSamples | None = None
            if statistics == "reestimated":
                if statistics_inputs is None:
                    raise LLPFError("statistics='reestimated' needs statistics_inputs: a part of the training data")
                self._estimation = self._hold_inputs(statistics_inputs)

    @property
    def samples(self) -> int:
        """How many samples one evaluation sees."""
        return self._samples.count

    def __call__(self, state: Mapping[str, Tensor]) -> Evaluation:
        """Measure ``state`` (names and shapes of the module's state dict; any float dtype, any device).

        Raises:
            LLPFError: the state is of another architecture; the model or the loss fails on the data.
        """
        twin = self._twin()
        with self._random_state(), float32_products("float32", self.device), torch.inference_mode():
            self._load(state)
            try:
                if self._estimation is not None:
                    reestimate(twin, self._estimation)
                return self._measure(twin)
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                if isinstance(error, torch.cuda.OutOfMemoryError):
                    raise LLPFError(f"the GPU's memory is too small for batches of {self.batch_size}") from error
                first = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise LLPFError(f"the model or the loss fails on the data: {first}") from error

    def _measure(self, module: nn.Module) -> Evaluation:
        losses: list[Tensor] = []
        squares: list[Tensor] = []
        hits: list[Tensor] = []
        spread: list[Tensor] = []
        bad: list[Tensor] = []
        for value, target, _ in self._samples:
            output = call(module, value)
            loss = self._loss_fn(output, target).double()
            losses.append(loss)
            each = self._each(output, target)
            if each is None:
                bad.append(~loss.isfinite())
            else:
                spread.append(each.sum())
                squares.append(each.square().sum())
                bad.append((~each.isfinite()).sum())
            if self._is_classification(output, target):
                hits.append((output.argmax(1) == target).sum())
        # One transfer at the end: .item() inside the loop would stop a GPU at every batch.
        sizes = torch.tensor(self._samples.sizes, dtype=torch.float64, device=self.device)
        means = torch.stack(losses).reshape(-1)
        count = self._samples.count
        mean = float((means * sizes).sum() / count)
        if squares and len(squares) == len(losses):
            total = float(torch.stack(spread).sum())
            error = _standard_error(total, float(torch.stack(squares).sum()), count)
        else:
            error = _batch_standard_error(means, sizes)
        accuracy = float(torch.stack(hits).sum()) / count if len(hits) == len(losses) else None
        return Evaluation(mean, error, accuracy, count, int(torch.stack(bad).sum()), self.statistics)

    def _each(self, output: Any, target: Any) -> Tensor | None:
        """Loss of each sample, float64 ``[B]``; None where the loss function gives none."""
        if self._per_sample is None or not isinstance(output, Tensor):
            return None
        values = self._per_sample(output, target)
        if values.dim() == 0 or len(values) != len(output):
            return None
        return values.double().flatten(1).mean(1) if values.dim() > 1 else values.double()

    def _is_classification(self, output: Any, target: Any) -> bool:
        if self._classification is not None:
            return self._classification
        return (
            isinstance(output, Tensor)
            and isinstance(target, Tensor)
            and output.dim() == 2
            and output.shape[1] > 1  # one output against whole numbers is a regression of counts
            and output.is_floating_point()
            and target.dtype in (torch.int64, torch.int32, torch.int16, torch.uint8)
            and target.shape == output.shape[:1]
        )

    def _hold(self, inputs: Any, targets: Any) -> FixedSamples:
        if isinstance(inputs, Tensor) and targets is None:
            raise LLPFError("targets are missing: pass tensors inputs and targets, or an iterable of pairs")
        return FixedSamples(
            inputs,
            targets,
            batch_size=self.batch_size,
            device=self.device,
            # oneDNN's convolutions and torch's pooling are 1.4 times faster so (LeNet5, one core).
            channels_last=self.device.type == "cpu",
            dtype=self.dtype,
        )

    def _hold_inputs(self, inputs: Any) -> FixedSamples:
        if isinstance(inputs, Tensor):
            return self._hold(inputs, torch.zeros(len(inputs)))
        return self._hold(inputs, None)

    def _twin(self) -> nn.Module:
        """This thread's copy of the module."""
        if not hasattr(self._local, "twin"):
            module = getattr(self._module, "_orig_mod", self._module)  # torch.compile's wrapper renames everything
            try:
                twin = copy.deepcopy(module)
            except (RuntimeError, TypeError) as error:
                raise LLPFError(
                    f"the model cannot be copied ({error}); pass a module that copy.deepcopy takes"
                ) from error
            twin.to(self.device, self.dtype).eval().requires_grad_(False)
            if self._samples.channels_last:
                twin.to(memory_format=torch.channels_last)
            self._local.twin = twin
            self._local.values = {k: v for k, v in twin.state_dict().items() if isinstance(v, Tensor)}
        twin = self._local.twin
        assert isinstance(twin, nn.Module)
        return twin

    def _load(self, state: Mapping[str, Tensor]) -> None:
        values: dict[str, Tensor] = self._local.values
        if values.keys() != state.keys() or any(state[name].shape != value.shape for name, value in values.items()):
            compare_architectures(state, values, "the waypoint", "the model")
        for name, value in values.items():
            value.copy_(state[name])

    @contextlib.contextmanager
    def _random_state(self) -> Iterator[None]:
        """A fixed state of the global generators inside, the old one afterwards (20 µs)."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.default_generator.manual_seed(_SEED)
            if devices:
                with torch.cuda.device(self.device):
                    torch.cuda.manual_seed(_SEED)
            yield


def per_sample_loss(loss_fn: LossFunction) -> LossFunction | None:
    """``loss_fn`` without its mean, where it is one of torch's (a ``reduction`` argument or attribute of "mean")."""
    if isinstance(loss_fn, nn.Module):
        if getattr(loss_fn, "reduction", None) != "mean":
            return None
        alone: Any = copy.deepcopy(loss_fn)
        alone.reduction = "none"
        separate: LossFunction = alone
        return separate
    try:
        reduction = inspect.signature(loss_fn).parameters.get("reduction")
    except (TypeError, ValueError):
        return None
    if reduction is None or reduction.default != "mean":
        return None
    return lambda output, target: loss_fn(output, target, reduction="none")  # type: ignore[call-arg]


def _standard_error(total: float, squares: float, count: int) -> float | None:
    """sqrt(s^2 / n) from sums over n samples, s^2 unbiased."""
    if count < 2:
        return None
    variance = max(squares - total * total / count, 0.0) / (count - 1) if math.isfinite(squares) else math.nan
    return math.sqrt(variance / count)


def _batch_standard_error(means: Tensor, sizes: Tensor) -> float | None:
    """From B batch means, weighted by their sizes w: sqrt(B / (B-1) * sum w^2 (m - mean)^2) / sum w."""
    batches = len(means)
    if batches < 2:
        return None
    centre = (means * sizes).sum() / sizes.sum()
    squared = (sizes * (means - centre)).square().sum() * batches / (batches - 1)
    return float(squared.sqrt() / sizes.sum())
