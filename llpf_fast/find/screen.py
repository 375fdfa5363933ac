"""The finder's own judgement of points and chords on a small fixed set; the certificate never relies on it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import LossFunction, loss_of
from ..batches.precision import as_channels_last, float32_products
from ..errors import LLPFError
from ..flat import FlatParameters

_BATCH = 500


class Screen:
    """Eval-mode loss of flat points on a fixed set of training samples.

    Holds no parameters of its own: its copy of the module looks at the very point that is judged.

    Args:
        module: architecture; copied, so that judging never touches the module being trained.
        loss_fn: (model output, targets) -> mean loss.
        batches: list of (inputs, targets) on the module's device.
    """

    def __init__(self, module: nn.Module, loss_fn: LossFunction, batches: list[tuple[Any, Any]], **flat: Any) -> None:
        twin = copy.deepcopy(module)
        twin.eval().requires_grad_(False)
        self._module, self._loss_fn, self._batches = twin, loss_fn, batches
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

    @torch.no_grad()
    def loss(self, values: Tensor, buffers: Mapping[str, Tensor], stop_above: float = math.inf) -> float:
        """Mean loss at the flat point ``values [N]`` with the given buffers; NaN counts as infinite.

        As soon as the mean of the batches so far is above ``stop_above``, that is the answer.

        Raises:
            LLPFError: the model's forward or the loss fails on the data.
        """
        for name, buffer in self._module.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
        self._look_at(values)
        try:
            return self._mean(stop_above)
        finally:
            self._look_away()

    def _mean(self, stop_above: float) -> float:
        total, count = 0.0, 0
        for inputs, targets in self._batches:
            # Judged in float32 whatever the correction trains in.
            with float32_products("float32", self._places[0][0].device):
                value = loss_of(self._module, self._loss_fn, inputs, targets)
            size = len(targets)
            total, count = total + float(value) * size, count + size
            if total > stop_above * count:
                break
        mean = total / count
        return mean if math.isfinite(mean) else math.inf


def screen_batches(data: Any, size: int, device: torch.device, *, channels_last: bool = False) -> list[tuple[Any, Any]]:
    """The first ``size`` samples of a loader, or a fixed stratified subset of (inputs, targets) tensors, in batches."""
    chosen = _chosen(data, size, device)
    return [(as_channels_last(x), y) for x, y in chosen] if channels_last else chosen


def _chosen(data: Any, size: int, device: torch.device) -> list[tuple[Any, Any]]:
    if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor):
        from ..batches import stratified_subset

        inputs, targets = data
        if len(inputs) == 0:
            raise LLPFError("the training data is empty")
        if size and size < len(inputs):
            index = stratified_subset(targets, size)
            inputs, targets = inputs[index], targets[index]
        parts = zip(inputs.split(_BATCH), targets.split(_BATCH), strict=True)
        return [(x.to(device), y.to(device)) for x, y in parts]
    chosen: list[tuple[Any, Any]] = []
    seen = 0
    for inputs, targets in data:
        chosen.append((inputs.to(device), targets.to(device)))
        seen += len(targets)
        if size and seen >= size:
            break
    if not seen:
        raise LLPFError("the training data is empty")
    return chosen
