"""Arguments of ``certify`` of the wrong kind: one line that names them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from llpf_fast.errors import LLPFError
from llpf_fast.verify import Evaluation, Refinement, certify

LINE: Any = [{"x": torch.tensor([0.0])}, {"x": torch.tensor([1.0])}]


def low(state: Any) -> Evaluation:
    return Evaluation(float(state["x"][0].detach()) * 0.1, 0.0, None, 10, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": "0.1"}, "threshold must be a finite number, got '0.1'"),
        ({"threshold": None}, "threshold must be a finite number"),
        ({"threshold": True}, "threshold must be a finite number"),
        ({"interior": 2.5}, "interior must be a whole number"),
        ({"straight_points": 2.5}, "straight_points must be a whole number"),
        ({"workers": "2"}, "workers must be a whole number"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"refinement": {"rounds": 1}}, "refinement must be a Refinement"),
        ({"progress": 3}, "progress must be a function"),
        ({"parameter_names": "x"}, "parameter_names must be several names"),
    ],
)
def test_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LLPFError, match=message):
        certify(LINE, low, **{"threshold": 0.5, **arguments})


@pytest.mark.parametrize(
    ("waypoints", "message"),
    [
        (iter(LINE), "waypoints must be a list of state dicts, got list_iterator"),
        (LINE[0], "waypoints must be a list of state dicts, got dict"),
        ([nn.Linear(1, 1), nn.Linear(1, 1)], "waypoint 0 is a Linear: pass its state dict"),
        (["a.pt", "b.pt"], "waypoint 0 is a str"),
        ([{"x": torch.ones(2).to_sparse()}] * 2, "x of waypoint 0 is sparse"),
    ],
)
def test_waypoints(waypoints: Any, message: str) -> None:
    with pytest.raises(LLPFError, match=message):
        certify(waypoints, low, threshold=0.5)


def test_waypoints_that_negate_or_want_gradients() -> None:
    negated = [{"x": torch._neg_view(-state["x"])} for state in LINE]
    wanting = [{"x": nn.Parameter(state["x"])} for state in LINE]
    for waypoints in (negated, wanting):
        certificate = certify(waypoints, low, threshold=0.5)
        assert certificate.connected
        assert certificate.max_loss == pytest.approx(0.1)


@pytest.mark.parametrize(("field", "value"), [("rounds", -1), ("gaps", 1.5), ("finest", float("nan")), ("gaps", True)])
def test_refinement(field: str, value: Any) -> None:
    with pytest.raises(LLPFError, match=f"{field} of a Refinement must be"):
        Refinement(**{field: value})
