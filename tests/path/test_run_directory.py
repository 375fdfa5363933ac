"""Run directories: their content, and what they refuse."""

from __future__ import annotations

import json
import math
import os

import pytest
import torch
import yaml

from llpf_fast.errors import LLPFError
from llpf_fast.path import RunDirectory, state_digest
from llpf_fast.path.waypoints import is_waypoint_file


def test_a_run_round_trip(finished, make_state):
    run = RunDirectory.open(str(finished))
    assert run.run["start_sha256"] == state_digest(make_state(0))
    assert [(w.index, w.tick, w.info) for w in run.waypoints()] == [(i, 10 * i, {"loss": 0.1 * i}) for i in range(5)]
    for number, waypoint in enumerate(run.waypoints()):
        assert state_digest(waypoint.load()) == state_digest(make_state(number))
    assert run.metrics() == [{"tick": i, "loss": 0.1 * i} for i in range(5)]
    assert run.complete
    assert run.arrived
    assert run.status["seconds"] == 1.5
    run.check()
    names = {str(file.relative_to(finished)) for file in finished.rglob("*") if file.is_file()}
    waypoints = {f"waypoints/{i:06d}.safetensors" for i in range(5)}
    assert names == {"run.yaml", "waypoints.jsonl", "metrics.jsonl", "status.json", ".lock", *waypoints}


def test_settings_come_back_as_they_were(tmp_path):
    settings = {"lr": 1e-5, "n": 2**60, "name": "é", "patterns": ("*", "a: b"), "off": None}
    record = {"settings": settings, "z": 0.1, "a": 1}
    RunDirectory.create(tmp_path / "run", record)
    back = RunDirectory.open(tmp_path / "run").run
    assert back == {**record, "settings": {**record["settings"], "patterns": ["*", "a: b"]}}
    assert list(back) == ["settings", "z", "a"]


def test_create_refuses_used_folders_and_changes_nothing(finished, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(LLPFError, match=r"run holds another run; choose another folder, or resume"):
        RunDirectory.create(finished, {})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(LLPFError, match=r"other is not empty \(it holds thesis\.tex\)"):
        RunDirectory.create(tmp_path / "other", {})
    with pytest.raises(LLPFError, match=r"thesis\.tex is a file"):
        RunDirectory.create(tmp_path / "other" / "thesis.tex", {})
    with pytest.raises(LLPFError, match=r"cannot write in .*/run: .* there is a file where a folder is needed"):
        RunDirectory.create(tmp_path / "other" / "thesis.tex" / "sub" / "run", {})
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "other", tmp_path / "other" / "thesis.tex"])


def test_create_in_an_empty_folder_and_in_new_parents(tmp_path):
    (tmp_path / "empty").mkdir()
    RunDirectory.create(tmp_path / "empty", {})
    RunDirectory.create(tmp_path / "a" / "b" / "c", {})
    assert RunDirectory.open(tmp_path / "a" / "b" / "c").waypoints() == []


def test_create_that_fails_leaves_nothing(tmp_path, monkeypatch):
    import llpf_fast.path.durable as atomic

    def refuse(*_args):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(atomic.os, "replace", refuse)
    for folder in (tmp_path / "empty", tmp_path / "a" / "b"):
        with pytest.raises(LLPFError, match=rf"cannot write in {folder}: permission denied; choose a folder"):
            RunDirectory.create(folder, {})
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


def test_open_refuses_what_is_no_run(tmp_path):
    with pytest.raises(LLPFError, match="none is missing"):
        RunDirectory.open(tmp_path / "none")
    with pytest.raises(LLPFError, match=r"is not the folder of a run: it has no run\.yaml"):
        RunDirectory.open(tmp_path)
    path = tmp_path / "run.yaml"
    for content in (b"a: [", b"- a", b"", b"\xff\xfe\0", b"!!python/object/apply:os.getcwd []"):
        path.write_bytes(content)
        with pytest.raises(LLPFError, match=r"run\.yaml is damaged"):
            RunDirectory.open(tmp_path)
    with pytest.raises(LLPFError, match="is a file"):
        RunDirectory.open(path)


def test_text_that_looks_like_a_number_stays_text(tmp_path):
    run = {"layers": ["1e3", "1e-3", "-1E5", "010", "on", "~", "", "2001-01-01"], "numbers": [1e22, 5e-324, 10]}
    RunDirectory.create(tmp_path / "run", run)
    assert RunDirectory.open(tmp_path / "run").run == run


def test_open_refuses_numbers_that_no_search_records(tmp_path):
    """They would be errors of torch's in the middle of a certificate."""
    for content, key in (
        (f"settings: {{seed: {10**30}}}", "settings.seed must be whole number"),
        ("task: {data: {digest_of: -5}}", "task.data.digest_of must be positive whole number"),
        ("task: {data: {digest_of: 0}}", "task.data.digest_of must be positive whole number"),
    ):
        (tmp_path / "run.yaml").write_text(content)
        with pytest.raises(LLPFError, match=key):
            RunDirectory.open(tmp_path)


def test_reading_changes_nothing_on_disk(finished):
    with open(finished / "metrics.jsonl", "ab") as file:
        file.write(b'{"torn')
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in finished.rglob("*") if file.is_file()}
    run = RunDirectory.open(finished)
    run.check()
    assert len(run.metrics()) == 5
    assert run.load_checkpoint() is None
    assert run.certificate() is None
    after = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in finished.rglob("*") if file.is_file()}
    assert before == after


def test_a_torn_metric_line_is_ignored_and_then_replaced(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    run.append_metrics({"tick": 1})
    with open(tmp_path / "run" / "metrics.jsonl", "ab") as file:
        file.write(b'{"tick": 2, "loss": 0.123456789012345678901234567890')
    again = RunDirectory.open(tmp_path / "run")
    assert again.metrics() == [{"tick": 1}]
    again.append_metrics({"tick": 2})
    assert again.metrics() == [{"tick": 1}, {"tick": 2}]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == b'{"tick": 1}\n{"tick": 2}\n'
    with open(tmp_path / "run" / "metrics.jsonl", "ab") as file:
        file.write(b"garbage\n")
    with pytest.raises(LLPFError, match=r"metrics\.jsonl is damaged: line 3 is not JSON"):
        RunDirectory.open(tmp_path / "run").metrics()


def test_numbers_come_back_bit_for_bit(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    numbers = [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 2**53 + 1, 2**200, -1, math.inf, True, None]
    record = {"numbers": numbers, "nested": {"a": [{"b": 0.1 + 0.2}]}, "text": "é\n"}
    run.append_metrics(record)
    run.save_checkpoint({"a": torch.zeros(1)}, record)
    again = RunDirectory.open(tmp_path / "run")
    for back in (again.metrics()[0], again.load_checkpoint()[1]):
        assert back == record
        assert math.copysign(1, back["numbers"][4]) == -1
        assert [type(n) for n in back["numbers"]] == [type(n) for n in numbers]
    run.append_metrics({"loss": float("nan")})
    assert math.isnan(run.metrics()[-1]["loss"])


def test_tensors_and_numpy_values_are_recorded_as_numbers(tmp_path):
    import numpy as np

    run = RunDirectory.create(tmp_path / "run", {"device": torch.device("cpu"), "dtype": torch.float32})
    run.append_metrics({"loss": torch.tensor(0.5), "d": np.float32(0.25), "v": torch.ones(2), "n": np.arange(2)})
    assert run.metrics() == [{"loss": 0.5, "d": 0.25, "v": [1.0, 1.0], "n": [0, 1]}]
    assert run.run == {"device": "cpu", "dtype": "torch.float32"}


def test_keys_that_json_would_change_are_refused(tmp_path):
    run = RunDirectory.create(tmp_path / "run", {})
    with pytest.raises(TypeError, match="key 3 is int"):
        run.save_checkpoint({}, {"momentum": {3: 0.1}})
    with pytest.raises(TypeError, match="has no JSON form"):
        run.append_metrics({"a": object()})
    assert run.metrics() == []
    assert run.load_checkpoint() is None


def test_waypoints_of_another_architecture_are_refused(tmp_path, make_state):
    run = RunDirectory.create(tmp_path / "run", {})
    run.add_waypoint(0, make_state(0))
    with pytest.raises(LLPFError, match=r"waypoint 1 of .*: waypoint 0 has conv\.bias \[3\], waypoint 1 has \[4\]$"):
        RunDirectory.open(tmp_path / "run").add_waypoint(1, {**make_state(1), "conv.bias": torch.zeros(4)})
    assert len(list((tmp_path / "run" / "waypoints").iterdir())) == 1


def test_info_may_not_hide_the_index(tmp_path, make_state):
    run = RunDirectory.create(tmp_path / "run", {})
    with pytest.raises(ValueError, match="sha256"):
        run.add_waypoint(0, make_state(0), sha256="0")


def test_the_checkpoint_takes_waypoints_and_metrics_back(tmp_path, make_state):
    folder = tmp_path / "run"
    run = RunDirectory.create(folder, {})
    for i in range(3):
        run.add_waypoint(i, make_state(i))
        run.append_metrics({"tick": i})
    run.save_checkpoint({"p": torch.arange(3.0), "q": torch.tensor(7)}, {"tick": 2})
    for i in range(3, 6):
        run.add_waypoint(i, make_state(i))
        run.append_metrics({"tick": i})
    (folder / "waypoints" / ".000006.safetensors.1.tmp").write_text("half")
    (folder / "waypoints" / "mine.safetensors").write_text("a file of the user's")
    again = RunDirectory.open(folder)
    assert len(again.waypoints()) == 6
    tensors, state = again.load_checkpoint()
    assert torch.equal(tensors["p"], torch.arange(3.0))
    assert tensors["q"].item() == 7
    assert state == {"tick": 2}
    assert [w.tick for w in again.waypoints()] == [0, 1, 2]
    assert len(again.metrics()) == 3
    (folder / "waypoints" / "mine.safetensors").unlink()
    assert sorted(file.name for file in (folder / "waypoints").iterdir()) == [f"{i:06d}.safetensors" for i in range(3)]
    again.check()


def test_truncating_behind_the_checkpoint_is_undone_by_resuming(tmp_path, make_state):
    run = RunDirectory.create(tmp_path / "run", {})
    for i in range(5):
        run.add_waypoint(i, make_state(i))
    run.save_checkpoint({}, {"tick": 4})
    expected = run.index_digest()
    for count, seed in ((3, 10), (4, 20), (1, 30), (2, 40)):
        run.truncate(count)
        assert len(run.waypoints()) == count
        for i in range(count, 7):
            run.add_waypoint(100 + i, make_state(seed + i))
        run.check()
    again = RunDirectory.open(tmp_path / "run")
    again.load_checkpoint()
    assert again.index_digest() == expected
    again.check()
    again.truncate(2)
    again.add_waypoint(50, make_state(50))
    again.save_checkpoint({}, {"tick": 50})
    checkpoint = tmp_path / "run" / "checkpoint"
    assert [file.name for file in checkpoint.iterdir()] == ["checkpoint.safetensors"]
    last = RunDirectory.open(tmp_path / "run")
    assert last.load_checkpoint()[1] == {"tick": 50}
    assert [w.tick for w in last.waypoints()] == [0, 1, 50]
    last.check()


def test_truncate_cuts_metrics_but_never_behind_the_checkpoint(tmp_path, make_state):
    run = RunDirectory.create(tmp_path / "run", {})
    for i in range(4):
        run.add_waypoint(i, make_state(i))
        run.append_metrics({"tick": i})
    run.truncate(waypoints=1, metrics=2)
    assert (len(run.waypoints()), len(run.metrics())) == (1, 2)
    run.save_checkpoint({}, {})
    with pytest.raises(ValueError, match="behind the last checkpoint"):
        run.truncate(waypoints=1, metrics=1)
    run.truncate(waypoints=0)
    run.add_waypoint(0, {"other": torch.zeros(1)})


@pytest.mark.parametrize("file", ["waypoints.jsonl", "metrics.jsonl"])
def test_resuming_with_a_shortened_file_is_refused(tmp_path, make_state, file):
    run = RunDirectory.create(tmp_path / "run", {})
    for i in range(2):
        run.add_waypoint(i, make_state(i))
        run.append_metrics({"tick": i})
    run.save_checkpoint({}, {})
    path = tmp_path / "run" / file
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(LLPFError, match=rf"{file} .*cannot resume"):
        RunDirectory.open(tmp_path / "run").load_checkpoint()


def test_resuming_without_a_waypoint_file_is_refused(tmp_path, make_state):
    run = RunDirectory.create(tmp_path / "run", {})
    run.add_waypoint(0, make_state(0))
    run.save_checkpoint({}, {})
    run.waypoints()[0].path.unlink()
    with pytest.raises(LLPFError, match=r"000000\.safetensors is missing; cannot resume"):
        RunDirectory.open(tmp_path / "run").load_checkpoint()


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path, make_state):
    run = RunDirectory.create(tmp_path / "run", {})
    run.save_checkpoint({"a": torch.ones(3)}, {"b": 1})
    path = tmp_path / "run" / "checkpoint" / "checkpoint.safetensors"
    data = path.read_bytes()
    for content in (data[:-1], data[:20], b"", b"hello", data.replace(b"mark", b"mork")):
        path.write_bytes(content)
        with pytest.raises(LLPFError, match=r"checkpoint\.safetensors is damaged"):
            RunDirectory.open(tmp_path / "run").load_checkpoint()


def test_a_complete_run_is_not_written_to(finished, make_state):
    run = RunDirectory.open(finished)
    for write in (
        lambda: run.add_waypoint(9, make_state(9)),
        lambda: run.truncate(1),
        lambda: run.save_checkpoint({}, {}),
        lambda: run.finish(),
    ):
        with pytest.raises(LLPFError, match="holds a complete run"):
            write()
    run.check()


def test_a_complete_run_keeps_its_checkpoint_and_gives_it(tmp_path, make_state):
    run = RunDirectory.create(tmp_path / "run", {})
    run.add_waypoint(0, make_state(0))
    run.save_checkpoint({}, {"tick": 3})
    run.add_waypoint(1, make_state(1))
    run.finish(arrived=False)
    again = RunDirectory.open(tmp_path / "run")
    assert again.load_checkpoint() == ({}, {"tick": 3})
    assert len(again.waypoints()) == 2
    assert not again.arrived


def test_certificates_are_strict_json(finished):
    run = RunDirectory.open(finished)
    run.write_certificate({"connected": False, "max_loss": float("nan"), "at": [1.5, float("inf")], "threshold": 0.1})
    text = (finished / "certificate.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == run.certificate()
    assert run.certificate() == {"connected": False, "max_loss": None, "at": [1.5, None], "threshold": 0.1}
    run.check()
    (finished / "certificate.json").write_text("{")
    with pytest.raises(LLPFError, match=r"certificate\.json is damaged: not JSON"):
        run.certificate()


def test_run_yaml_is_readable_by_any_yaml_reader(finished):
    assert yaml.safe_load((finished / "run.yaml").read_text())["start_sha256"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_two_processes_do_not_write_one_run(tmp_path, make_state):
    run = RunDirectory.create(tmp_path / "run", {})
    run.add_waypoint(0, make_state(0))
    run.save_checkpoint({}, {})

    def second() -> str:
        """The error of another process, which inherited all of this process's handles."""
        back, out = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                RunDirectory.open(run.folder).load_checkpoint()
                os.write(out, b"taken")
            except LLPFError as error:
                os.write(out, str(error).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(out)
        with os.fdopen(back) as file:
            return file.read()

    assert second() == f"{run.folder} is being written by another process; wait for it or stop it"
    assert RunDirectory.open(run.folder).load_checkpoint() is not None
    run.finish()
    assert second() == "taken"


@pytest.mark.parametrize(
    "name", ["7.pt", "000009.txt", "notes.tmp", ".mine.tmp", "12 copy.safetensors", "9.safetensors"]
)
def test_files_of_others_among_the_waypoints_stay(tmp_path, name):
    run = RunDirectory.create(tmp_path / "run", {"settings": {}})
    for tick in range(3):
        run.add_waypoint(tick, {"w": torch.tensor([float(tick)])})
    stranger = run.folder / "waypoints" / name
    stranger.write_text("mine")
    with pytest.raises(LLPFError, match="is no part of the run; move it away"):
        run.truncate(waypoints=1, metrics=0)
    assert stranger.read_text() == "mine"
    assert not is_waypoint_file(stranger)
    assert is_waypoint_file(run.folder / "waypoints" / "000002.safetensors")
    assert is_waypoint_file(run.folder / "waypoints" / ".000003.safetensors.123.tmp")
