"""A run goes on with the loss and the data that it was begun with, or says what is not the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import llpf_fast
from llpf_fast.errors import LLPFError
from llpf_fast.find import Settings

X, Y = torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
OTHER = (Y + 1) % 3
A, B = (nn.Linear(4, 3) for _ in range(2))
SETTINGS = Settings(threshold=50.0, max_ticks=4, correction={"threshold": 40.0}, step={"relative": 0.1})  # type: ignore[arg-type]


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Not torch's of that name."""
    return 2 * F.cross_entropy(output, target)


def loader(x: Tensor, y: Tensor) -> Any:
    return DataLoader(TensorDataset(x, y), batch_size=16)


def stopped(folder: Any, data: Any, loss: Callable[..., Tensor] | None = None) -> None:
    """A search that is interrupted after its first tick."""

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llpf_fast.find_path(
            nn.Linear(4, 3), A, B, data=data, loss_fn=loss, settings=SETTINGS, out=folder, progress=stop,
            arrival={"every": 100}, record={"checkpoint_every": 1},
        )  # fmt: skip


def resumed(folder: Any, data: Any, loss: Callable[..., Tensor] | None = None) -> None:
    llpf_fast.find_path(
        nn.Linear(4, 3), A, B, data=data, loss_fn=loss, settings=SETTINGS, out=folder, resume=True,
        arrival={"every": 100}, record={"checkpoint_every": 1},
    )  # fmt: skip


@pytest.mark.parametrize("form", [lambda x, y: (x, y), loader, lambda x, y: TensorDataset(x, y)])
def test_the_same_goes_on_silently(tmp_path, form) -> None:
    stopped(tmp_path / "run", form(X, Y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed(tmp_path / "run", form(X, Y))


@pytest.mark.parametrize(
    ("data", "loss", "message"),
    [
        ((X, OTHER), None, "training data differ"),
        ((X.flip(0), Y.flip(0)), None, "training data differ"),
        ((X[:32], Y[:32]), None, "64 and 32 samples"),
        ((X, Y), F.multi_margin_loss, "its loss is cross_entropy, not multi_margin_loss"),
        ((X, Y), cross_entropy, r"its loss is cross_entropy, not cross_entropy \(your code\)"),
    ],
)
def test_others_are_refused(tmp_path, data, loss, message) -> None:
    stopped(tmp_path / "run", (X, Y))
    with pytest.raises(LLPFError, match=message):
        resumed(tmp_path / "run", data, loss)


def test_what_cannot_be_told_for_sure_is_a_warning(tmp_path) -> None:
    stopped(tmp_path / "loader", loader(X, Y))
    with pytest.warns(UserWarning, match="training data are not those"):
        resumed(tmp_path / "loader", loader(X, OTHER))
    stopped(tmp_path / "loss", (X, Y), lambda output, target: F.cross_entropy(output, target))
    with pytest.warns(UserWarning, match="the code of the loss"):
        resumed(tmp_path / "loss", (X, Y), lambda output, target: 3 * F.cross_entropy(output, target))
