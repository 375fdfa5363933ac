"""Optimizers that benchmarks/studies/pacing.py compares with the recipe's SGD."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class _Counting(torch.optim.SGD):
    """SGD whose momentum starts anew with every correction.

    A correction begins where the parameters differ from those after the last step: a tick has moved them.
    """

    def __init__(self, params: Iterable[Tensor] | list[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(params, lr=lr, momentum=momentum)
        self.round = 0
        self._after_step: list[Tensor] = []

    def _all(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        params = self._all()
        if not self._after_step or not all(map(torch.equal, params, self._after_step)):
            self.state.clear()
            self.round = 0
            self.begin()
        self.change()
        super().step()
        self.round += 1
        self._after_step = [p.detach().clone() for p in params]

    def begin(self) -> None:
        """Before the first step of a correction."""

    def change(self) -> None:
        """Before every step."""


class Backwards(_Counting):
    """SGD without the gradient's component along the direction to the destination, tensor by tensor."""

    def __init__(
        self, params: Iterable[Tensor], destination: dict[str, Tensor], module: nn.Module, **sgd: float
    ) -> None:
        super().__init__(params, **sgd)
        names = [name for name, _ in module.named_parameters()]
        self._destination = [destination[name] for name in names]
        self._directions: list[Tensor] = []

    def begin(self) -> None:
        differences = [end - p for end, p in zip(self._destination, self._all(), strict=True)]
        self._directions = [difference / difference.norm().clamp(min=1e-12) for difference in differences]

    def change(self) -> None:
        for p, direction in zip(self._all(), self._directions, strict=True):
            assert p.grad is not None
            p.grad.sub_(direction * (p.grad * direction).sum())


class Decaying(_Counting):
    """SGD with the rate lr / (1 + r / rounds) in step r of a correction."""

    def __init__(self, params: Iterable[Tensor], rounds: float, **sgd: float) -> None:
        super().__init__(params, **sgd)
        self._base, self._rounds = sgd["lr"], rounds

    def change(self) -> None:
        for group in self.param_groups:
            group["lr"] = self._base / (1 + self.round / self._rounds)


class Clipped(_Counting):
    """SGD with gradients clipped to ``norm`` over the whole network."""

    def __init__(self, params: Iterable[Tensor], norm: float, **sgd: float) -> None:
        super().__init__(params, **sgd)
        self._norm = norm

    def change(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._all(), self._norm)


class SlowConvolutions(_Counting):
    """SGD with ``share`` of the rate for the parameters of convolutions."""

    def __init__(self, module: nn.Module, share: float, lr: float, momentum: float) -> None:
        slow = [p for part in module.modules() if isinstance(part, nn.Conv2d) for p in part.parameters()]
        rest = [p for p in module.parameters() if all(p is not other for other in slow)]
        groups: list[dict[str, Any]] = [{"params": slow, "lr": lr * share}, {"params": rest}]
        super().__init__(groups, lr, momentum)
