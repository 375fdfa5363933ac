"""``StackedScreen``: several points judged in one forward pass, for devices that one small network leaves idle."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from ..batches import LossFunction, loss_of
from ..batches.precision import float32_products
from ..flat import FlatParameters


class StackedScreen:
    """The losses of :class:`~llpf_fast.find.screen.Screen` for many points at once, up to the last bits.

    Args:
        flat: of one module of the architecture; only its layout counts.
        loss_fn, batches: see ``Screen``.
    """

    def __init__(self, flat: FlatParameters, loss_fn: LossFunction, batches: list[tuple[Any, Any]]) -> None:
        self._module = copy.deepcopy(flat.module).eval().requires_grad_(False)
        self._loss_fn, self._batches = loss_fn, batches
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
        totals, counts = [0.0] * count, [0] * count
        judged = set[int]()
        for inputs, targets in self._batches:
            found = self._batch(parameters, held, inputs, targets)
            for row in set(range(count)) - judged:
                totals[row] += found[row] * len(targets)
                counts[row] += len(targets)
                if totals[row] > stop_above[row] * counts[row]:
                    judged.add(row)
            # A point that is given up is left out of the pass only when all are: another width is dearer.
            if len(judged) == count:
                break
        means = [total / seen for total, seen in zip(totals, counts, strict=True)]
        return [mean if math.isfinite(mean) else math.inf for mean in means]

    def _batch(self, parameters: dict[str, Tensor], held: dict[str, Tensor], inputs: Any, targets: Any) -> list[float]:
        def loss(of_point: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            def model(x: Any) -> Any:
                return functional_call(self._module, (of_point, buffers), (x,))

            return loss_of(model, self._loss_fn, inputs, targets).reshape(())

        with float32_products("float32", inputs.device):
            found: list[float] = vmap(loss)(parameters, held).tolist()
        return found
