"""Linear connectivity: barriers on straight lines between networks, their distances and angles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from torch import Tensor

from ..errors import LLPFError
from ..path import check_finite, compare_architectures
from ..types import ProgressCallback, StateDict
from ..verify.evaluator import Statistics
from .measures import Measures
from .networks import Networks
from .problem import Problem


@dataclass(frozen=True)
class Geometry:
    """Two points relative to a third: the origin, or a base point such as the network that both were trained from.

    ``distance`` between the two; ``radius_1``, ``radius_2`` from the base, all L2 in units of the parameters;
    ``cosine`` and ``angle`` (degrees, 0..180) at the base, NaN where a radius is 0.
    """

    distance: float
    radius_1: float
    radius_2: float
    cosine: float
    angle: float


def geometry(first: Tensor, second: Tensor, base: Tensor | None = None) -> Geometry:
    """Of two vectors ``[P]``, computed in float64; ``base [P]`` is the origin when missing.

    The angle is 2 atan2(|u - v|, |u + v|) of the unit vectors u, v (Kahan): exact near 0 and 180 degrees too, where
    acos of the cosine loses half the digits.
    """
    a, b = first.double(), second.double()
    if base is not None:
        a, b = a - base.double(), b - base.double()
    distance, radius_1, radius_2 = (float(v.norm()) for v in (a - b, a, b))
    if radius_1 == 0 or radius_2 == 0:
        return Geometry(distance, radius_1, radius_2, math.nan, math.nan)
    u, v = a / radius_1, b / radius_2
    angle = 2 * math.atan2(float((u - v).norm()), float((u + v).norm()))
    return Geometry(distance, radius_1, radius_2, float(u @ v), math.degrees(angle))


#: Frankle et al. (arXiv 1912.05671) call a pair stable where the error barrier is below about 2 %.
STABLE_ERROR = 0.02


@dataclass(frozen=True)
class Barrier:
    """How far a value f rises above its endpoints on the line from network 1 (fraction 0) to network 2 (fraction 1).

    ``frankle``: max_a f(a) - (f1 + f2) / 2 (linear mode connectivity, arXiv 1912.05671);
    ``entezari``: max_a [f(a) - ((1 - a) f1 + a f2)] (arXiv 2110.06296), reached at fraction ``at``;
    ``midpoint``: f(1/2) - (f1 + f2) / 2.
    The maxima run over the points measured, endpoints included, so ``entezari`` is never negative and ``frankle`` never
    below |f1 - f2| / 2. NaN where a value that counts is NaN.
    """

    frankle: float
    entezari: float
    midpoint: float
    at: float


def barrier(fractions: Sequence[float], values: Sequence[float]) -> Barrier:
    """The barrier of ``values [n]`` at ``fractions [n]``, rising from 0 to 1 and with 1/2 among them.

    Raises:
        LLPFError: other fractions, or other numbers of them than of values.
    """
    if len(fractions) != len(values):
        raise LLPFError(f"{len(fractions)} fractions but {len(values)} values")
    if not fractions or fractions[0] != 0 or fractions[-1] != 1 or 0.5 not in fractions:
        raise LLPFError("a barrier needs values at fractions 0, 1/2 and 1")
    first, last = values[0], values[-1]
    mean = (first + last) / 2
    middle = values[list(fractions).index(0.5)] - mean
    if any(map(math.isnan, values)) or not (math.isfinite(first) and math.isfinite(last)):
        return Barrier(math.nan, math.nan, middle, math.nan)
    above = [value - ((1 - a) * first + a * last) for a, value in zip(fractions, values, strict=True)]
    highest = max(range(len(above)), key=above.__getitem__)
    return Barrier(max(values) - mean, above[highest], middle, fractions[highest])


def line_fractions(points: int) -> list[float]:
    """``points`` equally spaced fractions from 0 to 1; 1/2 is added where it is not among them.

    LLPFError for fewer than three.
    """
    if points < 3:
        raise LLPFError(f"points must be at least 3 (both endpoints and the middle), got {points}")
    return sorted({*(i / (points - 1) for i in range(points)), 0.5})


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
    """Result of ``linear_connectivity``: lines, and the geometry of each pair relative to the origin and the base."""

    names: list[str]
    lines: list[Line]
    geometry: dict[tuple[int, int], Geometry]
    base_geometry: dict[tuple[int, int], Geometry] = field(default_factory=dict)
    base: str | None = None

    def numbers(self) -> dict[str, Any]:
        """Plain values for a results file: barriers and geometry of each pair."""
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
            for name, values in line.barriers.items():
                record |= {f"{name}_barrier_{kind}": value for kind, value in asdict(values).items()}
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


def _prefixed(pair: Geometry, prefix: str) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in asdict(pair).items() if not (prefix and name == "distance")}


def linear_connectivity(
    problem: Problem,
    networks: Networks,
    *,
    points: int = 25,
    base: StateDict | None = None,
    base_name: str = "base",
    pairs: Sequence[tuple[int, int]] | None = None,
    statistics: Sequence[Statistics] | None = None,
    progress: ProgressCallback | None = None,
) -> LinearConnectivity:
    """Measure the straight lines between all ``pairs`` of ``networks`` (all of them when missing).

    Parameters and floating buffers are interpolated as on a path's straight pieces. Where the network has BatchNorm
    layers, every line is measured with the interpolated ("stored") statistics and with statistics re-estimated at every
    point.

    Args:
        points: of each line, equally spaced, endpoints included; the middle is added to an even number. 25 points take
            25 evaluations on each set, minus the endpoints that lines share.
        base: angles and radii are also taken at this network (the one that all were trained from).
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
        known: dict[int, dict[str, float]] = {}
        for first, second in chosen:
            measurements: list[dict[str, float]] = []
            for fraction in fractions:
                end = {0.0: first, 1.0: second}.get(fraction)
                measured = None if end is None else known.get(end)
                if measured is None:
                    state = networks.between(first, second, fraction)
                    measured = measure(state)
                    if end is not None:
                        known[end] = measured
                measurements.append(measured)
                done += 1
                if progress is not None:
                    progress(done, expected, f"{networks.names[first]} - {networks.names[second]}")
            values = {name: [point[name] for point in measurements] for name in measurements[0]}
            lines.append(Line(first, second, kind, fractions, values))
    return LinearConnectivity(
        networks.names,
        lines,
        {(i, j): geometry(vectors[i], vectors[j]) for i, j in chosen},
        {} if origin is None else {(i, j): geometry(vectors[i], vectors[j], origin) for i, j in chosen},
        None if base is None else base_name,
    )


def _base(networks: Networks, base: StateDict, name: str) -> Tensor:
    compare_architectures(networks[0], base, networks.names[0], name)
    check_finite(base, name, networks.module)
    return networks.flatten(base)
