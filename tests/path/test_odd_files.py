"""Names that no file can have, and things that are no files: one line, at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

import llpf_fast
from llpf_fast.errors import LLPFError
from llpf_fast.path import RunDirectory, load_model_file, save_model_file
from llpf_fast.path.polyline import same_bits, squared_distance

DEEP = "[" * 100_000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "model.pt"
    os.mkfifo(pipe)
    with pytest.raises(LLPFError, match=r"model.pt is a pipe or a device; copy it into a file"):
        load_model_file(pipe)


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    for name, text in ((str(tmp_path / ("x" * 5000)), "file name too long"), ("a\0b", "null character")):
        with pytest.raises(LLPFError, match=text) as raised:
            load_model_file(name)
        assert len(str(raised.value)) < 200


def test_folders_that_cannot_be(tmp_path: Path) -> None:
    for given, text in (
        ("x" * 5000, "file name too long"),
        ("a\0b", "must be a path"),
        (None, "must be a path, got None"),
        (5, "must be a path, got 5"),
        (b"run", "must be a path"),
    ):
        for act in (RunDirectory.open, lambda folder: RunDirectory.create(folder, {})):
            with pytest.raises(LLPFError, match=text):
                act(given)  # type: ignore[arg-type]


def test_a_path_in_place_of_its_folder_is_told_what_to_pass(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", {})
    run.add_waypoint(0, {"x": torch.zeros(1)})
    with pytest.raises(LLPFError, match=r"got LowLossPath.*pass its \.folder"):
        llpf_fast.verify_run(llpf_fast.open_path(tmp_path / "run"))  # type: ignore[arg-type]


def test_json_nested_too_deeply_is_damage(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", {})
    run.add_waypoint(0, {"x": torch.zeros(1)})
    (tmp_path / "run" / "certificate.json").write_text(DEEP)
    (tmp_path / "run" / "waypoints.jsonl").write_text(DEEP + "\n")
    with pytest.raises(LLPFError, match=r"certificate.json is damaged: not JSON"):
        RunDirectory.open(tmp_path / "run").certificate()
    with pytest.raises(LLPFError, match=r"waypoints.jsonl is damaged: line 1 is not JSON"):
        RunDirectory.open(tmp_path / "run").waypoints()


def test_deep_metadata_says_nothing_and_harms_nothing(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"x": torch.ones(2)}, file, metadata={"llpf_fast": DEEP})
    assert torch.equal(load_model_file(file).state["x"], torch.ones(2))


def test_keys_in_a_message_are_short_and_on_one_line(tmp_path: Path) -> None:
    torch.save({"a\nb": 1, "k" * 100_000: 2}, tmp_path / "model.pt")
    with pytest.raises(LLPFError, match="dictionary without tensors") as raised:
        load_model_file(tmp_path / "model.pt")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_header_that_is_nested_too_deeply_is_damage(tmp_path: Path) -> None:
    head = json.dumps({"x": 1})[:-2].encode() + DEEP.encode()
    (tmp_path / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    with pytest.raises(LLPFError, match="damaged or cut off"):
        load_model_file(tmp_path / "model.safetensors")


def test_views_that_negate_are_compared_by_value() -> None:
    value = torch.tensor([1.0, -2.0])
    negated = torch._neg_view(-value)
    assert same_bits(value, negated)
    assert squared_distance(value, negated) == 0.0
    assert not same_bits(value, torch._neg_view(value))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("state", "text"),
    [
        (nn.Linear(1, 1), r"needs a state dict, got Linear: pass its state_dict\(\)"),
        ([1], "needs a state dict, got list"),
        ({"x": 5}, "entry 'x' of the state dict is a int"),
        ({5: torch.ones(1)}, "entry 5 of the state dict"),
        ({"x": torch.eye(2).to_sparse()}, "'x' is sparse"),
        ({"x": torch.empty(2, device="meta")}, "'x' is sparse, quantized or without values"),
    ],
)
def test_what_is_no_state_is_not_saved(state: Any, text: str, suffix: str, tmp_path: Path) -> None:
    with pytest.raises(LLPFError, match=text):
        save_model_file(tmp_path / f"model{suffix}", state)
    assert not list(tmp_path.iterdir())


def test_names_that_nothing_can_be_saved_under(tmp_path: Path) -> None:
    state = {"x": torch.ones(1)}
    for path, text in ((str(tmp_path / "a\0b.pt"), "null character"), (5, "needs a path, got 5")):
        with pytest.raises(LLPFError, match=text):
            save_model_file(path, state)  # type: ignore[arg-type]
    with pytest.raises(LLPFError, match="cannot be called '__metadata__'"):
        save_model_file(tmp_path / "x.safetensors", {"__metadata__": torch.ones(1)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("position", ["x", None, 1j, 10**400])
def test_positions_that_are_no_numbers(position: Any, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", {})
    run.add_waypoint(0, {"x": torch.zeros(1)})
    with pytest.raises(LLPFError, match="position on a path is a number"):
        llpf_fast.open_path(tmp_path / "run").interpolate(position)


def test_index_of_several_files_is_told_from_other_text(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"x": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(LLPFError, match="index of a model in several files"):
        load_model_file(index)
