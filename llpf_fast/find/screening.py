"""Screening: the loss of a point on fixed samples during a search, for one point and for many at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..batches.forward import fixed_random_numbers, forward
from ..batches.precision import float32_products
from ..batches.statistics import reestimate
from ..flat import FlatParameters
from ..flat.copying import copied
from .task import Task


class ScreeningEvaluator:
    """Eval-mode loss of flat points on the fixed samples of a :class:`~.task.Task`, computed as in the certificate.

    Its copy of the module has no memory for parameters: during an evaluation they are views of the point.

    Args:
        module: the architecture; copied, so that an evaluation never changes the module being trained.
        flat: options of :class:`FlatParameters`.
    """

    def __init__(self, module: nn.Module, task: Task, **flat: Any) -> None:
        twin = copied(module)
        twin.eval().requires_grad_(False)
        self._module, self._task = twin, task
        self._weights = task.samples.weights(task.reduction)
        #: Numerators of the samples' losses at the last point, a tensor a batch, as far as it was evaluated.
        self.numerators: list[Tensor] = []
        laid = FlatParameters(twin, **flat)
        owners = dict(twin.named_parameters())
        #: Each parameter with the shape, stride and offset of its view of a flat point.
        self._views = [
            (owners[name], (view.shape, view.stride(), view.storage_offset()))
            for name, view in laid.views(laid.data).items()
        ]
        self._release()

    def _view(self, values: Tensor) -> None:
        for parameter, (shape, stride, offset) in self._views:
            parameter.data = values.as_strided(shape, stride, values.storage_offset() + offset)

    def _release(self) -> None:
        """Drop the views, which would keep the point's memory alive."""
        for parameter, _ in self._views:
            parameter.data = parameter.data.new_empty(0)

    def loss(self, values: Tensor, buffers: Mapping[str, Tensor], stop_above: float = math.inf) -> float:
        """Loss at the flat point ``values [N]`` with the given buffers; NaN counts as infinite.

        As soon as the mean of the first samples (at least 500, or one batch of a loader) is above ``stop_above``, that
        is returned. The host reads one number at the end, and one at each of these checks.

        Raises:
            LLPFError: the model's forward or the loss fails on the data.
        """
        task = self._task
        with torch.no_grad():
            for name, buffer in self._module.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])
        self._view(values)
        try:
            # In float32, whatever precision the correction trains in.
            with (
                fixed_random_numbers(task.device),  # as in the certificate
                float32_products("float32", task.device),
                torch.set_grad_enabled(task.mode.gradients),
            ):
                if task.estimation is not None:
                    reestimate(self._module, task.estimation)
                return self._mean(stop_above)
        finally:
            self._release()

    def _mean(self, stop_above: float) -> float:
        whole = self._task.reduction.total(self._weights)
        total: Tensor | float = 0.0
        mean: float | None = None
        share, count, next_check = 0.0, 0, self._task.min_samples
        self.numerators = []
        for (inputs, targets, size), weight in zip(self._task.samples, self._weights, strict=True):
            output = forward(self._module, inputs)
            # Summed on the device, in float64: a read a batch would leave a GPU idle.
            numerators = self._task.reduction.numerators(output, targets, weight).detach()
            total = numerators.sum() / whole + total
            self.numerators.append(numerators)
            share, count, mean = share + weight / whole, count + size, None
            if count >= next_check and stop_above < math.inf:
                next_check, mean = count + self._task.min_samples, float(total)
                if mean > stop_above * share:
                    return mean / share if share else math.inf
        mean = float(total) if mean is None else mean
        return mean if math.isfinite(mean) else math.inf


class BatchedScreening:
    """The losses of :class:`ScreeningEvaluator` for many points at once, equal up to the last bits.

    Args:
        flat: of one module of the architecture; only its layout counts.
        task: without re-estimated statistics.
    """

    def __init__(self, flat: FlatParameters, task: Task) -> None:
        self._module = copied(flat.module).eval().requires_grad_(False)
        self._task, self._weights = task, task.samples.weights(task.reduction)
        self._whole = task.reduction.total(self._weights)
        views = flat.views(torch.empty_like(flat.data))
        self._views = {name: (view.shape, view.stride(), view.storage_offset()) for name, view in views.items()}

    @torch.no_grad()
    def losses(
        self, values: Sequence[Tensor], buffers: Sequence[Mapping[str, Tensor]], stop_above: Sequence[float]
    ) -> list[float]:
        """The loss of each point ``[N]`` with its buffers and limit; see :meth:`ScreeningEvaluator.loss`.

        Raises:
            LLPFError: the model's forward or the loss fails on the data, or cannot be stacked.
        """
        rows = torch.stack(list(values))
        count, size = rows.shape
        parameters = {
            name: rows.as_strided((count, *shape), (size, *stride), offset)
            for name, (shape, stride, offset) in self._views.items()
        }
        # Interpolated buffers are float64.
        dtypes = {name: buffer.dtype for name, buffer in self._module.named_buffers()}
        stacked = {name: torch.stack([of_point[name].to(dtypes[name]) for of_point in buffers]) for name in buffers[0]}
        total: Tensor | float = 0.0
        means: list[float | None] = [None] * count
        share, samples_done, next_check = 0.0, 0, self._task.min_samples
        for (inputs, targets, samples), weight in zip(self._task.samples, self._weights, strict=True):
            total = self._batch(parameters, stacked, inputs, targets, weight) + total
            share, samples_done = share + weight / self._whole, samples_done + samples
            last = samples_done == self._task.samples.count
            if not last and (samples_done < next_check or min(stop_above) == math.inf):
                continue
            # The host waits here: at every check, or once.
            next_check = samples_done + self._task.min_samples
            assert isinstance(total, Tensor)
            for row, (loss, stop) in enumerate(zip(total.tolist(), stop_above, strict=True)):
                if means[row] is None and (last or loss > stop * share):
                    means[row] = loss / share if share else math.inf
            # The pass goes on for all points until all are done: a pass of another width would cost more.
            if None not in means:
                break
        return [mean if mean is not None and math.isfinite(mean) else math.inf for mean in means]

    def _batch(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Any, targets: Any, weight: float
    ) -> Tensor:
        def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            def model(*values: Any, **named: Any) -> Any:
                return functional_call(self._module, (parameters, buffers), values, named)

            return self._task.reduction.numerators(forward(model, inputs), targets, weight).sum() / self._whole

        with float32_products("float32", self._task.device):
            losses: Tensor = vmap(loss)(parameters, buffers)
        return losses
