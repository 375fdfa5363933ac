"""Bisection of simplices in barycentric coordinates, where a function on them may be highest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Weights of all vertices of the complex, sum 1. Halving keeps them exact binary fractions, so equal points are equal.
Weights = tuple[float, ...]

#: A loss is no quadratic: the curvature seen nearby may be exceeded inside a cell by this factor (as in
#: ``verify.refinement``; ours).
_SAFETY = 2.0


@dataclass(frozen=True)
class Cell:
    """A small simplex: its corners, and the latest bisections (end, middle, end) among its ancestors.

    ``simplex`` is the number of the simplex of the complex that it is a part of.
    """

    simplex: int
    corners: tuple[Weights, ...]
    bisected: tuple[tuple[Weights, Weights, Weights], ...] = ()


class Subdivision:
    """Simplices cut into cells; the caller evaluates the corners.

    Args:
        simplices: tuples of vertex numbers.
        gram: ``[V, V]`` float64, inner products of the vertices (about any origin), for lengths.
    """

    def __init__(self, simplices: Sequence[Sequence[int]], gram: Tensor) -> None:
        self._gram = gram.double()
        vertices = len(gram)
        unit = [tuple(1.0 if i == v else 0.0 for i in range(vertices)) for v in range(vertices)]
        self.cells = [Cell(i, tuple(unit[v] for v in simplex)) for i, simplex in enumerate(simplices)]
        self._lengths: dict[tuple[Weights, Weights], float] = {}
        self.longest = max(self.size(cell) for cell in self.cells)

    def length(self, a: Weights, b: Weights) -> float:
        """L2 distance of two points, in units of the parameters."""
        key = (a, b) if a <= b else (b, a)
        if key not in self._lengths:
            difference = torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)
            self._lengths[key] = math.sqrt(max(float(difference @ self._gram @ difference), 0.0))
        return self._lengths[key]

    def size(self, cell: Cell) -> float:
        """The longest edge."""
        return max(self.length(a, b) for a, b in itertools.combinations(cell.corners, 2))

    def points(self) -> list[Weights]:
        """All corners of all cells, each once, in a fixed order."""
        return list(dict.fromkeys(corner for cell in self.cells for corner in cell.corners))

    def cut_to(self, size: float) -> None:
        """Bisect until no edge is longer than ``size``, and every simplex at least once along each edge."""
        done: list[Cell] = []
        waiting = list(self.cells)
        while waiting:
            cell = waiting.pop()
            dimension = len(cell.corners) - 1
            if self.size(cell) <= size and len(cell.bisected) >= dimension:
                done.append(cell)
            else:
                waiting += self._halves(cell)
        self.cells = done

    def bisect(self, cells: Iterable[Cell]) -> None:
        """Replace each of ``cells`` by its two halves."""
        chosen = set(cells)
        kept = [cell for cell in self.cells if cell not in chosen]
        self.cells = kept + [half for cell in self.cells if cell in chosen for half in self._halves(cell)]

    def _halves(self, cell: Cell) -> list[Cell]:
        a, b = max(itertools.combinations(cell.corners, 2), key=lambda pair: self.length(*pair))
        middle = tuple((x + y) / 2 for x, y in zip(a, b, strict=True))
        # The last d bisections: each edge direction of a cell of dimension d is halved about once in d times.
        history = (*cell.bisected, (a, middle, b))[-(len(cell.corners) - 1) :]
        return [
            Cell(cell.simplex, tuple(middle if corner == old else corner for corner in cell.corners), history)
            for old in (b, a)
        ]

    def estimate(self, cell: Cell, values: Mapping[Weights, float]) -> float:
        """How high the function may be inside ``cell``; -inf where a corner's value is not finite (ours).

        A function whose second derivative along every line is at most K in size is, inside a simplex of dimension d and
        longest edge h, at most its highest corner plus K h^2 d / (4 (d + 1)) (for d = 1 the usual K h^2 / 8). K is the
        largest second difference of the cell's last bisections, times a safety factor of 2.
        """
        heights = [values[corner] for corner in cell.corners]
        if not all(map(math.isfinite, heights)):
            return -math.inf
        bends = []
        for a, middle, b in cell.bisected:
            half = self.length(a, b) / 2
            bend = abs(values[a] - 2 * values[middle] + values[b]) / half**2 if half else 0.0
            if math.isfinite(bend):
                bends.append(bend)
        dimension = len(cell.corners) - 1
        rise = _SAFETY * max(bends, default=0.0) * self.size(cell) ** 2 * dimension / (4 * (dimension + 1))
        return max(heights) + rise
