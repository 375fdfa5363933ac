"""The loss on the plane through three networks, and of a path beside its projection on the plane."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import LLPFError
from ..types import ProgressCallback
from ..verify import Evaluation
from .cache import Evaluate
from .networks import Networks
from .trajectory import Matrix, Trajectory

#: Three points count as one line when the third is nearer to it than this share of their longest distance.
_FLAT = 1e-6


class Frame:
    """Coordinates (x, y) of the plane through three networks A, B, C, in units of the parameters' L2 norm.

    A is the origin, B is (|B - A|, 0), and C has y > 0.

    Raises:
        LLPFError: not three networks; two of them the same; all three on one line.
    """

    def __init__(self, networks: Networks) -> None:
        if len(networks) != 3:
            raise LLPFError(f"a plane takes three points, {len(networks)} are given ({', '.join(networks.names)})")
        self.networks = networks
        a, b, c = (networks.flatten(state) for state in networks)
        first, second, names = b - a, c - a, networks.names
        lengths = [float(v.norm()) for v in (first, second, c - b)]
        for length, (i, j) in zip(lengths, ((0, 1), (0, 2), (1, 2)), strict=True):
            if length <= _FLAT * max(lengths):
                raise LLPFError(f"{names[i]} and {names[j]} are the same point: three different ones make a plane")
        self._origin, self.width = a, lengths[0]
        self._u = first / self.width
        self.lean = float(second @ self._u)
        rest = second - self.lean * self._u
        rest -= (rest @ self._u) * self._u  # again, against the rounding of the first subtraction
        self.height = float(rest.norm())
        if self.height <= _FLAT * max(lengths):
            raise LLPFError(f"{', '.join(names)} lie on one straight line: name a third point beside it")
        self._v = rest / self.height

    @property
    def corners(self) -> Matrix:
        """(x, y) of the three networks, ``[3, 2]``."""
        return np.array([[0.0, 0.0], [self.width, 0.0], [self.lean, self.height]])

    def weights(self, x: float, y: float) -> tuple[float, float, float]:
        """The point (x, y) as an affine combination of A, B, C."""
        gamma = y / self.height
        beta = (x - gamma * self.lean) / self.width
        return 1 - beta - gamma, beta, gamma

    def state(self, x: float, y: float) -> dict[str, Tensor]:
        """The network there: parameters and floating buffers combined, float64. At a corner that network itself."""
        for corner, state in zip(self.corners, self.networks, strict=True):
            if x == corner[0] and y == corner[1]:
                return dict(state)
        return self.networks.combine(self.weights(x, y))

    def project(self, state: Mapping[str, Tensor]) -> tuple[float, float, float]:
        """(x, y) of the foot of the perpendicular from ``state``, and the distance between the two."""
        away = self.networks.flatten(state) - self._origin
        x, y = float(away @ self._u), float(away @ self._v)
        return x, y, float((away - x * self._u - y * self._v).norm())


@dataclass(frozen=True)
class ProjectedPath:
    """Waypoints of a path and their projections on the plane.

    Attributes:
        name: of the path.
        waypoints: their numbers, ``[k]``.
        positions: (x, y) of the projections, ``[k, 2]``.
        distances: from the plane, ``[k]``.
        loss: of the waypoints, ``[k]``; may be NaN or infinite.
        projected_loss: of the projections, ``[k]``: the loss in the plane below the drawn path.
    """

    name: str
    waypoints: list[int]
    positions: Matrix
    distances: Matrix
    loss: Matrix
    projected_loss: Matrix


@dataclass(frozen=True)
class Plane:
    """Loss (and accuracy, NaN where there is none) on a grid, ``[ny, nx]`` for y[ny], x[nx]; may be NaN or infinite.
    ``corners [3, 2]`` are the networks ``names`` with ``corner_losses [3]``."""

    names: list[str]
    corners: Matrix
    corner_losses: Matrix
    x: Matrix
    y: Matrix
    loss: Matrix
    accuracy: Matrix
    statistics: str
    samples: int
    path: ProjectedPath | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def gaps(self) -> int:
        """How many grid points have no finite loss."""
        return int((~np.isfinite(self.loss)).sum())

    def rows(self) -> list[list[Any]]:
        """For ``COLUMNS``: the grid, the three networks, then the path."""
        rows: list[list[Any]] = [
            ["grid", None, float(x), float(y), float(self.loss[j, i]), float(self.accuracy[j, i]), None, None]
            for j, y in enumerate(self.y)
            for i, x in enumerate(self.x)
        ]
        for name, (x, y), loss in zip(self.names, self.corners, self.corner_losses, strict=True):
            rows.append(["network", name, float(x), float(y), float(loss), None, float(loss), 0.0])
        if self.path is not None:
            s = self.path
            for k, waypoint in enumerate(s.waypoints):
                position = [float(value) for value in (*s.positions[k], s.projected_loss[k])]
                rows.append(["waypoint", waypoint, *position, None, float(s.loss[k]), float(s.distances[k])])
        return rows

    def numbers(self) -> dict[str, Any]:
        """Plain values for a results file."""
        numbers: dict[str, Any] = {
            "corners": {
                name: {"x": float(x), "y": float(y), "loss": float(loss)}
                for name, (x, y), loss in zip(self.names, self.corners, self.corner_losses, strict=True)
            },
            "grid": [len(self.x), len(self.y)],
            "grid_points_without_finite_loss": self.gaps,
            "lowest_loss_on_grid": _extreme(self.loss, np.min),
            "highest_loss_on_grid": _extreme(self.loss, np.max),
            "samples": self.samples,
            "batchnorm_statistics": self.statistics,
        }
        if self.path is not None:
            numbers["path"] = {
                "name": self.path.name,
                "waypoints_evaluated": len(self.path.waypoints),
                "largest_distance_from_plane": float(self.path.distances.max()),
                "highest_true_loss": _extreme(self.path.loss, np.max),
                "highest_loss_of_projections": _extreme(self.path.projected_loss, np.max),
            }
        return numbers


COLUMNS = ("kind", "name", "x", "y", "loss_in_plane", "accuracy_in_plane", "true_loss", "distance_from_plane")


def loss_on_plane(
    evaluate: Evaluate,
    networks: Networks,
    *,
    path: Trajectory | None = None,
    resolution: int = 21,
    margin: float = 0.2,
    path_points: int = 100,
    progress: ProgressCallback | None = None,
) -> Plane:
    """Evaluate ``resolution`` x ``resolution`` points of the plane through three ``networks``, and a path beside it.

    The waypoints of a path are not in the plane, and the loss of their projections is not theirs. So every waypoint is
    evaluated, and so is its projection.

    Args:
        evaluate: state dict -> Evaluation; a ``CachedEvaluator`` makes an interrupted plane resume. With BatchNorm take
            one that re-estimates the statistics: combined ones belong to no network, and beyond the corners variances
            can be negative (loss NaN).
        margin: how far the grid extends beyond the networks and the projections, as a share of their extent.
        path_points: waypoints of ``path`` at most, evenly spaced, endpoints included.
        progress: called with (done, expected, text).

    Raises:
        LLPFError: as :class:`Frame`; a path of another architecture; a resolution below 2.
    """
    if resolution < 2:
        raise LLPFError(f"the resolution must be at least 2 points a side, got {resolution}")
    if path_points < 2:
        raise LLPFError(f"at least 2 points of the path are needed, got {path_points}")
    frame = Frame(networks)
    chosen = [] if path is None else _spread(len(path), path_points)
    total = resolution**2 + 3 + 2 * len(chosen)
    done = 0

    def measure(state: Mapping[str, Tensor], text: str) -> Evaluation:
        nonlocal done
        answer = evaluate(state)
        done += 1
        if progress:
            progress(done, total, text)
        return answer

    positions = np.empty((len(chosen), 2))
    distances, losses, projected = (np.empty(len(chosen)) for _ in range(3))
    for k, number in enumerate(chosen):
        assert path is not None
        state = path.waypoints[number].load()
        _same_shapes(networks, state, path)
        positions[k, 0], positions[k, 1], distances[k] = frame.project(state)
        losses[k] = measure(state, "path").loss
        projected[k] = measure(frame.state(*positions[k]), "path").loss
    corner_losses = np.array([measure(state, "networks").loss for state in networks])
    x, y = _axes(np.concatenate([frame.corners, positions]), margin, resolution)
    loss, accuracy = np.empty((len(y), len(x))), np.full((len(y), len(x)), math.nan)
    last: Evaluation | None = None
    for j, v in enumerate(y):
        for i, u in enumerate(x):
            last = measure(frame.state(float(u), float(v)), "plane")
            loss[j, i] = last.loss
            accuracy[j, i] = math.nan if last.accuracy is None else last.accuracy
    assert last is not None
    projection = None if path is None else ProjectedPath(path.name, chosen, positions, distances, losses, projected)
    return Plane(
        *(list(networks.names), frame.corners, corner_losses, x, y, loss, accuracy, last.statistics, last.samples),
        projection,
    )


def farthest_from_line(path: Trajectory) -> int:
    """The waypoint farthest from the straight line between the path's endpoints; LLPFError where all are on it."""
    if len(path) < 3:
        raise LLPFError(f"{path.folder} has {len(path)} waypoints: name three points of a plane yourself")
    endpoints = Networks([path.waypoints[i].load() for i in (0, -1)], module=path.module)
    a, b = (endpoints.flatten(state) for state in endpoints)
    line = b - a
    length = float(line.norm())
    best, height = 0, 0.0
    for number in range(1, len(path) - 1):
        away = endpoints.flatten(path.waypoints[number].load()) - a
        foot = (away @ line) / length**2 * line if length > 0 else torch.zeros_like(away)
        if (distance := float((away - foot).norm())) > height:
            best, height = number, distance
    if height <= _FLAT * length:
        raise LLPFError(f"the path of {path.folder} is a straight line: name a third point beside it")
    return best


def _same_shapes(networks: Networks, state: Mapping[str, Tensor], path: Trajectory) -> None:
    for name in networks.parameter_names:
        if name not in state or state[name].shape != networks[0][name].shape:
            raise LLPFError(f"the path of {path.folder} is of another architecture: it differs in {name}")


def _spread(count: int, most: int) -> list[int]:
    if count <= most:
        return list(range(count))
    return sorted({round(k * (count - 1) / (most - 1)) for k in range(most)})


def _axes(points: Matrix, margin: float, resolution: int) -> Sequence[Matrix]:
    """Grid lines through the bounding box and its margin, as wide on both sides as the larger side's."""
    low, high = points.min(axis=0), points.max(axis=0)
    extra = margin * float((high - low).max())
    return [np.linspace(low[k] - extra, high[k] + extra, resolution) for k in (0, 1)]


def _extreme(values: Matrix, choose: Callable[[Matrix], Any]) -> float | None:
    known = values[np.isfinite(values)]
    return float(choose(known)) if known.size else None
