"""Many paths at once: each is the path alone, with its step scale and files, and leaves its row to the next."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llpf_fast import LLPFError
from llpf_fast.find import (
    CorrectionSettings,
    FindResult,
    LayerSettings,
    PathFinder,
    SearchJob,
    Settings,
    StackedFinder,
    StageSettings,
    StepSettings,
    choose_parallel,
    stacked_finder,
)
from llpf_fast.find.screening import BatchedScreening, ScreeningEvaluator
from llpf_fast.find.task import make_task
from llpf_fast.flat import FlatParameters
from llpf_fast.models import build_model
from llpf_fast.path import LowLossPath, RunDirectory

from .conftest import Attentive, Convolutional, State, network, quick, train

#: Steps too long for their corrections, so that some are taken back.
HASTY: dict[str, Any] = {
    "pacing": {"kind": "adaptive", "margin": 0.3, "midpoint": True},
    "step": StepSettings(relative=0.25),
    "correction": CorrectionSettings(threshold=0.05, window=5, max_steps=8, lr=0.1, momentum=0.5),
    "max_ticks": 8,
    "arrival": {"every": 3},
    "record": {"checkpoint_every": 2},
    "screening": {"samples": 300},
}


@pytest.fixture(scope="session")
def five(digits: tuple[Tensor, Tensor], endpoints: tuple[State, State]) -> list[State]:
    with torch.random.fork_rng():
        return [*endpoints, *(train(seed, digits) for seed in (5, 6, 7))]


@pytest.fixture
def sequential(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward of one row after the other: then every bit has to be that of the path alone."""
    monkeypatch.setattr(stacked_finder, "LEAST_CPU", 100)


@pytest.fixture
def batched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacked_finder, "LEAST_CPU", 2)


Search = Callable[..., list[FindResult | LLPFError]]


@pytest.fixture
def search(digits: tuple[Tensor, Tensor]) -> Search:
    def run(
        folder: Path,
        endpoint_pairs: list[tuple[State, State | None]],
        settings: Settings,
        parallel: int,
        *,
        module: nn.Module | None = None,
        **options: Any,
    ) -> list[FindResult | LLPFError]:
        of_job = {name: options.pop(name) for name in ("resume", "progress") if name in options}
        data = options.pop("train", digits)
        finder = StackedFinder(module or network(), settings=settings, train=data, parallel=parallel, **options)
        jobs = [SearchJob(lambda pair=pair: pair, folder / str(i), **of_job) for i, pair in enumerate(endpoint_pairs)]
        results = {Path(job.out).name: ended for job, ended in finder.run(jobs)}
        return [results[str(i)] for i in range(len(endpoint_pairs))]

    return run


def alone(
    folder: Path,
    endpoint_pairs: list[tuple[State, State | None]],
    settings: Settings,
    data: Any,
    make: Callable[[], nn.Module],
) -> None:
    for i, (start, end) in enumerate(endpoint_pairs):
        PathFinder(make(), start, end, settings=settings, train=data, out=folder / str(i)).run()


def pairs(states: list[State]) -> list[tuple[State, State | None]]:
    return [(states[i], states[i + 1]) for i in range(len(states) - 1)]


def written(run: Path) -> dict[str, str]:
    """Everything that a search leaves, but its clock."""
    files = [*(run / "waypoints").iterdir(), run / "metrics.jsonl", run / "waypoints.jsonl"]
    status = {k: v for k, v in (RunDirectory.open(run).status or {}).items() if k != "seconds"}
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files} | {"status": str(status)}


def ticks(run: Path) -> list[tuple[int, int, bool]]:
    """Of every tick: its number, its rounds, and whether it was taken back."""
    metrics = LowLossPath(run).metrics()
    return [(record["tick"], record["rounds"], bool(record.get("rolled_back"))) for record in metrics]


@pytest.mark.parametrize("parallel", [4, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "schedule": {"stages": [StageSettings(0, ["0.*"]), StageSettings(4, ["*"])]},
            "dialect": "authors",
            "pacing": {"kind": "fixed"},
        },
        {"mode": "m2o", "max_ticks": 4},
    ],
    ids=["m2m", "authors, stages", "origin, learning rates"],
)
@pytest.mark.usefixtures("sequential")
def test_sequential_passes_give_every_bit_of_the_path_alone(search, five, digits, tmp_path, parallel, changes) -> None:
    settings = quick(**{**HASTY, **changes})
    endpoint_pairs = [(start, end if settings.mode == "m2m" else None) for start, end in pairs(five)]
    alone(tmp_path / "alone", endpoint_pairs, settings, digits, network)
    search(tmp_path / "stack", endpoint_pairs, settings, parallel)
    taken_back = 0
    for i in range(len(endpoint_pairs)):
        assert written(tmp_path / "stack" / str(i)) == written(tmp_path / "alone" / str(i))
        taken_back += sum(back for *_, back in ticks(tmp_path / "stack" / str(i)))
    assert taken_back > 0 or settings.pacing.kind == "fixed"


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (network, {}),
        (Convolutional, {}),
        (Attentive, {"threshold": 2.5, "layers": LayerSettings(attention="values")}),
    ],
    ids=["linear and BatchNorm", "convolutions and BatchNorm", "attention"],
)
@pytest.mark.usefixtures("batched")
def test_a_stacked_path_is_the_path_alone_up_to_rounding(search, digits, tmp_path, make, changes) -> None:
    """Eight ticks of few rounds: rounding differences have no time to grow into other decisions."""
    with torch.random.fork_rng():
        endpoint_pairs = pairs([train(seed, digits, make) for seed in (3, 4, 5)])
    correction = CorrectionSettings(threshold=0.05, window=3, max_steps=3, lr=0.02, momentum=0.5)
    settings = quick(max_ticks=8, correction=correction, step=StepSettings(relative=0.02), **changes)
    alone(tmp_path / "alone", endpoint_pairs, settings, digits, make)
    search(tmp_path / "stack", endpoint_pairs, settings, 2, module=make())
    for i in range(len(endpoint_pairs)):
        one, other = LowLossPath(tmp_path / "alone" / str(i)), LowLossPath(tmp_path / "stack" / str(i))
        assert ticks(one.folder) == ticks(other.folder)
        assert len(one) == len(other) == 9
        _same_up_to_rounding(one, other, make, digits)


def _same_up_to_rounding(one: LowLossPath, other: LowLossPath, make: Callable[[], nn.Module], data: Any) -> None:
    """Allowed: what torch itself makes of a batch in another order, a hundredfold (24 rounds, of which each feels the
    ones before)."""
    module = make()
    module.load_state_dict(one[0])
    x, y = data[0][:64], data[1][:64]
    there, back = (_gradient(module, *batch) for batch in ((x, y), (x.flip(0), y.flip(0))))
    rounding = float((there - back).norm() / there.norm())
    assert 0 < rounding < 1e-5
    for a, b, start in zip(one, other, [one[0]] * len(one), strict=True):
        moved = sum(float((a[n] - start[n]).double().square().sum()) for n in a if a[n].is_floating_point()) ** 0.5
        off = sum(float((a[n] - b[n]).double().square().sum()) for n in a if a[n].is_floating_point()) ** 0.5
        assert off <= 100 * rounding * moved


def _gradient(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = nn.functional.cross_entropy(module(x), y)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])


@pytest.mark.usefixtures("batched")
def test_the_same_stack_twice_gives_the_same_bits(search, five, tmp_path) -> None:
    settings = quick(**HASTY)
    for name in ("first", "second"):
        search(tmp_path / name, pairs(five), settings, 3)
    for i in range(4):
        assert written(tmp_path / "first" / str(i)) == written(tmp_path / "second" / str(i))


@pytest.mark.usefixtures("batched")
def test_paths_that_end_leave_their_place_to_the_next(search, five, tmp_path) -> None:
    order: list[int] = []
    settings = quick(pacing={"kind": "adaptive"})
    results = search(tmp_path, pairs(five), settings, 2, progress=lambda at: order.append(at.tick))
    assert all(isinstance(result, FindResult) and result.arrived for result in results)
    for i in range(4):
        LowLossPath(tmp_path / str(i)).directory.check()
    assert [tick for tick in order if tick == 1] == [1] * 4
    assert order[:2] == [1, 1], "the first two begin at the same time"
    assert max(order[: order.index(1, 2)]) > 1, "the third waits until one has ended"


@pytest.mark.usefixtures("sequential")
def test_the_last_tick_looks_for_arrival_too(search, five, tmp_path) -> None:
    often = search(tmp_path / "often", pairs(five)[:2], quick(arrival={"every": 1}), 2)
    most = max(result.ticks for result in often)
    last = search(tmp_path / "last", pairs(five)[:2], quick(arrival={"every": 1000}, max_ticks=most), 2)
    assert [result.arrived for result in (*often, *last)] == [True] * 4
    assert [result.ticks for result in last] == [most] * 2


@pytest.mark.usefixtures("batched")
def test_one_that_fails_ends_alone(search, five, endpoints, tmp_path) -> None:
    random = {name: torch.randn_like(value) if value.is_floating_point() else value for name, value in five[2].items()}
    nan = {name: value.clone() for name, value in five[3].items()}
    nan["0.weight"][0, 0] = math.nan
    endpoint_pairs: list[tuple[State, State | None]] = [
        endpoints,
        (random, five[0]),
        (five[0], nan),
        (five[3], five[4]),
    ]
    results = search(tmp_path, endpoint_pairs, quick(**HASTY), 2)
    assert isinstance(results[0], FindResult)
    assert "the start itself has training loss" in str(results[1])
    assert "destination" in str(results[2])
    assert isinstance(results[3], FindResult)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["0", "3"]


@pytest.mark.usefixtures("batched")
def test_a_loss_that_is_not_finite_ends_only_its_path(search, five, endpoints, tmp_path) -> None:
    """Learning rates beyond any stability: with fixed steps the first NaN ends the path."""
    wild = CorrectionSettings(threshold=1e-9, window=5, max_steps=60, lr=1e6)
    results = search(tmp_path, [endpoints, (five[2], five[3])], quick(correction=wild), 2)
    for ended in results:
        assert isinstance(ended, LLPFError)
        assert str(ended).startswith("tick 1: the training loss became")
        assert "first layer with values that are not finite: 0.weight" in str(ended)


@pytest.mark.parametrize("parallel", [3, 1])
@pytest.mark.usefixtures("sequential")
def test_a_stack_that_was_interrupted_resumes_to_the_same_paths(search, five, tmp_path, parallel) -> None:
    settings = quick(**HASTY)
    search(tmp_path / "whole", pairs(five)[:3], settings, 3)

    def interrupt(at: Any) -> None:
        if at.tick == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "run", pairs(five)[:3], settings, 3, progress=interrupt)
    assert not any(RunDirectory.open(tmp_path / "run" / str(i)).complete for i in range(3))
    if parallel == 3:
        search(tmp_path / "run", pairs(five)[:3], settings, parallel, resume=True)
    else:
        with pytest.warns(UserWarning, match="together was 3, is 1"):
            search(tmp_path / "run", pairs(five)[:3], settings, parallel, resume=True)
    for i in range(3):
        assert written(tmp_path / "run" / str(i)) == written(tmp_path / "whole" / str(i))


def test_points_evaluated_in_one_pass(five, digits) -> None:
    """Losses, limits and statistics of each; one that is given up says so as it would alone."""
    flat = FlatParameters(network())
    settings = quick(screening={"samples": 1200}, evaluation_batch_size=500)
    task = make_task(settings, network(), digits, None, torch.device("cpu"))
    assert len(task.samples) == 3
    points = [flat.flatten(state) for state in five]
    points[3][:40] = math.nan
    buffers = [{name: value for name, value in state.items() if name not in flat.table.names} for state in five]
    screen, screens = ScreeningEvaluator(flat.module, task), BatchedScreening(flat, task)
    limits = [math.inf, 1e-9, math.inf, math.inf, 1e-9]
    want = [screen.loss(*of_point) for of_point in zip(points, buffers, limits, strict=True)]
    results = screens.losses(points, buffers, limits)
    assert want[3] == results[3] == math.inf
    assert results == pytest.approx(want, rel=1e-5)
    assert want[1] != pytest.approx(screen.loss(points[1], buffers[1]), rel=1e-3), "the limit matters"


@pytest.mark.usefixtures("batched")
def test_paths_evaluated_in_one_pass_are_the_same_paths(search, five, tmp_path, monkeypatch) -> None:
    settings = quick(**HASTY)
    search(tmp_path / "one by one", pairs(five), settings, 4)
    counted = []
    losses = BatchedScreening.losses
    monkeypatch.setattr(BatchedScreening, "losses", lambda *args: counted.append(len(args[1])) or losses(*args))
    init = StackedFinder.__init__

    def on_gpu(self: StackedFinder, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self._evaluate_batched = True

    monkeypatch.setattr(StackedFinder, "__init__", on_gpu)
    search(tmp_path / "at once", pairs(five), settings, 4)
    assert max(counted) == 4
    for i in range(4):
        assert written(tmp_path / "at once" / str(i)) == written(tmp_path / "one by one" / str(i))


class Keeps(nn.Module):
    """Shifts its input by the mean of the last one, which it stores in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)
        self.last = 0.0

    def forward(self, x: Tensor) -> Tensor:
        last, self.last = self.last, float(x.mean()) if not torch._C._functorch.is_batchedtensor(x) else 1.0
        return self.layer(x + last)


class Counts(Keeps):
    """Every forward counts, and is louder for it: equal in both rows of a trial, not where paths begin apart."""

    def __init__(self, first: Any) -> None:
        super().__init__()
        self.state = first

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.state, list):
            self.state[0] = self.state[0] + 1
            return self.layer(x) * self.state[0]
        self.state += 1
        return self.layer(x) * self.state


class First(Keeps):
    """What the first forward meets stays: separate for each path, or the same for all."""

    def __init__(self, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.of = of
        self.table: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if "first" not in self.table:
            self.table["first"] = self.of(x)
        return self.layer(x + self.table["first"])


class Doubled(Keeps):
    """Computes something else under vmap, as a custom rule for it may."""

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (2 if torch._C._functorch.is_batchedtensor(x) else 1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(8, 10, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.unflatten(1, (8, 8)))[0][:, -1]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(64, 32), nn.Dropout(0.1), nn.Linear(32, 10)), r"random numbers .*dropout '1'"),
        (nn.Sequential(nn.Linear(64, 10), nn.RReLU()), "rrelu"),
        (nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10, momentum=None)), "'1' averages .*momentum=None"),
        (Recurrent(), "lstm"),
        (Doubled(), "its loss comes out different in a stack"),
        (nn.Sequential(nn.Linear(64, 64), Keeps()), r"keeps '1\.last', which is no buffer"),
        (Counts(torch.zeros(())), "keeps 'state'"),
        (Counts([torch.zeros(())]), r"keeps 'state\[0\]'"),
        (First(lambda x: x.mean(0).detach()), r"keeps \"table\['first'\]\""),
    ],
    ids=[
        *("dropout", "RReLU", "cumulative statistics", "no rule", "different"),
        *("number", "written to", "replaced", "first batch"),
    ],
)
@pytest.mark.usefixtures("batched")
def test_networks_that_cannot_be_stacked_are_refused_by_name(search, tmp_path, module, message) -> None:
    with pytest.raises(LLPFError, match=f"cannot be stacked: .*{message}.*--parallel 1"):
        search(tmp_path, [], quick(), 2, module=module)


@pytest.mark.usefixtures("batched")
def test_a_table_made_at_the_first_forward_may_be_shared(search, tmp_path) -> None:
    module = First(lambda x: torch.linspace(0, 1, 64, dtype=x.dtype))
    search(tmp_path, [], quick(), 2, module=module)
    assert not module.table, "the trial is on copies"


@pytest.mark.usefixtures("sequential")
def test_sequential_paths_may_draw_random_numbers(search, digits, five, tmp_path) -> None:
    """Each path draws those that it draws alone, whatever torch's global seed, which stays as it was."""
    make = lambda: nn.Sequential(nn.Dropout(0.1), *network())
    renamed = [{f"{int(k[0]) + 1}{k[1:]}": v for k, v in state.items()} for state in five]
    settings, endpoint_pairs, module = quick(**HASTY), pairs(renamed), make()
    before = torch.get_rng_state()
    search(tmp_path / "stack", endpoint_pairs, settings, 3, module=module)
    assert torch.equal(torch.get_rng_state(), before)
    alone(tmp_path / "alone", endpoint_pairs, settings, digits, make)
    for i in range(len(endpoint_pairs)):
        assert written(tmp_path / "stack" / str(i)) == written(tmp_path / "alone" / str(i))


def test_what_a_stack_does_not_take(search, digits, tmp_path) -> None:
    with pytest.raises(LLPFError, match="leave the optimizer away"):
        search(tmp_path, [], quick(), 2, optimizer=lambda ps: torch.optim.AdamW(ps))
    with pytest.raises(LLPFError, match="not from a Dataset or a loader"):
        search(tmp_path, [], quick(), 2, train=[digits])
    with pytest.raises(LLPFError, match="at least 1, got 0"):
        search(tmp_path, [], quick(), 0)


def test_a_stack_is_chosen_where_it_was_measured_faster() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    perceptron, lenet5 = build_model("mlp"), build_model("lenet5")
    assert [choose_parallel(perceptron, cpu, paths) for paths in (1, 7, 8, 9, 100)] == [1, 1, 8, 9, 16]
    assert [choose_parallel(lenet5, cpu, paths) for paths in (4, 100)] == [1, 1]
    assert [choose_parallel(lenet5, gpu, paths) for paths in (1, 2, 9, 1000)] == [1, 2, 9, 256]
    assert choose_parallel(build_model("resnet18"), gpu, 9) == 1
