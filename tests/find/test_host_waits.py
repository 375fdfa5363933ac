"""How often a search waits for a GPU, counted on a CPU: for the gate, for a loss, once a tick, and for no more."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llpf_fast.batches.data import TensorData
from llpf_fast.batches.fixed_samples import FixedSamples
from llpf_fast.batches.statistics import reestimate
from llpf_fast.find import CorrectionSettings, PathFinder, StepSettings
from llpf_fast.find.screening import BatchedScreening, ScreeningEvaluator
from llpf_fast.find.task import make_task
from llpf_fast.flat import FlatParameters
from llpf_fast.path import polyline
from tests.host_waits import host_waits

from .conftest import State, network, quick

ADAPTIVE: dict[str, Any] = {
    "pacing": {"kind": "adaptive", "margin": 0.3, "midpoint": True, "iterate_average": 2, "early_reject": 1.5},
    "step": StepSettings(relative=0.25),
    "correction": CorrectionSettings(threshold=0.05, window=5, max_steps=20, lr=0.1, momentum=0.5),
    "arrival": {"every": 2},
    "spheres": {"variance": "blend"},
}


@pytest.mark.parametrize("changes", [ADAPTIVE, {"mode": "m2o"}], ids=["adaptive", "m2o"])
def test_a_replayed_search_reads_what_it_decides_by_and_nothing_else(
    tmp_path: Path,
    digits: tuple[Tensor, Tensor],
    endpoints: tuple[State, State],
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(polyline, "_between", polyline._between_without_reading)  # as on a GPU
    given = endpoints[:1] if "mode" in changes else endpoints
    settings = quick(max_ticks=6, evaluation_batch_size=2000, **changes)
    finder = PathFinder(network(), *given, settings=settings, train=digits, out=tmp_path / "run")
    finder._correction.replay(lambda step: step)
    calls = Counter[str]()
    loss, run = finder._screening.loss, finder._correction.run

    def counted_loss(*given: Any) -> float:
        calls["find/screening.py"] += 1
        return loss(*given)

    def counted_run(*given: Any, **named: Any) -> Any:
        calls["correct/graphs.py"] += 1
        return run(*given, **named)

    # It reads every bound, on a chord that passed all evaluations.
    monkeypatch.setattr(finder._chords, "suspect", lambda *_: None)
    monkeypatch.setattr(finder._screening, "loss", counted_loss)
    monkeypatch.setattr(finder._correction, "run", counted_run)
    with host_waits() as waits:
        finder.run()
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    # What is taken back is not measured.
    calls["find/search.py"] = sum("rolled_back" not in json.loads(line) for line in lines)
    files = Counter(wait.partition(":")[0] for wait in waits)
    assert files.pop("correct/snapshots.py") == 1  # before the capture
    if "mode" in changes:
        # The clock decides how often the host reads the gate.
        assert files.pop("correct/graphs.py") >= calls.pop("correct/graphs.py")
    assert files == +calls, waits


def in_batches(
    digits: tuple[Tensor, Tensor], size: int
) -> tuple[ScreeningEvaluator, BatchedScreening, FlatParameters, Tensor]:
    """Screens of 1,000 samples, and the losses of their batches alone, float64, as shares of the mean."""
    x, y = digits[0][:1000], digits[1][:1000]
    module = network()
    task = make_task(
        quick(screening={"samples": 1000}, evaluation_batch_size=size), module, (x, y), None, torch.device("cpu")
    )
    flat = FlatParameters(module)
    with torch.no_grad():
        losses = nn.functional.cross_entropy(module.eval()(x), y, reduction="none").double()
    return (
        ScreeningEvaluator(module, task),
        BatchedScreening(flat, task),
        flat,
        torch.stack([p.sum() / 1000 for p in losses.split(size)]),
    )


@pytest.mark.parametrize("size", [125, 1000])
def test_screening_reads_once_and_once_a_look(digits: tuple[Tensor, Tensor], size: int) -> None:
    screen, stacked, flat, parts = in_batches(digits, size)
    whole = float(parts.sum())
    for stop, reads, expected in ((math.inf, 1, whole), (2 * whole, 1000 // max(size, 500), whole)):
        with host_waits() as waits:
            mean = screen.loss(flat.data, {}, stop)
        assert len(waits) == reads, waits
        assert mean == pytest.approx(expected, rel=1e-6)
        with host_waits() as waits:
            two = stacked.losses([flat.data, flat.data], [{}, {}], [stop, stop])
        assert len(waits) == reads, waits
        assert two == pytest.approx([expected] * 2, rel=1e-6)
    # Given up at the first check, with the mean so far; a row that is not goes on.
    first = float(parts[: 500 // size or 1].sum() / (500 / 1000 if size < 500 else 1))
    assert screen.loss(flat.data, {}, whole / 2) == pytest.approx(first, rel=1e-6)
    two = stacked.losses([flat.data, flat.data], [{}, {}], [whole / 2, math.inf])
    assert two == pytest.approx([first, whole], rel=1e-6)


def test_statistics_are_reestimated_without_a_read() -> None:
    """A layer that is called twice a batch too: the share of the newest values is that of momentum None."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4)
    module = nn.Sequential(nn.Linear(3, 4), norm, nn.ReLU(), norm, nn.BatchNorm1d(4, momentum=0.3)).eval()
    other, x = copy.deepcopy(module), torch.randn(30, 3)
    samples = FixedSamples(TensorData(x, torch.zeros(30)), batch_size=10, device=torch.device("cpu"))
    with torch.no_grad(), host_waits() as waits:
        reestimate(module, samples)
    assert waits == []
    for layer in (other[1], other[4]):
        layer.reset_running_stats()
        layer.train()
        layer.momentum = None
    with torch.no_grad(), host_waits() as waits:
        for part in x.split(10):
            other(part)
    assert len(waits) == 9, "what this test counts"
    assert not any(m.training or m._forward_pre_hooks for m in module.modules())
    assert [m.momentum for m in module if isinstance(m, nn.BatchNorm1d)] == [0.1, 0.1, 0.3]
    assert all(torch.equal(a, b) for a, b in zip(module.buffers(), other.buffers(), strict=True))


def test_between_two_points_without_a_look_is_the_same() -> None:
    nan, inf = math.nan, math.inf
    a = torch.tensor([0.1, -3.0, nan, inf, inf, -inf, 2.0, 1e38])
    b = torch.tensor([0.7, -3.0, nan, inf, -inf, 1.0, nan, -1e38])
    for left, right in ((a, b), (a[:2], b[:2]), (a, a), (a.to(torch.int64), b.to(torch.int64)), (a + 1j, b + 2j)):
        expected = polyline._between(left, right, 0.3)
        value = polyline._between_without_reading(left, right, 0.3)
        torch.testing.assert_close(value.to(expected.dtype), expected, rtol=0, atol=0, equal_nan=True)
