"""Arguments of ``certify`` of the wrong kind: one line that names them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llpf_fast.errors import LLPFError
from llpf_fast.verify import Evaluator, certify

LINE: Any = [{"x": torch.tensor([0.0])}, {"x": torch.tensor([1.0])}]


class Times(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.x * inputs


LOW = Evaluator(Times(), F.mse_loss, torch.full((10, 1), 0.5), torch.zeros(10, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": "0.1"}, "threshold must be a finite number, got '0.1'"),
        ({"threshold": None}, "threshold must be a finite number"),
        ({"threshold": True}, "threshold must be a finite number"),
        ({"straight_points": 2.5}, "straight_points must be a whole number"),
        ({"workers": "2"}, "workers must be a whole number"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"level": "some"}, "unknown level 'some'"),
        ({"level": 3}, "unknown level '3'"),
        ({"limits": {"finest": 1}}, "limits must be Limits"),
        ({"progress": 3}, "progress must be a function"),
        ({"train": lambda state: 0}, "train must be an Evaluator"),
        ({"train": None}, "train must be an Evaluator"),
        ({"test": lambda state: 0}, "test must be an Evaluator"),
        ({"parameter_names": "x"}, "parameter_names must be several names"),
    ],
)
def test_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LLPFError, match=message):
        certify(LINE, **{"train": LOW, "threshold": 0.5, **arguments})


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
        certify(waypoints, LOW, threshold=0.5)


def test_waypoints_that_negate_or_want_gradients() -> None:
    negated = [{"x": torch._neg_view(-state["x"])} for state in LINE]
    wanting = [{"x": nn.Parameter(state["x"])} for state in LINE]
    for waypoints in (negated, wanting):
        certificate = certify(waypoints, LOW, threshold=0.5)
        assert certificate.connected
        assert certificate.max_loss == pytest.approx(0.25)
