"""Which models are joined with which."""

from __future__ import annotations

from pathlib import Path

import pytest

from llpf_fast.errors import LLPFError
from llpf_fast.find.pairing import Pair, make_pairs, model_files, run_names, stem


def paths(*names: str) -> list[Path]:
    return [Path(name) for name in names]


def joined(starts, destinations, pairing, digests=None):
    pairs = make_pairs(paths(*starts), paths(*destinations), pairing, digests)
    return [(pair.start.name, pair.destination.name) for pair in pairs.pairs]


def test_each_to_each():
    assert joined(["s/a", "s/b"], ["d/x", "d/y"], "each-to-each") == [("a", "x"), ("b", "y")]
    with pytest.raises(LLPFError, match="found 2 starts and 3 destinations"):
        joined(["a", "b"], ["x", "y", "z"], "each-to-each")
    digests = {Path("s/b"): "1", Path("d/y"): "1", Path("s/a"): "2", Path("d/x"): "3"}
    with pytest.raises(LLPFError, match="s/b and d/y hold the same model"):
        joined(["s/a", "s/b"], ["d/x", "d/y"], "each-to-each", digests)


def test_all_to_all():
    assert joined(["s/a", "s/b"], ["d/x", "d/y"], "all-to-all") == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]


def test_all_to_all_of_a_folder_with_itself_takes_each_pair_once():
    wanted = [("a", "b"), ("a", "c"), ("b", "c")]
    assert joined(["m/a", "m/b", "m/c"], ["m/a", "m/b", "m/c"], "all-to-all") == wanted
    assert joined(["m/a", "m/b", "m/c"], ["n/../m/c", "m/b", "m/a"], "all-to-all") == wanted
    assert make_pairs(paths("a", "b"), paths("a", "b"), "all-to-all").equal == []
    # A copy of the folder is another folder, but its files hold the same models.
    digests = {Path(f"{folder}/{name}"): name for folder in "mn" for name in "ab"}
    pairs = make_pairs(paths("m/a", "m/b"), paths("n/a", "n/b"), "all-to-all", digests)
    assert pairs.pairs == [Pair(*paths("m/a", "n/b")), Pair(*paths("m/b", "n/a"))]
    assert pairs.equal == [Pair(*paths("m/a", "n/a")), Pair(*paths("m/b", "n/b"))]


def test_one_to_all_and_all_to_one():
    assert joined(["s/a"], ["d/x", "d/y"], "one-to-all") == [("a", "x"), ("a", "y")]
    assert joined(["s/a", "s/b"], ["d/x"], "all-to-one") == [("a", "x"), ("b", "x")]
    assert joined(["m/a"], ["m/a", "m/b"], "one-to-all") == [("a", "b")]
    assert joined(["m/a", "m/b"], ["m/b"], "all-to-one") == [("a", "b")]
    with pytest.raises(LLPFError, match="one-to-all needs exactly one start, found 2"):
        joined(["a", "b"], ["x"], "one-to-all")
    with pytest.raises(LLPFError, match="all-to-one needs exactly one destination, found 2"):
        joined(["a"], ["x", "y"], "all-to-one")


def test_what_cannot_be_paired():
    with pytest.raises(LLPFError, match="unknown pairing 'all'; known: each-to-each, all-to-all"):
        joined(["a"], ["b"], "all")
    with pytest.raises(LLPFError, match="no path to find"):
        joined(["a"], ["a"], "all-to-all")
    with pytest.raises(LLPFError, match="no path to find"):
        joined(["a"], ["x", "y"], "one-to-all", {Path(name): "same" for name in "axy"})


def test_model_files(tmp_path):
    for name in (
        "10.model.pt",
        "2.model.pt",
        "2.optimizer.pt",
        ".hidden.pt",
        "notes.txt",
        "B.pth",
        "c.ckpt",
        "a.safetensors",
    ):
        (tmp_path / name).touch()
    (tmp_path / "folder.pt").mkdir()
    names = [file.name for file in model_files(tmp_path)]
    assert names == ["2.model.pt", "10.model.pt", "a.safetensors", "B.pth", "c.ckpt"]
    assert model_files(str(tmp_path / "notes.txt")) == [tmp_path / "notes.txt"]
    with pytest.raises(LLPFError, match=r"none is missing"):
        model_files(tmp_path / "none")
    with pytest.raises(LLPFError, match=r"folder\.pt holds no model files \(\.pt, \.pth"):
        model_files(tmp_path / "folder.pt")


@pytest.mark.parametrize(
    ("name", "short"),
    [("3.model.pt", "3"), ("a.safetensors", "a"), ("v1.2.pth", "v1.2"), ("noend", "noend"), (".pt", ".pt")],
)
def test_stem(name, short):
    assert stem(Path("folder", name)) == short


def test_run_names():
    pairs = [Pair(*paths("s/a.pt", "d/x.model.pt")), Pair(Path("s/b.pt"), None)]
    assert run_names(pairs, "m2o") == ["a--x", "b--m2o"]
    with pytest.raises(LLPFError, match=r"s/a\.pt and s/a\.pth would both be called a--x in the output folder; rename"):
        run_names([Pair(*paths("s/a.pt", "d/x.pt")), Pair(*paths("s/a.pth", "d/x.pt"))], "m2m")
    with pytest.raises(LLPFError, match=r"d/x\.pt and d/X\.pt would both be called a--X"):
        run_names([Pair(*paths("s/a.pt", "d/x.pt")), Pair(*paths("s/a.pt", "d/X.pt"))], "m2m")
