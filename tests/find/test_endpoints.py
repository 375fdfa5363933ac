"""``find_path`` with networks as people have them: compiled, tied, converted, masked, with extra state."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import llpf_fast
from llpf_fast import LLPFError
from llpf_fast.find import CorrectionSettings, LayerSettings, PathFinder, Settings
from llpf_fast.path import LowLossPath

Pair = tuple[Tensor, Tensor]
SETTINGS = Settings(threshold=10, max_ticks=40, correction=CorrectionSettings(threshold=9))


@pytest.fixture(scope="module")
def data() -> Pair:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(100, 8, generator=generator), torch.randint(3, (100,), generator=generator)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(8, 3), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.body(x))


class Masked(Net):
    """Buffers that are no statistics, of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        self.register_buffer("index", torch.tensor([2, 1, 0]))
        self.register_buffer("keep", torch.tensor([True, False]))
        self.register_buffer("phase", torch.tensor([1 + 2j]))
        self.register_buffer("shift", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.zeros(3, 3) + self.mask
        return (super().forward(x)[:, self.index] + self.shift) @ scores.softmax(-1)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(x)))


class Extra(Net):
    def __init__(self, version: int = 3) -> None:
        super().__init__()
        self.version = version

    def get_extra_state(self) -> dict[str, int]:
        return {"version": self.version}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.version = state["version"]


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


def find(model: nn.Module, start: Any, end: Any, data: Pair, **options: Any) -> LowLossPath:
    return llpf_fast.find_path(model, start, end, data=data, settings=options.pop("settings", SETTINGS), **options)


def assert_ends(path: LowLossPath, start: nn.Module, end: nn.Module) -> None:
    """Both ends of the path are these networks, under their names, bit for bit."""
    for state, module in ((path[0], start), (path[-1], end)):
        expected = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
        assert state.keys() == expected.keys()
        assert all(
            torch.equal(state[name], value) and state[name].dtype == value.dtype for name, value in expected.items()
        )


@pytest.mark.parametrize("make", [Net, lambda: nn.Sequential(nn.Linear(8, 3))])
@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, lambda m: nn.DataParallel(compiled(m))])
def test_wrapped_networks_and_their_state_dicts(data, tmp_path, make, wrap) -> None:
    a, b = make(), make()
    assert_ends(find(wrap(make()), wrap(a), wrap(b), data), a, b)
    assert_ends(find(make(), wrap(a).state_dict(), wrap(b).state_dict(), data), a, b)
    for name, module in (("a", a), ("b", b)):
        torch.save(wrap(module).state_dict(), tmp_path / f"{name}.pt")
    assert_ends(find(wrap(make()), tmp_path / "a.pt", tmp_path / "b.pt", data), a, b)


def test_a_compiled_part_keeps_its_place(data) -> None:
    a, b, model = Net(), Net(), Net()
    model.body = compiled(model.body)
    path = find(model, a, b, data)
    assert "body._orig_mod.weight" in path[0]
    assert torch.equal(path[-1]["body._orig_mod.weight"], b.body.weight)


def test_tied_weights_of_which_a_file_has_one(tmp_path) -> None:
    x, y = torch.randint(20, (100,)), torch.randint(20, (100,))
    a, b = Tied(), Tied()
    for name, module in (("a", a), ("b", b)):
        safetensors.torch.save_model(module, str(tmp_path / f"{name}.safetensors"))
    path = find(Tied(), tmp_path / "a.safetensors", tmp_path / "b.safetensors", (x, y))
    assert_ends(path, a, b)
    for state in path:
        assert torch.equal(state["embed.weight"], state["head.weight"])
    state = a.state_dict()
    state["head.weight"] = state["head.weight"] + 1
    with pytest.raises(LLPFError, match=r"start: 'embed.weight' and 'head.weight' are one tensor of the model"):
        find(Tied(), state, b, (x, y))


@pytest.mark.parametrize("by", ["find_path", "PathFinder"])
def test_every_waypoint_has_the_models_dtypes(data, by: str, tmp_path: Path) -> None:
    a, b = Net().double(), Net().half()
    with torch.no_grad():
        a.body.weight += 1e-9

    def run() -> LowLossPath:
        if by == "find_path":
            return find(Net(), a, b, data, out=tmp_path / by)
        return LowLossPath(
            PathFinder(Net(), a.state_dict(), b.state_dict(), settings=SETTINGS, train=data, out=tmp_path / by)
            .run()
            .folder
        )

    with pytest.warns(UserWarning, match="start: values are rounded from float64 to float32.*'body.weight'") as caught:
        path = run()
    assert len([one for one in caught if "rounded" in str(one.message)]) == 1
    assert_ends(path, a.float(), b.float())
    for state in path:
        assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}


def test_integers_for_weights_are_refused(data) -> None:
    state = Net().state_dict()
    state["body.weight"] = state["body.weight"].long()
    with pytest.raises(LLPFError, match=r"start: parameter 'body.weight' is int64 where the model has float32"):
        find(Net(), state, Net(), data)


# -- buffers


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["m2m", "m2o"])
def test_equal_buffers_stay_whatever_they_hold(data, mode: str) -> None:
    a, b = Masked(), Masked()
    settings = Settings(mode=mode, threshold=10, max_ticks=12, correction=CorrectionSettings(threshold=9))
    path = find(Masked(), a, b if mode == "m2m" else None, data, settings=settings)
    for state in path:
        for name in ("mask", "index", "keep", "phase", "shift"):
            assert torch.equal(state[name], a.state_dict()[name])


def test_buffers_that_differ(data) -> None:
    a, b = Masked(), Masked()
    b.shift += 1
    with pytest.warns(UserWarning, match="interpolated on the path's last segment: 'shift'$"):
        assert_ends(find(Masked(), a, b, data), a, b)
    for name, message in (("index", r"buffer 'index' \(int64\)"), ("keep", r"buffer 'keep' \(bool\)")):
        b = Masked()
        setattr(b, name, getattr(b, name).flip(0))
        with pytest.raises(LLPFError, match=f"{message} differs between start and destination"):
            find(Masked(), a, b, data)
    b = Masked()
    b.mask.zero_()
    with pytest.raises(LLPFError, match="buffer 'mask' has NaN or infinite values that differ"):
        find(Masked(), a, b, data)


def test_a_network_on_the_spheres_may_have_other_buffers(data) -> None:
    """Nothing of it but its spheres is used."""
    b = Masked()
    b.index = b.index.flip(0)
    layers = LayerSettings(keep=["norm.*"])
    settings = Settings(mode="norm-sphere", threshold=10, layers=layers, correction=CorrectionSettings(threshold=9))
    a = Masked()
    path = find(Masked(), a, b, data, settings=settings)
    assert torch.equal(path[-1]["index"], a.index)


@pytest.mark.parametrize("name", ["body.weight", "norm.running_var"])
def test_values_that_are_not_finite_are_refused_where_they_count(data, name: str) -> None:
    state = Masked().state_dict()
    state[name] = torch.full_like(state[name], torch.inf)
    with pytest.raises(LLPFError, match=f"destination: tensor '{name}' has .* infinite"):
        find(Masked(), Masked(), state, data)


# -- extra state


def test_extra_state_stays_the_models_and_out_of_the_path(data, tmp_path) -> None:
    a, b = Extra(), Extra()
    torch.save(a.state_dict(), tmp_path / "a.pt")
    for start in (a, a.state_dict(), tmp_path / "a.pt"):
        with pytest.warns(UserWarning, match=r"\(_extra_state\) stays the model's own .* strict=False") as caught:
            path = find(Extra(), start, b, data)
        assert len([one for one in caught if "extra state" in str(one.message)]) == 1
        assert_ends(path, a, b)
    again = Extra()
    assert again.load_state_dict(path[-1], strict=False).missing_keys == ["_extra_state"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_ends(find(Extra(), path[-1], a, data), b, a)


def test_extra_state_that_differs_is_named(data) -> None:
    with pytest.raises(LLPFError, match="destination and the model have different extra state '_extra_state'"):
        find(Extra(), Extra(), Extra(4), data)


# -- copies


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_models_that_cannot_be_copied_are_named(data) -> None:
    old, locked = Net(), Net()
    nn.utils.weight_norm(old.body)
    with pytest.raises(
        LLPFError, match=r"layer 'body' \(Linear\) of the model uses the old torch\.nn\.utils\.weight_norm"
    ):
        find(old, Net(), Net(), data)
    with pytest.raises(LLPFError, match=r"start holds 'body.weight_g' .* the old torch\.nn\.utils\.weight_norm"):
        find(Net(), old.state_dict(), Net(), data)
    locked.guard = threading.Lock()
    with pytest.raises(LLPFError, match="because of its attribute 'guard', a lock"):
        find(locked, Net(), Net(), data)


def test_the_given_model_does_not_change(data) -> None:
    model, a, b = Net(), Net(), Net()
    before = [{name: value.clone() for name, value in module.state_dict().items()} for module in (model, a, b)]
    find(compiled(model), a, b, data)
    for module, values in zip((model, a, b), before, strict=True):
        assert all(torch.equal(value, values[name]) for name, value in module.state_dict().items())


def test_what_is_no_network_is_named(data) -> None:
    with pytest.raises(LLPFError, match=r"the model must be a torch\.nn\.Module, got OrderedDict"):
        find(Net().state_dict(), Net(), Net(), data)  # type: ignore[arg-type]
    with pytest.raises(LLPFError, match="start must be a module, a state dict or a file, got int"):
        find(Net(), 3, Net(), data)
