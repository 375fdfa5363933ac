"""What is timed beside each other runs in one arithmetic and in one way: both are observed and compared."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.cases import correction, many_paths
from benchmarks.harness import run as runner
from benchmarks.harness import throughput
from benchmarks.harness.case import OURS, Contender, Prepared, WrongResultError, check
from benchmarks.harness.clock import Times
from benchmarks.harness.run import figures
from llpf_fast import LLPFError
from llpf_fast.batches.precision import float32_products

CPU = torch.device("cpu")


def as_on_a_gpu(precision: Any, _: torch.device) -> Any:
    """Sets what the passes would run in on a GPU; torch's own default for convolutions there is TF32."""
    return float32_products(precision, torch.device("cuda"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correction, "ROUNDS", 3)
    monkeypatch.setattr(correction, "BATCH", 4)
    monkeypatch.setattr(correction, "IMAGES", 64)
    monkeypatch.setattr(many_paths, "MOST_IN_TURN", 1)
    for module in (
        "llpf_fast.correct.correction",
        "llpf_fast.correct.stacked_correction",
        "benchmarks.cases.correction",
    ):
        monkeypatch.setattr(f"{module}.float32_products", as_on_a_gpu)


IEEE = {"arithmetic": "convolutions ieee, products ieee", "runs": "called"}


@pytest.mark.usefixtures("small")
def test_both_sides_of_a_correction_run_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = correction.prepare("none", 0.0, CPU, 1)
    assert [one["how"] for one in check(prepared, "correction").values()] == [IEEE, IEEE]
    # Replays of the one beside calls of the other.
    prepared = correction.prepare("none", 0.0, CPU, 1)
    ours: Any = prepared.contenders[OURS].calls[0]
    ours.correction.replay(lambda step: step)
    with pytest.raises(WrongResultError, match=r"'runs': 'captured'.*'runs': 'called'"):
        check(prepared, "correction")
    # Torch's default arithmetic of the one beside float32 of the other.
    monkeypatch.setattr("benchmarks.cases.correction.float32_products", float32_products)
    with pytest.raises(WrongResultError, match=r"convolutions ieee.*convolutions tf32"):
        check(correction.prepare("none", 0.0, CPU, 1), "correction")


@pytest.mark.usefixtures("small")
def test_both_sides_of_many_paths_run_alike_and_a_part_is_scaled() -> None:
    prepared = many_paths.prepare(many_paths.Network("lenet5", (1, 28, 28), 61_706, 1, 2), 3, CPU, 1)
    assert [one["how"] for one in check(prepared, "many_paths").values()] == [IEEE, IEEE]
    case = next(many_paths.cases())
    row = figures(case, prepared, {OURS: Times([6.0]), throughput.IN_TURN: Times([4.0])})
    assert row["units"] == {OURS: 6, throughput.IN_TURN: 2}
    assert (row["time_us"]["median"], row["slower"][throughput.IN_TURN]["median"]) == (1e6, 2.0)
    shown = throughput.table([row | {"op": "many_paths", "size": "LeNet5", "variant": "3 paths"}])
    assert "1 of the 3 paths" in shown[-1]


def test_contenders_that_say_nothing_are_compared_with_none() -> None:
    ways = [None, lambda: {"runs": "called"}, None, lambda: {"runs": "called"}]
    check(Prepared({str(i): Contender([], lambda: 0.0, 0.0, way) for i, way in enumerate(ways)}), "case")


def test_a_graph_is_not_timed_beside_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both must run alike; of other contenders the row says how each was timed."""
    case = next(many_paths.cases())
    for said, unlike in ((dict, True), (None, False)):
        names = (OURS, throughput.IN_TURN)
        prepared = Prepared({name: Contender([], lambda: 0.0, 0.0, said) for name in names})
        case = replace(case, prepare=lambda *_, prepared=prepared: prepared)
        times = {name: Times([1.0], way=way) for name, way in zip(names, ("graph of 20", "call by call"), strict=True)}
        monkeypatch.setattr(runner, "_times", lambda *_, times=times: times)
        with pytest.raises(WrongResultError, match="not timed alike") if unlike else nullcontext():
            row = runner.row(case, CPU, False, 1, 0.0, quick=True)
            assert row["timed_as"][throughput.IN_TURN] == "call by call"


def test_a_gpu_has_three_numbers_of_paths() -> None:
    on_a_gpu = [case.variant for case in many_paths.cases() if case.size == "LeNet5" and "cuda" in case.devices]
    assert on_a_gpu == ["1 path", "8 paths", "64 paths"]


@pytest.mark.usefixtures("small")
def test_one_launch_that_fell_back_is_not_timed_as_one() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 10))
    with pytest.warns(UserWarning, match="cuda_graph is while"):
        run = correction.Iterations(network, torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64), "none", 0.0, "while")
    with pytest.raises(LLPFError, match="fell back"):
        run.watched()
