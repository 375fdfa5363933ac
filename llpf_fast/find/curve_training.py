"""``CurveTrainer``: all nodes of a curve trained at once, a batch at one point of it a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..batches.forward import fixed_random_numbers
from ..batches.loss import ForwardLoss
from ..batches.precision import Precision, float32_products
from ..batches.sampling import Batches
from ..errors import LLPFError
from ..flat import FlatParameters
from .build import module_seed
from .curve import Curve, PolyChain, redistribute

#: Parts of the curve, equal in t, whose losses and lengths decide where points are drawn.
PARTS = 16
#: Weight of the newest loss in the mean loss of a part.
_NEWEST = 0.1
#: Least share of the highest part's loss that a part counts with, so that each is drawn now and then.
_LEAST = 0.01
#: Steps between two measurements of the parts' lengths, and of a polygon's evenness.
_MEASURE_EVERY = 20
#: Longest over shortest side above which a polygon's pivots are put back at equal distances.
_UNEVEN = 1.1
_GOLDEN = (math.sqrt(5) - 1) / 2


class CurveTrainer:
    """Trains the inner nodes of ``curve`` (expectation over its points: Garipov et al. 2018; where it draws: ours).

    Each step draws one point theta(t) = sum_i w_i(t) node_i of the curve and one batch, and moves every inner node by
    its weight w_i(t) times the gradient at that point, with the momentum of ``sgd_``. Draws are counted, not random: t
    follows from the number of the step and from the losses so far. The rate falls linearly from ``lr`` to 0. The end
    nodes keep every bit.

    Args:
        flat: the module and its flat buffers; each step replaces its values.
        nodes: ``[n, N]``, where to begin; changed in place.
        batches: of rounds ``first_round``, ``first_round + 1``, ...
        steps: how many :meth:`step` will be called.
        favor: a point is drawn with a density that is the loss there to this power, times length.
        seed: of the random numbers that the module draws itself.
        project: applied to each inner node after each step.

    Attributes:
        nodes: ``[n, N]``.
        losses: mean training loss in each of ``PARTS`` parts of the curve, later steps weighing more; NaN at first.
        done: steps done.
    """

    def __init__(
        self,
        flat: FlatParameters,
        forward_loss: ForwardLoss,
        batches: Batches,
        curve: Curve,
        nodes: Tensor,
        *,
        steps: int,
        lr: float,
        momentum: float,
        favor: float,
        first_round: int,
        seed: int,
        precision: Precision,
        project: Callable[[Tensor], None] | None = None,
    ) -> None:
        self._flat, self._forward_loss, self._batches, self.curve = flat, forward_loss, batches, curve
        self.nodes, self._steps, self._lr, self._momentum, self._favor = nodes, steps, lr, momentum, favor
        self._first_round, self._seed, self._precision, self._project = first_round, seed, precision, project
        self._velocity = torch.zeros_like(nodes[1:-1]) if momentum else None
        self._gradient = torch.zeros_like(nodes[1:-1])
        self.losses, self._lengths, self.done = [math.nan] * PARTS, [1.0] * PARTS, 0

    def rows(self) -> dict[str, Tensor]:
        """What a checkpoint needs of tensors: the inner nodes and their momentum, ``[n - 2, N]`` each."""
        return {"nodes": self.nodes[1:-1], **({} if self._velocity is None else {"momentum": self._velocity})}

    def values(self) -> dict[str, Any]:
        """What a checkpoint needs besides: plain values."""
        return {"done": self.done, "losses": self.losses, "lengths": self._lengths}

    def restore(self, rows: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go back to what :meth:`rows` and :meth:`values` gave."""
        for name, value in self.rows().items():
            value.copy_(rows[name])
        self.done, self.losses, self._lengths = values["done"], list(values["losses"]), list(values["lengths"])

    @property
    def memory_bytes(self) -> int:
        """Of nodes, momentum and gradients, and of one point with its gradient."""
        held = [self.nodes, self._velocity, self._gradient, self._flat.data, self._flat.grad]
        return sum(each.numel() * each.element_size() for each in held if each is not None)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self._lr * (1.0 - self.done / self._steps)

    def step(self) -> float:
        """One gradient step; returns the batch's loss. LLPFError where it is not finite."""
        if self.done % _MEASURE_EVERY == 0:
            self._make_even()
            self._lengths = self._measure()
        t, round_, device = self._draw(), self._first_round + self.done, self._flat.data.device
        weights = self.curve.weights(t)
        with (
            torch.enable_grad(),
            float32_products(self._precision, device),
            fixed_random_numbers(device, module_seed(self._seed, round_)),
        ):
            inputs, targets = self._batches.batch(round_)
            self._flat.zero_grad()
            set_point(self._flat.data, weights, self.nodes)
            loss = self._forward_loss(inputs, targets)
            loss.backward()
            self._flat.ensure_gradients()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise LLPFError(
                f"the loss became {value} in step {self.done + 1} of the lowering: set a learning rate below "
                f"{self._lr:g} (lr)"
            )
        self._move(weights)
        part = min(int(t * PARTS), PARTS - 1)
        known = self.losses[part]
        self.losses[part] = value if math.isnan(known) else (1 - _NEWEST) * known + _NEWEST * value
        self.done += 1
        return value

    def _move(self, weights: Sequence[float]) -> None:
        """Step every inner node by its weight times the gradient."""
        flat, inner = self._flat, self.nodes[1:-1]
        shares = torch.tensor(weights[1:-1], dtype=flat.data.dtype, device=flat.data.device)
        torch.mul(shares.unsqueeze(1), flat.grad, out=self._gradient)
        torch.ops.llpf_fast.sgd_.default(
            inner,
            self._gradient,
            self._velocity,
            torch.tensor(self.rate, dtype=torch.float64, device=flat.data.device),
            flat.table.segments,
            flat.table.chunks,
            None,
            momentum=self._momentum,
            weight_decay=0.0,
            nesterov=False,
        )
        if self._project is not None:
            for node in inner:
                self._project(node)

    def _draw(self) -> float:
        """t of the next point: multiples of the golden ratio, mod 1, through the distribution over the parts."""
        favor = 0.0 if any(map(math.isnan, self.losses)) else self._favor
        highest = max(self.losses) if favor else 1.0
        # A loss may be 0 or negative.
        heights = [loss / highest if favor and highest > 0 else 1.0 for loss in self.losses]
        pairs = zip(self._lengths, heights, strict=True)
        shares = [length * max(height, _LEAST) ** favor for length, height in pairs]
        left = (self.done * _GOLDEN + 0.5) % 1.0 * math.fsum(shares)
        part = 0
        while part < PARTS - 1 and left >= shares[part]:
            left -= shares[part]
            part += 1
        inside = min(left / shares[part], 1.0) if shares[part] else 0.5
        return (part + inside) / PARTS

    def _measure(self) -> list[float]:
        """Length of each part of the curve; 1 each where it has none."""
        before, now = self._flat.data.clone(), self._flat.data
        set_point(before, self.curve.weights(0.0), self.nodes)
        lengths = []
        for part in range(PARTS):
            set_point(now, self.curve.weights((part + 1) / PARTS), self.nodes)
            lengths.append(float(torch.linalg.vector_norm(now - before)))
            before.copy_(now)
        return lengths if sum(lengths) > 0 else [1.0] * PARTS

    @torch.no_grad()
    def _make_even(self) -> None:
        """Put a polygon's pivots back at equal distances, with their momentum, where sides differ by a tenth."""
        if not isinstance(self.curve, PolyChain):
            return
        sides = torch.linalg.vector_norm(self.nodes[1:] - self.nodes[:-1], dim=1)
        if float(sides.max()) <= _UNEVEN * float(sides.min()):
            return
        even = torch.full((len(sides),), 1 / len(sides), dtype=torch.float64)
        if self._velocity is None:
            (nodes,) = redistribute(self.nodes, even)
        else:
            end = torch.zeros_like(self.nodes[:1])
            nodes, velocity = redistribute(self.nodes, even, torch.cat([end, self._velocity, end]))
            self._velocity.copy_(velocity[1:-1])
        self.nodes.copy_(nodes)


@torch.no_grad()
def set_point(point: Tensor, weights: Sequence[float], nodes: Tensor) -> None:
    """Set ``point [N]`` to sum_i weights_i nodes_i; nodes ``[n, N]`` of weight 0 are not read."""
    point.zero_()
    for weight, node in zip(weights, nodes, strict=True):
        if weight:
            point.add_(node, alpha=weight)
