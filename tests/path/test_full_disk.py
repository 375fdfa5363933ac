"""Disks that refuse: full ones, read-only ones, at every single call."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llpf_fast.errors import LLPFError
from llpf_fast.path import RunDirectory, load_model_file, save_model_file, state_digest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("no mount command")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no small disk to fill, mount was refused: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _state(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((5000,), value)}


def _temporary(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.name.endswith(".tmp")]


def test_a_full_disk_leaves_the_last_checkpoint_whole(small_disk):
    folder = small_disk / "run"
    run = RunDirectory.create(folder, {})
    saved = None
    message = ""
    for tick in range(1000):
        try:
            run.add_waypoint(tick, _state(tick))
            run.append_metrics({"tick": tick})
            run.save_checkpoint(_state(-tick), {"tick": tick})
        except LLPFError as error:
            message = str(error)
            break
        saved = tick
    assert re.fullmatch(r"cannot write in .*: no space left on device; free some space or choose .*", message)
    assert saved is not None
    assert not _temporary(small_disk)
    run = RunDirectory.open(folder)
    run.check()
    tensors, state = run.load_checkpoint()
    assert state == {"tick": saved}
    assert torch.equal(tensors["w"], _state(-saved)["w"])
    assert len(run.waypoints()) == len(run.metrics()) == saved + 1
    run.check()


def test_a_full_disk_takes_no_part_of_a_metric_line(small_disk):
    run = RunDirectory.create(small_disk / "run", {})
    count = 0
    while count < 1000:
        try:
            run.append_metrics({"text": "x" * 3000})
        except LLPFError as error:
            message = str(error)
            break
        count += 1
    assert "no space left on device" in message
    assert 10 < count < 1000
    assert (small_disk / "run" / "metrics.jsonl").read_bytes().endswith(b"}\n")
    assert len(run.metrics()) == len(RunDirectory.open(small_disk / "run").metrics()) == count


def test_a_full_disk_keeps_the_old_model_file(small_disk):
    path = small_disk / "model.pt"
    save_model_file(path, _state(1), None, None)
    for name in ("model.pt", "model.safetensors"):
        with pytest.raises(LLPFError, match="no space left on device"):
            save_model_file(small_disk / name, {"w": torch.zeros(100_000)}, None, None)
    assert state_digest(load_model_file(path).state) == state_digest(_state(1))
    assert [file.name for file in small_disk.iterdir()] == ["model.pt"]


def test_no_room_for_a_new_run_leaves_nothing(small_disk):
    (small_disk / "full").write_bytes(bytes(256 * 1024))
    with pytest.raises(LLPFError, match="no space left on device"):
        RunDirectory.create(small_disk / "a" / "run", {"text": "x" * 10_000})
    assert [file.name for file in small_disk.iterdir()] == ["full"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EROFS, "read-only file system; choose a folder that can be written"),
        (errno.EACCES, "permission denied; choose a folder that you may write"),
        (errno.ENOSPC, "no space left on device; free some space or choose another folder"),
        (errno.EIO, "input/output error"),
    ],
    ids=["EROFS", "EACCES", "ENOSPC", "EIO"],
)
@pytest.mark.parametrize("name", ["open", "write", "fsync", "replace"])
def test_refused_anywhere_says_so_and_keeps_the_checkpoint(tmp_path, monkeypatch, number, text, name):
    """Root may write anywhere, so nothing on disk can test permissions: the calls themselves refuse, one by one."""
    run = RunDirectory.create(tmp_path / "run", {})
    run.add_waypoint(0, _state(0))
    run.append_metrics({"tick": 0})
    run.save_checkpoint(_state(0), {"tick": 0})
    real = getattr(os, name)
    refused = 0
    for call in range(30):
        left = call

        def refuse(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(number, os.strerror(number))
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, refuse)
        try:
            run.add_waypoint(1, _state(1))
            run.append_metrics({"tick": 1})
            run.save_checkpoint(_state(1), {"tick": 1})
        except LLPFError as error:
            message = str(error)
        else:
            message = None
        monkeypatch.setattr(os, name, real)
        again = RunDirectory.open(tmp_path / "run")
        again.check()
        if message is None:
            break
        refused += 1
        assert message.startswith("cannot write in ")
        assert message.endswith(text)
        assert not _temporary(tmp_path)
        assert {w.path for w in again.waypoints()} == set((tmp_path / "run" / "waypoints").iterdir())
        assert again.load_checkpoint()[1] in ({"tick": 0}, {"tick": 1})
        again.check()
        run = RunDirectory.open(tmp_path / "run")
    assert refused >= 2
    assert message is None


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to tell what a handle is")
@pytest.mark.parametrize("end", ["save_checkpoint", "finish"])
def test_all_that_a_checkpoint_counts_is_on_disk_before_it(tmp_path, monkeypatch, end):
    """A power failure cannot be tested; that every file was fsynced after its last change can."""
    folder = tmp_path / "run"
    dirty: set[str] = set()
    at_rename: list[set[str]] = []
    real = {name: getattr(os, name) for name in ("write", "fsync", "replace")}

    def name_of(handle: int) -> str:
        return os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), folder)

    def write(handle: int, data: bytes) -> int:
        dirty.add(name_of(handle))
        return real["write"](handle, data)

    def fsync(handle: int) -> None:
        dirty.discard(name_of(handle))
        real["fsync"](handle)

    def replace(source: Path, target: Path) -> None:
        source_name, target_name = (os.path.relpath(path, folder) for path in (source, target))
        if target_name in ("checkpoint/checkpoint.safetensors", "status.json"):
            at_rename.append(set(dirty))
        if source_name in dirty:
            dirty.remove(source_name)
            dirty.add(target_name)
        dirty.add(os.path.dirname(target_name) or ".")
        real["replace"](source, target)

    run = RunDirectory.create(folder, {})
    for name, spy in (("write", write), ("fsync", fsync), ("replace", replace)):
        monkeypatch.setattr(os, name, spy)
    for tick in range(3):
        run.add_waypoint(tick, _state(tick))
        run.append_metrics({"tick": tick})
    assert dirty == {
        "waypoints",
        "waypoints.jsonl",
        "metrics.jsonl",
        *(f"waypoints/{i:06d}.safetensors" for i in range(3)),
    }
    if end == "finish":
        run.finish()
    else:
        run.save_checkpoint(_state(0), {})
    assert at_rename == [set()]
    assert dirty == set()
