"""Linear mode connectivity: loss and error along the straight lines between networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from torch import Tensor

from ..errors import LLPFError
from ..path import check_finite, compare_architectures
from ..verify.evaluate import Statistics
from .barrier import STABLE_ERROR, Barrier, barrier, line_fractions
from .geometry import Geometry, geometry
from .measures import Measures, Progress
from .networks import Networks, State
from .problem import Problem


@dataclass(frozen=True)
class Line:
    """The straight line between networks ``first`` and ``second`` (numbers), measured with one kind of statistics.

    ``values``: ``train_loss``, ``train_error``, ``test_loss``, ``test_error``, as far as they are known, at
    ``fractions``. Losses are those of the whole set; errors 1 - accuracy, 0..1.
    """

    first: int
    second: int
    statistics: Statistics
    fractions: list[float]
    values: dict[str, list[float]]

    @property
    def barriers(self) -> dict[str, Barrier]:
        return {name: barrier(self.fractions, values) for name, values in self.values.items()}

    @property
    def stable(self) -> bool | None:
        """Whether Frankle's error barrier on the test set (else the training set) is at most 2 %; None if unknown."""
        for name in ("test_error", "train_error"):
            if name in self.values:
                return self.barriers[name].frankle <= STABLE_ERROR
        return None


@dataclass(frozen=True)
class LinearConnectivity:
    """What ``linear_connectivity`` found: lines, and the place of each pair seen from the origin and the base."""

    names: list[str]
    lines: list[Line]
    geometry: dict[tuple[int, int], Geometry]
    base_geometry: dict[tuple[int, int], Geometry] = field(default_factory=dict)
    base: str | None = None

    def numbers(self) -> dict[str, Any]:
        """Barriers and places of each pair, as plain values."""
        return {"networks": self.names, "base": self.base, "pairs": self.summary()}

    def summary(self) -> list[dict[str, Any]]:
        """One record a line: the pair, its barriers ``VALUE_DEFINITION``, distance, angle and cosine."""
        records = []
        for line in self.lines:
            pair = (line.first, line.second)
            record: dict[str, Any] = {
                "first": self.names[line.first],
                "second": self.names[line.second],
                "batchnorm_statistics": line.statistics,
            }
            for name, found in line.barriers.items():
                record |= {f"{name}_barrier_{kind}": value for kind, value in asdict(found).items()}
                record |= {f"{name}_first": line.values[name][0], f"{name}_second": line.values[name][-1]}
            record["stable"] = line.stable
            record |= _prefixed(self.geometry[pair], "")
            if pair in self.base_geometry:
                record |= _prefixed(self.base_geometry[pair], "base_")
            records.append(record)
        return records

    def rows(self) -> list[dict[str, Any]]:
        """One record a point measured."""
        return [
            {
                "first": self.names[line.first],
                "second": self.names[line.second],
                "batchnorm_statistics": line.statistics,
                "fraction": fraction,
                **{name: values[i] for name, values in line.values.items()},
            }
            for line in self.lines
            for i, fraction in enumerate(line.fractions)
        ]


def _prefixed(found: Geometry, prefix: str) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in asdict(found).items() if not (prefix and name == "distance")}


def linear_connectivity(
    problem: Problem,
    networks: Networks,
    *,
    points: int = 25,
    base: State | None = None,
    base_name: str = "base",
    pairs: Sequence[tuple[int, int]] | None = None,
    statistics: Sequence[Statistics] | None = None,
    progress: Progress | None = None,
) -> LinearConnectivity:
    """Measure the straight lines between all ``pairs`` of ``networks`` (all of them when missing).

    Parameters and floating buffers are interpolated as on a path's straight pieces. Where the network has BatchNorm
    layers, every line is measured with the interpolated ("stored") statistics and with statistics re-estimated at every
    point.

    Args:
        points: of each line, equally spaced, ends included; the middle is always one. An odd number has the middle in
            it; 25 needs 25 evaluations on each set, less the ends that lines share.
        base: from which angles and radii are also seen (the network that all were trained from).
        progress: called with (points done, points expected, text).

    Raises:
        LLPFError: fewer than two networks or three points; a base of another architecture.
    """
    if len(networks) < 2:
        raise LLPFError("linear connectivity needs at least two networks, one is given")
    fractions = line_fractions(points)
    chosen = list(combinations(range(len(networks)), 2)) if pairs is None else list(pairs)
    kinds = problem.statistics if statistics is None else tuple(statistics)
    vectors = networks.vectors()
    origin = None if base is None else _base(networks, base, base_name)
    lines = []
    done, expected = 0, len(chosen) * len(kinds) * len(fractions)
    for kind in kinds:
        measure = Measures(problem, kind)
        ends: dict[int, dict[str, float]] = {}
        for first, second in chosen:
            found: list[dict[str, float]] = []
            for fraction in fractions:
                end = {0.0: first, 1.0: second}.get(fraction)
                measured = None if end is None else ends.get(end)
                if measured is None:
                    state = networks.between(first, second, fraction)
                    measured = measure(state)
                    if end is not None:
                        ends[end] = measured
                found.append(measured)
                done += 1
                if progress is not None:
                    progress(done, expected, f"{networks.names[first]} - {networks.names[second]}")
            values = {name: [point[name] for point in found] for name in found[0]}
            lines.append(Line(first, second, kind, fractions, values))
    return LinearConnectivity(
        networks.names,
        lines,
        {(i, j): geometry(vectors[i], vectors[j]) for i, j in chosen},
        {} if origin is None else {(i, j): geometry(vectors[i], vectors[j], origin) for i, j in chosen},
        None if base is None else base_name,
    )


def _base(networks: Networks, base: State, name: str) -> Tensor:
    compare_architectures(networks[0], base, networks.names[0], name)
    check_finite(base, name, networks.module)
    return networks.flatten(base)
