"""The registry says what is true: files, names, and the bytes that each op must touch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import goals
from benchmarks.cases import TIERS, chosen, registry, sgd, tick
from benchmarks.harness.problem import Problem
from benchmarks.harness.sizes import TABLES, parameters
from llpf_fast.models import build_model
from llpf_fast.ops.library import EAGER

CPU = torch.device("cpu")
CASES = Path(__file__).parents[2] / "benchmarks" / "cases"


def test_every_op_has_a_file_of_its_own_with_cases() -> None:
    timed = {case.op for case in registry()}
    assert set(EAGER) <= timed
    for op in timed:
        assert (CASES / f"{op.rstrip('_')}.py").is_file()


def test_names_are_unique_for_each_number_of_threads() -> None:
    named = [(case.name, threads) for case in registry() for threads in case.threads]
    assert len(named) == len(set(named))


def test_tiers_include_the_smaller_ones() -> None:
    counts = [len(chosen(tier)) for tier in TIERS]
    assert counts == sorted(set(counts))
    assert counts[-1] == len(registry())
    assert {case.size for case in chosen("usual", "TICK_ resnet50")} == {"ResNet50"}


def test_sizes_are_those_of_the_networks() -> None:
    for size, name in (("LeNet5", "lenet5"), ("ResNet18", "resnet18")):
        lengths = [parameter.numel() for parameter in build_model(name).parameters()]
        assert sorted(lengths) == sorted(TABLES[size]())
    assert parameters("ResNet50") == 25_557_032
    assert len(TABLES["ResNet50"]()) == 161
    assert parameters("1B") >= 1_000_000_000


def test_every_goal_is_about_a_case_that_is_timed() -> None:
    cases = registry()
    for goal in goals.goals():
        where = goal.where
        found = [
            case
            for case in cases
            if (case.op, case.size, case.variant) == (where["op"], where["size"], where["variant"])
            and case.dtype == where.get("dtype", case.dtype)
            and where["backend"] in case.backends
            and where.get("cache", case.caches[0]) in case.caches
            and where["threads"] in case.threads
        ]
        assert len(found) == 1, goal.what


def test_flops_and_bytes_are_declared() -> None:
    for case in registry():
        assert case.cost.touched > 0, case.name
        assert case.cost.flops > 0, case.name
        assert case.cost.read + case.cost.triad in (0, case.cost.touched) or case.op == "tick_", case.name


# ---- declared bytes against what really enters and leaves a call


def touched(run: Callable[[], object], tensors: dict[str, Tensor], problem: Problem) -> int:
    """Bytes of the segments whose values reach the result, plus bytes of the segments that the call writes."""
    start = {name: tensor.clone() for name, tensor in tensors.items()}

    def result(**changed: Tensor) -> dict[str, Tensor]:
        for name, tensor in tensors.items():
            tensor.copy_(changed.get(name, start[name]))
        run()
        return {name: tensor.clone() for name, tensor in tensors.items()}

    plain, total = result(), 0
    for name, before in start.items():
        size = before.element_size()
        for part in problem.slices():
            length = part.stop - part.start
            written = not torch.equal(plain[name][part], before[part])
            changed = before.clone()
            changed[part] += 0.25
            other = result(**{name: changed})
            # A segment that is not written holds the change and nothing else.
            other[name][part] = other[name][part] if written else plain[name][part]
            read = any(not torch.equal(other[n], plain[n]) for n in tensors)
            total += length * size * (written + read)
    return total


@pytest.mark.parametrize("variant", ["", "moments_in", "waypoint", "origin", "half masked"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float32/bfloat16", "float64"])
def test_a_tick_touches_the_bytes_declared(variant: str, dtype: str) -> None:
    problem = Problem("tiny", *tick.storage(dtype), CPU, 1, masked=variant == "half masked")
    # Steps long enough to show in 16 bits.
    problem.step.copy_(torch.tensor([0.0, 0.5]))
    ours = tick.ours(problem, variant)
    tensors = {"p": problem.p, "d": problem.d}
    if variant == "waypoint":
        tensors["waypoint"] = ours.calls[0].keywords["waypoint"]  # type: ignore[attr-defined]
        tensors["waypoint"].zero_()
    assert touched(ours.calls[0], tensors, problem) == tick.cost("tiny", dtype, variant).touched


@pytest.mark.parametrize("variant", ["", "no momentum"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_update_touches_the_bytes_declared(variant: str, dtype: str) -> None:
    problem = Problem("tiny", *tick.storage(dtype), CPU, 1)
    update = sgd.Update(problem, variant)
    update.lr.fill_(0.5)
    tensors = {"p": problem.p, "d": problem.d, "g": update.g[0]}
    if update.buffers[0] is not None:
        tensors["buffer"] = update.buffers[0].normal_()
    assert touched(update.calls()[0], tensors, problem) == sgd.cost("tiny", dtype, variant).touched
