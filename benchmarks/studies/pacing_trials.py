"""Optimisers and a driver for benchmarks/studies/pacing.py: what was tried and is not in the package."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from llpf_fast.find import PathFinder
from llpf_fast.find.search import EvalRequest, TrainRequest


class _Counting(torch.optim.SGD):
    """SGD with momentum that begins anew with every correction.

    A correction begins where the parameters are not as the last step left them: a tick has moved them.
    """

    def __init__(self, params: Iterable[Tensor] | list[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(params, lr=lr, momentum=momentum)
        self.round = 0
        self._left: list[Tensor] = []

    def _all(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        params = self._all()
        if not self._left or not all(map(torch.equal, params, self._left)):
            self.state.clear()
            self.round = 0
            self.begin()
        self.change()
        super().step()
        self.round += 1
        self._left = [p.detach().clone() for p in params]

    def begin(self) -> None:
        """Before the first step of a correction."""

    def change(self) -> None:
        """Before every step."""


class Backwards(_Counting):
    """Without the gradient's component along the way to the destination, a tensor at a time."""

    def __init__(self, params: Iterable[Tensor], end: dict[str, Tensor], module: nn.Module, **sgd: float) -> None:
        super().__init__(params, **sgd)
        names = [name for name, _ in module.named_parameters()]
        self._ends = [end[name] for name in names]
        self._ways: list[Tensor] = []

    def begin(self) -> None:
        ways = [end - p for end, p in zip(self._ends, self._all(), strict=True)]
        self._ways = [way / way.norm().clamp(min=1e-12) for way in ways]

    def change(self) -> None:
        for p, way in zip(self._all(), self._ways, strict=True):
            assert p.grad is not None
            p.grad.sub_(way * (p.grad * way).sum())


class Decaying(_Counting):
    """lr / (1 + r / rounds) in round r of a correction."""

    def __init__(self, params: Iterable[Tensor], rounds: float, **sgd: float) -> None:
        super().__init__(params, **sgd)
        self._base, self._rounds = sgd["lr"], rounds

    def change(self) -> None:
        for group in self.param_groups:
            group["lr"] = self._base / (1 + self.round / self._rounds)


class Clipped(_Counting):
    """Gradients of at most ``norm``, over the whole network."""

    def __init__(self, params: Iterable[Tensor], norm: float, **sgd: float) -> None:
        super().__init__(params, **sgd)
        self._norm = norm

    def change(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._all(), self._norm)


class SlowConvolutions(_Counting):
    """``share`` of the rate for the parameters of convolutions."""

    def __init__(self, module: nn.Module, share: float, lr: float, momentum: float) -> None:
        slow = [p for part in module.modules() if isinstance(part, nn.Conv2d) for p in part.parameters()]
        rest = [p for p in module.parameters() if all(p is not other for other in slow)]
        groups: list[dict[str, Any]] = [{"params": slow, "lr": lr * share}, {"params": rest}]
        super().__init__(groups, lr, momentum)


def both_ends(a: PathFinder, b: PathFinder, limit: int) -> tuple[dict[str, Any], list[dict[str, Tensor]]]:
    """Two searches that take a tick each in turn, each toward where the other stood last; and the joined path.

    Ends when one arrives at the other's point, when one is stuck, or after ``limit`` gradient steps.
    """
    here, other = sides = _Side(a), _Side(b)
    here.other, other.other = other, here
    while sum(side.rounds for side in sides) < limit and not here.tick():
        here, other = other, here
    found = {
        "ended": "arrived" if here.arrived else "limit",
        "ticks": sum(len(side.points) - 1 for side in sides),
        "sgd_steps": sum(side.rounds for side in sides),
    }
    return found, [*sides[0].path(), *reversed(sides[1].path())]


class _Side:
    """One search of two, driven tick by tick."""

    other: _Side

    def __init__(self, finder: PathFinder) -> None:
        self._finder, self._search = finder, finder._search
        self._steps = self._search.steps()
        self._request: Any = None
        self._ticked = self.arrived = False
        self.points = [finder.flat.data.clone()]
        finder._progress = self._after

    @property
    def rounds(self) -> int:
        return self._search._standing.rounds

    def path(self) -> list[dict[str, Tensor]]:
        flat = self._finder.flat
        return [{name: v.clone() for name, v in flat.state_dict(point).items()} for point in self.points]

    def _after(self, _: Any) -> None:
        """A tick was accepted or taken back: from here on the other's point is the destination."""
        at, mover = self._search._standing, self._search._legs.main.mover
        if at.point == at.tick:
            point = self._finder.flat.data.clone()
            mover.project(point)
            self.points.append(point)
        assert mover.destination is not None
        mover.destination.copy_(self.other.points[-1])
        # Those were measured toward the destination before.
        self._search._moments = None
        self._ticked = True

    def tick(self) -> bool:
        """One tick and the look at the rest of the way; True where the search ended."""
        self._ticked = False
        try:
            if self._request is None:
                self._request = next(self._steps)
            while not (self._ticked and isinstance(self._request, TrainRequest)):
                self._request = self._steps.send(self._answer(self._request))
        except StopIteration:
            self.arrived = self._search._record.result().arrived
            return True
        return False

    def _answer(self, request: TrainRequest | EvalRequest) -> Any:
        if isinstance(request, TrainRequest):
            return self._finder._correct(request)
        return self._finder._screen.loss(request.values, self._finder.flat.buffers(), request.stop_above)
