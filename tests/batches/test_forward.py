"""The mode in which a network runs is tried out, in the same way for search and certificate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import llpf_fast
from llpf_fast.batches.forward import ForwardMode, choose_forward_mode, forward
from llpf_fast.errors import LLPFError
from llpf_fast.find import CorrectionSettings, Settings, StepSettings
from llpf_fast.find.task import make_task
from llpf_fast.verify import Evaluator

CPU = torch.device("cpu")


class Viewing(nn.Module):
    """``.view()`` after a convolution: always, or in one of the two modes."""

    def __init__(self, when: bool | None = None) -> None:
        super().__init__()
        self.conv, self.head, self.when = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 5), when

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        viewed = self.when is None or self.when == self.training
        return self.head(x.view(len(x), -1) if viewed else x.flatten(1))


class Energy(nn.Module):
    """Its output is the gradient of a scalar with respect to its input."""

    def __init__(self, switched: bool) -> None:
        super().__init__()
        self.body, self.switched = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)), switched

    def forward(self, x: Tensor) -> Tensor:
        if not self.switched:
            return self._slope(x)
        with torch.enable_grad():
            return self._slope(x)

    def _slope(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(self.body(x).sum(), x, create_graph=True)
        return slope


IMAGES = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 5
POINTS = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(40, 3)


@pytest.mark.parametrize(("when", "last"), [(None, False), (False, False), (True, False)])
def test_the_usual_order_where_a_network_views_a_convolution(when, last) -> None:
    assert make_task(Settings(), Viewing(when), IMAGES, None, CPU).mode.channels_last is last
    assert make_task(Settings(), nn.Sequential(nn.Conv2d(3, 5, 8), nn.Flatten()), IMAGES, None, CPU).mode.channels_last
    given = Settings(correction=CorrectionSettings(channels_last=True))
    with pytest.raises(LLPFError, match=r"cannot run with correction\.channels_last"):
        make_task(given, Viewing(when), IMAGES, None, CPU)


@pytest.mark.parametrize(
    ("make", "data", "loss"),
    [
        (Viewing, IMAGES, None),
        (lambda: Viewing(True), IMAGES, None),
        (lambda: Viewing(False), IMAGES, None),
        (lambda: Energy(True), POINTS, F.mse_loss),
        (lambda: Energy(False), POINTS, F.mse_loss),
    ],
)
def test_a_path_that_a_search_writes_can_be_certified(make, data, loss, tmp_path) -> None:
    settings = Settings(
        threshold=20.0, max_ticks=3, step=StepSettings(relative=0.3), correction=CorrectionSettings(threshold=19.0)
    )
    a, b = make(), make()
    llpf_fast.find_path(
        make(), a, b, data=data, loss_fn=loss, settings=settings, out=tmp_path / "run", arrival={"every": 1}
    )
    certificate = llpf_fast.verify_run(tmp_path / "run", model=make(), train=data, loss_fn=loss)
    want = float((loss or F.cross_entropy)(a.eval()(data[0]), data[1]))
    assert certificate.start_loss == pytest.approx(want, rel=1e-5)


def test_gradients_stay_off_where_the_forward_takes_none() -> None:
    gradients: list[bool] = []

    class Watching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            gradients.append(torch.is_grad_enabled())
            return super().forward(x)

    net = Watching(3, 5)
    Evaluator(net, F.mse_loss, POINTS[0], torch.zeros(40, 5))(net.state_dict())
    assert gradients
    assert not any(gradients)


def test_the_error_is_that_of_the_usual_order() -> None:
    with pytest.raises(LLPFError, match=r"forward fails on data of shape \[4, 7\]: .*mat1 and mat2"):
        choose_forward_mode(nn.Linear(3, 2), torch.zeros(4, 7), channels_last=True)
    assert choose_forward_mode(nn.Linear(7, 2), torch.zeros(4, 7), channels_last=True)[0] == ForwardMode(True, False)


@pytest.mark.parametrize(
    "inputs", [torch.ones(2), (torch.ones(2), torch.ones(2)), {"p": torch.ones(2), "q": torch.ones(2)}]
)
def test_inputs_by_position_and_by_name(inputs: Any) -> None:
    def module(p: Tensor, q: Tensor | None = None) -> Tensor:
        return p if q is None else p + q

    assert float(forward(module, inputs).sum()) == (2 if isinstance(inputs, Tensor) else 4)


class Mixed(nn.Module):
    """Buffers of other dtypes than the parameters', which it computes with."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 5)
        self.register_buffer("mixing", torch.eye(5, dtype=torch.float16))
        self.register_buffer("large", torch.tensor(1e300, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x).half() @ self.mixing).float() * float(self.large * 1e-300)


def test_buffers_of_another_dtype_are_not_cast() -> None:
    net = Mixed().eval()
    got = Evaluator(net, F.mse_loss, POINTS[0], torch.zeros(40, 5))(net.state_dict())
    assert got.loss == pytest.approx(float(F.mse_loss(net(POINTS[0]), torch.zeros(40, 5))), rel=1e-5)
