"""Split-epoch studies: rows, medians, ranks, and the figure."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest

from benchmarks.studies.split_epochs import Split, compare_children, draw_split, medians, prediction_ranks
from llpf_fast.analysis import Problem
from llpf_fast.analysis.directional_loss import DirectionalLoss
from llpf_fast.analysis.linear import linear_connectivity
from llpf_fast.analysis.predict import predict_barrier

from .toy_networks import Tanh, random_classes


@pytest.fixture(scope="module")
def split() -> Split:
    problem = Problem(Tanh(), train=random_classes(), test=random_classes(seed=1))
    children = problem.networks([Tanh(1), Tanh(2)])
    return compare_children(problem, children, Tanh(0).state_dict(), group="1", epoch=0, points=5, nodes=12)


def test_a_row_holds_what_the_analyses_found(split) -> None:
    problem = Problem(Tanh(), train=random_classes(), test=random_classes(seed=1))
    children = problem.networks([Tanh(1), Tanh(2)])
    line = linear_connectivity(problem, children, points=5, base=Tanh(0).state_dict())
    row = line.summary()[0]
    assert split.midpoint == row["train_loss_barrier_midpoint"]
    assert split.test_error_barrier == row["test_error_barrier_frankle"]
    assert split.angle == row["base_angle"]
    assert (split.loss_1, split.loss_2) == (row["train_loss_first"], row["train_loss_second"])
    assert split.predicted == pytest.approx(predict_barrier(DirectionalLoss(problem), children).midpoint)
    assert split.curvature_integral == pytest.approx(split.integral_barrier, abs=1e-7)


def test_a_spike_in_one_group_does_not_decide(split) -> None:
    rows = [replace(split, group=str(i), midpoint=value) for i, value in enumerate((0.1, 0.2, -50.0))]
    assert medians(rows)[0]["midpoint"] == 0.1


def test_medians_and_ranks(split) -> None:
    rows = [
        replace(split, group=group, epoch=epoch, midpoint=barrier, predicted=barrier / 2, sixteenth=-barrier)
        for epoch, barriers in ((0, (0.4, 0.6)), (3, (0.1, 0.3)), (None, (2.0, 4.0)))
        for group, barrier in zip("12", barriers, strict=True)
    ]
    table = medians(reversed(rows))
    assert [row["epoch"] for row in table] == [0, 3, None]
    assert [row["midpoint"] for row in table] == pytest.approx([0.5, 0.2, 3.0])
    ranks = prediction_ranks(rows)
    assert ranks["predicted"].rho == pytest.approx(1.0)
    assert ranks["sixteenth"].rho == pytest.approx(-1.0)
    assert ranks["distance"].rho is None


def test_the_figure_and_its_numbers(split, tmp_path) -> None:
    rows = [split, replace(split, epoch=5), replace(split, epoch=None)]
    assert draw_split(rows, tmp_path, "x", "toy").exists()
    with open(tmp_path / "x.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["epoch"] for line in lines] == ["0", "5", ""]
    assert float(lines[0]["angle"]) == split.angle
