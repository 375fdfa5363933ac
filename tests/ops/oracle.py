"""What the ops must compute, written from the formulas with plain arrays, one layer after another.

Nothing here comes from ``llpf_fast``: the numbers of flags and destinations are repeated on purpose.
Arithmetic is numpy's extended precision (64 significant bits on x86), so that float64 storage has a reference too.
Sources: LLPF (arXiv 2505.02604) for move and projection; the degenerate rule is that of docs/algorithm.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

Real = np.longdouble
Array = np.ndarray[Any, np.dtype[np.longdouble]]

MASKED, HOLD, COMPENSATE, TWICE, FREE, FROZEN = 1, 2, 4, 8, 16, 32
POINT, ORIGIN, INFINITY, MEAN, VARIANCE_SPHERE, NORM_SPHERE = range(6)
DEGENERATE, OF_MEAN = Real(2) ** -40, Real(2) ** -56
#: What float64 cannot sum squares down to without losing digits.
SMALLEST_SQUARE = Real(2) ** -960


@dataclass(frozen=True)
class Layer:
    """One row of the segment table."""

    offset: int
    length: int
    distance_group: int
    variance_group: int
    flags: int

    def of(self, values: Array) -> Array:
        return values[self.offset : self.offset + self.length]

    def has(self, flag: int) -> bool:
        return bool(self.flags & flag)


@dataclass(frozen=True)
class Rule:
    """The scalar options of ``coefficients`` and ``tick_``."""

    destination: int = POINT
    epsilon: float = 0.0
    combine_sum: bool = True
    clamp: bool = True
    project_first: bool = False


@dataclass
class Ticked:
    """One path after one tick; all ``[N]`` arrays hold NaN where no layer lies."""

    x: Array
    waypoint: Array
    #: |a p| + |b d| + |c| of the tick's map and of the waypoint's map, elementwise.
    size: Array
    waypoint_size: Array
    #: The largest magnitude that the layer's variance group holds on the way: c is exact to a rounding of that.
    reach: Array
    #: float64 [S, 5]: the map (a, b, c, a0, c0) of each layer.
    maps: Array
    #: How much a rounding error in the moments is magnified in the map, at worst: 1 is harmless.
    condition: float
    #: Share of variance left after the move, of each group that is projected: near 2^-40 the rule is undecided.
    variance_share: list[float]


def layers_of(rows: list[list[int]]) -> list[Layer]:
    return [Layer(*row) for row in rows]


def groups(layers: list[Layer], label: Callable[[Layer], int]) -> Iterator[list[int]]:
    """Indices of the unmasked members of each group; groups are runs of neighbours."""
    for _, run in groupby(range(len(layers)), key=lambda i: label(layers[i])):
        members = [i for i in run if not layers[i].has(MASKED)]
        if members:
            yield members


def mean(values: Array) -> Real:
    """Shifted by one element, so that the mean of equal values is that value."""
    return values[0] + (values - values[0]).sum() / len(values)


def centred_square(values: Array) -> Real:
    return Real(((values - mean(values)) ** 2).sum())


def moments(p: Array, d: Array | None, layers: list[Layer]) -> Array:
    """``[S, 5]`` mean_p, mean_delta, M2_p, C, M2_delta; zero for MASKED layers, columns 1, 3, 4 zero without d."""
    out = np.zeros((len(layers), 5), dtype=Real)
    for i, layer in enumerate(layers):
        if layer.has(MASKED):
            continue
        x = layer.of(p)
        out[i, 0], out[i, 2] = mean(x), centred_square(x)
        if d is not None:
            delta = layer.of(d) - x
            out[i, 1], out[i, 4] = mean(delta), centred_square(delta)
            out[i, 3] = ((x - mean(x)) * (delta - mean(delta))).sum()
    return out


def project(
    parts: dict[int, Array],
    layers: list[Layer],
    target: Array,
    epsilon: float,
    before: dict[int, Array] | None = None,
    left: dict[int, Array] | None = None,
) -> tuple[dict[int, Array], dict[int, Real], list[float], float]:
    """W' = mean(W) + sqrt((v + epsilon) / (Var(W) + epsilon)) (W - mean(W)) over each variance group.

    After a move, ``before`` holds the values it started from and ``left`` what training had left before those. With g
    the mean of what training left, each value of the group lies off its mean by (P - g) and by the move's
    deviation; a group whose variance is no more than 2^-40 of these two, or 2^-96 of the squared means, is not scaled.
    Returns the values, the scale of each layer, the shares of variance left, and the worst condition of a scale.
    """
    out, scale, share, condition = dict(parts), dict.fromkeys(parts, Real(1)), [], 1.0
    for members in groups(layers, lambda layer: layer.variance_group):
        joined = np.concatenate([parts[i] for i in members])
        square = centred_square(joined)
        reference = Real(0)
        if before and left:
            g = mean(np.concatenate([left[i] for i in members]))
            for i in members:
                inside = ((before[i] - g) ** 2).sum()
                moved = ((parts[i] - before[i] - (mean(joined) - g)) ** 2).sum()
                means = len(parts[i]) * (mean(before[i]) ** 2 + mean(parts[i]) ** 2)
                reference = reference + inside + moved + OF_MEAN * means
        if len(joined) < 2:
            continue
        if reference > 0:
            share.append(float(square / reference))
        if square <= DEGENERATE * reference or square <= SMALLEST_SQUARE:
            continue
        variance = square / (len(joined) - 1)
        size = sum((((before or parts)[i] ** 2).sum() for i in members), (joined**2).sum())
        condition = max(condition, float(reference / square), float(np.sqrt(size / square)))
        for i in members:
            if not layers[i].has(FREE):
                scale[i] = np.sqrt((target[i] + Real(epsilon)) / (variance + Real(epsilon)))
                out[i] = mean(joined) + scale[i] * (parts[i] - mean(joined))
    return out, scale, share, condition


def goal(
    parts: dict[int, Array], d: Array | None, layers: list[Layer], kind: int, radius: Array | None
) -> tuple[dict[int, Array], dict[int, Real]]:
    """The destination of each layer, and the factor of p in it where it is a formula of p."""
    out, factor = {}, {}
    for members in groups(layers, lambda layer: layer.variance_group):
        joined = np.concatenate([parts[i] for i in members])
        square, norm_square = centred_square(joined), (joined**2).sum()
        variance, norm = square / max(len(joined) - 1, 1), np.sqrt(norm_square)
        for i in members:
            here, factor[i] = parts[i], Real(0)
            if kind == POINT:
                assert d is not None
                out[i] = layers[i].of(d)
            elif kind == ORIGIN:
                out[i] = 0 * here
            elif kind == INFINITY:
                out[i], factor[i] = 2 * here, Real(2)
            elif kind == MEAN:
                out[i] = 0 * here + mean(joined)
            elif kind == VARIANCE_SPHERE:
                assert radius is not None
                factor[i] = np.sqrt(radius[i] / variance) if square > SMALLEST_SQUARE else Real(1)
                out[i] = mean(joined) + factor[i] * (here - mean(joined))
            else:
                assert radius is not None
                factor[i] = radius[i] / norm if norm_square > SMALLEST_SQUARE else Real(1)
                out[i] = factor[i] * here
    return out, factor


def fractions(
    parts: dict[int, Array], towards: dict[int, Array], layers: list[Layer], step: Array, rule: Rule
) -> dict[int, Real]:
    """The share of the way to the destination that each layer goes; negative where it compensates."""
    out = dict.fromkeys(parts, Real(0))
    for members in groups(layers, lambda layer: layer.distance_group):
        moving = [i for i in members if not layers[i].has(HOLD)]
        squared = sum((((towards[i] - parts[i]) ** 2).sum() for i in moving), Real(0))
        if squared <= SMALLEST_SQUARE:
            continue
        distance = np.sqrt(squared)
        fixed, relative = step[0], step[1] * distance
        t = (fixed + relative if rule.combine_sum else max(fixed, relative)) / distance
        if rule.clamp:
            t = min(t, Real(1))
        for i in moving:
            out[i] = t
            if layers[i].has(COMPENSATE):
                out[i] = -2 * t if layers[i].has(TWICE) else -t
    return out


def tick(
    p: Array, d: Array | None, layers: list[Layer], target: Array, step: Array, radius: Array | None, rule: Rule
) -> Ticked:
    """Project (where the rule says so), move, project: one after another, for one path ``[N]``."""
    q = {i: layer.of(p) for i, layer in enumerate(layers) if not layer.has(MASKED)}
    first = dict.fromkeys(q, Real(1))
    start, condition = q, 1.0
    if rule.project_first:
        start, first, _, condition = project(q, layers, target, rule.epsilon)
    towards, factor = goal(start, d, layers, rule.destination, radius)
    t = fractions(start, towards, layers, step, rule)
    moved = {i: start[i] + t[i] * (towards[i] - start[i]) for i in q}
    end, last, share, last_condition = project(moved, layers, target, rule.epsilon, start, q)

    x, waypoint, size, waypoint_size, reach = np.full((5, len(p)), np.nan, dtype=Real)
    maps = np.zeros((len(layers), 5), Real)
    out = Ticked(x, waypoint, size, waypoint_size, reach, maps, max(condition, last_condition), share)
    for members in groups(layers, lambda layer: layer.variance_group):
        amplified = ((q, first), (start, last), (moved, last))
        top = max(abs(parts[i]).max() * max(1, scale[i]) for parts, scale in amplified for i in members)
        for i in members:
            layers[i].of(reach)[:] = top
    for i, layer in enumerate(layers):
        if i not in q:
            out.maps[i] = [1, 0, 0, 1, 0]
            for values, source in ((out.x, p), (out.waypoint, p), (out.size, abs(p)), (out.waypoint_size, abs(p))):
                layer.of(values)[:] = layer.of(source)
            continue
        a = last[i] * first[i] * (1 - t[i] + t[i] * factor[i])
        b = last[i] * t[i] if rule.destination == POINT else Real(0)
        far = layer.of(d) if d is not None and rule.destination == POINT else 0 * q[i]
        c, c0 = mean(end[i] - a * q[i] - b * far), mean(start[i] - first[i] * q[i])
        out.maps[i] = [a, b, c, first[i], c0]
        layer.of(out.x)[:], layer.of(out.waypoint)[:] = end[i], start[i]
        layer.of(out.size)[:] = abs(a * q[i]) + abs(b * far) + abs(c)
        layer.of(out.waypoint_size)[:] = abs(first[i] * q[i]) + abs(c0)
        if rule.destination == POINT:
            left = ((towards[i] - start[i]) ** 2).sum()
            parts = ((far - q[i]) ** 2).sum() + ((start[i] - q[i]) ** 2).sum()
            if left > 0:
                scaled = centred_square(q[i]) if rule.project_first else Real(0)
                out.condition = max(out.condition, float(parts / left), float(np.sqrt(scaled / left)))
    return out


def sgd(
    p: Array, g: Array, buffer: Array | None, rate: Array, layers: list[Layer], momentum: float, weight_decay: float,
    nesterov: bool,
) -> tuple[Array, Array | None]:  # fmt: skip
    """One update of torch.optim.SGD's documentation, with the buffer starting at zero; FROZEN layers are unchanged."""
    p, buffer = p.copy(), None if buffer is None else buffer.copy()
    for i, layer in enumerate(layers):
        if layer.has(FROZEN):
            continue
        direction = layer.of(g) + Real(weight_decay) * layer.of(p)
        if buffer is not None:
            layer.of(buffer)[:] = Real(momentum) * layer.of(buffer) + direction
            direction = direction + Real(momentum) * layer.of(buffer) if nesterov else layer.of(buffer)
        layer.of(p)[:] -= rate[i] * direction
    return p, buffer


@dataclass
class Gate:
    """The correction's rule as a list of losses: train until their recent mean meets the threshold."""

    threshold: float
    window: int
    max_steps: int
    losses: list[float]
    closing: bool = False

    def take(self, loss: float) -> bool:
        """Whether the update of this batch counts."""
        if self.closing:
            return False
        self.losses.append(loss)
        recent = self.losses[-self.window :]
        met = len(recent) == self.window and sum(recent) / len(recent) <= self.threshold
        self.closing = met or len(self.losses) >= self.max_steps
        return True


def spacing(size: Array, digits: int, smallest: float) -> Array:
    """One unit in the last place at magnitude ``size`` in a format of ``digits`` significant bits."""
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = np.exp2(np.floor(np.log2(size)) - (digits - 1))
    return np.maximum(np.where(size > 0, unit, 0), Real(smallest))
