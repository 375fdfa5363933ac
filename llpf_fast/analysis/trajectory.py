"""``Trajectory``: the waypoints of one run as rows of a matrix, read a few columns at a time."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import nn

from ..errors import LLPFError
from ..path import RunDirectory, compare_architectures
from ..path.state import differences, shapes
from ..user_code import is_code
from ..verify.origin import RunOrigin
from .networks import Networks

Matrix = NDArray[np.float64]
#: Source of ``Trajectory.losses`` where a certificate has them.
CERTIFIED = "training loss (certificate)"


@dataclass(frozen=True)
class Piece:
    """Rows ``start`` to ``stop`` (along its first dimension) of the tensor ``name``: ``columns`` values."""

    name: str
    start: int
    stop: int
    columns: int


class Trajectory:
    """The path of the run in ``folder``, read a few columns at a time.

    Its coordinates are the parameters, as :class:`Networks` counts them.

    Args:
        folder: a run directory, finished or not; or such a one opened.
        module: the architecture; without it tied tensors count twice, and layers are in alphabetical order.
        name: in figures; the folder's name when missing.
        certified: whether ``losses`` may be those of the certificate.

    Raises:
        LLPFError: not a run; no waypoints yet; none of its tensors is a parameter.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | RunDirectory,
        module: nn.Module | None = None,
        *,
        name: str | None = None,
        certified: bool = True,
    ) -> None:
        self.directory = folder if isinstance(folder, RunDirectory) else RunDirectory.open(folder)
        self.folder, self._certified = self.directory.folder, certified
        self.name = name or self.folder.resolve().name
        self.waypoints = self.directory.waypoints()
        if not self.waypoints:
            raise LLPFError(f"{self.folder} has no waypoints yet")
        # Sorted: a safetensors file has its tensors in no particular order.
        endpoints = [self.waypoints[i] for i in ((0, -1) if len(self.waypoints) > 1 else (0,))]
        states = [dict(sorted(end.load().items())) for end in endpoints]
        first = Networks(states, [str(end.path) for end in endpoints], module)
        self.module = module
        #: Name to shape of the parameters, and the names of each layer's.
        self.shapes = {key: list(first[0][key].shape) for key in first.parameter_names if first[0][key].numel()}
        self.layers = {
            layer: names
            for layer, keys in first.layers.items()
            if (names := [key for key in keys if key in self.shapes])
        }
        self._tensors = {key: list(value.shape) for key, value in first[0].items()}

    def __len__(self) -> int:
        return len(self.waypoints)

    @property
    def ticks(self) -> list[int]:
        return [waypoint.tick for waypoint in self.waypoints]

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def check(self, progress: Callable[[], None] | None = None) -> None:
        """Every file is the one that was recorded, of one architecture; reads all once. LLPFError by name if not."""
        for waypoint in self.waypoints:
            difference = differences(
                self._tensors, shapes(waypoint.read(), waypoint.path), "waypoint 0", waypoint.path.name
            )
            if difference:
                raise LLPFError(f"{waypoint.path} is of another architecture: {difference}")
            if progress:
                progress()

    def read(self, pieces: Sequence[Piece], out: Matrix) -> None:
        """Fill ``out [waypoints, columns of all pieces]``; LLPFError naming a waypoint with NaN or infinity in them."""
        for row, waypoint in enumerate(self.waypoints):
            at = 0
            with _opened(waypoint.path) as file:
                for piece in pieces:
                    tensor = file.get_slice(piece.name)
                    values = (
                        tensor[piece.start : piece.stop] if self.shapes[piece.name] else file.get_tensor(piece.name)
                    )
                    out[row, at : at + piece.columns] = values.double().reshape(-1).numpy()
                    at += piece.columns
            if not np.isfinite(out[row, :at]).all():
                raise LLPFError(f"{waypoint.path} has NaN or infinity; cut the path before waypoint {row}")

    def losses(self) -> tuple[list[float | None], str]:
        """A training loss of each waypoint, None where there is none, and their source in words.

        From the certificate where it is about these very files; else what the search logged (the moving mean over
        mini-batches while it trained: lower than what a fixed set gives); else all None.
        """
        losses = self._certified_losses() if self._certified else None
        if losses is not None:
            return [losses.get(i) for i in range(len(self))], CERTIFIED
        logged = {record.get("tick"): record.get("loss") for record in self.directory.metrics()}
        if any(tick in logged for tick in self.ticks):
            return [logged.get(tick) for tick in self.ticks], "training loss (as the search logged it)"
        return [None] * len(self), "training loss (not known)"

    def _certified_losses(self) -> dict[int, float | None] | None:
        """By waypoint; None where there is no certificate of these files, or a damaged one."""
        try:
            certificate = self.directory.certificate()
            if certificate is None or not is_of(certificate, [waypoint.sha256 for waypoint in self.waypoints]):
                return None
            return {
                int(point["at"]["waypoint"]): None if (loss := point["train_loss"]) is None else float(loss)
                for point in certificate["points"]
                if point["at"]["fraction"] == 0
            }
        except (LLPFError, KeyError, TypeError, ValueError):
            return None


def is_of(certificate: dict[str, Any], waypoint_sha256: Sequence[str]) -> bool:
    """Whether ``certificate`` is about the waypoints with these digests, in this order."""
    return certificate.get("waypoint_sha256") == list(waypoint_sha256)


def same_space(trajectories: Sequence[Trajectory]) -> None:
    """LLPFError where they are not paths of one architecture."""
    if not trajectories:
        raise LLPFError("no run is given; name at least one run directory")
    first = trajectories[0]
    for other in trajectories[1:]:
        difference = differences(first.shapes, other.shapes, str(first.folder), str(other.folder))
        if difference:
            raise LLPFError(f"the runs are of different architectures: {difference}")


def pieces(shapes_: dict[str, list[int]], names: Sequence[str], columns: int) -> Iterator[list[Piece]]:
    """The tensors ``names`` in groups of at most ``columns`` values (or of one row, where a row is longer)."""
    group: list[Piece] = []
    left = columns
    for name in names:
        shape = shapes_[name]
        rows, width = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
        start = 0
        while start < rows:
            count = min(rows - start, left // width)
            if count == 0:
                if group:
                    yield group
                    group, left = [], columns
                    continue
                count = 1
            group.append(Piece(name, start, start + count, count * width))
            start, left = start + count, max(0, left - count * width)
    if group:
        yield group


def distinct_names(folders: Sequence[str]) -> list[str]:
    """Different names for ``folders``: their last parts where those differ, else the folders, numbered if they
    repeat."""
    short = [Path(folder).resolve().name for folder in folders]
    if len({*short}) == len(short):
        return short
    if len({*folders}) == len(folders):
        return list(folders)
    return [f"{number + 1}: {folder}" for number, folder in enumerate(folders)]


def architecture(run: RunDirectory) -> nn.Module | None:
    """The network that run.yaml names, where it is registered and fits the run: for the order of layers and for ties.

    Code that a run names is not executed.
    """
    origin = RunOrigin(run)
    name = origin.settings.get("model")
    if not isinstance(name, str) or is_code(name):
        return None
    try:
        module = origin.model()
        if known := run.waypoints():
            compare_architectures(known[0].load(), module.state_dict(), "the run", "the model")
    except LLPFError:
        return None
    return module


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise LLPFError(f"{path} is missing") from error
    except (OSError, SafetensorError) as error:
        raise LLPFError(f"{path} is damaged or cannot be read: {error}") from error
