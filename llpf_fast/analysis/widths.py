"""Radial width: how far the loss stays low from a point along random directions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ..batches.sampling import round_key
from ..errors import LLPFError, unknown_name
from ..types import ProgressCallback, StateDict
from .cache import Evaluate
from .networks import Networks

DirectionLaw = Literal["gaussian", "filter"]

#: The law of directions in results, without which a width has no meaning.
LAWS: dict[str, str] = {
    "gaussian": "uniform on the unit sphere of all parameters (normalised Gaussian)",
    "filter": "Gaussian, every filter (first index of tensors of two or more dimensions) scaled to the norm of the "
    "network's filter, one-dimensional tensors unchanged (Li et al., arXiv 1712.09913), then length 1",
}


def random_direction(
    networks: Networks, state: StateDict, law: DirectionLaw, seed: int, number: int, across: Tensor | None = None
) -> Tensor:
    """Direction ``number`` of the stream ``seed``: float64 ``[P]``, length 1.

    Args:
        networks: the architecture.
        state: the network whose filters count, for the law "filter".
        across: ``[P]``, not 0: the direction is made orthogonal to it.

    Raises:
        LLPFError: an unknown law; a direction that is 0 (no filters, or all of them 0).
    """
    if law not in LAWS:
        raise LLPFError(unknown_name("direction law", law, list(get_args(DirectionLaw))))
    generator = torch.Generator().manual_seed(round_key(seed, 0, number))
    direction = torch.randn(networks.size, generator=generator, dtype=torch.float64)
    if law == "filter":
        direction = filter_normalised(networks, state, direction)
    if across is not None:
        tangent = unit(across, "the path's direction")
        direction = direction - (direction @ tangent) * tangent
    return unit(direction, f"direction {number} (law {law!r})")


def filter_normalised(networks: Networks, state: StateDict, direction: Tensor) -> Tensor:
    """``direction`` ``[P]`` with every filter scaled to the norm of that filter in ``state``; 0 in 1-D tensors.

    A filter is ``W[i]`` of a tensor of two or more dimensions: the weights into one unit or channel.
    """
    scaled = torch.zeros_like(direction)
    for name in networks.parameter_names:
        weight = state[name].detach().to("cpu", torch.float64)
        if weight.dim() < 2:
            continue
        part = networks.slices[name]
        rows = direction[part].view(len(weight), -1)
        norms = weight.reshape(len(weight), -1).norm(dim=1, keepdim=True)
        scaled[part] = (rows * (norms / rows.norm(dim=1, keepdim=True))).reshape(-1)
    return scaled


def unit(direction: Tensor, name: str) -> Tensor:
    """``direction`` with length 1; LLPFError with its ``name`` where its length is 0 or not finite."""
    length = float(direction.norm())
    if not 0 < length < float("inf"):
        raise LLPFError(f"{name} has length {length:g}: a width needs a direction that is finite and not 0")
    return direction / length


@dataclass(frozen=True)
class RadialRule:
    """How a ray is searched; lengths are multiples of a scale (the network's norm).

    Radii ``first``, ``first * growth``, ... up to ``largest`` are tried until one is above the threshold; the interval
    before it is halved until it is narrower than ``tolerance`` of the radius. A rise above the threshold and back
    between two radii is missed.
    """

    first: float = 0.02
    growth: float = 1.25
    largest: float = 10.0
    tolerance: float = 1e-3

    def validate(self) -> None:
        if not (0 < self.first < self.largest < math.inf and self.growth > 1 and 0 < self.tolerance < 1):
            raise LLPFError(f"a ray needs 0 < first < largest, growth above 1 and tolerance in (0, 1), got {self}")


@dataclass(frozen=True)
class RadialWidth:
    """``radius`` is infinite where the loss stayed below the threshold up to ``searched_to``.

    ``not_finite``: what stopped the ray was a loss that is NaN or infinite.
    """

    radius: float
    searched_to: float
    not_finite: bool
    evaluations: int


def radial_width(
    loss: Callable[[float], float], threshold: float, *, scale: float = 1.0, rule: RadialRule | None = None
) -> RadialWidth:
    """The smallest r > 0 with ``loss(r)`` > ``threshold``, to the precision of ``rule`` (definition: ours).

    Args:
        loss: the loss at distance r along the ray.
        scale: unit of the rule's lengths.

    Raises:
        LLPFError: a threshold that is not finite; a loss at r = 0 that is not finite, or above the threshold.
    """
    rule = rule or RadialRule()
    rule.validate()
    if not math.isfinite(threshold):
        raise LLPFError(f"the threshold must be a finite number, got {threshold}")
    if not 0 < scale < math.inf:
        raise LLPFError(f"the scale of the radii must be above 0 and finite, got {scale}")
    start = loss(0.0)
    if not math.isfinite(start):
        raise LLPFError(f"the network's loss is {start}; train it again")
    if start > threshold:
        raise LLPFError(f"the network's loss {start:.4g} is above the threshold {threshold:g}; raise the threshold")
    evaluations, low, high = 1, 0.0, rule.first * scale
    while True:
        value = loss(high)
        evaluations += 1
        if not value <= threshold:
            break
        if high >= rule.largest * scale:
            return RadialWidth(math.inf, high, False, evaluations)
        low, high = high, min(high * rule.growth, rule.largest * scale)
    stopped = value
    while high - low > rule.tolerance * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        value = loss(middle)
        evaluations += 1
        if value <= threshold:
            low = middle
        else:
            high, stopped = middle, value
    return RadialWidth((low + high) / 2, high, not math.isfinite(stopped), evaluations)


@dataclass(frozen=True)
class WidthSettings:
    """Threshold and directions of a width.

    ``threshold`` is a loss, or with ``relative`` a rise above the network's loss: networks of unequal loss are then
    compared at an equal rise.
    """

    threshold: float = 0.5
    relative: bool = False
    law: DirectionLaw = "gaussian"
    directions: int = 10
    seed: int = 0
    rule: RadialRule = field(default_factory=RadialRule)

    def validate(self) -> None:
        if self.directions < 1:
            raise LLPFError(f"at least 1 direction is needed, got {self.directions}")
        if not math.isfinite(self.threshold):
            raise LLPFError(f"the threshold must be a finite number, got {self.threshold}")
        if self.relative and self.threshold <= 0:
            raise LLPFError(f"a rise above the network's loss must be above 0, got {self.threshold}")
        self.rule.validate()

    def in_words(self) -> str:
        """Threshold and law in one line, for figures and tables."""
        limit = f"the network's loss + {self.threshold:g}" if self.relative else f"{self.threshold:g}"
        return f"threshold: training loss {limit}; {self.directions} directions: {LAWS[self.law]}; seed {self.seed}"


@dataclass(frozen=True)
class PointWidth:
    """The widths at one point; radii are L2 lengths in units of the parameters, infinite where there is no crossing.

    ``along`` are the radii forward and backward along the path, where the point is on one; ``radii`` are then those
    across it.
    """

    name: str
    loss: float
    threshold: float
    norm: float
    radii: list[float]
    rays: list[RadialWidth]
    along: tuple[float, float] | None = None

    @property
    def median(self) -> float:
        """Of ``radii``; finite where more than half of the rays have a crossing."""
        return statistics.median(self.radii)

    def row(self) -> dict[str, Any]:
        """What tables show. ``open_rays``: rays without a crossing; their mean is not defined then."""
        is_open = sum(math.isinf(radius) for radius in self.radii)
        mean = None if is_open else statistics.fmean(self.radii)
        return {
            "point": self.name,
            "loss": self.loss,
            "threshold": self.threshold,
            "norm": self.norm,
            "width_median": self.median,
            "width_mean": mean,
            "width_min": min(self.radii),
            "width_max": max(self.radii),
            "relative_median": self.median / self.norm if self.norm else None,
            "relative_mean": None if mean is None or not self.norm else mean / self.norm,
            **({} if self.along is None else {"along_forward": self.along[0], "along_backward": self.along[1]}),
            "open_rays": is_open,
            "rays_to_nan": sum(ray.not_finite for ray in self.rays),
            "evaluations": sum(ray.evaluations for ray in self.rays),
        }


def measure_width(
    networks: Networks,
    state: StateDict,
    evaluate: Evaluate,
    settings: WidthSettings,
    *,
    name: str = "",
    tangent: Tensor | None = None,
    after_ray: Callable[[], None] | None = None,
) -> PointWidth:
    """The widths at ``state`` (its parameters move, its buffers stay).

    Args:
        tangent: ``[P]``: random directions are made orthogonal to it, and it is measured in both directions, too.
        after_ray: called after each ray.

    Raises:
        LLPFError: the state's loss is above the threshold or not finite; a direction that is 0.
    """
    settings.validate()
    centre = networks.flatten(state)
    norm = float(centre.norm())
    start_loss = evaluate(state).loss
    threshold = settings.threshold + (start_loss if settings.relative else 0.0)
    scale = norm or 1.0

    def ray(direction: Tensor) -> RadialWidth:
        def loss(radius: float) -> float:
            if radius == 0:
                return start_loss
            return evaluate(networks.unflatten(centre + radius * direction, buffers=state)).loss

        try:
            width = radial_width(loss, threshold, scale=scale, rule=settings.rule)
        except LLPFError as error:
            raise LLPFError(f"{name}: {error}" if name else str(error)) from None
        if after_ray is not None:
            after_ray()
        return width

    rays = [
        ray(random_direction(networks, state, settings.law, settings.seed, number, across=tangent))
        for number in range(settings.directions)
    ]
    along = None
    if tangent is not None:
        forward = unit(tangent, "the path's direction")
        along = (ray(forward).radius, ray(-forward).radius)
    return PointWidth(name, start_loss, threshold, norm, [each.radius for each in rays], rays, along)


def measure_widths(
    networks: Networks, evaluate: Evaluate, settings: WidthSettings, *, progress: ProgressCallback | None = None
) -> list[PointWidth]:
    """The widths at every one of ``networks``, over the same directions (law "filter": each scaled by that network's
    filters)."""
    total = len(networks) * settings.directions
    widths: list[PointWidth] = []
    for name, state in zip(networks.names, networks, strict=True):
        report = _ray_counter(progress, len(widths) * settings.directions, total, name)
        widths.append(measure_width(networks, state, evaluate, settings, name=name, after_ray=report))
    return widths


def _ray_counter(progress: ProgressCallback | None, done: int, total: int, text: str) -> Callable[[], None] | None:
    if progress is None:
        return None
    count = done

    def report() -> None:
        nonlocal count
        count += 1
        progress(count, total, text)

    return report


@dataclass(frozen=True)
class PathWidth:
    """The widths at one point of a path; ``position`` is the share (0..1) of the path's length before it."""

    position: float
    waypoint: float
    width: PointWidth


def measure_along_path(
    networks: Networks,
    path: Any,
    evaluate: Evaluate,
    settings: WidthSettings,
    *,
    points: int = 9,
    progress: ProgressCallback | None = None,
) -> list[PathWidth]:
    """The widths across and along a path, at ``points`` points equally spaced in arc length, both endpoints included.

    Args:
        networks: any network of the architecture, for its shapes.
        path: a :class:`~llpf_fast.path.LowLossPath` of two or more waypoints.

    Raises:
        LLPFError: fewer than two waypoints or points; a path of length 0; a point whose loss is above the threshold.
    """
    if points < 2:
        raise LLPFError(f"a path is measured at 2 points or more, got {points}")
    if len(path) < 2:
        raise LLPFError(f"{path.folder} has {len(path)} waypoint; a path has 2 or more")
    lengths = path.lengths()
    total = math.fsum(lengths)
    if not 0 < total < math.inf:
        raise LLPFError(f"{path.folder} has length {total:g}: its waypoints are all alike or not finite")
    rays = points * (settings.directions + 2)
    widths: list[PathWidth] = []
    for number, (segment, fraction) in enumerate(equally_spaced(lengths, points)):
        here, there = path[segment], path[segment + 1]
        tangent = networks.flatten(there) - networks.flatten(here)
        waypoint = segment + fraction
        state = path.interpolate(waypoint)
        name = f"waypoint {waypoint:g}"
        report = _ray_counter(progress, number * (settings.directions + 2), rays, name)
        width = measure_width(networks, state, evaluate, settings, name=name, tangent=tangent, after_ray=report)
        widths.append(PathWidth(number / (points - 1), waypoint, width))
    return widths


def equally_spaced(lengths: Sequence[float], points: int) -> list[tuple[int, float]]:
    """(segment, fraction) of ``points`` points equally spaced along segments of ``lengths``; none on an empty
    segment."""
    total = math.fsum(lengths)
    positions = []
    for number in range(points):
        left = total * number / (points - 1)
        segment = 0
        while segment < len(lengths) - 1 and left >= lengths[segment]:
            left -= lengths[segment]
            segment += 1
        while lengths[segment] == 0 and segment > 0:
            segment -= 1
            left = lengths[segment]
        positions.append((segment, min(max(left / lengths[segment], 0.0), 1.0)))
    return positions
