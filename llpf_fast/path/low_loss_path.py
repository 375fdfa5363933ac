"""``LowLossPath``: a path as its user sees it, a polyline through the waypoints of a run."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, overload

import torch
from torch import Tensor

from ..errors import LLPFError, shown
from .run_directory import RunDirectory

#: Names that normalization layers give their statistics: floating buffers that are not parameters.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
#: Waypoints kept in memory: a walk along the path needs both ends of a segment, for many positions in a row.
_CACHED = 2


class LowLossPath:
    """The polyline through the waypoints of the run in ``folder``: what ``find_path`` returns and ``open_path`` opens.

    ``len(path)`` waypoints; ``path[i]`` is a state dict (CPU; ``model.load_state_dict`` takes it), read from disk,
    checked against its recorded sha256, and the caller's own to change. LLPFError when ``folder`` is not a run or has
    no waypoints.
    """

    def __init__(self, folder: str | os.PathLike[str] | RunDirectory) -> None:
        self._directory = folder if isinstance(folder, RunDirectory) else RunDirectory.open(folder)
        self._waypoints = self._directory.waypoints()
        if not self._waypoints:
            raise LLPFError(f"{self._directory.folder} has no waypoints yet")
        self._cache: OrderedDict[int, dict[str, Tensor]] = OrderedDict()
        self._lengths: list[float] | None = None

    @property
    def directory(self) -> RunDirectory:
        return self._directory

    @property
    def folder(self) -> str:
        return str(self._directory.folder)

    @property
    def run(self) -> dict[str, Any]:
        """The content of run.yaml."""
        return self._directory.run

    @property
    def certificate(self) -> dict[str, Any] | None:
        """The content of certificate.json; None before ``verify_run``."""
        return self._directory.certificate()

    def metrics(self) -> list[dict[str, Any]]:
        """One record a tick, as the search wrote them."""
        return self._directory.metrics()

    def __len__(self) -> int:
        return len(self._waypoints)

    @overload
    def __getitem__(self, index: int) -> dict[str, Tensor]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Tensor]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"waypoint {index} of a path of {len(self)}")
        return {name: tensor.clone() for name, tensor in self._load(number).items()}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"LowLossPath({self.folder!r}, {len(self)} waypoints)"

    def _load(self, number: int) -> dict[str, Tensor]:
        if number in self._cache:
            self._cache.move_to_end(number)
        else:
            self._cache[number] = self._waypoints[number].load()
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        return self._cache[number]

    def lengths(self) -> list[float]:
        """``len - 1`` L2 distances between neighbouring waypoints, over the parameters, summed in float64.

        Parameters are the floating and complex tensors less the statistics of normalization layers (told by name: a
        state dict does not say which of its tensors are parameters). Reads every waypoint once, then remembers.
        LLPFError where a tensor changes dtype or shape, appears or vanishes.
        """
        if self._lengths is None:
            self._lengths = [self._distance(i) for i in range(len(self) - 1)]
        return list(self._lengths)

    def _distance(self, number: int) -> float:
        here, there = self._load(number), self._load(number + 1)
        check_alike(here, there, f"waypoint {number}", f"waypoint {number + 1}")
        squares = [
            squared_distance(value, there[name]) for name, value in here.items() if not name.endswith(_STATISTICS)
        ]
        return math.sqrt(math.fsum(squares))

    def arc_length(self) -> float:
        """Length of the whole polyline."""
        return math.fsum(self.lengths())

    def interpolate(self, position: float) -> dict[str, Tensor]:
        """The state dict at ``position`` in [0, len - 1]: 2.25 is a quarter of the way from waypoint 2 to 3.

        :func:`interpolate`, then each tensor in its own dtype. A whole number gives that waypoint bit for bit.
        LLPFError outside the path, and where a tensor changes dtype or shape, appears or vanishes.
        """
        try:
            position = float(position)
        except (TypeError, ValueError, OverflowError):
            raise LLPFError(f"a position on a path is a number, got {shown(position)}") from None
        if not 0 <= position <= len(self) - 1:
            raise LLPFError(f"position {position} is not on the path, which goes from 0 to {len(self) - 1}")
        number = math.floor(position)
        t = position - number
        if t == 0:
            return self[number]
        here, there = self._load(number), self._load(number + 1)
        between = interpolate(here, there, t, f"waypoint {number}", f"waypoint {number + 1}")
        return {name: value.to(here[name].dtype, copy=True) for name, value in between.items()}


def interpolate(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], t: float, here: str = "one end", there: str = "the other"
) -> dict[str, Tensor]:
    """The state dict at ``t`` (0..1) of the straight line from ``a`` to ``b``: the one rule for every path.

    a + t (b - a), floating tensors in float64, complex ones in complex128 (rounded once, by whoever stores them). What
    is the same bit for bit at both ends is passed through: the tensor of ``a`` itself, and single entries such as
    infinities. Tensors of integers or booleans are those of ``a``: no straight line leads from one to another.

    Raises:
        LLPFError: a tensor has another dtype or shape at the other end (``here``, ``there`` name the ends), or is
            missing there.
    """
    check_alike(a, b, here, there)
    return {name: _between(value, b[name], t) for name, value in a.items()}


def _between(a: Tensor, b: Tensor, t: float) -> Tensor:
    if a.device.type != "cpu":
        return _between_unseen(a, b, t)
    wide = _wide(a)
    if wide is None or same_bits(a, b):
        return a
    left, right = a.to(wide), b.to(wide)
    # Not lerp: what that computes depends on the processor.
    between = (right - left).mul_(t).add_(left)
    # Infinity minus infinity is no number, but an entry that does not change needs no arithmetic.
    return between if bool(between.isfinite().all()) else torch.where(left == right, left, between)


def _between_unseen(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The same values (a zero may have another sign) without a look at any of them, for which a host waits."""
    wide = _wide(a)
    if wide is None:
        return a
    left, right = a.to(wide), b.to(wide)
    return torch.where(left == right, left, (right - left).mul_(t).add_(left))


def squared_distance(a: Tensor, b: Tensor) -> float:
    """Sum of |b - a|^2 in float64; entries that are alike count 0, and so do tensors of integers or booleans."""
    wide = _wide(a)
    if wide is None or same_bits(a, b):
        return 0.0
    left, right = a.detach().to(wide), b.detach().to(wide)
    difference = right - left
    if not bool(difference.isfinite().all()):
        difference = difference.masked_fill((left == right) | (left.isnan() & right.isnan()), 0)
    return float(difference.abs().square().sum())


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether both (of one dtype and shape) hold the same bits: unlike ==, true for NaN and false for 0 and -0."""
    return a is b or torch.equal(_bits(a), _bits(b))


def _bits(value: Tensor) -> Tensor:
    value = value.resolve_conj().resolve_neg()
    real = torch.view_as_real(value) if value.is_complex() else value
    return real.view(_SAME_SIZE[real.element_size()])


_SAME_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _wide(value: Tensor) -> torch.dtype | None:
    """In which dtype lines are followed; None where there are no values between two (integers, booleans)."""
    return torch.complex128 if value.is_complex() else torch.float64 if value.is_floating_point() else None


def check_alike(a: Mapping[str, Tensor], b: Mapping[str, Tensor], here: str, there: str) -> None:
    """LLPFError where the state dicts ``a`` and ``b`` differ in names, dtypes or shapes; names the first tensor."""
    for state, other, place, elsewhere in ((a, b, here, there), (b, a, there, here)):
        for name, value in state.items():
            if name not in other:
                raise LLPFError(
                    f"the tensor {name} of {place} is missing in {elsewhere}: both must be states of one network"
                )
            if not isinstance(value, Tensor):
                raise LLPFError(f"{name} of {place} is no tensor but of type {type(value).__name__}: leave it out")
            if value.layout != torch.strided or value.is_quantized or value.is_meta:
                raise LLPFError(f"{name} of {place} is sparse, quantized or without values: give it dense")
    for name, value in a.items():
        for what, one, two in (
            ("dtype", value.dtype, b[name].dtype),
            ("shape", list(value.shape), list(b[name].shape)),
        ):
            if one != two:
                raise LLPFError(
                    f"the tensor {name} has {what} {one} in {here} and {two} in {there}: "
                    "a path keeps the form of every tensor"
                )


def open_path(folder: str | os.PathLike[str]) -> LowLossPath:
    """The path in the run directory ``folder``; LLPFError when it is not one or has no waypoints."""
    return LowLossPath(folder)
