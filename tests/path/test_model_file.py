"""Model files: what loads, and how everything else is refused."""

from __future__ import annotations

import argparse
import datetime
import fractions
import os
import pickle
import string
import uuid
import zipfile
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
import torch

from llpf_fast.errors import LLPFError
from llpf_fast.path import load_model_file, save_model_file, state_digest


class Code:
    """A pickle that runs a command where it is loaded without care."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


def _refused(path: Path) -> str:
    with pytest.raises(LLPFError) as caught:
        load_model_file(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 300
    return message


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "lenet5.model.pt", "a.safetensors", "no_suffix"])
def test_what_is_saved_loads_bit_for_bit(tmp_path, make_state, name):
    state = make_state(3)
    save_model_file(tmp_path / name, state, "lenet5", "MNIST")
    loaded = load_model_file(str(tmp_path / name))
    assert state_digest(loaded.state) == state_digest(state)
    assert (loaded.model_name, loaded.dataset_name, loaded.path) == ("lenet5", "MNIST", tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_saved_view_of_a_large_buffer_is_small(tmp_path):
    flat = torch.zeros(1_000_000)
    save_model_file(tmp_path / "a.pt", {"w": flat[:10]}, None, None)
    assert (tmp_path / "a.pt").stat().st_size < 10_000


def test_saving_replaces_an_old_file_and_obeys_the_umask(tmp_path, make_state):
    path = tmp_path / "a.pt"
    path.write_text("old")
    save_model_file(path, make_state(1), None, None)
    assert state_digest(load_model_file(path).state) == state_digest(make_state(1))
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_saving_into_a_missing_folder_is_refused_by_name(tmp_path, make_state):
    for name in ("a.pt", "a.safetensors"):
        with pytest.raises(LLPFError, match=rf"cannot write in {tmp_path}/none: no such file or directory"):
            save_model_file(tmp_path / "none" / name, make_state(1), None, None)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        OrderedDict,
        lambda state: {"state_dict": state, "model_name": "lenet5", "dataset_name": "dataset_mnist"},
        lambda state: {"model_state_dict": state, "epoch": 3, "optimizer_state_dict": {"state": {}}},
        lambda state: {"model": state, "args": None},
        lambda state: {
            "state_dict": OrderedDict(state),
            "epoch": 1,
            "pytorch-lightning_version": "2.5",
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
            "hyper_parameters": {"lr": 0.1},
        },
    ],
    ids=["plain", "ordered", "authors", "tutorial", "timm", "lightning"],
)
def test_dictionaries_of_others_load(tmp_path, make_state, wrap, legacy):
    path = tmp_path / "a.model.pt"
    torch.save(wrap(make_state(2)), path, _use_new_zipfile_serialization=not legacy)
    loaded = load_model_file(path)
    assert state_digest(loaded.state) == state_digest(make_state(2))
    assert loaded.model_name == ("lenet5" if "model_name" in wrap({}) else None)


def test_parameters_become_tensors(tmp_path):
    torch.save({"w": torch.nn.Parameter(torch.ones(2))}, tmp_path / "a.pt")
    assert not load_model_file(tmp_path / "a.pt").state["w"].requires_grad


def test_missing_directory_empty_and_text(tmp_path):
    assert _refused(tmp_path / "none.pt").endswith("none.pt is missing")
    assert "is a directory" in _refused(tmp_path)
    (tmp_path / "empty.pt").touch()
    assert "is empty" in _refused(tmp_path / "empty.pt")
    for number, text in enumerate(["hello\n", "é" * 5000, "x" + "é" * 5000, '{"a": 1}', "PK is not an archive"]):
        path = tmp_path / f"{number}.safetensors"
        path.write_text(text)
        assert "text file" in _refused(path)


def test_a_path_through_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    assert "not a directory" in _refused(tmp_path / "file" / "a.pt")


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("how", ["zip", "legacy", "bare"])
def test_code_in_a_pickle_is_refused_and_never_executed(tmp_path, protocol, how):
    path, witness = tmp_path / "a.pt", tmp_path / "witness"
    content = {"state_dict": {"w": torch.ones(2)}, "extra": Code(witness)}
    if how == "bare":
        path.write_bytes(pickle.dumps(Code(witness), protocol=protocol))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip", pickle_protocol=max(protocol, 2))
    message = _refused(path)
    assert not witness.exists()
    if how != "bare" and protocol < 4:
        assert "system" in message
        assert "never executed" in message
    pickle.loads(pickle.dumps(Code(witness)))
    assert witness.exists(), "the trap itself must work"


def test_whole_modules_and_foreign_objects_are_named(tmp_path):
    path = tmp_path / "a.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    assert "torch.nn.modules.linear.Linear" in _refused(path)
    torch.save({"state_dict": {"w": torch.ones(2)}, "args": string.Template("a")}, path)
    assert "string.Template" in _refused(path)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript_is_named(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
    assert "TorchScript" in _refused(tmp_path / "a.pt")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_cut_anywhere_a_file_is_refused(tmp_path, make_state, kind):
    whole = tmp_path / "whole.safetensors"
    if kind == "safetensors":
        save_model_file(whole, make_state(1), None, None)
    else:
        torch.save(make_state(1), whole, _use_new_zipfile_serialization=kind == "zip")
    data = whole.read_bytes()
    assert load_model_file(whole)
    path = tmp_path / "cut"
    for size in [1, 2, 7, 8, 9, 10, 20, 100, *range(150, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:size])
        _refused(path)


@pytest.mark.filterwarnings("error")
def test_random_and_foreign_bytes_are_refused(tmp_path):
    path = tmp_path / "a.pt"
    random = np.random.default_rng(0)
    for start in (b"", b"\x80\x02", b"\x80\x04", b"PK\x03\x04", b"\x10\0\0\0\0\0\0\0{"):
        for _ in range(10):
            path.write_bytes(start + random.bytes(200))
            _refused(path)
    np.save(tmp_path / "a.npy", np.ones(3))
    _refused(tmp_path / "a.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "y")
    assert "not one that torch.save wrote" in _refused(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([torch.ones(2)], "holds a list"),
        (torch.ones(2), "one tensor without a name"),
        ({"epoch": 1}, "without tensors (it has epoch)"),
        ({}, "without tensors (it has nothing)"),
        ({"state_dict": {}}, "without tensors"),
        ({"w": torch.ones(2), "step": 3}, "entry 'step' is a int"),
        ({0: torch.ones(2)}, "entry 0 is a Tensor"),
        ({"w": torch.ones(2).to_sparse()}, "tensor 'w' is sparse"),
    ],
)
def test_dictionaries_that_are_no_state_dicts(tmp_path, content, text):
    torch.save(content, tmp_path / "a.pt")
    assert text in _refused(tmp_path / "a.pt")


def test_safetensors_without_tensors(tmp_path):
    save_model_file(tmp_path / "a.safetensors", {}, None, None)
    assert "holds no tensors" in _refused(tmp_path / "a.safetensors")


def test_each_format_is_what_others_read(tmp_path, make_state):
    state = make_state(1)
    path = tmp_path / "a.model.pt"
    save_model_file(path, state, "lenet5", "dataset_mnist", format="authors")
    saved = torch.load(path, weights_only=True)
    assert list(saved) == ["state_dict", "model_name", "dataset_name"]
    assert (saved["model_name"], saved["dataset_name"]) == ("lenet5", "dataset_mnist")
    save_model_file(path, state, "lenet5", "dataset_mnist", format="state_dict")
    assert torch.load(path, weights_only=True).keys() == state.keys()
    save_model_file(path, state, "lenet5", format="safetensors")
    assert path.read_bytes()[8:9] == b"{"
    loaded = load_model_file(path)
    assert state_digest(loaded.state) == state_digest(state)
    assert (loaded.model_name, loaded.dataset_name) == ("lenet5", None)
    with pytest.raises(LLPFError, match="unknown model file format 'onnx'; known: authors, state_dict"):
        save_model_file(path, state, format="onnx")


def test_much_copied_code_and_one_state_dict_anywhere(tmp_path, make_state):
    state, path = make_state(1), tmp_path / "ckpt.pth"
    for content in (
        {"net": state, "acc": 95.4, "epoch": 199},
        {"weights_of_encoder": state, "step": 7},
        {"state_dict": state, "state_dict_ema": make_state(2)},
        {"student": state, "optimizer": {"state": {}, "param_groups": []}},
    ):
        torch.save(content, path)
        assert state_digest(load_model_file(path).state) == state_digest(state)


def test_averaged_weights_are_taken_only_when_asked_for(tmp_path, make_state):
    path = tmp_path / "a.pt"
    torch.save({"state_dict": make_state(1), "state_dict_ema": make_state(2)}, path)
    assert state_digest(load_model_file(path, key="state_dict_ema").state) == state_digest(make_state(2))
    torch.save({"model_ema": make_state(2), "epoch": 3}, path)
    message = _refused(path)
    assert "averaged weights only (under 'model_ema')" in message
    assert "key=" in message
    assert state_digest(load_model_file(path, key="model_ema").state) == state_digest(make_state(2))
    torch.save({"generator": make_state(1), "critic": make_state(2)}, path)
    assert "several state dicts (under 'generator' and 'critic')" in _refused(path)
    with pytest.raises(LLPFError, match=r"no state dict under 'ema' \(it has generator, critic\)"):
        load_model_file(path, key="ema")
    save_model_file(tmp_path / "a.safetensors", make_state(1))
    with pytest.raises(LLPFError, match="no entry 'ema'"):
        load_model_file(tmp_path / "a.safetensors", key="ema")


def test_names_are_fitted_on_loading(tmp_path, make_state):
    state, path = make_state(1), tmp_path / "last.ckpt"
    torch.save({"state_dict": {f"model.{name}": value for name, value in state.items()}, "epoch": 1}, path)
    assert state_digest(load_model_file(path, expected=state).state) == state_digest(state)
    assert all(name.startswith("model.") for name in load_model_file(path).state)


class Settings(dict):
    """A user's class, which only the user's program can import."""


@pytest.mark.parametrize("how", ["zip", "legacy"])
def test_what_real_checkpoints_hold_beside_the_state_dict_is_passed_over(tmp_path, how):
    path, weight = tmp_path / "best.pt", torch.randn(3, 2)
    beside = {
        "best_acc": np.float64(0.93),
        "epoch": np.int32(3),
        "history": np.arange(6.0).reshape(2, 3),
        "seen": np.array(["a", "b"]),
        "rng": np.random.RandomState(0).get_state(),
        "args": argparse.Namespace(lr=0.1, nested=argparse.Namespace(out=Path("run"))),
        "begun": datetime.datetime(2024, 1, 2, tzinfo=datetime.timezone.utc),
        "took": datetime.timedelta(hours=2),
        "folder": Path("runs/1"),
        "by_class": defaultdict(list, {0: [1, 2]}),
        "counts": Counter("abca"),
        "last": deque([1.0, 2.0], maxlen=5),
        "kinds": {frozenset([1]), (2, 3)},
        "part": slice(0, 3),
        "exact": fractions.Fraction(1, 3),
        "id": uuid.UUID(int=7),
    }
    torch.save({"state_dict": {"w": weight}, **beside}, path, _use_new_zipfile_serialization=how == "zip")
    assert torch.equal(load_model_file(path).state["w"], weight)
    torch.save({"weights": defaultdict(None, {"w": weight}), **beside}, path)
    assert torch.equal(load_model_file(path).state["w"], weight)
    assert not [known for known in torch.serialization.get_safe_globals() if isinstance(known, tuple)]


def test_code_beside_stand_ins_is_refused_by_name(tmp_path):
    path, witness = tmp_path / "a.pt", tmp_path / "witness"
    for value, name in (
        (argparse.Namespace(hook=Code(witness)), "system"),
        (np.array([Code(witness)], dtype=object), "system"),
        (defaultdict(None, {0: Code(witness)}), "system"),
        (argparse.Namespace(of=Settings(a=1)), "Settings"),
    ):
        torch.save({"state_dict": {"w": torch.ones(2)}, "args": value}, path)
        message = _refused(path)
        assert name in message
        assert "never executed" in message
    assert not witness.exists()


def test_numpy_arrays_are_no_weights(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(2), "v": np.ones(2)}, path)
    assert "entry 'v' is a NumPy array" in _refused(path)


def test_an_array_with_a_forged_dtype_is_never_built(tmp_path):
    """NumPy itself would take these eight bytes for the address of an object."""
    path = tmp_path / "a.pt"

    class Forged:
        def __reduce__(self):
            return np.float64(0).__reduce__()[0], (Dtype(), b"AAAAAAAA")

    class Dtype:
        def __reduce__(self):
            return np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)

    torch.save({"state_dict": {"w": torch.ones(2)}, "best": Forged()}, path)
    assert list(load_model_file(path).state) == ["w"]
