"""llpf analyze connect, widths, width-sweep and subspace: the files they write, and what they say to bad input."""

import csv
import json

import pytest
import torch

from llpf_fast.cli.main import main
from llpf_fast.models import build_model
from llpf_fast.path import save_model_file


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed in (1, 2, 3):
        arguments = ["--epochs", "8", "--lr", "0.05", "--seed", str(seed), "--out", str(folder / f"m{seed}.pt")]
        assert main(["train", "--model", "mlp", "--data", "digits", "--quiet", *arguments]) == 0
    return [str(folder / f"m{seed}.pt") for seed in (1, 2, 3)]


@pytest.fixture
def analyze(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        status = main(["analyze", *map(str, arguments), "--quiet"])
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


def rows(path):
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_connect(analyze, models, tmp_path):
    status, out, _ = analyze(
        "connect", *models, "--steps", 300, "--surface-steps", 200, "--samples", 500, "--threshold", 0.2
    )
    assert status == 0
    assert "connected at threshold 0.2" in out
    numbers = json.loads((tmp_path / "connect/connect.json").read_text())["numbers"]
    assert numbers["certificate"]["connected"]
    assert numbers["certificate"]["evaluation"]["screening_samples"] == 500
    assert numbers["certificate"]["evaluation"]["samples"] == 1437
    points = rows(tmp_path / "connect/connector.csv")
    assert max(float(point["loss"]) for point in points) == pytest.approx(numbers["certificate"]["max_loss"])
    assert all(sum(float(point[name]) for name in point if name.startswith("weight_")) == 1 for point in points)
    for name in (
        "connector.png",
        "connector.svg",
        "connector.json",
        "vertex-0-1.safetensors",
        "vertex-centre.safetensors",
    ):
        assert (tmp_path / "connect" / name).stat().st_size > 0


def test_not_connected_is_status_1(analyze, models):
    status, out, _ = analyze(
        *("connect", *models[:2], "--kind", "star", "--steps", 50, "--surface-steps", 0, "--lr", 1e-6),
        *("--samples", 300, "--threshold", 0.09, "--out", "no"),
    )
    assert status == 1
    assert "not connected at threshold 0.09" in out
    assert "above the threshold" in out


def test_widths(analyze, models, tmp_path):
    status, out, _ = analyze("widths", *models[:2], "--directions", 2, "--samples", 300, "--law", "filter")
    assert status == 0
    assert "threshold: training loss 0.5; 2 directions: Gaussian, every filter" in out
    table = rows(tmp_path / "widths/widths.csv")
    assert [row["network"] for row in table] == ["m1", "m1", "m2", "m2"]
    assert all(float(row["radius"]) > 0 for row in table)
    assert (tmp_path / "widths/widths.svg").exists()


def test_widths_along_a_run(analyze, models, tmp_path):
    assert main(["find", *models[:2], *RUN, "--out", str(tmp_path / "run")]) in (0, 1)
    status, out, _ = analyze("widths", "run", "--directions", 2, "--samples", 300, "--points", 3)
    assert status == 0
    assert "along_forward" in out
    table = rows(tmp_path / "widths/widths.csv")
    assert [float(row["position"]) for row in table] == [0, 0.5, 1]


RUN = ["--recipe", "mlp-digits-m2m-quick", "--set", "max_ticks=30", "--set", "screening.samples=200", "--quiet"]


def test_width_sweep(analyze, tmp_path):
    status, out, _ = analyze(
        *("width-sweep", "--model", "mlp", "--data", "digits", "--lr", 0.1, 0.05, "--batch-size", 32),
        *("--width", 32, 16, "--epochs", 3, "--directions", 1, "--samples", 300, "--matched-loss", 0.5),
    )
    assert status == 0
    assert "uniform on the unit sphere" in out
    content = json.loads((tmp_path / "width-sweep/width-sweep.json").read_text())
    assert content["about"]["base"]["lr"] == 0.1
    assert content["about"]["base"]["batch_size"] == 32
    assert content["numbers"]["axes"] == {"lr": [0.05, 0.1], "width": [16.0, 32.0]}
    assert len(rows(tmp_path / "width-sweep/width-sweep.csv")) == 4
    assert (tmp_path / "width-sweep/width-sweep.png").exists()


def test_subspace(analyze, tmp_path):
    status, out, _ = analyze(
        *("subspace", "--model", "mlp", "--data", "digits", "--dimensions", 2, 200, "--steps", 300, "--seeds", 5)
    )
    assert status == 0
    assert "reached in 200 dimensions (not in 2)" in out
    content = json.loads((tmp_path / "subspace/subspace.json").read_text())
    assert content["numbers"]["intrinsic_dimension"] == 200
    assert len(rows(tmp_path / "subspace/subspace.csv")) == 2


class TestBadInput:
    def message(self, analyze, *arguments):
        status, _, err = analyze(*arguments)
        assert status == 2
        assert len(err.strip().splitlines()) == 1
        return err

    def test_one_model(self, analyze, models):
        assert "at least 2 models" in self.message(analyze, "connect", models[0])

    def test_the_same_model_twice(self, analyze, models):
        assert "same point" in self.message(analyze, "connect", models[0], models[0])

    def test_other_shapes(self, analyze, models, tmp_path):
        save_model_file(tmp_path / "wide.pt", build_model("mlp", hidden=16).state_dict(), "mlp", "digits")
        assert "different architectures" in self.message(analyze, "connect", models[0], tmp_path / "wide.pt")

    def test_too_many_for_simplices(self, analyze, models):
        assert "triangles" in self.message(analyze, "connect", *models, *models)

    def test_not_a_run(self, analyze, tmp_path):
        (tmp_path / "empty").mkdir()
        assert "empty" in self.message(analyze, "widths", tmp_path / "empty")

    def test_nan(self, analyze, models, tmp_path):
        state = build_model("mlp").state_dict()
        state["fc1.weight"][0, 0] = torch.nan
        save_model_file(tmp_path / "nan.pt", state, "mlp", "digits")
        assert "NaN" in self.message(analyze, "widths", tmp_path / "nan.pt")

    def test_threshold_below_the_networks_own_loss(self, analyze, models):
        output = self.message(analyze, "widths", models[0], "--threshold", "1e-7", "--samples", 300)
        assert "m1: the network's loss" in output
        assert "raise the threshold" in output

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("connect", "a", "b", "--threshold", "-1"), "--threshold must be above 0"),
            (("connect", "a", "b", "--spacing", "2"), "--spacing"),
            (("width-sweep", "--model", "mlp", "--data", "digits"), "nothing varies"),
            (("width-sweep", "--lr", "0.1", "0.2"), "name --model and --data"),
            (("width-sweep", "--model", "mlp", "--data", "digits", "--lr", "0.1", "-1"), "lr must be above 0"),
            (("subspace", "--dimensions", "3"), "name --model and --data"),
            (("subspace", "--model", "mlp", "--data", "digits", "--dimensions", "0", "--baseline", "0.9"), "got 0"),
        ],
    )
    def test_options(self, analyze, arguments, message):
        assert message in self.message(analyze, *arguments)
