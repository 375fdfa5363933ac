"""Curves that are linear in their nodes: Bezier curves and chains of straight pieces."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Curve(Protocol):
    """theta(t) = sum_i w_i(t) node_i for t in [0, 1]; linear in its nodes, whatever they are nodes of."""

    @property
    def nodes(self) -> int:
        """Number of nodes, both endpoints included."""
        ...

    def weights(self, t: float) -> list[float]:
        """w_i(t), one a node; they sum to 1, and are (1, 0, ...) at 0 and (..., 0, 1) at 1."""
        ...


@dataclass(frozen=True)
class Bezier:
    """Bezier curve of ``bends`` inner nodes; one (the default) is the quadratic curve of Garipov et al. 2018, eq. 4."""

    bends: int = 1

    @property
    def nodes(self) -> int:
        return self.bends + 2

    def weights(self, t: float) -> list[float]:
        """Bernstein polynomials of degree ``bends + 1``."""
        degree = self.bends + 1
        return [math.comb(degree, i) * t**i * (1 - t) ** (degree - i) for i in range(degree + 1)]


@dataclass(frozen=True)
class PolyChain:
    """Straight segments through ``bends`` inner nodes, equally long in t (Garipov et al. 2018, eq. 3 for one bend)."""

    bends: int = 1

    @property
    def nodes(self) -> int:
        return self.bends + 2

    def weights(self, t: float) -> list[float]:
        """Hat functions: only the two nodes of the segment of t count."""
        position = t * (self.nodes - 1)
        return [max(0.0, 1.0 - abs(position - i)) for i in range(self.nodes)]


def straight(curve: Curve, start: Tensor, end: Tensor) -> Tensor:
    """Nodes ``[nodes, P]`` equally spaced on the straight line from ``start`` to ``end``, both ``[P]``, bit for bit."""
    last = curve.nodes - 1
    inner = [start.lerp(end, i / last) for i in range(1, last)]
    return torch.stack([start, *inner, end])


def point(curve: Curve, nodes: Tensor, t: float) -> Tensor:
    """theta(t) ``[P]``; at 0 and 1 the first and the last of ``nodes [nodes, P]`` bit for bit."""
    if t in (0.0, 1.0):
        return nodes[0 if t == 0.0 else -1].clone()
    result = torch.zeros_like(nodes[0])
    for weight, node in zip(curve.weights(t), nodes, strict=True):
        if weight:
            result.add_(node, alpha=weight)
    return result


def fitted(curve: Curve, points: Iterable[Tensor], count: int) -> Tensor:
    """Nodes ``[nodes, P]`` of the curve nearest to ``points``, by least squares (ours).

    Args:
        points: ``count`` tensors ``[P]`` at t = 0, 1 / (count - 1), ..., 1, read once; the first and the last are the
            end nodes, bit for bit. ``count`` is at least the number of nodes.
    """
    weights = torch.tensor([curve.weights(i / (count - 1)) for i in range(count)], dtype=torch.float64)
    # A node is linear in the points: what the end nodes give is taken out of all of them.
    inverse = torch.linalg.pinv(weights[:, 1:-1])
    share = inverse.clone()
    share[:, 0] -= inverse @ weights[:, 0]
    share[:, -1] -= inverse @ weights[:, -1]
    nodes: Tensor | None = None
    for at, each in enumerate(points):
        if nodes is None:
            nodes = each.new_zeros(curve.nodes, len(each))
            nodes[0] = each
        nodes[1:-1].addr_(share[:, at].to(each), each)
        nodes[-1] = each
    assert nodes is not None
    return nodes


def redistribute(pivots: Tensor, shares: Tensor, *along: Tensor) -> tuple[Tensor, ...]:
    """Points on the polyline through ``pivots [n, P]`` whose distances along it are ``shares [n - 1]`` of its length.

    Args:
        along: further ``[n, P]`` (momentum), interpolated at the same places.

    Returns:
        The pivots, then each of ``along``. The endpoints are unchanged, bit for bit, and so is a pivot that is in its
        place and a polyline without length.
    """
    lengths = (pivots[1:] - pivots[:-1]).to(torch.float64).norm(dim=1)
    positions = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    total = float(positions[-1])
    if not (math.isfinite(total) and total > 0):
        return pivots, *along
    wanted = shares.to(positions.device).cumsum(0)[:-1] / shares.sum() * total
    left = (torch.searchsorted(positions, wanted, right=True) - 1).clamp(0, len(lengths) - 1)
    inside = ((wanted - positions[left]) / lengths[left].clamp_min(1e-300)).clamp(0, 1).to(pivots.dtype).unsqueeze(1)

    def between(values: Tensor) -> Tensor:
        return torch.cat([values[:1], torch.lerp(values[left], values[left + 1], inside), values[-1:]])

    return between(pivots), *(between(each) for each in along)
