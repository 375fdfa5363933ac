"""The search's own judgement of a point: its loss on fixed samples, for one path and for many at once."""

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
from .build import Task


class ScreeningEvaluator:
    """Eval-mode loss of flat points on the fixed samples of a :class:`~.build.Task`, as the certificate forms it.

    Holds no parameters of its own: its copy of the module looks at the very point that is judged.

    Args:
        module: architecture; copied, so that judging never touches the module being trained.
        flat: options of :class:`FlatParameters`.
    """

    def __init__(self, module: nn.Module, task: Task, **flat: Any) -> None:
        twin = copied(module)
        twin.eval().requires_grad_(False)
        self._module, self._task = twin, task
        self._weights = task.samples.weights(task.reduction)
        laid = FlatParameters(twin, **flat)
        owners = dict(twin.named_parameters())
        #: Each parameter with where a flat point holds it.
        self._places = [
            (owners[name], (view.shape, view.stride(), view.storage_offset()))
            for name, view in laid.views(laid.data).items()
        ]
        self._look_away()

    def _look_at(self, values: Tensor) -> None:
        for parameter, (shape, stride, offset) in self._places:
            parameter.data = values.as_strided(shape, stride, values.storage_offset() + offset)

    def _look_away(self) -> None:
        """Let go of the point's memory."""
        for parameter, _ in self._places:
            parameter.data = parameter.data.new_empty(0)

    def loss(self, values: Tensor, buffers: Mapping[str, Tensor], stop_above: float = math.inf) -> float:
        """Loss at the flat point ``values [N]`` with the given buffers; NaN counts as infinite.

        As soon as the mean so far (over at least 500 samples, or one batch of a loader) is above ``stop_above``, that
        is the answer. The host reads one number at the end, and one more at each of these looks.

        Raises:
            LLPFError: the model's forward or the loss fails on the data.
        """
        task = self._task
        with torch.no_grad():
            for name, buffer in self._module.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])
        self._look_at(values)
        try:
            # Judged in float32 whatever the correction trains in.
            with (
                fixed_random_numbers(task.device),  # as the certificate has it
                float32_products("float32", task.device),
                torch.set_grad_enabled(task.mode.gradients),
            ):
                if task.estimation is not None:
                    reestimate(self._module, task.estimation)
                return self._mean(stop_above)
        finally:
            self._look_away()

    def _mean(self, stop_above: float) -> float:
        whole = self._task.reduction.total(self._weights)
        total: Tensor | float = 0.0
        found: float | None = None
        so_far, seen, wait = 0.0, 0, self._task.fewest
        for (inputs, targets, size), weight in zip(self._task.samples, self._weights, strict=True):
            output = forward(self._module, inputs)
            # Added up where it lies, in float64: a read a batch would leave a GPU idle.
            total = self._task.reduction.part(output, targets, weight, whole).detach() + total
            so_far, seen, found = so_far + weight / whole, seen + size, None
            if seen >= wait and stop_above < math.inf:
                wait, found = seen + self._task.fewest, float(total)
                if found > stop_above * so_far:
                    return found / so_far if so_far else math.inf
        found = float(total) if found is None else found
        return found if math.isfinite(found) else math.inf


class BatchedScreening:
    """The losses of :class:`~llpf_fast.find.screening.ScreeningEvaluator` for many points at once, up to the last bits.

    Args:
        flat: of one module of the architecture; only its layout counts.
        task: without re-estimated statistics.
    """

    def __init__(self, flat: FlatParameters, task: Task) -> None:
        self._module = copied(flat.module).eval().requires_grad_(False)
        self._task, self._weights = task, task.samples.weights(task.reduction)
        self._whole = task.reduction.total(self._weights)
        views = flat.views(torch.empty_like(flat.data))
        self._places = {name: (view.shape, view.stride(), view.storage_offset()) for name, view in views.items()}

    @torch.no_grad()
    def losses(
        self, values: Sequence[Tensor], buffers: Sequence[Mapping[str, Tensor]], stop_above: Sequence[float]
    ) -> list[float]:
        """Of each point ``[N]`` with its own buffers and limit; see ``Screen.loss``.

        Raises:
            LLPFError: the model's forward or the loss fails on the data, or cannot be stacked.
        """
        rows = torch.stack(list(values))
        count, size = rows.shape
        parameters = {
            name: rows.as_strided((count, *shape), (size, *stride), offset)
            for name, (shape, stride, offset) in self._places.items()
        }
        # Between two points buffers are wider.
        own = dict(self._module.named_buffers())
        held = {name: torch.stack([of_point[name].to(own[name].dtype) for of_point in buffers]) for name in buffers[0]}
        total: Tensor | float = 0.0
        means: list[float | None] = [None] * count
        share, seen, wait = 0.0, 0, self._task.fewest
        for (inputs, targets, samples), weight in zip(self._task.samples, self._weights, strict=True):
            total = self._batch(parameters, held, inputs, targets, weight) + total
            share, seen = share + weight / self._whole, seen + samples
            last = seen == self._task.samples.count
            if not last and (seen < wait or min(stop_above) == math.inf):
                continue
            # Where the host waits: once, or at every look.
            wait = seen + self._task.fewest
            assert isinstance(total, Tensor)
            for row, (found, stop) in enumerate(zip(total.tolist(), stop_above, strict=True)):
                if means[row] is None and (last or found > stop * share):
                    means[row] = found / share if share else math.inf
            # A point that is given up is left out of the pass only when all are: another width is dearer.
            if None not in means:
                break
        return [mean if mean is not None and math.isfinite(mean) else math.inf for mean in means]

    def _batch(
        self, parameters: dict[str, Tensor], held: dict[str, Tensor], inputs: Any, targets: Any, weight: float
    ) -> Tensor:
        def loss(of_point: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            def model(*values: Any, **named: Any) -> Any:
                return functional_call(self._module, (of_point, buffers), values, named)

            return self._task.reduction.part(forward(model, inputs), targets, weight, self._whole)

        with float32_products("float32", self._task.device):
            found: Tensor = vmap(loss)(parameters, held)
        return found
