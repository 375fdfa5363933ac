"""``StackedScreen``: several points judged in one forward pass, for devices that one small network leaves idle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from ..batches.forward import forward
from ..batches.precision import float32_products
from ..flat import FlatParameters
from ..flat.copying import copied
from .build import Task


class StackedScreen:
    """The losses of :class:`~llpf_fast.find.screen.Screen` for many points at once, up to the last bits.

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
