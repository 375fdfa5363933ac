"""L(a, b) = (a b - 1)^2 / 2: two branches of minima, and every quantity in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...errors import LLPFError
from .landscape import Landscape


class Hyperbola(Landscape):
    """The loss of a linear network of one unit a layer, f(x) = a b x, fitted to f(1) = 1 (closed forms: ours).

    Its minima are the points (t, 1/t): one branch for t > 0, one for t < 0. Both of one branch are connected at loss
    0, along the hyperbola; the straight line between them is not at 0. Between the branches lies the saddle at the
    origin, of loss 1/2: no path from one to the other stays lower.
    """

    def __init__(self, t: float = 1.0, *, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([t], dtype=dtype))
        self.b = nn.Parameter(torch.tensor([1 / t], dtype=dtype))

    def value(self) -> Tensor:
        return ((self.a * self.b - 1) ** 2 / 2).sum()

    @staticmethod
    def minimum(t: float) -> dict[str, Tensor]:
        """The state (t, 1/t), t not 0."""
        return {"a": torch.tensor([t], dtype=torch.float64), "b": torch.tensor([1 / t], dtype=torch.float64)}

    @staticmethod
    def line_loss(t: float, s: float, fraction: float) -> float:
        """At ``fraction`` x of the straight line from (t, 1/t) to (s, 1/s): x^2 (1-x)^2 (t-s)^4 / (2 t^2 s^2)."""
        return (fraction * (1 - fraction)) ** 2 * (t - s) ** 4 / (2 * t * t * s * s)

    @staticmethod
    def midpoint_barrier(t: float, s: float) -> float:
        """(t-s)^4 / (32 t^2 s^2): the highest loss of that line; 1/2, the saddle's, where s = -t."""
        return Hyperbola.line_loss(t, s, 0.5)

    @staticmethod
    def second_order_barrier(t: float, s: float) -> float:
        """What (1/16) D^T (H1 + H2) D predicts from the ends, D their difference: four times the true barrier.

        The Hessian at (t, 1/t) is the outer square of v = (1/t, t), and v . D = (s-t)^2 / (t s); so at s, by symmetry,
        and the formula gives (t-s)^4 / (8 t^2 s^2).
        """
        return 4 * Hyperbola.midpoint_barrier(t, s)

    @staticmethod
    def radial_width(t: float, direction: tuple[float, float], threshold: float) -> float:
        """Smallest r with L((t, 1/t) + r u) > ``threshold``, exact, or inf; ``direction`` u has length 1.

        On the ray a b - 1 = c r + q r^2 with c = t u_b + u_a / t and q = u_a u_b, to be compared with +-k,
        k = sqrt(2 threshold).
        """
        if threshold < 0:
            raise LLPFError(f"threshold {threshold} is below 0, the loss of the minimum")
        c = t * direction[1] + direction[0] / t
        q, k = direction[0] * direction[1], math.sqrt(2 * threshold)
        return min((root for level in (k, -k) for root in _positive_roots(q, c, -level)), default=math.inf)


def _positive_roots(a: float, b: float, c: float) -> list[float]:
    """Of a r^2 + b r + c = 0 where the sign changes (a root that only touches 0 leaves no set)."""
    if a == 0:
        roots = [-c / b] if b else []
    else:
        inside = b * b - 4 * a * c
        roots = [(-b + sign * math.sqrt(inside)) / (2 * a) for sign in (1, -1)] if inside > 0 else []
    return [root for root in roots if root > 0]
