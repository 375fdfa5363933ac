"""``find_path`` with what users bring: modules, files, loaders, other losses and optimisers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import llpf_fast
from llpf_fast import LLPFError
from llpf_fast.find import CorrectionSettings

from .conftest import network, quick


def test_modules_and_a_loader(digits, endpoints, tmp_path) -> None:
    modules = []
    for state in endpoints:
        module = network()
        module.load_state_dict(state)
        modules.append(module)
    loader = DataLoader(TensorDataset(*digits), batch_size=64, shuffle=True, generator=torch.Generator().manual_seed(0))
    path = llpf_fast.find_path(network(), *modules, data=loader, settings=quick(), out=tmp_path / "run")
    assert len(path) > 2
    assert torch.equal(path[0]["0.weight"], endpoints[0]["0.weight"])


def test_regression_with_adamw_from_files(tmp_path) -> None:
    torch.manual_seed(0)
    x = torch.rand(512, 2) * 2 - 1
    y = (x[:, :1] * 2 + x[:, 1:]).sin()
    files = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
        for _ in range(600):
            optimizer.zero_grad()
            nn.functional.mse_loss(module(x), y).backward()
            optimizer.step()
        files.append(tmp_path / f"{seed}.pt")
        torch.save(module.state_dict(), files[-1])
    path = llpf_fast.find_path(
        nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1)),
        *files,
        data=(x, y),
        loss_fn=nn.functional.mse_loss,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.005),
        settings=quick(threshold=0.02, correction=CorrectionSettings(threshold=0.01, window=5, max_steps=200)),
        out=tmp_path / "run",
    )
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
    for state in path:
        model.load_state_dict(state)
        with torch.no_grad():
            loss = float(nn.functional.mse_loss(model(x), y))
        assert loss < 0.03


def test_stopping_short_is_an_error_that_keeps_the_run(digits, endpoints, tmp_path) -> None:
    with pytest.raises(LLPFError, match="did not arrive within max_ticks=2"):
        llpf_fast.find_path(network(), *endpoints, data=digits, settings=quick(), max_ticks=2, out=tmp_path / "run")
    assert len(llpf_fast.open_path(tmp_path / "run")) == 3


def test_unknown_setting_and_wrong_model_are_named(digits, endpoints, tmp_path) -> None:
    with pytest.raises(LLPFError, match="treshold"):
        llpf_fast.find_path(network(), *endpoints, data=digits, treshold=0.1)
    with pytest.raises(LLPFError, match=r"start has|model has"):
        llpf_fast.find_path(nn.Linear(64, 10), *endpoints, data=digits, out=tmp_path / "run")
    with pytest.raises(LLPFError, match="start must be a module"):
        llpf_fast.find_path(network(), 3, endpoints[1], data=digits)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("setting", "argument"),
    [
        ({"optimizer": "torch.optim:AdamW"}, {"optimizer": torch.optim.AdamW}),
        ({"is_norm": "torch.nn:ELU"}, {"is_norm": bool}),
    ],
    ids=["optimizer", "norm rule"],
)
def test_code_that_is_given_twice(digits, endpoints, tmp_path, setting, argument) -> None:
    with pytest.raises(LLPFError, match=f"{next(iter(argument))} is given twice, as an argument and by name"):
        llpf_fast.find_path(
            network(), *endpoints, data=digits, settings=quick(**setting), out=tmp_path / "run", **argument
        )
    assert not (tmp_path / "run").exists()
