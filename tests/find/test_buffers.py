"""Paths of networks with buffers: searched, certified, and with the same loss in PyTorch alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import llpf_fast
from llpf_fast.errors import LLPFError
from llpf_fast.find import CorrectionSettings, Settings, StepSettings
from llpf_fast.find.screening import ScreeningEvaluator
from llpf_fast.find.search import _REST_FRACTIONS
from llpf_fast.path.polyline import interpolate
from llpf_fast.verify import Evaluator


class Rotated(nn.Module):
    """A complex buffer: phases in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        self.register_buffer("phase", torch.polar(torch.ones(5), torch.linspace(0, 3, 5)))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.fft.irfft(torch.fft.rfft(x) * self.phase, n=8))


class Masked(nn.Module):
    """Attention with a mask of infinities, integer positions and a boolean switch."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.head = nn.Linear(2, 4), nn.Linear(2, 4), nn.Linear(2, 4), nn.Linear(4, 3)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
        self.register_buffer("positions", torch.arange(4))
        self.register_buffer("reverse", torch.tensor(True))

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (4, 2))[:, self.positions.flip(0) if self.reverse else self.positions]
        scores = self.q(x) @ self.k(x).transpose(1, 2) + self.mask
        return self.head((scores.softmax(-1) @ self.v(x))[:, -1])


def normalized() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def spectral() -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 3))


def orthogonal() -> nn.Module:
    return nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 3))


def double() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).double()


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=g)
    return x, (x[:, :4].sum(1) > 0).long() + (x[:, 4:].sum(1) > 0).long()


def trained(make: Callable[[], nn.Module], data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = make()
        x, y = data[0].to(next(net.parameters()).dtype), data[1]
        adam = torch.optim.Adam(net.parameters(), 0.01)
        for _ in range(250):
            adam.zero_grad()
            F.cross_entropy(net(x), y).backward()
            adam.step()
    return net.eval()


def settings(**changes: Any) -> Settings:
    given: dict[str, Any] = {
        "threshold": 0.9,
        "step": StepSettings(relative=0.1),
        "arrival": {"every": 2},
        "max_ticks": 80,
        "correction": CorrectionSettings(threshold=0.5, lr=0.05, momentum=0.9),
    }
    return Settings(**{**given, **changes})


def plain_loss(net: nn.Module, a: dict[str, Tensor], b: dict[str, Tensor], at: float, data: Any) -> float:
    """At a point of the straight line from state ``a`` to ``b``: nothing of llpf_fast."""
    state = {}
    for name, value in a.items():
        if value.is_floating_point() or value.is_complex():
            wide = torch.complex128 if value.is_complex() else torch.float64
            mixed = value.to(wide) + at * (b[name].to(wide) - value.to(wide))
            state[name] = value if torch.equal(value, b[name]) else mixed.to(value.dtype)
        else:
            state[name] = value
    net.load_state_dict(state)
    x = data[0].to(next(net.parameters()).dtype)
    with torch.no_grad():
        return float(F.cross_entropy(net.eval()(x), data[1]))


@pytest.mark.parametrize("make", [normalized, Rotated, Masked, double, spectral, orthogonal])
@pytest.mark.filterwarnings("ignore:.*are no statistics")
def test_found_certified_and_the_same_in_plain_pytorch(make, data, tmp_path) -> None:
    networks = [trained(make, data, seed) for seed in (1, 2)]
    if make in (spectral, orthogonal):
        # Buffers that differ between independent trainings; from one network on, they agree or nearly do.
        networks[1].load_state_dict(networks[0].state_dict())
        with torch.no_grad():
            list(networks[1].parameters())[-1].add_(0.3 * torch.randn(3, generator=torch.Generator().manual_seed(1)))
    path = llpf_fast.find_path(make(), *networks, data=data, settings=settings(), out=tmp_path / "run")
    certificate = llpf_fast.verify_run(tmp_path / "run", model=make(), train=data)
    waypoints = list(path)
    for point in certificate.points:
        a = waypoints[point.at.waypoint]
        b = waypoints[min(point.at.waypoint + 1, len(waypoints) - 1)]
        want = plain_loss(make(), a, b, point.at.fraction, data)
        assert point.train_loss == pytest.approx(want, rel=2e-5, abs=1e-6)
    assert certificate.max_loss == pytest.approx(max(point.train_loss for point in certificate.points))
    for name, buffer in networks[0].named_buffers():
        if torch.equal(buffer, dict(networks[1].named_buffers())[name]) and make is Masked:
            assert all(torch.equal(state[name], buffer) for state in waypoints), name


def test_buffers_that_no_line_joins_are_refused(data, tmp_path) -> None:
    networks = [trained(Masked, data, seed) for seed in (1, 2)]
    networks[1].positions = torch.tensor([1, 0, 2, 3])
    with pytest.raises(LLPFError, match="positions") as caught:
        llpf_fast.find_path(Masked(), *networks, data=data, settings=settings(), out=tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("statistics", ["stored", "reestimated"])
def test_arrival_is_judged_with_the_buffers_that_the_certificate_takes(data, tmp_path, monkeypatch, statistics) -> None:
    networks = [trained(normalized, data, seed) for seed in (1, 2)]
    losses: list[float] = []
    loss = ScreeningEvaluator.loss
    monkeypatch.setattr(ScreeningEvaluator, "loss", lambda *args: losses.append(loss(*args)) or losses[-1])
    given = settings(statistics=statistics, screening={"samples": 0}, arrival={"margin": 1.0})
    path = llpf_fast.find_path(normalized(), *networks, data=data, settings=given, out=tmp_path / "run")
    a, b = list(path)[-2:]
    evaluate = Evaluator(normalized(), None, data, statistics=statistics, statistics_inputs=data)
    # The last judgements of an arrival: the point itself, the chord from its middle outward, the highest once more.
    highest = _REST_FRACTIONS[losses.index(max(losses[-8:-1]), len(losses) - 8) - (len(losses) - 8)]
    for fraction, value in zip([0.0, *_REST_FRACTIONS, highest], losses[-9:], strict=True):
        assert value == pytest.approx(evaluate(interpolate(a, b, fraction)).loss, rel=1e-4)
        if statistics == "stored":
            assert value == pytest.approx(plain_loss(normalized(), a, b, fraction, data), rel=1e-4)


def test_reestimated_statistics_are_those_of_search_and_certificate(data, tmp_path) -> None:
    networks = [trained(normalized, data, seed) for seed in (1, 2)]
    path = llpf_fast.find_path(
        normalized(), *networks, data=data, settings=settings(statistics="reestimated"), out=tmp_path / "run"
    )
    certificate = llpf_fast.verify_run(tmp_path / "run", model=normalized(), train=data)
    assert certificate.evaluation["batchnorm_statistics"] == "reestimated"
    assert certificate.differs == []
    net = normalized()
    net.load_state_dict(path[1])
    torch.optim.swa_utils.update_bn(torch.utils.data.DataLoader(data[0][:250], batch_size=125), net)
    point = next(p for p in certificate.points if (p.at.waypoint, p.at.fraction) == (1, 0.0))
    with torch.no_grad():
        assert point.train_loss == pytest.approx(float(F.cross_entropy(net.eval()(data[0]), data[1])), rel=0.05)
    stored = llpf_fast.verify_run(tmp_path / "run", model=normalized(), train=data, statistics="stored")
    assert any("statistics are stored, the search's were reestimated" in line for line in stored.differs)
