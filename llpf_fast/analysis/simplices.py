"""Simplices between optima: cells, complexes, hyperplanes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import LLPFError

#: ``simplices``: all of the barycentric subdivision, m! simplices of dimension m - 1 over 2^m - 1 points.
#: ``triangles``: optimum, pair point, centre; m (m-1) of them. ``star``: m lines from the optima to the centre.
ComplexKind = Literal["simplices", "triangles", "star"]

#: 31 points and 120 simplices of dimension 4; six optima would take 720 of dimension 5.
_MOST_FOR_SIMPLICES = 5


@dataclass(frozen=True)
class Complex:
    """A simplicial complex that contains m optima and is connected.

    Vertex v stands for the set ``faces[v]`` of optima: vertices 0 to m - 1 are the optima themselves, the others points
    to be searched, one for each sub-face ("pair point", ..., the last for all: the centre). ``simplices`` are tuples of
    vertices, all of one size, small faces first.
    """

    kind: ComplexKind
    faces: tuple[tuple[int, ...], ...]
    simplices: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, optima: int, kind: ComplexKind = "simplices") -> Complex:
        """The complex over ``optima`` points; LLPFError for fewer than two, or too many for the kind."""
        if optima < 2:
            raise LLPFError(f"a connector joins at least 2 models, got {optima}; name more")
        if kind not in get_args(ComplexKind):
            raise LLPFError(f"a connector's kind is one of {', '.join(get_args(ComplexKind))}, got {kind!r}")
        if kind == "simplices" and optima > _MOST_FOR_SIMPLICES:
            raise LLPFError(
                f"{optima} models have {2**optima - 1} sub-faces; kind 'simplices' takes up to {_MOST_FOR_SIMPLICES}, "
                "choose 'triangles' or 'star'"
            )
        every = tuple(range(optima))
        sizes = {"simplices": range(2, optima), "triangles": range(2, min(3, optima)), "star": range(0)}[kind]
        faces: list[tuple[int, ...]] = [(i,) for i in every]
        for size in sizes:
            faces += itertools.combinations(every, size)
        faces.append(every)
        chains: list[list[tuple[int, ...]]] = [[(i,)] for i in every]
        for size in (*sizes, optima):
            larger = [face for face in faces if len(face) == size]
            chains = [[*chain, face] for chain in chains for face in larger if set(chain[-1]) < set(face)]
        index = {face: i for i, face in enumerate(faces)}
        return cls(kind, tuple(faces), tuple(tuple(index[face] for face in chain) for chain in chains))

    @property
    def optima(self) -> int:
        return sum(len(face) == 1 for face in self.faces)

    @property
    def dimension(self) -> int:
        return len(self.simplices[0]) - 1

    def label(self, vertex: int) -> str:
        """``2`` for an optimum (counted from 0), ``0+2`` for the point of a pair, ``centre`` for all."""
        face = self.faces[vertex]
        return "centre" if len(face) == self.optima else "+".join(map(str, face))


#: Weights of all vertices of the complex, sum 1. Halving gives exact binary fractions, so equal points compare equal.
Weights = tuple[float, ...]

#: A loss is no quadratic: inside a cell the curvature may be this many times that measured nearby (as in
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
        others = [cell for cell in self.cells if cell not in chosen]
        self.cells = others + [half for cell in self.cells if cell in chosen for half in self._halves(cell)]

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


#: Of the longest difference: below it two optima count as one point.
_SAME = 1e-6


class Hyperplane:
    """All points x with (x - c) orthogonal to every difference of ``corners``, c their centroid.

    A point that joins optima is searched inside this plane, so that it can move neither back to one of them nor along
    the line between two (for two optima the connectors of arXiv 1906.04724; several: ours). Of k corners in general
    position the plane has N - k + 1 dimensions.

    Args:
        corners: ``[k, N]``, k >= 2.

    Raises:
        LLPFError: two corners are the same point; not finite.
    """

    def __init__(self, corners: Tensor) -> None:
        wide = corners.to(torch.float64)
        if not bool(wide.isfinite().all()):
            raise LLPFError("an optimum has NaN or infinite parameters; train it again")
        differences = wide[1:] - wide[0]
        longest = float(differences.norm(dim=1).max())
        if longest == 0 or float(torch.pdist(wide).min()) <= _SAME * longest:
            raise LLPFError("two of the models are the same point: there is nothing to connect; name different ones")
        # Dependent corners (three on a line) span fewer directions.
        _, sizes, directions = torch.linalg.svd(differences, full_matrices=False)
        independent = directions[sizes > _SAME * float(sizes.max())]
        #: The centroid ``[N]``, and an orthonormal basis of the face ``[dimension, N]``; dtype of the corners.
        self.centroid = wide.mean(0).to(corners.dtype)
        self.basis = independent.to(corners.dtype)

    def project_gradient_(self, gradient: Tensor) -> Tensor:
        """Remove the part along the face from ``gradient`` ``[N]``, in place."""
        return gradient.sub_((self.basis @ gradient) @ self.basis)

    def project_point_(self, point: Tensor) -> Tensor:
        """Project ``point`` ``[N]`` on the plane, in place."""
        return point.sub_((self.basis @ (point - self.centroid)) @ self.basis)

    def distance(self, point: Tensor) -> float:
        """Distance of ``point`` from the plane."""
        return float((self.basis.double() @ (point.double() - self.centroid.double())).norm())
