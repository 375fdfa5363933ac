"""Figures, files and the command; what is measured is not tested here, except that it is plausible (slow)."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import suite
from benchmarks.cases import registry
from benchmarks.cases.correction import PASSES
from benchmarks.goals import Goal
from benchmarks.harness import clock, environment, report, stream
from benchmarks.harness.case import OURS, Case, Contender, Cost, Prepared, WrongResultError
from benchmarks.harness.clock import Times, measure, quartiles, ratio
from benchmarks.harness.run import figures
from benchmarks.studies import kernel_steps
from llpf_fast.cli import bench
from llpf_fast.cli.main import main

CPU = torch.device("cpu")


def case_of(cost: Cost) -> Case:
    nothing = lambda device, pool: Prepared({})
    return Case("op_", "size", 1000, "float32", "", cost, nothing)


def times(**samples: list[float]) -> dict[str, Times]:
    return {name.replace("_", " "): Times(values) for name, values in samples.items()}


def test_calls_go_through_the_pool_in_turn_whoever_calls() -> None:
    called: list[tuple[str, int]] = []
    member = lambda name, i: lambda: called.append((name, i))
    pools = {name: [member(name, i) for i in range(3)] for name in ("a", "b")}
    measure(pools, 0.0, rounds=2)
    assert [i for _, i in called] == [i % 3 for i in range(len(called))]
    assert {name for name, _ in called} == {"a", "b"}


def test_every_contender_has_one_sample_a_round() -> None:
    found = measure({"a": [lambda: None], "b": [lambda: None]}, 0.0)
    assert {name: len(of.samples) for name, of in found.items()} == {"a": clock.MIN_ROUNDS, "b": clock.MIN_ROUNDS}
    assert all(sample > 0 for of in found.values() for sample in of.samples)


def test_a_warm_sample_follows_calls_of_its_own_contender() -> None:
    called: list[str] = []

    def call(name: str) -> None:
        called.append(name)
        time.sleep(clock.SETTLE)  # so that one call settles the caches and the next one is the sample

    pools = {name: [partial(call, name)] for name in ("a", "b")}
    for warm, together in ((True, 2), (False, 1)):
        called.clear()
        measure(pools, 0.0, rounds=3, warm=warm)
        runs = [len(list(run)) for _, run in itertools.groupby(called[4:])]
        assert runs == [together] * 6


def test_quartiles_and_paired_ratios() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0}
    assert quartiles([7.0]) == {"median": 7.0, "q1": 7.0, "q3": 7.0}
    assert ratio([2.0, 40.0, 6.0], [1.0, 10.0, 3.0])["median"] == 2.0


def test_share_of_the_floor_is_reads_and_triads_of_the_same_round() -> None:
    n = 1000
    streams = [(torch.zeros(n), torch.zeros(n))]
    prepared = Prepared({OURS: Contender([], lambda: 0.0, 0.0), "other": Contender([], lambda: 0.0, 0.0)}, streams)
    # Two words read in 1 s, three words of a triad in 2 s; the slower of two ways to read does not count.
    found = times(read_a=[1.0, 2.0], read_b=[1.5, 2.5], triad_a=[2.0, 4.0], copy=[1.0, 1.0], other=[20.0, 16.0])
    found[OURS] = Times([4.0, 8.0])
    row = figures(case_of(Cost(touched=12 * n, read=8 * n, triad=12 * n, flops=1)), prepared, found)
    assert row["share_of_floor"] == {"median": 0.75, "q1": 0.75, "q3": 0.75}
    assert row["measured_by"] == {"read": "read a", "triad": "triad a"}
    assert row["slower"]["other"]["median"] == pytest.approx(3.5)
    assert row["floor_bytes"] == 20 * n
    assert row["time_us"]["median"] == 6e6
    assert row["read_gb_per_s"] == pytest.approx(8 * n / 1.5 / 1e9, rel=1e-3)
    assert row["copy_gb_per_s"] == pytest.approx(4 * n / 1.0 / 1e9, rel=1e-3)
    half = figures(case_of(Cost(touched=8 * n, read=4 * n, triad=6 * n, flops=1)), prepared, found)
    assert half["share_of_floor"]["median"] == pytest.approx(0.375)


def test_a_time_may_be_a_sum_and_of_several_units() -> None:
    contenders = {name: Contender([], lambda: 0.0, 0.0) for name in (OURS, "without", "base")}
    prepared = Prepared(contenders, units=2, time_of={OURS: 1, "without": -1})
    found = {OURS: Times([6.0]), "without": Times([2.0]), "base": Times([8.0])}
    row = figures(case_of(Cost(1, 0, 0, 1)), prepared, found)
    assert row["time_us"]["median"] == 2e6
    assert row["slower"] == {"base": {"median": 2.0, "q1": 2.0, "q3": 2.0}}
    assert "share_of_floor" not in row


def test_goals_are_bounds() -> None:
    least = Goal("", {"op": "x"}, lambda row: row["v"], 0.9)
    most = Goal("", {"op": "x"}, lambda row: row["v"], 35, at_most=True)
    assert (least.met(0.9), least.met(0.89), most.met(35), most.met(36)) == (True, False, True, False)
    rows = [{"op": "x", "v": 1.0}, {"op": "y", "v": 2.0}, {"op": "x", "v": None}]
    assert [value for _, value in least.of(rows)] == [1.0]


def test_rows_that_others_disturbed_are_marked() -> None:
    where = environment.record(CPU) | {"load_after": 0.0}
    rows = [row("quiet", 1000, processors_had=0.97), row("busy", 1000, processors_had=0.6)]
    text = report.markdown({"environment": where, "notes": [], "rows": rows})
    assert "1 of 2 rows were disturbed" in text
    assert "| busy! |" in text
    assert "| quiet |" in text
    assert report.line(rows[1]).count("(disturbed)") == 1 - report.line(rows[0]).count("(disturbed)")


def test_pools_are_larger_than_the_caches() -> None:
    assert environment.pool_members(1000) * 1000 >= 4 * environment.cache_bytes()
    assert environment.pool_members(1 << 40) == 1


def test_loops_built_with_fast_math_leave_the_rest_of_the_process_its_subnormals() -> None:
    stream.streams(torch.zeros(8), torch.zeros(8))
    assert float(torch.full((8,), 1e-40)[0] * 1) > 0


def test_streams_leave_their_tensors_alone() -> None:
    p, d = torch.randn(1003), torch.randn(1003)
    before = p.clone(), d.clone()
    for call in (*stream.streams(p, d).values(), stream.copies(p)):
        call()
    assert torch.equal(p, before[0])
    assert torch.equal(d, before[1])


def test_a_run_writes_its_rows_as_json_and_markdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "MAX_ROUNDS", 5)
    options = suite.Options(CPU, quick=True, only="LeNet5 float32 moments_in", out=tmp_path)
    said: list[str] = []
    suite.run(options, said.append)
    written = json.loads((tmp_path / "bench.json").read_text())
    (row,) = written["rows"]
    assert (row["op"], row["size"], row["variant"], row["threads"]) == ("tick_", "LeNet5", "moments_in", 1)
    assert row["gate"][OURS]["error"] <= row["gate"][OURS]["allowed"]
    assert row["time_us"]["q1"] <= row["time_us"]["median"] <= row["time_us"]["q3"]
    assert written["environment"]["commit"]
    assert {"torch", "kernels", "machine", "load_before", "load_after"} <= written["environment"].keys()
    text = (tmp_path / "bench.md").read_text()
    assert "## tick_" in text
    assert re.search(r"\| LeNet5!? \| float32 \| moments_in \|", text)
    assert any(line.startswith("tick_ LeNet5 float32 moments_in") for line in said)


def test_a_wrong_result_costs_no_other_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "MAX_ROUNDS", 5)
    right = next(case for case in registry() if case.name == "tick_ LeNet5 float32 moments_in")
    bad = Prepared({OURS: Contender([lambda: None], lambda: 1.0, 0.5)})
    wrong = replace(right, variant="wrong", prepare=lambda device, pool: bad)
    monkeypatch.setattr(suite, "chosen", lambda tier, only: [wrong, right])
    with pytest.raises(WrongResultError, match="tick_ LeNet5 float32 wrong: llpf_fast is wrong: error 1"):
        suite.run(suite.Options(CPU, quick=True, out=tmp_path), lambda text: None)
    written = json.loads((tmp_path / "bench.json").read_text())
    assert [row["variant"] for row in written["rows"]] == ["moments_in"]
    assert any("float32 wrong" in note for note in written["notes"])


def row(size: str, parameters: int, **more: object) -> dict[str, object]:
    spread = lambda v: {"median": v, "q1": v, "q3": v}
    return {
        **{"op": "tick_", "size": size, "dtype": "float32", "variant": "", "cache": "cold", "threads": 1},
        **{"backend": "cpp", "parameters": parameters, "floor_bytes": 20 * parameters, "gb_per_s": 1.0},
        **{"time_us": spread(parameters / 1e3), "floor_us": spread(parameters / 2e3), "share_of_floor": spread(0.5)},
        **{"slower": {}, "times_us": {}, "read_gb_per_s": 1.0, "triad_gb_per_s": 1.0, "copy_gb_per_s": 9.0},
        **more,
    }


def test_goals_and_plot_come_with_enough_rows(tmp_path: Path) -> None:
    where = environment.record(CPU) | {"load_after": 0.0}
    rows = [row("LeNet5", 61_706), row("1Mi", 1 << 20), row("100M", 10**8)]
    result = {"environment": where, "notes": ["a note"], "rows": rows}
    names = [path.name for path in report.write(result, tmp_path)]
    assert names == ["bench.json", "bench.md", "bandwidth.png"]
    text = (tmp_path / "bench.md").read_text()
    assert "| tick_, 100M, 1 thread: share of the 5-word floor | ≥ 0.93 | 0.5 | **missed** |" in text
    assert "- a note" in text
    assert not report.plot(result | {"rows": rows[:2]}, tmp_path / "none.png")


def test_a_large_run_beside_adds_its_sizes_to_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = environment.record(CPU) | {"load_after": 0.0}
    drawn: list[list[str]] = []
    monkeypatch.setattr(report, "plot", lambda result, to: drawn.append([row["size"] for row in result["rows"]]))
    result = {"environment": where, "notes": [], "rows": [row("LeNet5", 61_706)]}
    for machine in (where["machine"], "another"):
        large = {"environment": where | {"machine": machine}, "rows": [row("1B", 10**9)]}
        (tmp_path / "large.json").write_text(json.dumps(large))
        report.write(result, tmp_path)
    assert drawn == [["LeNet5", "1B"], ["LeNet5"]]
    assert len(json.loads((tmp_path / "bench.json").read_text())["rows"]) == 1


def test_the_command_lists_cases_and_refuses_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["bench", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(registry())
    for arguments, said in (
        (["--only", "no such case"], "no case was timed"),
        (["--threads", "two"], "--threads must be positive whole numbers"),
        (["--compare", "no-such-commit"], "no such commit"),
    ):
        assert main(["bench", *arguments]) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site-packages/llpf_fast/cli/bench.py"))
    assert main(["bench"]) == 2
    error = capsys.readouterr().err
    assert "part of the repository, not of the installed package" in error
    assert error.count("\n") == 1


def test_cases_too_large_for_the_memory_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.harness import run as runner

    monkeypatch.setattr(runner, "available_bytes", lambda _: 1 << 20)
    said: list[str] = []
    large = [case for case in registry() if case.size == "1B"]
    assert list(runner.rows(large, CPU, seconds=0.1, threads=(1,), quick=True, notify=said.append)) == []
    assert "skipped, needs" in said[0]


@pytest.mark.skipif(not stream.compiled(), reason="no C++ compiler")
def test_the_steps_of_the_kernels_compile_with_them() -> None:
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, "-std=c++20", "-mavx2", "-mfma", "-mf16c", "-fsyntax-only", str(kernel_steps.SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_speed_is_of_the_right_order() -> None:
    """Half of what the goals want, so that a busy machine passes and a lost kernel does not."""
    from benchmarks.harness.run import rows

    wanted = [case for case in registry() if (case.size, case.variant) == ("LeNet5", "")]
    found = {
        row["op"]: row for row in rows(wanted, CPU, seconds=2.0, threads=(1,), quick=True) if row["cache"] == "warm"
    }
    assert found["tick_"]["slower"]["per-layer eager"]["median"] > 30
    assert found["sgd_"]["slower"]["torch.optim.SGD(fused)"]["median"] > 1.5
    assert found["correction"]["slower"][PASSES]["median"] > 0.8
