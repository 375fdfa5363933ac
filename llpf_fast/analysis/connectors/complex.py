"""Which simplices join m optima, over which further points."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, get_args

from ...errors import LLPFError

#: ``simplices``: all of the barycentric subdivision, m! simplices of dimension m - 1 over 2^m - 1 points.
#: ``triangles``: optimum, pair point, centre; m (m-1) of them. ``star``: m lines from the optima to the centre.
ComplexKind = Literal["simplices", "triangles", "star"]

#: 31 points and 120 simplices of dimension 4; six optima would take 720 of dimension 5.
_MOST_FOR_SIMPLICES = 5


@dataclass(frozen=True)
class Complex:
    """A simplicial complex that contains m optima and is connected.

    Vertex v stands for the set ``faces[v]`` of optima: vertices 0 to m - 1 are the optima themselves, the others points
    to be found, one a sub-face ("pair point", ..., the last for all: the centre). ``simplices`` are tuples of vertices,
    all of one size, small faces first.
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
