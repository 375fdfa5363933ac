"""Barriers from derivatives: the second-order estimate, and the exact integral of curvature along the line."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import LLPFError
from ..types import StateDict
from .directional_loss import DirectionalLoss
from .networks import Networks

#: Fractions over which the estimate's maximum is sought.
_GRID = 101
#: Nodes of the integral in each half of the line: exact for second derivatives that are polynomials of degree 2n - 1.
NODES = 8


#: (key, computation) -> its numbers, computed now or taken from a cache.
Cached = Callable[[Mapping[str, Any], Callable[[], dict[str, Any]]], dict[str, Any]]


@dataclass(frozen=True)
class Prediction:
    """The second-order estimate of the barrier between networks 1 and 2, with D = theta_2 - theta_1 (ours):

    B(a) ~ a (1-a) (g1 - g2).D + a (1-a) / 2 D^T [a H1 + (1-a) H2] D,

    the mean, weighted (1-a) and a, of the Taylor expansions at the two endpoints. Exact where the loss is quadratic.
    ``slope_i`` = g_i.D and ``curvature_i`` = D^T H_i D.
    """

    slope_1: float
    slope_2: float
    curvature_1: float
    curvature_2: float

    def at(self, fraction: float) -> float:
        """B(``fraction``), above the straight line between the endpoints' losses (Entezari's reference)."""
        a = fraction
        mean = a * self.curvature_1 + (1 - a) * self.curvature_2
        return a * (1 - a) * (self.slope_1 - self.slope_2 + mean / 2)

    @property
    def midpoint(self) -> float:
        """B(1/2)."""
        return self.at(0.5)

    @property
    def highest(self) -> float:
        """max over a of B(a), on a grid of hundredths; at least 0, the value at the endpoints."""
        return max(self.at(i / (_GRID - 1)) for i in range(_GRID))

    @property
    def sixteenth(self) -> float:
        """D^T (H1 + H2) D / 16: the midpoint where both gradients are 0."""
        return (self.curvature_1 + self.curvature_2) / 16


@dataclass(frozen=True)
class CurvatureIntegral:
    """The barrier as negative curvature along the line (exact for twice differentiable losses, ours):

    B(1/2) = -1/2 integral over t from 0 to 1 of min(t, 1-t) phi''(t), phi(t) = L(theta_1 + t D).

    ``integral`` is its right side by Gauss-Legendre quadrature with nodes ``fractions`` in both halves, at which
    phi'' is ``second_derivatives``; ``barrier`` its left side on the same samples with the same buffers. They differ
    where the loss has kinks (ReLU), whose curvature no second derivative contains, or the quadrature is too coarse.
    """

    integral: float
    barrier: float
    fractions: list[float]
    second_derivatives: list[float]


def displacement(networks: Networks, first: int = 0, second: int = 1) -> dict[str, Tensor]:
    """theta_second - theta_first by parameter name, float64; each tied tensor under all of its names."""
    names = {alias for name in networks.parameter_names for alias in networks.aliases(name)}
    a, b = networks[first], networks[second]
    return {name: b[name].double() - a[name].double() for name in sorted(names)}


def predict_barrier(directional: DirectionalLoss, networks: Networks, first: int = 0, second: int = 1) -> Prediction:
    """The second-order estimate for the line between two of ``networks``: one Hessian-vector product at each end."""
    move = displacement(networks, first, second)
    here, there = (directional.expand(networks[i], [move]) for i in (first, second))
    return Prediction(
        float(here.slopes[0]), float(there.slopes[0]), float(here.curvature[0, 0]), float(there.curvature[0, 0])
    )


def curvature_integral(
    directional: DirectionalLoss,
    networks: Networks,
    first: int = 0,
    second: int = 1,
    *,
    nodes: int = NODES,
    progress: Callable[[int, int], None] | None = None,
    cached: Cached | None = None,
) -> CurvatureIntegral:
    """The identity of ``CurvatureIntegral`` for two of ``networks``, with the buffers of ``first`` all along.

    Costs ``2 nodes`` Hessian-vector products. ``nodes`` are those in each half: min(t, 1-t) has its corner between.
    ``cached`` may answer for single points of the line from an earlier, interrupted call.

    Raises:
        LLPFError: ``nodes`` below 1; what ``DirectionalLoss`` raises.
    """
    if nodes < 1:
        raise LLPFError(f"nodes must be at least 1, got {nodes}")
    move = displacement(networks, first, second)
    points, weights = np.polynomial.legendre.leggauss(nodes)
    left = [(float(x) + 1) / 4 for x in points]
    fractions = left + [0.5 + t for t in left]

    def curvature(t: float) -> dict[str, Any]:
        return {"curvature": float(directional.expand(_moved(networks[first], move, t), [move]).curvature[0, 0])}

    values = []
    for done, t in enumerate(fractions):
        if progress is not None:
            progress(done, len(fractions))
        key = {"what": "curvature along the line", "from": first, "to": second, "fraction": t}
        numbers = curvature(t) if cached is None else cached(key, functools.partial(curvature, t))
        values.append(numbers["curvature"])
    total = sum(
        float(w) / 4 * min(t, 1 - t) * value
        for w, t, value in zip([*weights, *weights], fractions, values, strict=True)
    )
    losses = [directional.loss(_moved(networks[first], move, t)) for t in (0.0, 0.5, 1.0)]
    return CurvatureIntegral(-total / 2, losses[1] - (losses[0] + losses[2]) / 2, fractions, values)


def _moved(state: StateDict, move: Mapping[str, Tensor], fraction: float) -> dict[str, Tensor]:
    moved = dict(state)
    for name, value in move.items():
        moved[name] = state[name].double() + fraction * value
    return moved
