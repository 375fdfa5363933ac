"""Sharpness, averages and ensembles along a run, and their commands."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from llpf_fast.analysis.ensemble import ensemble_along
from llpf_fast.analysis.sharpness import sharpness_along
from llpf_fast.analysis.vector_loss import VectorLoss
from llpf_fast.cli.main import main
from llpf_fast.errors import LLPFError
from llpf_fast.models import build_model
from llpf_fast.path import save_model_file
from llpf_fast.report.sharpness import draw_sharpness

from . import blobs


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    first, last = blobs.networks()
    half = {name: (first[name] + last[name]) / 2 for name in first}
    return blobs.write_path(tmp_path_factory.mktemp("run") / "path", [first, half, last])


def test_sharpness_is_that_of_the_full_hessian(run: Path, tmp_path: Path) -> None:
    problem = blobs.problem(cache=tmp_path)
    sharpness = sharpness_along(problem, run, points=3, probes=200, tolerance=1e-5)
    assert [row["waypoint"] for row in sharpness.rows] == [0, 1, 2]
    assert [row["arc"] for row in sharpness.rows] == pytest.approx([0, 0.5, 1], abs=1e-6)
    for row, state in zip(sharpness.rows, [blobs.networks()[0], None, blobs.networks()[1]], strict=True):
        if state is None:
            continue
        network = VectorLoss(blobs.module(), F.cross_entropy, dtype=torch.float64)
        inputs, targets = problem.measured.inputs, problem.measured.targets
        whole = torch.autograd.functional.hessian(
            lambda v, network=network, x=inputs, y=targets: network.loss(v, x.double(), y), network.pack(state)
        )
        assert row["top_eigenvalue"] == pytest.approx(float(torch.linalg.eigvalsh(whole)[-1]), rel=1e-3)
        assert abs(row["trace"] - float(whole.trace())) < 4 * row["trace_standard_error"] + 1e-4
        norm = math.sqrt(sum(float(value.double().square().sum()) for value in state.values()))
        assert row["norm"] == pytest.approx(norm)
        assert row["top_eigenvalue_times_norm2"] == pytest.approx(row["top_eigenvalue"] * norm**2)
        assert row["sam_one_step"] > 0
        assert row["test_accuracy"] > 0.9
    assert sharpness_along(problem, run, points=3, probes=200, tolerance=1e-5).rows == sharpness.rows


def test_a_waypoint_that_is_not_finite_is_marked_and_passed(tmp_path: Path) -> None:
    first, last = blobs.networks()
    bad = {name: value.clone() for name, value in first.items()}
    bad["2.bias"] += float("inf")
    folder = blobs.write_path(tmp_path / "path", [first, last, last])
    sharpness = sharpness_along(blobs.problem(), folder, points=2, probes=2).rows
    assert all(math.isfinite(row["trace"]) for row in sharpness)
    folder = blobs.write_path(tmp_path / "bad", [first, bad, last])
    with pytest.raises(LLPFError, match="not finite"):
        sharpness_along(blobs.problem(), folder)
    huge = {name: value * 1e25 for name, value in first.items()}
    folder = blobs.write_path(tmp_path / "huge", [first, huge])
    rows = sharpness_along(blobs.problem(), folder, points=2, probes=2).rows
    assert math.isfinite(rows[0]["top_eigenvalue"])
    assert math.isnan(rows[1]["top_eigenvalue"])
    draw_sharpness({"path": rows}, tmp_path)
    assert "nan" in (tmp_path / "sharpness.csv").read_text()


def test_ensembles_against_what_is_computed_by_hand(run: Path) -> None:
    problem = blobs.problem()
    ensembles = ensemble_along(problem, run, points=3)
    rows = {row["what"]: row for row in ensembles.rows}
    states = [*blobs.networks()]
    inputs, targets = blobs.data(90)
    chances = []
    for state in states:
        net = blobs.module()
        net.load_state_dict(state)
        chances.append(net(inputs).double().softmax(1).detach())
    together = (chances[0] + chances[1]) / 2
    expected = float(F.nll_loss(together.log(), targets))
    assert rows["ensemble of the endpoints"]["test_loss"] == pytest.approx(expected, rel=1e-6)
    differ = float((chances[0].argmax(1) != chances[1].argmax(1)).double().mean())
    assert rows["ensemble of the endpoints"]["disagreement"] == differ
    assert rows["first"]["test_loss"] == pytest.approx(float(F.nll_loss(chances[0].log(), targets)), rel=1e-6)
    half = {name: (states[0][name] + states[1][name]) / 2 for name in states[0]}
    average = problem.evaluator("test")(half)
    assert rows["weight average of the endpoints"]["test_loss"] == pytest.approx(average.loss, rel=1e-6)
    # Ends and their middle: the average of all three is the middle again.
    assert rows["weight average of waypoints"]["test_loss"] == pytest.approx(average.loss, rel=1e-5)
    # Jensen: an ensemble's loss is never above its mean member's.
    assert rows["ensemble of waypoints"]["test_loss"] < rows["mean member"]["test_loss"]


def test_batchnorm_networks_and_networks_that_are_no_classifiers(tmp_path: Path) -> None:
    states = [*blobs.networks(norm=True)]
    folder = blobs.write_path(tmp_path / "path", states)
    rows = {row["what"]: row for row in ensemble_along(blobs.problem(norm=True), folder, points=2).rows}
    assert rows["weight average of the endpoints"]["test_loss"] == rows["weight average of waypoints"]["test_loss"]
    assert math.isfinite(sharpness_along(blobs.problem(norm=True), folder, points=2, probes=2).rows[0]["trace"])

    from llpf_fast.analysis import Problem

    inputs, targets = blobs.data()
    wanted = F.one_hot(targets, 3).float()
    regression = Problem(blobs.module(), F.mse_loss, train=(inputs, wanted), test=(inputs, wanted))
    folder = blobs.write_path(tmp_path / "regression", [*blobs.networks()])
    ensemble = ensemble_along(regression, folder, points=2).rows
    assert ensemble[0]["test_accuracy"] is None
    assert ensemble[3]["test_loss"] < ensemble[2]["test_loss"]


def test_bad_input_is_named(run: Path, tmp_path: Path) -> None:
    problem = blobs.problem()
    for call in (sharpness_along, ensemble_along):
        with pytest.raises(LLPFError, match="not the folder of a run"):
            call(problem, tmp_path)
        with pytest.raises(LLPFError, match="at least 2 points"):
            call(problem, run, points=1)
    with pytest.raises(LLPFError, match="rho"):
        sharpness_along(problem, run, rho=-1.0)
    with pytest.raises(LLPFError, match="probes"):
        sharpness_along(problem, run, probes=1)
    alone = blobs.write_path(tmp_path / "alone", [blobs.networks()[0]])
    with pytest.raises(LLPFError, match="no path yet"):
        sharpness_along(problem, alone)
    still = blobs.write_path(tmp_path / "still", [blobs.networks()[0]] * 2)
    with pytest.raises(LLPFError, match="all alike"):
        ensemble_along(problem, still)


def _llpf(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return status, output.out, output.err


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run between two networks for the digits that were never trained: commands take it all the same."""
    folder = tmp_path_factory.mktemp("digits")
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        states.append(build_model("mlp").state_dict())
        save_model_file(folder / f"m{seed}.model.pt", states[-1], "mlp", "digits")
    blobs.write_path(folder / "run", states, model="mlp", data="digits")
    return folder


def test_commands(digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s"
    options = ("--points", 2, "--samples", 50, "--quiet", "--out")
    status, output, err = _llpf(capsys, "analyze", "sharpness", digits / "run", "--probes", 2, *options, out)
    assert status == 0, err
    assert "top eigenvalue" in output
    assert len(json.loads((out / "sharpness.json").read_text())["numbers"]["rows"]) == 2
    status, output, err = _llpf(capsys, "analyze", "ensemble", digits / "run", *options, out)
    assert status == 0, err
    assert "weight average of the endpoints" in output
    models = (digits / "m0.model.pt", digits / "m1.model.pt")
    curves = ("analyze", "curves", *models, "--samples", 50, "--quiet", "--out", tmp_path / "c")
    status, output, err = _llpf(
        capsys, *curves, "--methods", "linear,bezier", "--steps", 3, "--threshold", 9, "--rate", "bezier=0.1"
    )
    assert status == 0, err
    assert "bezier" in output
    assert json.loads((tmp_path / "c" / "curves.json").read_text())["about"]["equal_budget_steps"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sharpness", "{folder}"), "not the folder of a run"),
        (("sharpness", "{folder}/m0.model.pt"), "is a file"),
        (("sharpness", "{folder}/run", "--rho", "0"), "rho must be"),
        (("ensemble", "{folder}/none"), "none"),
        (("curves", "{folder}/m0.model.pt"), "at least 2 models"),
        (("curves", "{folder}/run", "--methods", "snake"), "unknown method snake"),
        (("curves", "{folder}/run", "--rate", "bezier=fast"), "write METHOD=LR"),
        (("curves", "{folder}/run", "--recipe", "nothing"), "unknown recipe"),
        (("curves", "{folder}/run", "--methods", "linear", "--threshold", "0.1"), "above the threshold"),
    ],
)
def test_bad_commands_are_one_line(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    filled = [argument.format(folder=digits) for argument in arguments]
    status, _, err = _llpf(capsys, "analyze", *filled, "--out", tmp_path / "out", "--quiet")
    assert status == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
