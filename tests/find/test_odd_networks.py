"""Networks with odd buffers, wrappers and rules: right values, or one line that names the culprit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import llpf_fast
from llpf_fast.errors import LLPFError
from llpf_fast.find import CorrectionSettings, PathFinder, Settings, StepSettings
from llpf_fast.find.pacing import AcceptedPoint
from llpf_fast.flat import FlatParameters, copied
from llpf_fast.flat.buffers import all_buffers, set_buffers
from llpf_fast.flat.tensors import overlaps_itself

Data = tuple[Tensor, Tensor]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 3)

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.a(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.hidden(x))


class Expanded(Net):
    """A mask that is one number in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((1,), 0.5).expand(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.hidden(x) * self.scale)


class Cached(Net):
    """A cache that grows with the batch: the largest batch decides its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.cache) < len(x):
            self.cache = torch.ones(len(x))
        return super().forward(x) * self.cache[: len(x), None]


class LazyCache(Net):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "cache"):
            self.register_buffer("cache", torch.full((5,), 2.0), persistent=False)
        return self.b(self.hidden(x) * self.cache)


class Grown(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count = torch.cat([self.count, torch.ones(1)])
        return super().forward(x)


class MadeInTraining(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.cache is None:
            self.cache = torch.ones(5)
        return super().forward(x)


class Both(Net):
    """One tensor as parameter and as buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight_again", self.a.weight)


@pytest.fixture
def data() -> Data:
    chance = torch.Generator().manual_seed(0)
    return torch.randn(24, 6, generator=chance), torch.randint(0, 3, (24,), generator=chance)


def settings(**changes: Any) -> Settings:
    correction = CorrectionSettings(threshold=40.0, window=1, max_steps=2, batch_size=8)
    common: dict[str, Any] = {"threshold": 50.0, "max_ticks": 5, "arrival": {"every": 1}, "correction": correction}
    return Settings(**{**common, "step": StepSettings(relative=0.3), **changes})


def find(make: Callable[[], nn.Module], data: Data, out: Path, **more: Any) -> llpf_fast.LowLossPath:
    torch.manual_seed(1)
    start, end = make(), make()
    return llpf_fast.find_path(make(), start, end, data=data, **{"settings": settings(), "out": out, **more})


@pytest.mark.parametrize("pacing", ["fixed", "adaptive"])
@pytest.mark.parametrize("make", [Expanded, Cached, LazyCache])
def test_certificate_has_the_values_of_plain_pytorch(
    make: Callable[[], nn.Module], pacing: Any, data: Data, tmp_path: Path
) -> None:
    path = find(make, data, tmp_path / "run", settings=settings(pacing={"kind": pacing}))
    certificate = llpf_fast.verify_run(path.folder, model=make(), train=data, straight_points=0)
    twin = make()
    if isinstance(twin, Expanded):
        twin.scale = twin.scale.clone()  # torch itself cannot load into an expanded tensor
    for point in certificate.points:
        if point.at.fraction == 0:
            twin.load_state_dict(path[point.at.waypoint])
            with torch.no_grad():
                expected = F.cross_entropy(twin.eval()(data[0]), data[1])
            assert point.train_loss == pytest.approx(float(expected), rel=1e-5)


def test_a_network_with_an_expanded_buffer_is_not_changed(data: Data, tmp_path: Path) -> None:
    model = Expanded()
    torch.manual_seed(0)
    llpf_fast.find_path(model, Expanded(), Expanded(), data=data, settings=settings(), out=tmp_path / "run")
    assert overlaps_itself(model.scale)
    assert not overlaps_itself(copied(model).scale)


def test_finder_itself_takes_an_expanded_buffer(data: Data, tmp_path: Path) -> None:
    torch.manual_seed(0)
    start, end = Expanded().state_dict(), Expanded().state_dict()
    finder = PathFinder(Expanded(), start, end, settings=settings(), train=data, out=tmp_path / "run")
    assert finder.run().arrived


def test_flat_parameters_name_an_expanded_buffer() -> None:
    module = Expanded()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(LLPFError, match="'scale' is an expanded tensor"):
        FlatParameters(module).load(state)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Grown, r"changed the shape of the buffer 'count' from \[0\] to \[[12]\].*persistent=False"),
        (MadeInTraining, "made the buffer 'cache'.*persistent=False"),
        (Both, "buffer 'weight_again' is the parameter 'a.weight' itself"),
    ],
)
def test_what_no_path_can_store(make: Callable[[], nn.Module], message: str, data: Data, tmp_path: Path) -> None:
    with pytest.raises(LLPFError, match=message):
        find(make, data, tmp_path / "run")


def test_going_back_restores_buffers_that_the_forward_pass_made_or_grew(data: Data) -> None:
    for make in (Cached, LazyCache):
        module = make()
        flat = FlatParameters(module)

        class NoMomentum:
            keeps_momentum, momentum_buffer = False, None

        rollback = AcceptedPoint(flat, NoMomentum(), None)  # type: ignore[arg-type]
        before = all_buffers(module)
        rollback.save()
        module(data[0])
        assert all_buffers(module).keys() != before.keys() or len(module.cache) == 24  # type: ignore[arg-type]
        rollback.restore()
        after = all_buffers(module)
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], before[name]) for name in before)  # type: ignore[arg-type]
        module(data[0])


def test_buffers_come_back_under_every_name_they_had() -> None:
    module = nn.ModuleDict({"one": nn.Module(), "two": nn.Module()})
    shared = torch.zeros(2)
    module["one"].register_buffer("x", shared)
    module["two"].register_buffer("y", shared)
    module["two"].register_buffer("later", None)
    saved = all_buffers(module)
    module["one"].x = module["two"].y = torch.ones(3)
    module["two"].later = torch.ones(1)
    set_buffers(module, saved)
    assert module["one"].x is module["two"].y
    assert torch.equal(module["one"].x, torch.zeros(2))
    assert module["two"].later is None


@pytest.mark.parametrize("make", [Cached, LazyCache])
def test_a_search_goes_on_with_buffers_that_were_made_on_its_way(
    make: Callable[[], nn.Module], data: Data, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    start, end = make().state_dict(), make().state_dict()
    slow = settings(
        step=StepSettings(relative=0.01), record={"checkpoint_every": 1}, max_ticks=4, arrival={"every": 100}
    )

    def search(name: str, **more: Any) -> None:
        PathFinder(make(), start, end, settings=slow, train=data, out=tmp_path / name, **more).run()

    def stop(at: Any) -> None:
        if at.tick == 3:
            raise KeyboardInterrupt

    search("whole")
    with pytest.raises(KeyboardInterrupt):
        search("cut", progress=stop)
    search("cut", resume=True)
    whole, cut = llpf_fast.open_path(tmp_path / "whole"), llpf_fast.open_path(tmp_path / "cut")
    assert len(whole) == len(cut)
    assert all(torch.equal(a[name], b[name]) for a, b in zip(whole, cut, strict=True) for name in a)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
def test_torchscript_is_refused_by_name(inside: bool, data: Data, tmp_path: Path) -> None:
    model: nn.Module = Net()
    if inside:
        model.a = torch.jit.script(model.a)
    else:
        model = torch.jit.script(model)
    with pytest.raises(LLPFError, match="'a' is a TorchScript program" if inside else "model is a TorchScript program"):
        llpf_fast.find_path(model, Net(), Net(), data=data, settings=settings(), out=tmp_path / "run")


def test_networks_without_values_or_shapes_are_refused_by_name(data: Data, tmp_path: Path) -> None:
    run = find(Net, data, tmp_path / "run").folder
    for model, message in (
        (Net().to("meta"), "'a.weight' of the model is on the meta device"),
        (nn.Sequential(nn.LazyLinear(3)), "'0.weight' of the model is lazy"),
        (nn.Sequential(nn.Linear(6, 3), nn.LazyBatchNorm1d()), "'1.weight' of the model is lazy.*run one batch"),
    ):
        with pytest.raises(LLPFError, match=message):
            llpf_fast.find_path(model, Net(), Net(), data=data, settings=settings())
        with pytest.raises(LLPFError, match=message):
            llpf_fast.verify_run(run, model=model, train=data)
    with pytest.raises(LLPFError, match="on the meta device"):
        PathFinder(Net().to("meta"), Net().state_dict(), Net().state_dict(), settings=settings(), train=data)


@pytest.mark.parametrize("is_norm", [nn.Linear, lambda module: isinstance(module, nn.Linear)])
def test_norm_rule_may_be_a_class(is_norm: Any, data: Data, tmp_path: Path) -> None:
    path = find(Net, data, tmp_path / "run", is_norm=is_norm, settings=settings(layers={"normalization": "move"}))
    assert len(path) > 1
    with pytest.raises(LLPFError, match="keeps all"):
        find(Net, data, tmp_path / "none", is_norm=is_norm, settings=settings(layers={"normalization": "keep"}))


@pytest.mark.parametrize(
    ("is_norm", "message"),
    [
        (lambda module: 1 / 0, "is_norm failed on a Linear: ZeroDivisionError"),
        (nn.Linear(1, 1), "is_norm must be a class of layers, or a function"),
        ("LayerNorm", "is_norm must be a class of layers, or a function"),
    ],
)
def test_norm_rule_that_fails_is_one_line(is_norm: Any, message: str, data: Data, tmp_path: Path) -> None:
    with pytest.raises(LLPFError, match=message):
        find(Net, data, tmp_path / "run", is_norm=is_norm)


def test_progress_must_be_a_function(data: Data, tmp_path: Path) -> None:
    with pytest.raises(LLPFError, match="progress must be a function"):
        find(Net, data, tmp_path / "run", progress=3)


def test_search_under_no_grad_is_the_same_search(data: Data, tmp_path: Path) -> None:
    usual = find(Net, data, tmp_path / "usual")
    with torch.no_grad():
        under = find(Net, data, tmp_path / "under")
        assert not torch.is_grad_enabled()
    assert all(torch.equal(a[name], b[name]) for a, b in zip(usual, under, strict=True) for name in a)


def test_nesterov_without_momentum_is_one_line(data: Data, tmp_path: Path) -> None:
    correction = CorrectionSettings(threshold=40.0, nesterov=True)
    with pytest.raises(LLPFError, match=r"nesterov.* needs .*momentum"):
        find(Net, data, tmp_path / "run", settings=settings(correction=correction))


def test_an_optimizer_that_ends_the_program_is_one_line(data: Data, tmp_path: Path) -> None:
    class Ends(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise SystemExit(3)

    with pytest.raises(LLPFError, match=r"Ends.step ends the program \(exit status 3\)"):
        find(Net, data, tmp_path / "run", optimizer=lambda parameters: Ends(parameters, lr=0.1))


class Decays(torch.optim.SGD):
    """Changes its rate at every step, and counts its steps in its groups."""

    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        for group in self.param_groups:
            group["lr"] *= 0.9
            group["steps"] = group.get("steps", 0) + 1
        return result


def search(name: Path, data: Data, optimizer: Any, **more: Any) -> None:
    torch.manual_seed(1)
    start, end = Net().state_dict(), Net().state_dict()
    slow = settings(
        step=StepSettings(relative=0.01), record={"checkpoint_every": 1}, max_ticks=4, arrival={"every": 100}
    )
    PathFinder(Net(), start, end, settings=slow, train=data, out=name, optimizer=optimizer, **more).run()


def stop(at: Any) -> None:
    if at.tick == 3:
        raise KeyboardInterrupt


def test_an_optimizer_that_adds_to_its_groups_goes_on(data: Data, tmp_path: Path) -> None:
    def make(parameters: Any) -> Any:
        return Decays(parameters, lr=0.1)

    search(tmp_path / "whole", data, make)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "cut", data, make, progress=stop)
    with pytest.raises(LLPFError, match="another optimiser"):
        search(tmp_path / "cut", data, lambda parameters: torch.optim.SGD(parameters, lr=0.1), resume=True)
    search(tmp_path / "cut", data, make, resume=True)
    whole, cut = llpf_fast.open_path(tmp_path / "whole"), llpf_fast.open_path(tmp_path / "cut")
    assert all(torch.equal(a[name], b[name]) for a, b in zip(whole, cut, strict=True) for name in a)


def test_state_of_an_optimizer_that_no_file_can_hold_is_one_line(data: Data, tmp_path: Path) -> None:
    class Holds(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter]["generator"] = torch.Generator()
            return super().step(closure)

    with pytest.raises(LLPFError, match=r"state of Holds cannot be saved in a checkpoint \(Generator"):
        search(tmp_path / "run", data, lambda parameters: Holds(parameters, lr=0.1))
