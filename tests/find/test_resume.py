"""kill -9 at random moments, resume, and get the very path of an uninterrupted run."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from llpf_fast import LLPFError
from llpf_fast.path import LowLossPath, RunDirectory

from .conftest import quick

WORKER = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from llpf_fast.find import CorrectionSettings, PathFinder
from tests.find.conftest import network, quick
saved = torch.load(sys.argv[1])
module = torch.nn.Sequential(*network(), torch.nn.Dropout(0.2))
out = Path(sys.argv[2])
settings = quick(max_ticks=150, arrival_every=1000,
                 correction=CorrectionSettings(threshold=0.05, min_rounds=5, max_rounds=8, lr=0.05))
finder = PathFinder(module, saved["a"], saved["b"], settings=settings, train=saved["data"], out=out,
                    resume=out.exists(), optimizer=eval(sys.argv[3]))
print("ready", flush=True)
finder.run()
print("done", flush=True)
"""


def start(inputs: Path, out: Path, optimizer: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER, str(inputs), str(out), optimizer]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=root)


def files(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((out / "waypoints").iterdir())}


@pytest.mark.parametrize(
    ("optimizer", "planned"),
    [("None", 3), ("lambda ps: torch.optim.AdamW(ps, lr=0.005)", 1)],
    ids=["fused-sgd", "adamw"],
)
def test_killed_and_resumed_equals_uninterrupted(endpoints, digits, tmp_path, optimizer, planned) -> None:
    inputs = tmp_path / "inputs.pt"
    torch.save({"a": endpoints[0], "b": endpoints[1], "data": digits}, inputs)
    whole = start(inputs, tmp_path / "whole", optimizer)
    assert whole.communicate()[0].split() == ["ready", "done"]

    chance = random.Random(7)
    out, kills = tmp_path / "killed", 0
    for _ in range(20):
        process = start(inputs, out, optimizer)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if kills < planned:
            time.sleep(chance.uniform(0.02, 0.5))
            process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            break
        kills += 1
        RunDirectory.open(out)
    assert process.returncode == 0
    assert kills == planned, "the run was over before it could be killed: make it longer"
    assert files(out) == files(tmp_path / "whole")
    a, b = LowLossPath(out), LowLossPath(tmp_path / "whole")
    assert a.metrics() == b.metrics()


def test_resume_refuses_other_settings_or_endpoints(finder, endpoints, tmp_path) -> None:
    finder(tmp_path / "run", settings=quick(max_ticks=5)).run()
    with pytest.raises(LLPFError, match="settings differ"):
        finder(tmp_path / "run", settings=quick(max_ticks=6), resume=True)
    with pytest.raises(LLPFError, match="start_sha256 differ"):
        finder(
            tmp_path / "run",
            start=endpoints[1],
            destination=endpoints[0],
            settings=quick(max_ticks=5),
            resume=True,
        )


def test_resuming_a_complete_run_changes_nothing(finder, tmp_path) -> None:
    first = finder(tmp_path / "run", settings=quick(max_ticks=5)).run()
    before = files(tmp_path / "run")
    again = finder(tmp_path / "run", settings=quick(max_ticks=5), resume=True).run()
    assert (again.ticks, again.arrived, again.waypoints) == (first.ticks, first.arrived, first.waypoints)
    assert files(tmp_path / "run") == before


def test_a_run_that_died_before_its_first_waypoint_resumes(finder, tmp_path) -> None:
    whole = finder(tmp_path / "whole", settings=quick(max_ticks=3)).run()
    finder(tmp_path / "run", settings=quick(max_ticks=3))
    for waypoint in (tmp_path / "run" / "waypoints").iterdir():
        waypoint.unlink()
    (tmp_path / "run" / "waypoints.jsonl").unlink()
    finder(tmp_path / "run", settings=quick(max_ticks=3), resume=True).run()
    assert files(tmp_path / "run") == files(whole.folder)


def test_a_changed_environment_warns(finder, tmp_path) -> None:
    finder(tmp_path / "run", settings=quick(max_ticks=3))
    text = (tmp_path / "run" / "run.yaml").read_text()
    (tmp_path / "run" / "run.yaml").write_text(text.replace(f"torch: {torch.__version__}", "torch: 1.0.0"))
    with pytest.warns(UserWarning, match="torch was '1.0.0'.*need not be bit-identical|bit-identical.*torch was"):
        finder(tmp_path / "run", settings=quick(max_ticks=3), resume=True)


def test_a_kill_between_the_destination_and_the_end_resumes_to_the_same_path(finder, tmp_path, monkeypatch) -> None:
    whole = finder(tmp_path / "whole").run()
    assert whole.arrived
    searching = finder(tmp_path / "run")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            searching.run()
    del searching
    again = finder(tmp_path / "run", resume=True).run()
    assert (again.arrived, again.ticks, again.sgd_steps) == (True, whole.ticks, whole.sgd_steps)
    assert files(tmp_path / "run") == files(tmp_path / "whole")
