"""LLPF computed layer by layer in float64 and NumPy: one sentence of the papers a line of code.

Nothing here is shared with ``llpf_fast`` and none of its algebra is used: every destination is written out as an array,
a move walks a length along a unit vector, a rescale measures mean and variance of what lies there. Sources: LLPF (arXiv
2505.02604) for ``Rules()`` as it stands, the authors' programs for the switches that :data:`AUTHORS` sets.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import nn

from .networks import NORMS

Array = np.ndarray
Arrays = dict[str, Array]
Habit = Literal["move", "stay", "away", "away twice"]


@dataclass(frozen=True)
class Layer:
    """What a tick has to know of one tensor besides its values."""

    name: str
    #: Class name of the normalization layer that owns it, else "".
    norm: str = ""
    #: The bias of that weight, which it moves with where biases are joined.
    bias_of: str = ""
    #: "rows": query, key and value lie one after another, a third of the rows each. "query" etc.: the whole tensor.
    attention: Literal["", "rows", "query", "key", "value"] = ""


def describe(module: nn.Module) -> list[Layer]:
    """Layers of the test network, from its types and the names this test gave them."""
    layers = []
    for name, _ in module.named_parameters():
        owner_name, _, attribute = name.rpartition(".")
        owner = module.get_submodule(owner_name)
        norm = ""
        if isinstance(owner, NORMS):
            norm = "layer" if isinstance(owner, nn.LayerNorm) else "other"
        bias_of = ""
        weight = attribute.replace("bias", "weight")
        if "bias" in attribute and getattr(owner, weight, None) is not None:
            bias_of = f"{owner_name}.{weight}"
        role: Literal["", "rows", "query", "key", "value"] = ""
        if attribute.startswith("in_proj") or owner_name.endswith(".qkv"):
            role = "rows"
        for letter, part in (("q", "query"), ("k", "key"), ("v", "value")):
            if owner_name.endswith(f".{letter}_proj") or attribute == f"{letter}_proj_weight":
                role = part  # type: ignore[assignment]
        layers.append(Layer(name, norm, bias_of, role))
    return layers


@dataclass(frozen=True)
class Rules:
    """The paper's M2M. Other members of the family differ in these."""

    goal: Literal["model", "origin", "infinity", "mean", "variance sphere", "norm sphere"] = "model"
    fixed: float = 0.0
    relative: float = 0.001
    #: Step length: both parts added (paper), or the larger of both (authors).
    length: Literal["added", "larger"] = "added"
    stop_at_goal: bool = True
    epsilon: float = 0.0
    #: What normalization layers do: LayerNorm, and every other.
    layer_norm: Habit = "move"
    other_norm: Habit = "move"
    rescale_norms: bool = False
    rescale_idle: bool = False
    #: Layers by name, whatever they are.
    habits: Mapping[str, Habit] = field(default_factory=dict)
    join_bias: bool = False
    #: Query and key stay: their weights, and with "weights and biases" their biases too.
    hold_query_and_key: Literal["", "weights", "weights and biases"] = ""
    #: Where query and key stay: are the value rows a separate layer, or does the tick see the whole tensor (its
    #: mean, its norm) and put the other rows back afterwards (authors)?
    value_rows: Literal["alone", "of the whole"] = "alone"
    #: Whose distance decides the length of the step there. The authors' is the whole tensor's.
    value_distance: Literal["of the value rows", "of the whole"] = "of the value rows"
    #: The spheres go from the start's to the goal's variance, layer by layer, with the way the layer has come.
    blend: bool = False
    #: (tick from which it holds, names of the layers that move), in order; without any, all move. Ticks count from 1.
    stages: Sequence[tuple[int, frozenset[str]]] = ()
    rate: Literal["none", "var", "std"] = "none"
    rate_weights_only: bool = False


def mean_of(values: Array) -> float:
    return float(values.sum()) / values.size


def variance_of(values: Array) -> float:
    """Unbiased, about the tensor's mean; 0 for a single element."""
    if values.size == 1:
        return 0.0
    away = (values - mean_of(values)).ravel()
    return float(away.dot(away)) / (values.size - 1)


def length_of(parts: Sequence[Array]) -> float:
    return math.sqrt(math.fsum(float(part.ravel().dot(part.ravel())) for part in parts))


def rescaled(values: Array, variance: float, epsilon: float) -> Array:
    """About its mean to that variance. A constant tensor stays."""
    middle, now = mean_of(values), variance_of(values)
    if now == 0.0:
        return values.copy()
    return middle + math.sqrt((variance + epsilon) / (now + epsilon)) * (values - middle)


class Walk:
    """One search without its training: :meth:`move`, then :meth:`trained` with what training would have added.

    Args:
        layers: in state-dict order.
        start: values the walk starts at.
        rules: what this member of the family does.
        goal: the model to reach, for "model".
        sphere: per name, the variance or norm to reach, for the spheres.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        start: Arrays,
        rules: Rules,
        *,
        goal: Arrays | None = None,
        sphere: Mapping[str, float] | None = None,
    ) -> None:
        self.layers, self.rules, self.goal, self.sphere = layers, rules, goal, sphere or {}
        self.start, self.come = start, dict.fromkeys(start, 0.0)
        self.now = {name: value.copy() for name, value in start.items()}
        #: By how much the last move, and the rescale after it, enlarge a small error in a tensor; at least 1.
        self.growth = dict.fromkeys(start, 1.0)
        self.start_variance = {name: variance_of(value) for name, value in start.items()}
        self.target = dict(self.start_variance)
        self.tick = 0

    # -- who does what

    def _in_stage(self, layer: Layer) -> bool:
        active: frozenset[str] | None = None
        for first, names in self.rules.stages:
            if first <= self.tick:
                active = names
        return active is None or layer.name in active

    def _habit(self, layer: Layer) -> Habit:
        if not self._in_stage(layer):
            return "stay"
        if layer.name in self.rules.habits:
            return self.rules.habits[layer.name]
        if layer.norm == "layer":
            return self.rules.layer_norm
        if layer.norm:
            return self.rules.other_norm
        return "stay" if self._holds(layer) and layer.attention in ("query", "key") else "move"

    def _holds(self, layer: Layer) -> bool:
        """Whether the attention policy concerns this tensor."""
        wanted = self.rules.hold_query_and_key
        return bool(layer.attention) and (
            wanted == "weights and biases" or (wanted == "weights" and not self._is_bias(layer))
        )

    @staticmethod
    def _is_bias(layer: Layer) -> bool:
        return layer.name.rpartition(".")[2].endswith("bias")

    def _moving_rows(self, layer: Layer) -> slice:
        """Only the last third of a stacked projection moves where query and key stay."""
        rows = self.now[layer.name].shape[0]
        if layer.attention == "rows" and self._holds(layer):
            return slice(2 * rows // 3, rows)
        return slice(0, rows)

    # -- one tick

    def move(self) -> None:
        """Every layer of the stage one step; then back onto its sphere."""
        self.tick += 1
        before = {name: value.copy() for name, value in self.now.items()}
        self.growth = dict.fromkeys(self.now, 1.0)
        done: set[str] = set()
        for layer in self.layers:
            if layer.name in done:
                continue
            group = [layer]
            if self.rules.join_bias:
                group += [other for other in self.layers if other.bias_of == layer.name]
            done |= {other.name for other in group}
            self._step([other for other in group if self._habit(other) != "stay"], before)
        self.rescale()

    def _step(self, group: list[Layer], before: Arrays) -> None:
        """One length along one unit vector for layers that move together."""
        pieces = [before[layer.name][self._moving_rows(layer)] for layer in group]
        whole = [self._destination(layer, before) - self._measured(layer, before) for layer in group]
        ways = [way[-len(piece) :] for way, piece in zip(whole, pieces, strict=True)]
        distance = length_of(whole if self.rules.value_distance == "of the whole" else ways)
        if distance == 0.0:
            return
        rules = self.rules
        step = rules.fixed + rules.relative * distance
        if rules.length == "larger":
            step = max(rules.fixed, rules.relative * distance)
        if rules.stop_at_goal:
            step = min(step, distance)
        for layer, piece, way in zip(group, pieces, ways, strict=True):
            signed = {"move": step, "away": -step, "away twice": -2 * step}[self._habit(layer)]
            self.now[layer.name][self._moving_rows(layer)] = piece + signed * (way / distance)
            # A step past the goal turns what was left of the way round, and any error in its direction with it.
            share = signed / distance
            self.growth[layer.name] = max(1.0, abs(1 - share) + abs(share) * self._follows(layer, before))

    def _measured(self, layer: Layer, before: Arrays) -> Array:
        """What the tick takes for the layer: all of it, or the rows that move."""
        rows = self._moving_rows(layer) if self.rules.value_rows == "alone" else slice(None)
        return before[layer.name][rows]

    def _destination(self, layer: Layer, before: Arrays) -> Array:
        here = self._measured(layer, before)
        if self.rules.goal == "model":
            assert self.goal is not None
            return self._measured(layer, self.goal)
        if self.rules.goal == "origin":
            return np.zeros_like(here)
        if self.rules.goal == "infinity":
            return 2 * here
        if self.rules.goal == "mean":
            return np.full_like(here, mean_of(here))
        if self.rules.goal == "variance sphere":
            return rescaled(here, self.sphere[layer.name], 0.0)
        length = length_of([here])
        return here.copy() if length == 0.0 else here / length * self.sphere[layer.name]

    def _follows(self, layer: Layer, before: Arrays) -> float:
        """How far the destination moves when the layer does: 0 for a point, 2 for twice the layer."""
        if self.rules.goal in ("model", "origin"):
            return 0.0
        if self.rules.goal == "infinity":
            return 2.0
        here, there = self._measured(layer, before), self._destination(layer, before)
        spread = length_of([here])
        return max(1.0, length_of([there]) / spread) if spread else 1.0

    def rescale(self) -> None:
        """Variance correction; only on the way to another model."""
        if self.rules.goal != "model":
            return
        for layer in self.layers:
            rows = self._rescaled_rows(layer)
            if rows is not None:
                whole = self.now[layer.name]
                target = self.target[layer.name]
                if rows.start > 0:
                    target = self._target_of_rows(layer, rows)
                before, epsilon = whole[rows], self.rules.epsilon
                spread = variance_of(before)
                whole[rows] = rescaled(before, target, epsilon)
                if spread:
                    self.growth[layer.name] *= max(1.0, math.sqrt((target + epsilon) / (spread + epsilon)))

    def _rescaled_rows(self, layer: Layer) -> slice | None:
        """The whole tensor from its rows. Where idle layers are left alone, so are the query and key rows that stay."""
        rules = self.rules
        if layer.norm and not rules.rescale_norms:
            return None
        if self._habit(layer) == "stay" and not rules.rescale_idle:
            return None
        if self.target[layer.name] == 0.0 and rules.epsilon == 0.0:
            # The ratio with target 0 would flatten the tensor; an epsilon keeps it finite.
            return None
        return slice(0, None) if rules.rescale_idle else self._moving_rows(layer)

    def _target_of_rows(self, layer: Layer, rows: slice) -> float:
        """Rows that move without the rest are a separate layer with a separate sphere."""
        target = variance_of(self.start[layer.name][rows])
        if self.rules.blend:
            assert self.goal is not None
            come = self.come[layer.name]
            target = (1 - come) * target + come * variance_of(self.goal[layer.name][rows])
        return target

    def _follow(self) -> None:
        """Let the spheres follow the way each layer has come. They never go back, and a layer without one gets none."""
        assert self.goal is not None
        for name, start in self.start.items():
            left = length_of([self.goal[name] - self.now[name]]) / length_of([self.goal[name] - start])
            come = self.come[name] = max(self.come[name], min(max(1 - left, 0.0), 1.0))
            if self.start_variance[name] > 0 or self.rules.epsilon > 0:
                self.target[name] = (1 - come) * self.start_variance[name] + come * variance_of(self.goal[name])

    def untouched_rows(self, layer: Layer) -> slice | None:
        """Rows that a tick neither moves nor rescales: training alone changes them."""
        stays = self._habit(layer) == "stay"
        first = self._moving_rows(layer).start
        rescales = self.rules.goal == "model" and self._rescaled_rows(layer) is not None
        if stays and not rescales:
            return slice(0, None)
        if first and not (rescales and self.rules.rescale_idle):
            return slice(0, first)
        return None

    def trained(self, change: Arrays) -> None:
        """What training did, and the second variance correction: afterwards ``now`` is the tick's waypoint."""
        self.growth = dict.fromkeys(self.now, 1.0)
        for name, value in change.items():
            self.now[name] += value
        if self.rules.blend:
            self._follow()
        self.rescale()

    def rate(self, layer: Layer) -> float:
        """Factor on the learning rate of this layer's training, after the move."""
        rules = self.rules
        if rules.rate == "none" or layer.norm or (rules.rate_weights_only and "weight" not in layer.name):
            return 1.0
        if self.start_variance[layer.name] == 0.0:
            return 1.0
        ratio = variance_of(self.now[layer.name]) / self.start_variance[layer.name]
        return ratio if rules.rate == "var" else math.sqrt(ratio)
