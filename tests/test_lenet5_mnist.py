"""The project's main job on real input: two LeNet5 trained on MNIST, joined and certified through the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from llpf_fast.cli.main import main
from llpf_fast.path import load_model_file, open_path

DATA = Path(os.environ.get("LLPF_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "MNIST").exists(), reason=f"no MNIST in {DATA}; name its folder with LLPF_DATA")
def test_quick_recipe_is_certified(tmp_path: Path) -> None:
    ends = []
    for seed in (11, 12):
        ends.append(tmp_path / f"{seed}.model.pt")
        train = ["train", "--model", "lenet5", "--data", "mnist", "--data-dir", str(DATA), "--seed", str(seed)]
        assert main([*train, "--epochs", "5", "--out", str(ends[-1]), "--quiet"]) == 0
    out = tmp_path / "run"
    find = ["find", str(ends[0]), str(ends[1]), "--recipe", "lenet5-mnist-m2m-quick"]
    assert main([*find, "--data-dir", str(DATA), "--out", str(out), "--quiet"]) == 0
    assert main(["verify", str(out), "--data-dir", str(DATA), "--quiet"]) == 0
    certificate = json.loads((out / "certificate.json").read_text())
    assert certificate["connected"] is True
    assert certificate["max_loss"] <= certificate["threshold"] == 0.1
    assert certificate["min_test_accuracy"] >= 0.97
    path = open_path(out)
    assert path.metrics()[-1]["sgd_steps"] <= 5000
    for index, file in ((0, ends[0]), (len(path) - 1, ends[1])):
        given, kept = load_model_file(file).state, path[index]
        assert given.keys() == kept.keys()
        assert all(torch.equal(given[name], kept[name]) for name in given)
