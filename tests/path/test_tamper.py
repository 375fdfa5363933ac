"""A path that was changed after it was recorded is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import pytest
import torch

from llpf_fast.errors import LLPFError
from llpf_fast.path import RunDirectory, open_path
from llpf_fast.path.state import encode_state


def _refused(folder) -> str:
    with pytest.raises(LLPFError) as caught:
        RunDirectory.open(folder).check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _file(folder, number):
    return folder / "waypoints" / f"{number:06d}.safetensors"


def _lines(folder):
    return (folder / "waypoints.jsonl").read_text().splitlines()


def _write_lines(folder, lines, *, status: bool = True) -> None:
    """Replace the index, and where asked cover it up in status.json."""
    text = "".join(line + "\n" for line in lines)
    (folder / "waypoints.jsonl").write_text(text)
    if status:
        path = folder / "status.json"
        changed = {"waypoints": len(lines), "index_sha256": hashlib.sha256(text.encode()).hexdigest()}
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


@pytest.mark.parametrize("number", [0, 2, 4])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_one_changed_bit(finished, number, where):
    data = bytearray(_file(finished, number).read_bytes())
    data[{"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[where]] ^= 1
    _file(finished, number).write_bytes(data)
    assert f"waypoint {number:06d}.safetensors was changed after it was recorded (sha256 " in _refused(finished)
    path = open_path(finished)
    with pytest.raises(LLPFError, match="was changed after"):
        path[number]
    with pytest.raises(LLPFError, match="was changed after"):
        path.lengths()
    assert path[1]


@pytest.mark.parametrize("number", [0, 2, 4])
def test_one_deleted(finished, number):
    _file(finished, number).unlink()
    assert _refused(finished).endswith(f"{number:06d}.safetensors is missing")


def test_two_exchanged_and_one_copied(finished):
    _file(finished, 1).rename(finished / "x")
    _file(finished, 2).rename(_file(finished, 1))
    (finished / "x").rename(_file(finished, 2))
    assert "000001.safetensors was changed" in _refused(finished)


def test_one_from_another_model(finished, make_state):
    _file(finished, 2).write_bytes(encode_state(make_state(99)))
    assert "000002.safetensors was changed" in _refused(finished)


def test_a_stray_file(finished):
    shutil.copy(_file(finished, 3), _file(finished, 5))
    assert "000005.safetensors is not in waypoints.jsonl" in _refused(finished)


def test_index_lines_deleted_exchanged_or_cut(finished):
    lines = _lines(finished)
    for changed in (lines[:2] + lines[3:], [lines[0], lines[2], lines[1], *lines[3:]], lines[1:]):
        _write_lines(finished, changed)
        assert "waypoints were deleted or re-ordered" in _refused(finished)
    _write_lines(finished, lines)
    for changed in (lines[:-1], [], [line.replace('"tick": 20', '"tick": 21') for line in lines]):
        _write_lines(finished, changed, status=False)
        assert "was changed after the run finished with 5 waypoints" in _refused(finished)
    _write_lines(finished, [])
    assert "has no waypoints" in _refused(finished)
    _write_lines(finished, lines)
    RunDirectory.open(finished).check()


def test_an_index_that_points_elsewhere(finished):
    lines = _lines(finished)
    record = json.loads(lines[2])
    for key, value in (("file", "../../etc/passwd"), ("index", "2"), ("sha256", None), ("tick", 1.5)):
        _write_lines(finished, [*lines[:2], json.dumps({**record, key: value}), *lines[3:]])
        _refused(finished)
    _write_lines(finished, [*lines[:2], "{not json", *lines[3:]])
    assert "line 3 is not JSON" in _refused(finished)
    _write_lines(finished, [*lines[:2], "3", *lines[3:]])
    assert "line 3 is not a JSON object" in _refused(finished)


def _replace_covered_up(folder, number, state) -> None:
    """Replace a waypoint and change index and status so that every hash fits."""
    data = encode_state(state)
    _file(folder, number).write_bytes(data)
    lines = _lines(folder)
    lines[number] = json.dumps({**json.loads(lines[number]), "sha256": hashlib.sha256(data).hexdigest()})
    _write_lines(folder, lines)


@pytest.mark.parametrize(("number", "name"), [(0, "start"), (4, "destination")])
def test_a_replaced_endpoint_with_all_hashes_fitted(finished, make_state, number, name):
    _replace_covered_up(finished, number, make_state(99))
    assert f"is not bit-identical to the {name}" in _refused(finished)


def test_the_last_waypoint_dropped_with_all_hashes_fitted(finished):
    _write_lines(finished, _lines(finished)[:-1])
    _file(finished, 4).unlink()
    assert "000003.safetensors of" in _refused(finished)


def test_another_architecture_with_all_hashes_fitted(finished, make_state):
    _replace_covered_up(finished, 2, {**make_state(2), "conv.bias": torch.zeros(7)})
    assert "another architecture: waypoint 0 has conv.bias [3], 000002.safetensors has [7]" in _refused(finished)


def test_a_waypoint_that_is_a_folder_or_a_link_to_nothing(finished):
    _file(finished, 2).unlink()
    _file(finished, 2).mkdir()
    assert "cannot read" in _refused(finished)
    _file(finished, 2).rmdir()
    os.symlink("nowhere", _file(finished, 2))
    assert "is missing" in _refused(finished)


def test_status_that_is_damaged(finished):
    for text in ("", "[]", "{"):
        (finished / "status.json").write_text(text)
        assert "status.json is damaged" in _refused(finished)
    (finished / "status.json").write_text('{"complete": true}')
    assert "was changed after the run finished" in _refused(finished)
