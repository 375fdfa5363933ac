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
        held = {name: torch.stack([of_point[name] for of_point in buffers]) for name in buffers[0]}
        totals, shares, judged = [0.0] * count, [0.0] * count, set[int]()
        seen, wait = 0, self._task.fewest
        for (inputs, targets, samples), weight in zip(self._task.samples, self._weights, strict=True):
            seen += samples
            found = self._batch(parameters, held, inputs, targets, weight)
            for row in set(range(count)) - judged:
                totals[row] += found[row]
                shares[row] += weight / self._whole
            if seen >= wait:
                wait = seen + self._task.fewest
                judged |= {row for row in range(count) if totals[row] > stop_above[row] * shares[row]}
            # A point that is given up is left out of the pass only when all are: another width is dearer.
            if len(judged) == count:
                break
        means = [total / share if share else math.inf for total, share in zip(totals, shares, strict=True)]
        return [mean if math.isfinite(mean) else math.inf for mean in means]

    def _batch(
        self, parameters: dict[str, Tensor], held: dict[str, Tensor], inputs: Any, targets: Any, weight: float
    ) -> list[float]:
        def loss(of_point: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            def model(*values: Any, **named: Any) -> Any:
                return functional_call(self._module, (of_point, buffers), values, named)

            return self._task.reduction.part(forward(model, inputs), targets, weight, self._whole)

        with float32_products("float32", self._task.device):
            found: list[float] = vmap(loss)(parameters, held).tolist()
        return found
