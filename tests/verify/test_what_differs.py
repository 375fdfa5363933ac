"""``Certificate.differs``: empty where search and certificate have the same task, else what is different."""

from __future__ import annotations

import functools
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import llpf_fast
from llpf_fast.errors import LLPFError
from llpf_fast.find import CorrectionSettings, Settings, StepSettings

COUNT = 90
_G = torch.Generator().manual_seed(0)
X, Y, R = (
    torch.randn(COUNT, 5, generator=_G),
    torch.randint(3, (COUNT,), generator=_G),
    torch.randn(COUNT, 3, generator=_G),
)
ORDER = torch.randperm(COUNT, generator=_G)
OTHER = Y.clone()
OTHER[60] = (OTHER[60] + 1) % 3


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def settings(**changes: Any) -> Settings:
    return Settings(
        **{
            "threshold": 1e6,
            "step": StepSettings(relative=0.4),
            "arrival": {"every": 1},
            "max_ticks": 10,
            "correction": CorrectionSettings(threshold=1e5, window=2),
            **changes,
        }
    )


def differs(folder: Any, find: Any, verify: Any, find_loss: Any = None, loss: Any = None, **changes: Any) -> list[str]:
    llpf_fast.find_path(
        net(), net(1), net(2), data=find, loss_fn=find_loss, settings=settings(**changes), out=folder / "run"
    )
    certificate = llpf_fast.verify_run(
        folder / "run", model=net(), train=verify, loss_fn=loss, workers=1, straight_points=0
    )
    return list(certificate.as_dict()["differs"])


def batches(x: Tensor, y: Tensor, size: int = 16) -> list[Any]:
    return list(zip(x.split(size), y.split(size), strict=True))


def loader(x: Tensor, y: Tensor, size: int = 16) -> Any:
    return DataLoader(TensorDataset(x, y), batch_size=size)


def shuffled(x: Tensor, y: Tensor, size: int = 16) -> Any:
    return DataLoader(TensorDataset(x, y), batch_size=size, shuffle=True)


@pytest.mark.parametrize("form", [batches, loader, shuffled])
@pytest.mark.parametrize("seed", [0, 3])
def test_batches_are_compared_as_samples_are(tmp_path, form, seed) -> None:
    for number, (data, part, other) in enumerate(
        (
            (form(X, Y), 2000, ""),
            (form(X, Y), 32, ""),
            (form(X, Y, 30), 2000, ""),
            (form(X[ORDER], Y[ORDER]), 2000, "the search's in another order"),
            (form(X, OTHER), 2000, "not the samples of the search, or are in another order"),
            (form(X[:48], Y[:48]), 2000, "are 48 samples, the search"),
            *([] if form is batches else [(form(X[:48], Y[:48]), 32, "are 48 samples, the search's were 90")]),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        differences = differs(folder, form(X, Y), data, seed=seed, screening={"samples": part})
        assert len(differences) == bool(other)
        assert other in "".join(differences)


def test_samples_and_batches_of_the_same_data_do_not_differ(tmp_path) -> None:
    forms: list[Any] = [(X, Y), batches(X, Y), loader(X, Y), shuffled(X, Y), TensorDataset(X, Y)]
    for number, form in enumerate(forms):
        for at, (find, verify) in enumerate((((X, Y), form), (form, (X, Y)))):
            folder = tmp_path / f"{number}-{at}"
            folder.mkdir()
            assert differs(folder, find, verify) == []
    assert differs(tmp_path, (X, Y), loader(X, OTHER)) != []


@pytest.mark.parametrize(
    "find", [(X, Y), batches(X, Y), loader(X, Y), shuffled(X, Y)], ids=["tensors", "batches", "loader", "shuffled"]
)
def test_other_samples_in_another_form_differ(tmp_path, find) -> None:
    for number, (x, y) in enumerate([(X + 0.05, Y), (X, OTHER)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert differs(folder, find, (x, y)) == ["the training data are not the samples of the search"]


class Noisy(Dataset):  # type: ignore[type-arg]
    """Adds a random number to its inputs: torch's, which a seed repeats, or NumPy's."""

    def __init__(self, draw: Any, targets: Tensor = Y) -> None:
        self.draw, self.targets = draw, targets

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        return X[index] + float(self.draw()), self.targets[index]


@pytest.mark.parametrize("draw", [lambda: torch.rand(()), numpy.random.rand])
@pytest.mark.parametrize("seed", [0, 3])
def test_augmented_data_do_not_differ_from_themselves(tmp_path, draw, seed) -> None:
    assert differs(tmp_path, Noisy(draw), Noisy(draw), seed=seed) == []


def test_augmented_data_with_other_labels_differ(tmp_path) -> None:
    def draw() -> Tensor:
        return torch.rand(())

    assert differs(tmp_path, Noisy(draw), Noisy(draw, OTHER), seed=2) != []


def test_a_shuffling_loader_with_a_generator_of_its_own_does_not_differ_from_itself(tmp_path) -> None:
    loader = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(1))
    assert differs(tmp_path, loader, loader) == []


def mse_loss(output: Tensor, target: Tensor) -> Tensor:
    """Not torch's of that name."""
    return (output - target).abs().mean()


def test_code_with_the_name_of_a_loss_of_torchs_differs_from_it(tmp_path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    differences = differs(folders[0], (X, R), (X, R), mse_loss, F.mse_loss)
    assert differences == ["the loss mse_loss is torch's, the search's was other code of that name"]
    differences = differs(folders[1], (X, R), (X, R), F.mse_loss, mse_loss)
    assert differences == ["the loss mse_loss is other code, the search's was torch's of that name"]
    with pytest.raises(LLPFError, match="used the loss mse_loss, which cannot be made from its name; pass loss_fn="):
        llpf_fast.verify_run(folders[0] / "run", model=net(), train=(X, R))


@pytest.mark.parametrize(
    "loss", [lambda o, t: F.cross_entropy(o, t), functools.partial(F.cross_entropy, label_smoothing=0.1)]
)
def test_a_loss_that_its_name_does_not_define_must_be_given(tmp_path, loss) -> None:
    assert differs(tmp_path, (X, Y), (X, Y), loss, loss) == []
    with pytest.raises(LLPFError, match=r"pass loss_fn=$") as caught:
        llpf_fast.verify_run(tmp_path / "run", model=net(), train=(X, Y))
    assert "\n" not in str(caught.value)


def test_search_and_certificate_have_the_same_loss_at_the_start() -> None:
    """Also of a network that draws numbers in eval mode, and of one that mixes the samples of a batch."""
    from llpf_fast.find.screening import ScreeningEvaluator
    from llpf_fast.find.task import make_task
    from llpf_fast.flat import FlatParameters
    from llpf_fast.verify import Evaluator

    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net(1)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(F.dropout(x, 0.5, training=True))

    for module in (Drawing(), net(1)):
        for data in ((X, Y), loader(X, Y)):
            task = make_task(settings(), module, data, None, torch.device("cpu"))
            flat = FlatParameters(module)
            before = torch.get_rng_state()
            loss = ScreeningEvaluator(module, task).loss(flat.data, flat.buffers())
            assert torch.equal(before, torch.get_rng_state())
            assert loss == pytest.approx(Evaluator(module, None, data)(module.state_dict()).loss, rel=1e-6)
