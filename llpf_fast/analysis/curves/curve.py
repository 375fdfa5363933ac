"""Curves through parameter space that a few nodes decide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Curve(Protocol):
    """theta(t) = sum_i w_i(t) node_i for t in [0, 1]; linear in its nodes, whatever they are nodes of."""

    @property
    def nodes(self) -> int:
        """How many nodes, both ends included."""
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
        """Hat functions: only the two nodes of t's own segment count."""
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
