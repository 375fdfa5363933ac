"""Principal components of the waypoints of paths."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import LLPFError
from ..path import RunDirectory
from ..types import ProgressCallback
from .trajectory import Matrix, Piece, Trajectory, pieces, same_space

#: Bytes for the values that are in memory at once, besides the Gram matrices: 24 bytes for each pair of waypoints.
MEMORY = 256 * 2**20
#: A layer counts as unchanged when its spread is below this share of the squares of which it is a difference.
_UNCHANGED = 1e-14


@dataclass(frozen=True)
class Projection:
    """Coordinates of the waypoints of all paths along the first principal components of one layer or of the whole
    network.

    Attributes:
        coordinates: one ``[waypoints, components]`` float64 array a path, about the mean of all waypoints.
        explained: share of the total squared deviation that each component holds, ``[components]``; zeros where
            nothing moves.
        deviation: root of the mean squared distance of a waypoint from the mean.
        hidden: one ``[waypoints]`` array a path: distance of each waypoint from the space the components span.
    """

    coordinates: list[Matrix]
    explained: Matrix
    deviation: float
    hidden: list[Matrix]

    @property
    def moves(self) -> bool:
        return self.deviation > 0

    def numbers(self) -> dict[str, Any]:
        """Plain values for a results file."""
        return {
            "explained": self.explained.tolist(),
            "deviation": self.deviation,
            "largest_distance_from_components": max(float(part.max()) for part in self.hidden),
        }


@dataclass(frozen=True)
class Components:
    """``whole`` network, and each of ``layers`` where asked for."""

    trajectories: list[Trajectory]
    whole: Projection
    layers: dict[str, Projection]


def principal_components(
    runs: Sequence[str | os.PathLike[str] | RunDirectory | Trajectory],
    *,
    components: int = 3,
    per_layer: bool = False,
    module: nn.Module | None = None,
    memory: int = MEMORY,
    device: torch.device | str = "cpu",
    progress: ProgressCallback | None = None,
) -> Components:
    """Exact PCA of the waypoints of all ``runs``, by the Gram matrix.

    With n waypoints of P parameters, n below P, the components' coordinates are those of the eigenvectors of
    G = X Xᵀ ``[n, n]``, X the waypoints about their mean. G is a sum over columns, so X is read once, a block of
    columns of all waypoints at a time, whatever n P is; the sum over one layer's columns gives that layer's
    components at no further cost. scikit-learn's IncrementalPCA reads the waypoints twice, needs a batch and its
    components at full length (11 M parameters: 90 MB each in float64), and is approximate.

    Memory: ``memory`` + 24 n² bytes; measured in docs/pictures.md. Every file is read
    twice: once against its sha256, once for its values. n² P multiplications, in float64.

    Args:
        runs: run directories, finished or not, of one architecture.
        components: how many; where the waypoints span fewer, the rest are 0.
        per_layer: also for each layer (a module that owns parameters).
        module: see :class:`Trajectory`.
        memory: bytes for the block of values.
        device: where the blocks are multiplied.
        progress: called with (done, expected, text), in waypoints and then in parameters.

    Returns:
        The projections. The sign of a component is such that the first path that moves along it ends higher than it
        starts (where none does, such that the largest coordinate is positive).

    Raises:
        LLPFError: no run; not a run; different architectures; fewer than two waypoints in all, or all the same; a
            missing or changed file; NaN or infinity in one.
    """
    if components < 1:
        raise LLPFError(f"components must be at least 1, got {components}")
    paths = [run if isinstance(run, Trajectory) else Trajectory(run, module) for run in runs]
    same_space(paths)
    count = sum(map(len, paths))
    if count < 2:
        raise LLPFError(f"{paths[0].folder} has one waypoint: a point has no directions; name a longer or another run")
    _check(paths, count, progress)
    columns = max(1, memory // (8 * count))
    gram = np.zeros((count, count))
    squares = 0.0
    layers: dict[str, Projection] = {}
    done, total = 0, paths[0].size
    if progress:
        progress(done, total, "parameters")
    for layer, names in paths[0].layers.items():
        layer_gram, layer_squares = np.zeros((count, count)), 0.0
        for group in pieces(paths[0].shapes, names, columns):
            block, raw = _block(paths, group, count)
            layer_gram += _product(block, device)
            layer_squares += raw
            done += block.shape[1]
            # Before the next is made: two blocks would take twice ``memory``.
            del block
            if progress:
                progress(done, total, "parameters")
        if per_layer:
            layers[layer] = _project(layer_gram, layer_squares, components, paths)
        gram += layer_gram
        squares += layer_squares
    whole = _project(gram, squares, components, paths)
    if not whole.moves:
        raise LLPFError(f"all {count} waypoints are the same point: there is no direction")
    return Components(paths, whole, layers)


def _check(paths: Sequence[Trajectory], count: int, progress: ProgressCallback | None) -> None:
    done = 0

    def one_more() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, count, "waypoints checked")

    for path in paths:
        path.check(one_more)


def _block(paths: Sequence[Trajectory], group: Sequence[Piece], count: int) -> tuple[Matrix, float]:
    """Columns ``group`` of all waypoints, about their mean; and the sum of their squares before that."""
    block = np.empty((count, sum(piece.columns for piece in group)))
    at = 0
    for path in paths:
        path.read(group, block[at : at + len(path)])
        at += len(path)
    squares = float(np.einsum("ij,ij->", block, block))
    block -= block.mean(axis=0)
    return block, squares


def _product(block: Matrix, device: torch.device | str) -> Matrix:
    if torch.device(device).type == "cpu":
        return block @ block.T  # BLAS's syrk: half the work of a general product
    on_device = torch.from_numpy(block).to(device)
    product: Matrix = (on_device @ on_device.T).cpu().numpy()
    return product


def _project(gram: Matrix, squares: float, components: int, paths: Sequence[Trajectory]) -> Projection:
    count = len(gram)
    spread = np.clip(np.diagonal(gram), 0, None)
    total = float(spread.sum())
    if total <= _UNCHANGED * squares:
        nothing = np.zeros((count, components))
        return Projection(_split(nothing, paths), np.zeros(components), 0.0, _split(np.zeros(count), paths))
    values, vectors = np.linalg.eigh(gram)
    rank = min(components, count)
    values, vectors = np.clip(values[::-1][:rank], 0, None), vectors[:, ::-1][:, :rank]
    # Rounding errors in directions that the waypoints do not span.
    values[values < 1e-12 * values[0]] = 0
    coordinates = np.zeros((count, components))
    coordinates[:, :rank] = vectors * np.sqrt(values)
    explained = np.zeros(components)
    explained[:rank] = values / total
    parts = _split(coordinates, paths)
    coordinates *= _signs(parts, components)
    hidden = np.sqrt(np.clip(spread - np.square(coordinates).sum(axis=1), 0, None))
    return Projection(_split(coordinates, paths), explained, float(np.sqrt(total / count)), _split(hidden, paths))


def _signs(parts: Sequence[Matrix], components: int) -> Matrix:
    signs = np.ones(components)
    for k in range(components):
        scale = max(float(np.abs(part[:, k]).max()) for part in parts)
        for part in parts:
            change = part[-1, k] - part[0, k]
            if abs(change) > 1e-6 * scale:
                signs[k] = np.sign(change)
                break
        else:
            largest = max((float(part[i, k]) for part in parts for i in range(len(part))), key=abs)
            signs[k] = -1.0 if largest < 0 else 1.0
    return signs


def _split(values: Matrix, paths: Sequence[Trajectory]) -> list[Matrix]:
    return [np.array(part) for part in np.split(values, np.cumsum([len(path) for path in paths])[:-1])]
