"""Which contenders of a GPU are captured, flushed and how often each is timed, on a torch.cuda that keeps the books."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from benchmarks.cases import moments
from benchmarks.gpu import clock as gpu_clock
from benchmarks.harness import clock, run
from benchmarks.harness.case import Case
from benchmarks.harness.clock import MAX_ROUNDS, MIN_ROUNDS, measure_on_gpu

_mode = ["default"]


class Books:
    """In place of gpu/clock.py's clock: every event lasts what its call says, in microseconds."""

    captured: list[str] = []  # noqa: RUF012

    def __init__(self, device: torch.device) -> None:
        Books.captured.clear()

    def replay(self, run: Callable[[], object], calls: int) -> Callable[[], object]:
        name, microseconds = run()  # type: ignore[misc]
        if name == "never captured":
            raise RuntimeError("operation not permitted when stream is capturing")
        Books.captured.append(name)
        return lambda: (name, microseconds * calls)

    def events(self, run: Callable[[], object], *, flush: bool, repeats: int) -> list[float]:
        return [run()[1]] * repeats  # type: ignore[index]


def call(name: str, microseconds: float) -> Callable[[], object]:
    def called() -> tuple[str, float]:
        if name == "waits" and _mode[0] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return name, microseconds

    return called


@pytest.mark.parametrize("cold", [True, False])
def test_what_waits_is_timed_call_by_call(monkeypatch: pytest.MonkeyPatch, cold: bool) -> None:
    cuda = SimpleNamespace(synchronize=lambda: None, set_sync_debug_mode=lambda mode: _mode.__setitem__(0, mode))
    monkeypatch.setattr(gpu_clock, "Clock", Books)
    monkeypatch.setattr(clock.torch, "cuda", cuda)
    calls = {name: [call(name, us)] for name, us in (("op", 5.0), ("waits", 400.0), ("never captured", 70.0))}
    times = measure_on_gpu(calls, torch.device("cpu"), 10.0, cold=cold)
    assert Books.captured == ["op"]
    assert {name: round(1e6 * found.median, 6) for name, found in times.items()} == {
        "op": 5.0,
        "waits": 400.0,
        "never captured": 70.0,
    }
    assert {len(found.samples) for found in times.values()} == {MAX_ROUNDS}
    graph = f"graph of {1 if cold else gpu_clock.WARM_CALLS}"
    assert [found.way for found in times.values()] == [graph, "call by call", "call by call"]
    assert _mode == ["default"]
    # Equally many samples of all, however slow one is: ratios are taken round by round.
    calls["hours"] = [call("waits", 3.6e9)]
    times = measure_on_gpu(calls, torch.device("cpu"), 10.0, cold=cold)
    assert {len(found.samples) for found in times.values()} == {MIN_ROUNDS}


def test_a_flush_reads_more_than_the_level_2_cache_and_writes_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(L2_cache_size=1 << 12)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    flusher = gpu_clock.Clock(torch.device("cpu"))
    buffer = flusher._flusher
    before = buffer._version
    flusher.flush()
    assert buffer._version == before
    assert buffer.nbytes >= 2 * properties.L2_cache_size
    assert flusher._sum == buffer.numel()


def test_a_case_with_both_caches_is_timed_warm_and_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def row(case: Case, device: torch.device, cold: bool, pool: int, *others: object) -> dict[str, str]:
        asked.append((cold, pool > 1))
        return {}

    monkeypatch.setattr(run, "row", row)
    case = moments.case("LeNet5", caches=("warm", "cold"), threads=(1,))
    found = list(run.rows([case], torch.device("cpu"), seconds=0.1, threads=(1,), quick=True))
    assert [one["cache"] for one in found] == ["warm", "cold"]
    assert asked == [(False, False), (True, True)]
