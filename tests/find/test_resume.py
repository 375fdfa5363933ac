"""kill -9 at random moments, resume, and get the very path of an uninterrupted run."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

from llpf_fast import LLPFError
from llpf_fast.find import CorrectionSettings, StageSettings, StepSettings
from llpf_fast.path import LowLossPath, RunDirectory

from .conftest import quick

#: Imports once and forks a process for each line that it reads; a fork may be killed as any process.
NURSERY = """
import os, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from llpf_fast.find import CorrectionSettings, PathFinder
from tests.find.conftest import network, quick
saved = torch.load(sys.argv[1])

# Its first use imports torch._dynamo, seconds that every fork would spend anew.
torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).step()

def search(out, optimizer, pacing, announced):
    module = torch.nn.Sequential(*network(), torch.nn.Dropout(0.2))
    settings = quick(max_ticks=80, arrival={"every": 1000}, pacing={"kind": pacing},
                     correction=CorrectionSettings(threshold=0.05, window=5, max_steps=8, lr=0.05))
    finder = PathFinder(module, saved["a"], saved["b"], settings=settings, train=saved["data"], out=out,
                        resume=out.exists(), optimizer=eval(optimizer))
    finder._progress = lambda at: print("at", os.getpid(), flush=True) if at.tick == int(announced) else None
    finder.run()

for line in sys.stdin:
    out, *options = line.strip().split("\\t")
    process = os.fork()
    if not process:
        code = 1
        try:
            search(Path(out), *options)
            code = 0
        finally:
            os._exit(code)
    print("ended", os.waitpid(process, 0)[1], flush=True)
"""


class Nursery:
    def __init__(self, inputs: Path) -> None:
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", NURSERY, str(inputs)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=root
        )

    def search(self, out: Path, *options: str, kill: tuple[int, float] | None = None) -> None:
        """Search to the end, or kill the process so many seconds after it reported a tick."""
        tick, seconds = kill or (0, 0.0)
        assert self.process.stdin is not None
        self.process.stdin.write("\t".join((str(out), *options, str(tick))) + "\n")
        self.process.stdin.flush()
        if kill:
            word, number = self._answer()
            assert word == "at"
            time.sleep(seconds)
            os.kill(int(number), signal.SIGKILL)
        assert self._answer() == ["ended", str(signal.SIGKILL.value if kill else 0)]

    def _answer(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()


@pytest.fixture(scope="module")
def nursery(endpoints, digits, tmp_path_factory) -> Iterator[Nursery]:
    inputs = tmp_path_factory.mktemp("nursery") / "inputs.pt"
    torch.save({"a": endpoints[0], "b": endpoints[1], "data": digits}, inputs)
    nursery = Nursery(inputs)
    yield nursery
    nursery.process.communicate()


def files(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((out / "waypoints").iterdir())}


@pytest.mark.parametrize(
    ("optimizer", "pacing", "planned"),
    [
        ("None", "fixed", 4),
        ("None", "adaptive", 4),
        ("lambda ps: torch.optim.AdamW(ps, lr=0.005)", "fixed", 2),
    ],
    ids=["fused-sgd", "adaptive", "adamw"],
)
def test_killed_and_resumed_equals_uninterrupted(nursery, tmp_path, optimizer, pacing, planned) -> None:
    out, chance = tmp_path / "killed", random.Random(7)
    nursery.search(tmp_path / "whole", optimizer, pacing)
    for i in range(planned):
        nursery.search(out, optimizer, pacing, kill=(9 + 14 * i, chance.uniform(0.0, 0.05)))
        RunDirectory.open(out)
    nursery.search(out, optimizer, pacing)
    equal(out, tmp_path / "whole")


def equal(out: Path, whole: Path) -> None:
    """The same path bit for bit, the same metrics and the same end."""
    a, b = RunDirectory.open(out), RunDirectory.open(whole)
    assert a.index_digest() == b.index_digest()
    assert files(out) == files(whole)
    assert (out / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    status = [{k: v for k, v in (run.status or {}).items() if k != "seconds"} for run in (a, b)]
    assert status[0] == status[1]


HASTY = {
    "pacing": {"kind": "adaptive", "margin": 0.4},
    "step": StepSettings(relative=0.25),
    "correction": CorrectionSettings(threshold=0.05, window=5, max_steps=12, lr=0.1, momentum=0.5, keep_momentum=True),
}


def adamw(groups):
    return torch.optim.AdamW(groups, lr=0.003)


def lbfgs(parameters):
    """Its state holds lists of tensors."""
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3, history_size=4)


@pytest.mark.parametrize(
    ("changes", "optimizer"),
    [
        (HASTY, None),
        (HASTY, adamw),
        (
            {
                **HASTY,
                "record": {"every": 3},
                "schedule": {"stages": [StageSettings(0, ["0.*"]), StageSettings(5, ["3.*"]), StageSettings(10)]},
            },
            None,
        ),
        (
            {
                **HASTY,
                "dialect": "authors",
                "schedule": {"stages": [StageSettings(0, ["0.*"]), StageSettings(None, ["3.*"], 0.6)]},
            },
            None,
        ),
        ({**HASTY, "spheres": {"variance": "blend"}}, None),
        ({"spheres": {"variance": "blend"}}, None),
        ({"spheres": {"variance": "shrink-first", "shrink_ticks": 9}}, None),
        ({"spheres": {"variance": "shrink-first", "shrink_ticks": 9}}, adamw),
        ({**HASTY, "spheres": {"variance": "shrink-first", "shrink_ticks": 9}}, None),
        ({"schedule": {"kind": "data-flow", "ticks": 3}}, None),
        ({"schedule": {"kind": "data-flow", "distance": 0.9}}, None),
        ({"mode": "m2o"}, adamw),
        ({**HASTY, "mode": "m2o"}, adamw),
        ({}, lbfgs),
        ({**HASTY, "correction": CorrectionSettings(threshold=0.05, max_steps=12)}, lbfgs),
        ({"mode": "m2o-o", "correction": CorrectionSettings(threshold=0.05, lr=0.1, lr_rule="std")}, None),
        ({"mode": "variance-sphere"}, None),
    ],
)
def test_stopped_anywhere_and_resumed_equals_uninterrupted(finder, rescaled, tmp_path, changes, optimizer) -> None:
    settings = quick(**{"max_ticks": 20, "arrival": {"every": 1000}, **changes})
    destination = rescaled if settings.mode in ("m2m", "variance-sphere") else None
    options = {"settings": settings, "destination": destination, "optimizer": optimizer}
    whole = finder(tmp_path / "whole", **options).run()
    failed = [r["tick"] for r in LowLossPath(whole.folder).metrics() if r.get("rolled_back")]
    if settings.pacing.kind == "adaptive":
        # One checkpoint is written, and one resumed search begins, with a tick that was rolled back.
        assert failed
    stops = {7, 14, 20}

    def stop(at) -> None:
        if at.tick in stops:
            stops.remove(at.tick)
            raise KeyboardInterrupt

    out = tmp_path / "stopped"
    gc.freeze()  # what is collected below came after, which takes no time
    while stops:
        with pytest.raises(KeyboardInterrupt):
            finder(out, progress=stop, resume=out.exists(), **options).run()
        gc.collect()
    finder(out, resume=True, **options).run()
    equal(out, whole.folder)


def test_a_checkpoint_of_another_version_is_refused_in_one_line(finder, tmp_path) -> None:
    searching = finder(tmp_path / "run", settings=quick(max_ticks=3))
    searching._search._save()
    tensors, state = RunDirectory.open(tmp_path / "run").load_checkpoint() or ({}, {})
    for odd in ({k: v for k, v in state.items() if k != "shares"}, {**state, "window": [0.1]}):
        searching._search._record.run.save_checkpoint(tensors, odd)
        with pytest.raises(LLPFError, match=r"another version of llpf_fast .*(shares|window)") as caught:
            finder(tmp_path / "run", settings=quick(max_ticks=3), resume=True)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (None, adamw, "begun with the fused SGD"),
        (adamw, None, "begun with a torch optimiser"),
        (adamw, lambda ps: torch.optim.SGD(ps, lr=0.1), "another optimiser"),
    ],
)
def test_resuming_with_another_optimiser_is_refused(finder, tmp_path, before, after, message) -> None:
    searching = finder(tmp_path / "run", settings=quick(max_ticks=3), optimizer=before)
    searching._search._save()
    del searching
    with pytest.raises(LLPFError, match=message):
        finder(tmp_path / "run", settings=quick(max_ticks=3), optimizer=after, resume=True)


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


def test_a_run_whose_settings_have_the_old_names_is_refused(finder, tmp_path) -> None:
    settings = quick(max_ticks=2)
    finder(tmp_path / "run", settings=settings).run()
    gc.collect()
    record = tmp_path / "run" / "run.yaml"
    old = yaml.safe_load(record.read_text())
    record.write_text(yaml.safe_dump({**old, "llpf_fast": 1, "settings": {"pacing": "none", "pace": {"rounds": 20}}}))
    with pytest.raises(LLPFError, match=r"written by another version of llpf_fast, whose settings have other names"):
        finder(tmp_path / "run", settings=settings, resume=True)
