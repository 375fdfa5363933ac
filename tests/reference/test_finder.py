"""``PathFinder`` itself, its training replaced by the fixed changes: the waypoints on disk are the oracle's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llpf_fast.correct.correction import CorrectionResult
from llpf_fast.find import PathFinder, finder
from llpf_fast.flat import FlatParameters
from llpf_fast.path import RunDirectory

from .engine import settings_of
from .networks import Zoo, as_state, zoo
from .settings_table import Case
from .test_engine import CHANGES, CUMULATIVE, GOAL, IN_TURN, NAMES, SPHERES, START, TICKS, Comparison, oracle_moments


class Standstill:
    """In place of the correction: adds the next change."""

    keeps_momentum = False
    momentum_buffer = None

    def __init__(self, flat: FlatParameters) -> None:
        self._flat = flat
        self._done = 0

    def scale_lr(self, scale: Tensor) -> None:
        assert scale.shape == (len(self._flat.table),)

    def run(self, round_number: int, **_: Any) -> CorrectionResult:
        self._flat.data.add_(self._flat.flatten(as_state(CHANGES[self._done], self._flat.module)))
        self._done += 1
        return CorrectionResult(1, 0.0, True)


@pytest.mark.parametrize(
    "case",
    [
        Case(stages=CUMULATIVE),
        Case(dialect="authors", stages=IN_TURN, attention="values"),
        Case(variance="blend"),
        Case(mode="m2o", dialect="authors", join_bias=True),
        Case(mode="norm-sphere", stages=IN_TURN),
    ],
    ids=["m2m, stages", "m2m, authors, stages", "m2m, blend", "m2o, authors", "norm sphere, stages"],
)
def test_waypoints_on_disk_are_the_oracles(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Zoo, "forward", lambda self, x: x)
    monkeypatch.setattr(finder, "make_correction", lambda task, flat, *_: Standstill(flat))
    settings = settings_of(case, SPHERES.get(case.mode, {}), TICKS).changed(arrival={"every": 10 * TICKS})
    module = zoo(torch.float32)
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    PathFinder(
        module,
        as_state(START, module),
        as_state(GOAL, module) if case.mode == "m2m" else None,
        settings=settings,
        train=(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)),
        loss_fn=lambda output, target: output.sum() * 0.0,
        out=tmp_path / "run",
    ).run()
    moments = oracle_moments(case)
    comparison = Comparison(case, moments, torch.float32)
    run = RunDirectory.open(tmp_path / "run")
    recorded = run.waypoints()
    # Every loss is 0, so what can arrive does with the last tick.
    assert len(recorded) == TICKS + 1 + (settings.goal != "none")
    for tick, moment in enumerate(moments, 1):
        state = recorded[tick].load()
        got = np.concatenate([state[name].double().numpy().ravel() for name in NAMES])
        comparison.values("waypoint", tick, got, moment.waypoint, moment.growth[0] * moment.growth[1], roundings=5)
        assert all(torch.equal(state[name], buffer) for name, buffer in buffers.items())
    comparison.check()
