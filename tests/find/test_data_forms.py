"""One set of samples handed over in every form that people have it in: the same path, the same certificate."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import llpf_fast
from llpf_fast.errors import LLPFError
from llpf_fast.find import CorrectionSettings, Settings, StepSettings

COUNT, BATCH = 200, 32


class Two(nn.Module):
    """Takes its input whole, or in two parts by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, p: Tensor, q: Tensor | None = None) -> Tensor:
        return self.body(p if q is None else torch.cat([p, q], 1))


class Items(Dataset):
    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        return tuple(part[index] for part in self.parts)


class Stream(IterableDataset):
    def __init__(self, *parts: Tensor, endless: bool = False) -> None:
        self.parts, self.endless = parts, endless

    def __iter__(self) -> Iterator[Any]:
        yield from zip(*self.parts, strict=True)
        while self.endless:
            yield from zip(*self.parts, strict=True)


class Again:
    """Neither a list nor a loader; only that it can be iterated again and again."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(COUNT, 8, generator=g)
    return x, (x[:, :4].sum(1) > 0).long() + (x[:, 4:].sum(1) > 0).long()


@pytest.fixture(scope="module")
def networks(data) -> list[Two]:
    trained = []
    with torch.random.fork_rng():
        for seed in (1, 2):
            torch.manual_seed(seed)
            net = Two()
            adam = torch.optim.Adam(net.parameters(), 0.02)
            for _ in range(120):
                adam.zero_grad()
                F.cross_entropy(net(data[0]), data[1]).backward()
                adam.step()
            trained.append(net)
    return trained


def settings() -> Settings:
    return Settings(
        threshold=0.4,
        step=StepSettings(relative=0.2),
        arrival={"every": 1},
        max_ticks=30,
        correction=CorrectionSettings(threshold=0.3, lr=0.05, momentum=0.9),
    )


def searched(networks: list[Two], data: Any, folder: Any) -> tuple[list[dict[str, Tensor]], dict[str, Any]]:
    path = llpf_fast.find_path(Two(), *networks, data=data, settings=settings(), out=folder)
    certificate = llpf_fast.verify_run(folder, model=Two(), train=data, workers=1, straight_points=3, seed=1)
    record = certificate.as_dict()
    return list(path), {
        key: record[key] for key in ("connected", "max_loss", "start_loss", "points", "differs", "notes")
    }


def same(networks, reference, form, folder) -> None:
    (path, certificate), (want, wanted) = searched(networks, form, folder), reference
    assert len(path) == len(want)
    for got, expected in zip(path, want, strict=True):
        assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert certificate == wanted
    assert certificate["differs"] == []


@pytest.fixture(scope="module")
def from_tensors(networks, data, tmp_path_factory):
    return searched(networks, data, tmp_path_factory.mktemp("tensors") / "run")


@pytest.fixture(scope="module")
def from_batches(networks, data, tmp_path_factory):
    batches = list(zip(data[0].split(BATCH), data[1].split(BATCH), strict=True))
    return searched(networks, batches, tmp_path_factory.mktemp("batches") / "run")


SAMPLES = {
    "list": lambda x, y: [x, y],
    "numpy": lambda x, y: (x.numpy(), y.numpy()),
    "numpy float64 and int32": lambda x, y: (x.double().numpy(), y.int().numpy()),
    "read-only numpy": lambda x, y: (numpy.frombuffer(x.numpy().tobytes(), numpy.float32).reshape(COUNT, 8), y),
    "two inputs": lambda x, y: ((x[:, :4], x[:, 4:]), y),
    "inputs by name": lambda x, y: ({"p": x[:, :4], "q": x[:, 4:]}, y),
    "a mapping with labels": lambda x, y: {"p": x, "labels": y},
    "TensorDataset": lambda x, y: TensorDataset(x, y),
    "Dataset": lambda x, y: Items(x, y),
    "Dataset of numbers": lambda x, y: Items(x.numpy(), y.tolist()),
    "Subset": lambda x, y: Subset(TensorDataset(x, y), range(COUNT)),
}

BATCHES = {
    "DataLoader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=BATCH),
    "DataLoader of a stream": lambda x, y: DataLoader(Stream(x, y), batch_size=BATCH),
    "lists": lambda x, y: [list(pair) for pair in zip(x.split(BATCH), y.split(BATCH), strict=True)],
    "arrays": lambda x, y: [(a.numpy(), b.numpy()) for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)],
    "two inputs": lambda x, y: DataLoader([((a[:4], a[4:]), b) for a, b in zip(x, y, strict=True)], batch_size=BATCH),
    "by name": lambda x, y: DataLoader(
        [({"p": a[:4], "q": a[4:]}, b) for a, b in zip(x, y, strict=True)], batch_size=BATCH
    ),
    "mapping with labels": lambda x, y: DataLoader(
        [{"p": a, "labels": b} for a, b in zip(x, y, strict=True)], batch_size=BATCH
    ),
    "transformers' mapping": lambda x, y: [
        UserDict(p=a, labels=b) for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)
    ],
    "a class of the user": lambda x, y: Again(list(zip(x.split(BATCH), y.split(BATCH), strict=True))),
}


@pytest.mark.parametrize("form", SAMPLES)
def test_samples_in_every_form_are_the_same_path_bit_for_bit(networks, data, from_tensors, tmp_path, form) -> None:
    assert from_tensors[1]["connected"]
    same(networks, from_tensors, SAMPLES[form](*data), tmp_path / "run")


@pytest.mark.parametrize("form", BATCHES)
def test_batches_in_every_form_are_the_same_path_bit_for_bit(networks, data, from_batches, tmp_path, form) -> None:
    assert from_batches[1]["connected"]
    same(networks, from_batches, BATCHES[form](*data), tmp_path / "run")


@pytest.mark.filterwarnings("error")
def test_a_third_part_is_named(networks, data, from_batches, tmp_path) -> None:
    triples = DataLoader(Items(*data, torch.arange(COUNT)), batch_size=BATCH)
    with pytest.warns(UserWarning, match="have 3 parts: .* the rest is not used"):
        same(networks, from_batches, triples, tmp_path / "run")


def test_targets_of_several_parts_reach_the_loss(networks, data, tmp_path) -> None:
    x, y = data

    def loss(output: Tensor, target: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(output, target["label"])

    for form in ((x, {"label": y}), DataLoader([(a, {"label": b}) for a, b in zip(x, y, strict=True)], batch_size=50)):
        folder = tmp_path / type(form).__name__
        llpf_fast.find_path(Two(), *networks, data=form, loss_fn=loss, settings=settings(), out=folder)
        certificate = llpf_fast.verify_run(folder, model=Two(), train=form, loss_fn=loss)
        with torch.no_grad():
            assert certificate.start_loss == pytest.approx(float(F.cross_entropy(networks[0](x), y)), rel=1e-6)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda x, y: ((x[i], y[i]) for i in range(3)), "generator, which can be read only once"),
        (lambda x, y: iter([(x, y)]), "can be read only once"),
        (lambda x, y: x, "is one Tensor; pass a pair"),
        (lambda x, y: x.numpy(), "is one ndarray; pass a pair"),
        (lambda x, y: [], "is empty"),
        (lambda x, y: (), "is empty"),
        (lambda x, y: (x[:0], y[:0]), "is empty"),
        (lambda x, y: (x, y[1:]), "200 inputs but 199 targets"),
        (lambda x, y: ((x, x[1:]), y), "199 and 200 inputs but 200 targets"),
        (lambda x, y: None, "got NoneType"),
        (lambda x, y: "data", "got str"),
        (lambda x, y: 3, "got int"),
        (lambda x, y: [x], "a batch of the training data must be a pair"),
        (lambda x, y: (x.tolist(), y.tolist()), "hold no tensor or array"),
        (lambda x, y: [(x, "a")], "the targets of a batch of the training data hold no tensor"),
        (lambda x, y: [(x,)], "a batch of the training data must be a pair"),
        (lambda x, y: [{"p": x}], "needs its targets under one of labels, label, targets, target"),
        (lambda x, y: [{"p": x, "labels": y, "label": y}], "it has labels and label"),
        (lambda x, y: [{"labels": y}], "and inputs beside them"),
        (lambda x, y: TensorDataset(x), "has no targets"),
        (lambda x, y: DataLoader(TensorDataset(x), batch_size=9), "must be a pair"),
        (lambda x, y: Items(x, [None] * COUNT), "cannot be stacked"),
        (lambda x, y: Items(x, []), r"Items\[i\] fails: IndexError"),
        (lambda x, y: (numpy.array(["a"] * COUNT), y), "which torch has no tensors for"),
        (lambda x, y: (x.to_sparse(), y), "sparse tensor"),
        (lambda x, y: (x, 3.0), "got"),
        (lambda x, y: DataLoader(Stream(x, y, endless=True), batch_size=1000), "had not ended after"),
        (lambda x, y: Stream(x, y, endless=True), "had not ended after"),
    ],
)
def test_what_is_no_data_is_one_line(networks, data, tmp_path, monkeypatch, form, message) -> None:
    monkeypatch.setattr("llpf_fast.batches.data.STREAM_LIMIT", 2000)
    given = form(*data)
    with pytest.raises(LLPFError, match=message) as caught:
        llpf_fast.find_path(
            Two(),
            *networks,
            data=given,
            settings=settings(),
            out=tmp_path / "run",
            screening={"samples": 0},
            max_ticks=2,
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_endless_stream_trains_and_is_certified_on_its_first_samples(networks, data, tmp_path) -> None:
    stream = DataLoader(Stream(*data, endless=True), batch_size=50)
    llpf_fast.find_path(
        Two(), *networks, data=stream, settings=settings(), out=tmp_path / "run", screening={"samples": COUNT}
    )
    certificate = llpf_fast.verify_run(tmp_path / "run", model=Two(), train=stream, max_samples=COUNT)
    with torch.no_grad():
        assert certificate.start_loss == pytest.approx(float(F.cross_entropy(networks[0](data[0]), data[1])), rel=1e-6)


def test_memory_is_bounded(data, monkeypatch) -> None:
    from llpf_fast.batches import as_data, materialize

    monkeypatch.setattr("llpf_fast.batches.data._most_bytes", lambda: 3000.0)
    for form in (Items(*data), DataLoader(TensorDataset(*data), batch_size=BATCH)):
        with pytest.raises(LLPFError, match="half of this machine's memory"):
            materialize(as_data(form))


def test_transforms_of_a_dataset_draw_anew_for_every_batch(networks, data, tmp_path) -> None:
    drawn = []

    class Noisy(Items):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            drawn.append(float(torch.rand(())))
            return x + 0.01 * torch.randn(8), y

    runs = []
    for name in "ab":
        drawn.clear()
        path = llpf_fast.find_path(Two(), *networks, data=Noisy(*data), settings=settings(), out=tmp_path / name)
        assert len(set(drawn)) > COUNT + 10
        runs.append(list(path))
    assert all(torch.equal(a[n], b[n]) for a, b in zip(*runs, strict=True) for n in a), "and a run repeats"
