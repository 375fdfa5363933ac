"""The oracle itself, against closed forms."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from .networks import perturbations, values, zoo
from .oracle import Array, Arrays, Layer, Rules, Walk, describe, length_of, mean_of, rescaled, variance_of

LAYERS = describe(zoo(torch.float64))
START, GOAL = values(1), values(2, wider=True)
BY_NAME = {layer.name: layer for layer in LAYERS}


def norm(value: Array) -> float:
    return length_of([value])


def walk(rules: Rules, ticks: int = 1, **more: object) -> Walk:
    followed = Walk(LAYERS, START, rules, goal=GOAL, **more)  # type: ignore[arg-type]
    for _ in range(ticks):
        followed.move()
    return followed


def test_the_network_has_every_kind_of_layer() -> None:
    assert sum(value.size for value in START.values()) < 5000
    assert {layer.norm for layer in LAYERS} == {"", "layer", "other"}
    assert BY_NAME["layer2d.weight"].norm == "layer"
    assert BY_NAME["own_rms.weight"].norm == BY_NAME["instance.bias"].norm == "other"
    assert {layer.attention for layer in LAYERS} == {"", "rows", "query", "key", "value"}
    assert BY_NAME["multihead.in_proj_bias"].bias_of == "multihead.in_proj_weight"
    assert BY_NAME["conv1.bias"].bias_of == "conv1.weight"
    assert variance_of(START["head.bias"]) == 0.0
    assert variance_of(START["fine.weight"]) == pytest.approx(1e-5, rel=0.3)


def test_statistics_are_those_of_numpy() -> None:
    value = START["conv2.weight"]
    assert mean_of(value) == pytest.approx(value.mean(), rel=1e-14)
    assert variance_of(value) == pytest.approx(value.var(ddof=1), rel=1e-14)
    assert variance_of(START["temperature"]) == 0.0


@pytest.mark.parametrize("epsilon", [0.0, 1e-4])
def test_a_rescale_reaches_its_variance_and_keeps_the_mean(epsilon: float) -> None:
    value, target = START["conv2.weight"], 0.37
    there = rescaled(value, target, epsilon)
    ratio = (target + epsilon) / (value.var(ddof=1) + epsilon)
    assert there.var(ddof=1) == pytest.approx(value.var(ddof=1) * ratio, rel=1e-12)
    assert there.mean() == pytest.approx(value.mean(), rel=1e-12)


def test_at_a_tiny_variance_the_authors_epsilon_undoes_most_of_the_rescale() -> None:
    """5.4 percent needed at v = 1e-5 become 0.5 (notes, peers section 2)."""
    exact, authors = (math.sqrt((1e-5 + e) / (1e-5 * 0.9 + e)) - 1 for e in (0.0, 1e-4))
    value = START["fine.weight"]
    value = value * math.sqrt(0.9e-5 / variance_of(value))
    spread = math.sqrt(variance_of(value))
    for epsilon, expected in ((0.0, exact), (1e-4, authors)):
        got = math.sqrt(variance_of(rescaled(value, 1e-5, epsilon))) / spread - 1
        assert got == pytest.approx(expected, rel=1e-6)
    assert exact == pytest.approx(0.054, abs=1e-3)
    assert authors == pytest.approx(0.005, abs=1e-3)


def test_after_a_tick_every_layer_with_a_sphere_is_on_it() -> None:
    followed = walk(Rules(fixed=0.01), 5)
    for layer in LAYERS:
        target = variance_of(START[layer.name])
        if layer.norm or target == 0:
            continue
        assert variance_of(followed.now[layer.name]) == pytest.approx(target, rel=1e-12), layer.name


def test_a_blend_ends_on_the_spheres_of_the_goal() -> None:
    nothing = {name: np.zeros_like(value) for name, value in START.items()}
    name = "conv2.weight"
    followed = Walk(LAYERS, START, Rules(fixed=0.25 * norm(GOAL[name] - START[name]), blend=True), goal=GOAL)
    a, b = variance_of(START[name]), variance_of(GOAL[name])
    followed.move()
    come = 1 - norm(GOAL[name] - followed.now[name]) / norm(GOAL[name] - START[name])
    followed.trained(nothing)
    assert 0.1 < come < 0.4
    assert variance_of(followed.now[name]) == pytest.approx((1 - come) * a + come * b, rel=1e-12)
    for _ in range(30):
        followed.move()
        followed.trained(nothing)
    assert variance_of(followed.now[name]) == pytest.approx(b, rel=1e-3)
    assert followed.target["head.bias"] == 0.0


def test_stopping_at_the_goal_reaches_it_and_oversteps_without() -> None:
    name = "rms.weight"
    way = GOAL[name] - START[name]
    assert walk(Rules(fixed=100.0)).now[name] == pytest.approx(GOAL[name], rel=1e-12)
    beyond = walk(Rules(fixed=100.0, relative=0.0, stop_at_goal=False)).now[name]
    assert beyond == pytest.approx(START[name] + 100 * way / norm(way), rel=1e-12)


@pytest.mark.parametrize("share", [0.001, 0.1])
def test_a_relative_step_leaves_its_powers_of_the_distance(share: float) -> None:
    followed = walk(Rules(relative=share), 7)
    for name in ("rms.weight", "batch.bias", "temperature"):
        left = norm(GOAL[name] - followed.now[name])
        assert left == pytest.approx((1 - share) ** 7 * norm(GOAL[name] - START[name]), rel=1e-12)


def test_toward_the_origin_norms_shrink_and_toward_infinity_they_grow() -> None:
    shrunk, grown = (walk(Rules(goal=g, relative=0.01), 10) for g in ("origin", "infinity"))
    for name, value in START.items():
        assert norm(shrunk.now[name]) == pytest.approx(0.99**10 * norm(value), rel=1e-12)
        assert norm(grown.now[name]) == pytest.approx(1.01**10 * norm(value), rel=1e-12)


def test_toward_the_mean_spread_shrinks_about_it() -> None:
    followed = walk(Rules(goal="mean", relative=0.01), 10)
    for name, value in START.items():
        assert mean_of(followed.now[name]) == pytest.approx(mean_of(value), rel=1e-9, abs=1e-15)
        assert variance_of(followed.now[name]) == pytest.approx(0.99**20 * variance_of(value), rel=1e-9, abs=1e-30)


def test_spheres_are_reached() -> None:
    wanted = dict.fromkeys(START, 0.5)
    by_variance = walk(Rules(goal="variance sphere", fixed=100.0), sphere=wanted)
    by_norm = walk(Rules(goal="norm sphere", fixed=100.0), sphere=wanted)
    for name, value in START.items():
        if name != "head.bias":
            assert norm(by_norm.now[name]) == pytest.approx(0.5, rel=1e-12)
        if name not in ("head.bias", "temperature"):
            assert variance_of(by_variance.now[name]) == pytest.approx(0.5, rel=1e-12)
        assert mean_of(by_variance.now[name]) == pytest.approx(mean_of(value), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("length", "step"), [("added", 0.01 + 0.002), ("larger", 0.01)])
def test_both_lengths_are_added_or_the_larger_one_taken(length: str, step: float) -> None:
    rules = Rules(fixed=0.01, relative=0.002 / norm(START["rms.weight"]), length=length, goal="origin")  # type: ignore[arg-type]
    before, after = START["rms.weight"], walk(rules).now["rms.weight"]
    assert norm(before) - norm(after) == pytest.approx(step, rel=1e-12)


def test_away_is_the_same_step_the_other_way_and_twice_is_double() -> None:
    name = "layer.weight"

    def change(habit: str) -> Array:
        return walk(Rules(goal="origin", fixed=0.01, layer_norm=habit)).now[name] - START[name]  # type: ignore[arg-type]

    assert change("away") == pytest.approx(-change("move"), rel=1e-12)
    assert change("away twice") == pytest.approx(-2 * change("move"), rel=1e-12)
    assert not change("stay").any()


def test_a_joined_bias_goes_with_its_weight() -> None:
    followed = walk(Rules(goal="origin", fixed=0.05, relative=0.0, join_bias=True))
    weight, bias = "conv1.weight", "conv1.bias"
    length = length_of([START[weight], START[bias]])
    for name in (weight, bias):
        assert followed.now[name] == pytest.approx((1 - 0.05 / length) * START[name], rel=1e-12)


def test_query_and_key_rows_stay_and_the_tensor_is_rescaled_as_the_switches_say() -> None:
    name = "attention.qkv.weight"
    rules = Rules(fixed=0.05, hold_query_and_key="weights")
    value = walk(rules).now[name]
    assert np.array_equal(value[:24], START[name][:24])
    assert variance_of(value[24:]) == pytest.approx(variance_of(START[name][24:]), rel=1e-12)
    whole = walk(dataclasses.replace(rules, rescale_idle=True)).now[name]
    assert variance_of(whole) == pytest.approx(variance_of(START[name]), rel=1e-12)
    assert not np.array_equal(whole[:24], START[name][:24])
    bias = "attention.qkv.bias"
    assert not np.array_equal(walk(rules).now[bias][:24], START[bias][:24])
    both = dataclasses.replace(rules, hold_query_and_key="weights and biases")
    assert np.array_equal(walk(both).now[bias][:24], START[bias][:24])


def test_a_stage_moves_its_layers_from_its_tick_on() -> None:
    first, both = frozenset({"conv1.weight"}), frozenset({"conv1.weight", "conv2.weight"})
    followed = Walk(LAYERS, START, Rules(stages=((1, first), (3, both))), goal=GOAL)
    moved: list[set[str]] = []
    for _ in range(3):
        before: Arrays = {n: v.copy() for n, v in followed.now.items()}
        followed.move()
        moved.append({n for n in before if not np.array_equal(before[n], followed.now[n])})
    assert moved == [set(first), set(first), set(both)]


def test_idle_layers_are_rescaled_only_where_the_rules_say_so() -> None:
    (change,) = perturbations(3, 1, START)
    nothing = frozenset({"conv1.weight"})
    for rescales in (False, True):
        followed = Walk(LAYERS, START, Rules(stages=((1, nothing),), rescale_idle=rescales), goal=GOAL)
        followed.move()
        followed.trained(change)
        left = variance_of(followed.now["conv2.weight"]) / variance_of(START["conv2.weight"]) - 1
        assert (abs(left) < 1e-12) is rescales


def test_rates_follow_the_variance() -> None:
    followed = walk(Rules(goal="origin", relative=0.1, rate="var"))
    assert followed.rate(BY_NAME["conv1.weight"]) == pytest.approx(0.81, rel=1e-12)
    assert followed.rate(BY_NAME["conv1.bias"]) == pytest.approx(0.81, rel=1e-12)
    assert followed.rate(BY_NAME["batch.weight"]) == followed.rate(BY_NAME["temperature"]) == 1.0
    followed.rules = dataclasses.replace(followed.rules, rate="std", rate_weights_only=True)
    assert followed.rate(BY_NAME["conv1.weight"]) == pytest.approx(0.9, rel=1e-12)
    assert followed.rate(BY_NAME["conv1.bias"]) == 1.0


def test_a_layer_is_a_name_and_what_it_is() -> None:
    assert Layer("x") == Layer("x", "", "", "")
