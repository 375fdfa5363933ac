"""Searches with losses below 0, with data that make the loss NaN, and with networks that need another memory order."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import llpf_fast
from llpf_fast.errors import LLPFError
from llpf_fast.find import CorrectionSettings, Settings, StepSettings
from llpf_fast.find.screening import BatchedScreening, ScreeningEvaluator
from llpf_fast.find.task import make_task
from llpf_fast.flat import FlatParameters

COUNT = 90
CPU = torch.device("cpu")


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3))


@pytest.fixture
def xy() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(COUNT, 5, generator=g)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def settings(threshold: float = 1e6, correction: float = 1e5, **changes: Any) -> Settings:
    return Settings(
        **{
            "threshold": threshold,
            "step": StepSettings(relative=0.2),
            "arrival": {"every": 1},
            "max_ticks": 30,
            "correction": CorrectionSettings(
                threshold=correction, lr=0.2, momentum=0.9, batch_size=changes.pop("batch_size", 16)
            ),
            **changes,
        }
    )


def negative(output: Tensor, targets: Tensor) -> Tensor:
    """Minus the mean probability of the right class."""
    return -output.softmax(1).gather(1, targets[:, None]).mean()


def trained(xy: tuple[Tensor, Tensor], seed: int) -> nn.Module:
    model = net(seed)
    adam = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(150):
        adam.zero_grad()
        negative(model(xy[0]), xy[1]).backward()
        adam.step()
    return model


def test_a_negative_threshold(xy, tmp_path) -> None:
    networks = [trained(xy, seed) for seed in (1, 2)]
    given = settings(-0.75, -0.85)
    llpf_fast.find_path(net(), *networks, data=xy, loss_fn=negative, settings=given, out=tmp_path / "run")
    certificate = llpf_fast.verify_run(tmp_path / "run", model=net(), loss_fn=negative, train=xy, workers=1)
    assert certificate.connected
    assert certificate.max_loss <= -0.75
    with torch.no_grad():
        assert certificate.start_loss == pytest.approx(float(negative(networks[0](xy[0]), xy[1])), rel=1e-6)
    with pytest.raises(LLPFError, match=r"threshold must be positive with pacing.kind: adaptive.*pacing.kind: fixed"):
        settings(-0.75, -0.85, pacing={"kind": "adaptive"})
    with pytest.raises(LLPFError, match=r"correction\.threshold must be a finite number"):
        settings(correction=math.nan)


def refused(data: Any, loss: Any, message: str, folder: Any) -> None:
    with pytest.raises(LLPFError, match=message) as caught:
        llpf_fast.find_path(net(), net(1), net(2), data=data, loss_fn=loss, settings=settings(), out=folder / "run")
    assert "\n" not in str(caught.value)
    assert not (folder / "run").exists()


def test_data_that_make_the_loss_nan_are_named(xy, tmp_path) -> None:
    x, y = xy
    values = net(3)(x).detach()
    values[7, 1] = math.nan
    for data in ((x, values), DataLoader(TensorDataset(x, values), batch_size=16)):
        refused(data, F.mse_loss, "the loss mse_loss is NaN, and targets of the training data have NaN", tmp_path)
    broken = x.clone()
    broken[3] = math.nan
    refused((broken, y), None, "cross_entropy is NaN, and inputs of the training data have NaN", tmp_path)

    def masked(output: Tensor, target: Tensor) -> Tensor:
        return (output - target.nan_to_num())[~target.isnan()].square().mean()

    llpf_fast.find_path(net(), net(1), net(2), data=(x, values), loss_fn=masked, settings=settings())


def test_a_mean_over_no_label_of_ones_own_loss_is_named(xy, tmp_path) -> None:
    x, y = xy[0], xy[1].clone()
    y[:40] = -100

    def masked_mean(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target)

    loader = DataLoader(TensorDataset(x, y), batch_size=16)
    refused(
        loader,
        masked_mean,
        r"the loss masked_mean is NaN on batch 1 of 6 \(16 samples\).*of which such batches are left",
        tmp_path,
    )
    llpf_fast.find_path(net(), net(1), net(2), data=loader, loss_fn=F.cross_entropy, settings=settings())


@pytest.mark.parametrize("optimizer", [None, lambda parameters: torch.optim.Adam(parameters, 1e-3)])
def test_classes_of_weight_zero_do_not_end_a_search(xy, optimizer) -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.0, 0.0, 1.0]))
    given = settings(batch_size=1)
    llpf_fast.find_path(net(), net(1), net(2), data=xy, loss_fn=loss, optimizer=optimizer, settings=given)


def test_points_given_up_before_any_label_counts(xy) -> None:
    """Label smoothing gives classes of weight 0 a part in the loss, and no share of its denominator."""
    x, y = xy
    order = y.eq(2).int().argsort(stable=True)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.0, 0.0, 1.0]), label_smoothing=0.1)
    given = settings(evaluation_batch_size=10, screening={"samples": 0})
    data = x[order].repeat(20, 1), y[order].repeat_interleave(20).sort().values
    module = net()
    task = make_task(given, module, data, loss, CPU)
    flat = FlatParameters(module)
    stacked = BatchedScreening(flat, task).losses([flat.data], [flat.buffers()], [1e-9])
    assert stacked == [ScreeningEvaluator(module, task).loss(flat.data, flat.buffers(), 1e-9)] == [math.inf]


class Branching(nn.Module):
    """Uses ``.view()`` after its convolution in one case only, where channels last would break it."""

    def __init__(self, case: str) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(len(case))
            self.body, self.head = nn.Conv2d(2, 3, 3), nn.Linear(48, 3)
        self.case = case

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        cases = {"many": len(x) > 8, "training": self.training, "gradients": features.requires_grad}
        return self.head(features.view(len(x), -1) if cases[self.case] else features.flatten(1))


@pytest.mark.parametrize("case", ["many", "training", "gradients"])
@pytest.mark.parametrize("as_loader", [True, False])
def test_views_in_one_branch_only(case, as_loader, tmp_path) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(COUNT, 2, 6, 6, generator=g), torch.randint(3, (COUNT,), generator=g)
    data = DataLoader(TensorDataset(x, y), batch_size=20) if as_loader else (x, y)
    first, last = Branching(case), Branching(case)
    with torch.no_grad():
        last.head.weight.neg_()
        want = float(F.cross_entropy(first.double().eval()(x.double()), y))
    first.float()
    llpf_fast.find_path(Branching(case), first, last, data=data, settings=settings(), out=tmp_path / "run")
    certificate = llpf_fast.verify_run(tmp_path / "run", model=Branching(case), train=data, workers=1)
    assert certificate.start_loss == pytest.approx(want, rel=1e-6)


def test_a_batch_of_one_sample_under_normalization_says_what_to_do(xy, tmp_path) -> None:
    class Normalizing(nn.Module):
        def __init__(self, seed: int = 0) -> None:
            super().__init__()
            self.body, self.norm = net(seed), nn.BatchNorm1d(3, track_running_stats=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.body(x))

    loader = DataLoader(TensorDataset(*xy), batch_size=89)
    with pytest.raises(LLPFError, match=r"leave out a batch of one sample \(drop_last=True\)"):
        llpf_fast.find_path(
            Normalizing(), Normalizing(1), Normalizing(2), data=loader, settings=settings(), out=tmp_path / "run"
        )
