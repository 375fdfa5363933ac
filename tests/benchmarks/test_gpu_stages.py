"""The stages of a call on a GPU, their rows and the tables made of them, without a GPU."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import counters, environment, report, rows, sanitizer, times
from benchmarks.harness import run
from benchmarks.harness.case import WrongResultError


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("echo 5 checks, 0 failed", "passed"),
        ("echo FAILED tick, p; echo 5 checks, 1 failed; exit 1", "failed"),
        ("kill -SEGV $$", "failed"),
        ("echo no NVIDIA GPU; exit 3", "skipped"),
    ],
)
def test_the_program_alone(tmp_path: Path, text: str, result: str) -> None:
    row = sanitizer.one(script(tmp_path / "program", text), "none", "")
    assert row["result"] == result
    assert result != "failed" or "FAILED tick" in row["why"] or "status -11" in row["why"]


def test_a_program_without_an_end_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitizer, "LONGEST", {"while": 0.2})
    row = sanitizer.one(script(tmp_path / "program", "exec sleep 60"), "none", "while")
    assert row == {"result": "failed", "why": "no end after 0.2 s"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("echo ========= ERROR SUMMARY: 0 errors", "passed"),
        ("echo ========= Invalid __global__ write of size 4; exit 9", "failed"),
        ("echo ========= Error: Device not supported; exit 1", "skipped"),
        ("exit 3", "failed"),
    ],
)
def test_the_program_under_a_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, result: str) -> None:
    checker = script(tmp_path / "compute-sanitizer", text)
    monkeypatch.setattr(sanitizer, "cuda_tool", lambda name: str(checker))
    assert sanitizer.one(tmp_path / "program", "racecheck", "padded")["result"] == result


@pytest.mark.parametrize(
    ("device", "status", "argument"), [("cuda", 1, ["all", "rows", "while"]), ("cpu", 0, ["counter_randint"])]
)
def test_a_program_that_finds_no_gpu_is_a_failure_on_one_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, status: int, argument: list[str]
) -> None:
    program, to = script(tmp_path / "program", "echo no NVIDIA GPU; exit 3"), tmp_path / "rows.jsonl"
    given = ["--program", str(program), "--tool", "none", "--device", device, "--to", str(to)]
    monkeypatch.setattr("sys.argv", ["sanitizer", *given])
    assert sanitizer.main() == status
    assert [row["cases"] for row in rows.read(to)] == argument


def test_counters_are_one_row_a_kernel_and_a_refusal_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = """==PROF== Connected to process 7
"ID","Process ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","7","chunk_moments(Streams)","gpu__time_duration.sum","us","12.5"
"0","7","chunk_moments(Streams)","launch__registers_per_thread","register/thread","64"
"1","7","write_chunks(Streams)","gpu__time_duration.sum","us","20.1"
"""
    assert counters.table(said) == [
        {"result": "profiled", "kernel": "chunk_moments", "duration": "12.5 us", "registers": "64 register/thread"},
        {"result": "profiled", "kernel": "write_chunks", "duration": "20.1 us"},
    ]
    ncu = script(tmp_path / "ncu", "echo '==ERROR== Failed to initialize the profiler: LibraryNotLoaded'; exit 1")
    monkeypatch.setattr(counters, "cuda_tool", lambda name: str(ncu))
    to = tmp_path / "counters.jsonl"
    monkeypatch.setattr("sys.argv", ["counters", "--device", "cuda", "--to", str(to)])  # as run.sh calls every stage
    assert counters.main() == 0
    (row,) = rows.read(to)
    assert row["result"] == "skipped"
    assert "LibraryNotLoaded" in row["why"]


def test_a_wrong_or_failing_case_is_a_row_and_the_others_are_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised = [WrongResultError("wrong"), RuntimeError("CUDA error: an illegal access\nmore")]

    def timed(*case: Any, **given: Any) -> dict[str, Any]:
        if raised:
            raise raised.pop(0)
        return {"time_us": {"median": 1.0, "q1": 1.0, "q3": 1.0}}

    monkeypatch.setattr(run, "row", timed)
    monkeypatch.setattr(times, "SMALL_SIZES", ("LeNet5",))
    to = tmp_path / "times.jsonl"
    given = argparse.Namespace(
        backend="eager", device="cpu", to=to, tick="auto", ops=["tick_", "sgd_"], limit=0.1, skip=0
    )
    assert not times.run(given)
    found = [(row["op"], row["cache"], row["result"]) for row in rows.read(to)]
    assert found[:3] == [("tick_", "warm", "wrong"), ("tick_", "cold", "failed"), ("tick_", "warm", "timed")]
    assert len(found) == 6
    to.unlink()
    assert times.run(given)
    given.backend = "cuda"
    assert not times.run(given)


def test_a_case_without_an_end_is_a_row_and_a_fault_costs_no_other_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anew: list[int] = []

    def timed(*case: Any, **given: Any) -> dict[str, Any]:
        while not anew:
            time.sleep(0.01)
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(run, "row", timed)
    monkeypatch.setattr(times, "SMALL_SIZES", ("LeNet5",))
    monkeypatch.setattr(times, "LONGEST", {"cpu": 2.0})
    monkeypatch.setattr(times, "lost", lambda device: len(anew) == 1)
    monkeypatch.setattr(times, "anew", anew.append)
    to = tmp_path / "times.jsonl"
    given = argparse.Namespace(backend="eager", device="cpu", to=to, tick="auto", ops=["sgd_"], limit=0.1, skip=0)
    assert not times.run(given)
    assert anew == [1, 1]  # without an end, and as that did not stop this process, once more for the fault
    assert rows.read(to)[0]["why"] == "no end after 2 s"
    to.unlink()
    given.skip = 1
    times.run(given)
    assert [row["cache"] for row in rows.read(to)] == ["cold"]


def test_the_commit_is_not_made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = environment.commit()
    assert len(here["commit"]) == 40
    assert here["changed"] in (True, False)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    assert environment.commit() == {"commit": "unknown", "changed": None}
    (tmp_path / "build/carry").mkdir(parents=True)
    for state, changed in (("changed", True), ("unchanged", False)):
        (tmp_path / "build/carry/commit").write_text(f"abc {state}\n")
        assert environment.commit() == {"commit": "abc", "changed": changed}


def test_a_torn_last_row_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"stage": "times", "op": "tick_"}\n{"stage": "times", "o')
    assert rows.read(file) == [{"stage": "times", "op": "tick_"}]


TIMED = {"stage": "times", "result": "timed", "tick": "auto", "dtype": "float32", "variant": "", "backend": "cuda"}
ROWS: list[dict[str, Any]] = [
    {"stage": "environment", "device": "NVIDIA Example", "driver": "1", "torch": "2", "triton": "3", "python": "3.12"}
    | {"commit": "abc", "changed": None, "sources": "f00", "date": "today"},
    {"stage": "run", "name": "times", "seconds": 9.5, "status": 137, "result": "killed after its 9 s"},
    {"stage": "program", "tool": "none", "cases": "all", "result": "failed", "why": "FAILED a | b", "seconds": 1.0},
    TIMED
    | {"op": "tick_", "size": "100M", "cache": "cold", "time_us": {"median": 1234.0, "q1": 1.0, "q3": 2.0}}
    | {"share_of_copy": {"median": 0.5}, "gb_per_s": 7.0, "read_gb_per_s": 1.0, "triad_gb_per_s": 2.0}
    | {"copy_gb_per_s": 3.0, "slower": {"other": {"median": 1.5}}},
    {"stage": "checks", "check": "launches", "backend": "cuda", "result": "passed", "found": {"tick_": 1}},
    {"stage": "checks", "check": "streams", "backend": "cuda", "result": "failed", "why": "bits"},
]


def test_a_call_becomes_tables() -> None:
    text = report.markdown("first", ROWS)
    assert text.startswith("# NVIDIA Example: first call\n\nDriver 1, torch 2, triton 3, Python 3.12; commit abc (with")
    assert "| times | killed after its 9 s | 9.5 |" in text
    assert "| none | all | failed |  | FAILED a / b | 1 |" in text
    assert "| tick_ | 100M | float32 |  | auto | cuda | cold | 1234 (1–2) | 7 | 0.50 | 1, 2, 3 | other 1.5 |" in text
    assert "| cuda | failed | 1 |" in text
    assert "| streams |  | cuda | failed | bits |" in text
    assert "| launches |  | cuda | {'tick_': 1} |" in text


def test_of_many_rows_the_ends_are_shown() -> None:
    ticks = [{"stage": "networks", "what": "tick", "tick": i} for i in range(100)]
    text = report.markdown("second", [*ROWS[:1], *ticks, {"stage": "networks", "what": "search", "ended": "arrived"}])
    assert "## Networks: tick\n\n| tick |\n| --- |\n| 0 |" in text
    assert "| 19 |\n| … |\n| 80 |" in text
    assert "## Networks: search\n\n| ended |\n| --- |\n| arrived |" in text


def test_expectations_are_measured_only_where_results_are_committed(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    assert report.expectations(tmp_path).count(f"| {report.NOT_MEASURED} |") == len(report.EXPECTATIONS)
    (tmp_path / "nvidia-example").mkdir()
    rows.write(tmp_path / "nvidia-example/first.jsonl", ROWS)
    table = report.expectations(tmp_path)
    assert "measured: nvidia-example |" in table
    assert "| 0.72 ms | ≥ 0.9 of the copy | 1.23 ms, 0.50 of the copy |" in table
    assert table.count(report.NOT_MEASURED) == len(report.EXPECTATIONS) - 1
    said: list[dict[str, Any]] = [
        {"stage": "searches", "what": "iteration", "capture": "auto", "milliseconds": 3.0},
        {"stage": "searches", "what": "iteration", "capture": "while", "milliseconds": 2.0},
        {"stage": "searches", "what": "search", "capture": "while", "result": "failed"},
        {"stage": "searches", "what": "search", "capture": "auto", "ended": "arrived", "prepare_seconds": 7.0}
        | {"find_seconds": 1.5, "seconds": 9.9},
        {"stage": "searches", "what": "certificate", "capture": "auto", "verdict": "connected"},
        {"stage": "networks", "what": "search", "ended": "time was up", "seconds": 90.0},
    ]
    rows.write(tmp_path / "nvidia-example/second.jsonl", said)
    table = report.expectations(tmp_path)
    for cell in ("3 ms", "1.5", "arrived in 8.5 s, connected", "time was up in 90 s, no certificate"):
        assert f"| {cell} |" in table


def test_the_files_of_a_call_become_committed_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, results, page = tmp_path / "call", tmp_path / "results", tmp_path / "gpu.md"
    folder.mkdir()
    results.mkdir()
    page.write_text(f"before\n{report.BEGIN}\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", results)
    monkeypatch.setattr(report, "DOCS", page)
    monkeypatch.setattr("sys.argv", ["report", "first", str(folder)])
    rows.write(folder / "stages.jsonl", [ROWS[0] | {"device": "CPU: Example"}])
    assert report.main() == 1
    assert list(results.iterdir()) == []
    rows.write(folder / "stages.jsonl", ROWS)
    rows.write(folder / "resnet18-metrics.jsonl", [{"tick": 1}])
    assert report.main() == 0
    assert rows.read(results / "nvidia-example/first.jsonl") == ROWS
    assert (results / "nvidia-example/first.md").read_text() == report.markdown("first", ROWS)
    text = page.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n|")
    assert text.endswith(f"|\n{report.END}\nafter\n")
    assert "1.23 ms, 0.50 of the copy" in text


def test_the_page_has_the_table_of_what_is_committed() -> None:
    text = report.DOCS.read_text(encoding="utf-8")
    assert report.fill(text, report.expectations()) == text, "python -m benchmarks.gpu.report"
    assert report.fill(text, "other") != text
