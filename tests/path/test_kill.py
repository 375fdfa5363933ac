"""kill -9: at every single system call that changes a file, and at random moments."""

from __future__ import annotations

import functools
import itertools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llpf_fast.path import RunDirectory, state_digest

#: Everything through which this room changes the disk.
_CHANGES = ("open", "write", "replace", "unlink", "mkdir", "rmdir", "truncate", "ftruncate")

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def _state(seed: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((50,), float(seed)), "n": torch.tensor(seed)}


def _steps(run: RunDirectory) -> list[Callable[[], object]]:
    """A search that adds waypoints, drops some from before and after its checkpoints, and finishes."""
    seeds = itertools.count()

    def record(number: int) -> None:
        run.add_waypoint(number, _state(number), loss=number / 7)
        run.append_metrics({"tick": number, "loss": number / 3})

    def add() -> Callable[[], object]:
        return functools.partial(record, next(seeds))

    def truncated(count: int) -> Callable[[], object]:
        return functools.partial(run.truncate, count)

    first = [add(), add(), add(), add(), _save, add(), truncated(3), add(), add(), truncated(1), add(), add(), _save]
    return [*first, truncated(2), add()]


def _save() -> None:
    """Stands for a checkpoint, which needs the number of the step."""


def _search(folder: Path) -> None:
    """Create or resume, to the end; the step number is the whole state."""
    record = {"start_sha256": state_digest(_state(0))}
    if (folder / "run.yaml").exists():
        run = RunDirectory.open(folder)
        if run.complete:
            return
        saved = run.load_checkpoint()
        if saved is None:
            run.truncate(0, 0)
        begin = saved[1]["step"] if saved else 0
    else:
        run, begin = RunDirectory.create(folder, record), 0
    for number, step in enumerate(_steps(run)):
        if number < begin:
            continue
        if step is _save:
            run.save_checkpoint({"p": torch.full((5,), float(number))}, {"step": number + 1})
        else:
            step()
    run.finish()


def _consistent(folder: Path) -> None:
    """What must hold between a kill and a resume."""
    if not (folder / "run.yaml").exists():
        return
    run = RunDirectory.open(folder)
    run.metrics()
    if run.waypoints():
        run.check()


class Killed(BaseException):
    """The process is dead."""


def _killed_at(call: int, work: Callable[[], None]) -> bool:
    """Run ``work``, which dies before file-changing call number ``call``; False when it ended earlier.

    From then on no call changes anything: handlers and finally blocks run, but the disk is as a kill -9 leaves it. (A
    forked child that really dies shows the same, thirty times slower.)
    """
    left = call

    def counted(name: str, real: Callable, *args, **kwargs):
        nonlocal left
        if name == "open" and not args[1] & os.O_CREAT:
            return real(*args, **kwargs)
        left -= 1
        if left < 0:
            if name == "write" and left == -1:
                real(args[0], args[1][: len(args[1]) // 2])  # torn: half of it was written
            raise Killed
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for name in _CHANGES:
            patch.setattr(os, name, functools.partial(counted, name, getattr(os, name)))
        try:
            work()
        except Killed:
            return True
    return False


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[str, bytes]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    _search(folder)
    run = RunDirectory.open(folder)
    run.check()
    assert [file.name for file in (folder / "checkpoint").iterdir()] == ["checkpoint.safetensors"]
    return run.index_digest(), (folder / "metrics.jsonl").read_bytes()


def _same(folder: Path, uninterrupted: tuple[str, bytes]) -> None:
    run = RunDirectory.open(folder)
    run.check()
    assert run.complete
    assert (run.index_digest(), (folder / "metrics.jsonl").read_bytes()) == uninterrupted


def test_killed_before_every_single_call(tmp_path, uninterrupted):
    call = 0
    while True:
        folder = tmp_path / str(call)
        killed = _killed_at(call, lambda folder=folder: _search(folder))
        _consistent(folder)
        _search(folder)
        _same(folder, uninterrupted)
        if not killed:
            break
        call += 1
    assert call > 100, "the search makes more calls than that: some are not counted"


def test_killed_again_and_again_while_resuming(tmp_path, uninterrupted):
    chosen = random.Random(0)
    for trial in range(6):
        folder = tmp_path / str(trial)
        if not _killed_at(chosen.randrange(60, 150), lambda folder=folder: _search(folder)):
            continue
        for call in range(40):
            _killed_at(call, lambda folder=folder: _search(folder))
            _consistent(folder)
        _search(folder)
        _same(folder, uninterrupted)


@pytest.mark.parametrize(("after", "before"), [(1, 2), (1, 3)], ids=["between", "in place of one"])
def test_a_splice_leaves_the_old_path_or_the_new_one(tmp_path, uninterrupted, after, before):
    """Killed before every call, and each time once more while it is done again: files, index and status agree."""
    _search(tmp_path / "old")
    old = [int(waypoint.load()["n"]) for waypoint in RunDirectory.open(tmp_path / "old").waypoints()]
    new = [*old[: after + 1], 100, 101, *old[before:]]

    def splice(folder: Path) -> None:
        states = [_state(100), _state(101)]
        RunDirectory.open(folder).splice(after, before, states, {"sgd_steps": 7}, mended=1)

    def path(folder: Path) -> list[int]:
        run = RunDirectory.open(folder)
        run.check()
        return [int(waypoint.load()["n"]) for waypoint in run.waypoints()]

    outcomes = []
    for call in itertools.count():
        folder = tmp_path / str(call)
        shutil.copytree(tmp_path / "old", folder)
        killed = _killed_at(call, lambda folder=folder: splice(folder))
        outcomes.append(path(folder))
        assert outcomes[-1] in (old, new)
        if outcomes[-1] == old:
            _killed_at(call // 2, lambda folder=folder: splice(folder))
            if path(folder) == old:
                splice(folder)
        else:
            RunDirectory.open(folder).end_splice()
        assert path(folder) == new
        run = RunDirectory.open(folder)
        assert run.status["sgd_steps"] == 7
        assert "splicing" not in run.status
        assert {file.name for file in (folder / "waypoints").iterdir()} == {w.path.name for w in run.waypoints()}
        assert [w.info.get("mended") for w in run.waypoints()].count(1) == 2
        if not killed:
            break
    assert outcomes[0] == old
    assert outcomes[-2] == new, "the last calls tidy up"
    assert outcomes == sorted(outcomes, key=lambda found: found == new)


def _write_for_ever(folder: Path) -> None:
    if folder.exists():
        run = RunDirectory.open(folder)
        saved = run.load_checkpoint()
        if saved is None:
            run.truncate(0, 0)
        tick = saved[1]["tick"] if saved else 0
    else:
        run, tick = RunDirectory.create(folder, {}), 0
    while True:
        tick += 1
        run.add_waypoint(tick, {"w": torch.full((20000,), float(tick))})
        run.append_metrics({"tick": tick})
        if tick % 7 == 0:
            run.save_checkpoint({"p": torch.full((20000,), float(tick))}, {"tick": tick})


@needs_fork
def test_killed_at_random_moments(tmp_path):
    folder = tmp_path / "run"
    chosen = random.Random(1)
    ticks = []
    for _ in range(8):
        child = os.fork()
        if child == 0:
            try:
                _write_for_ever(folder)
            finally:
                os._exit(1)
        time.sleep(chosen.uniform(0.1, 0.5))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "the writer failed"
        if not (folder / "run.yaml").exists():
            shutil.rmtree(folder, ignore_errors=True)
            continue
        run = RunDirectory.open(folder)
        for number, waypoint in enumerate(run.waypoints(), start=1):
            assert waypoint.tick == number
        assert [record["tick"] for record in run.metrics()] == list(range(1, len(run.metrics()) + 1))
        if run.waypoints():
            run.check()
        ticks.append(len(run.waypoints()))
    tensors, state = run.load_checkpoint()
    assert torch.equal(tensors["p"], torch.full((20000,), float(state["tick"])))
    assert len(run.waypoints()) == len(run.metrics()) == state["tick"]
    assert ticks[-1] > 7, "the writer got nowhere"
    run.check()
