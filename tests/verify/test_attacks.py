"""Attacks on the certificate: paths, runs, networks and losses that are made to look low where they are not.

Each planted peak is exact: two units of a small network open a gate in a chosen interval of the path and nowhere else.
Every attack has an honest twin close to it that must be connected, so that nothing passes by refusing everything.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import math
import random
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from llpf_fast.batches.fixed_samples import stratified_subset
from llpf_fast.errors import LLPFError
from llpf_fast.find import Settings
from llpf_fast.find.task import make_task
from llpf_fast.path import RunDirectory, state_digest
from llpf_fast.path.fingerprint import digest
from llpf_fast.verify import Certificate, Limits, check_certificate, verify_run

THRESHOLD = 0.1
State = dict[str, Tensor]
Data = tuple[Tensor, Tensor]


def samples(count: int = 90, *, tagged: Tensor | None = None) -> Data:
    """Inputs ``[count, 4]``: the class (of three) as a soft one-hot vector, then a tag that is 1 at ``tagged``."""
    generator = torch.Generator().manual_seed(5)
    targets = torch.arange(count) % 3
    inputs = torch.zeros(count, 4)
    inputs[:, :3] = F.one_hot(targets, 3) + 0.1 * torch.rand(count, 3, generator=generator)
    if tagged is not None:
        inputs[tagged, 3] = 1
    return inputs, targets


def network() -> nn.Sequential:
    """4 inputs, 3 logits. Hidden units: the features, both sides of the gate, the tag, an idle unit."""
    return nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))


def point(gate: float = 9.0, *, tag: float = 0.0, idle: float = 0.0, height: float = 10.0) -> State:
    """A state of :func:`network`: class 0 gains ``height`` (max(0, 1 - |gate|) + ``tag`` times the sample's tag)."""
    state = {name: torch.zeros_like(value) for name, value in network().state_dict().items()}
    state["0.weight"][:3, :3] = torch.eye(3)
    state["0.bias"][3], state["0.bias"][4] = gate, -gate
    state["0.weight"][5, 3], state["0.weight"][6, 0] = tag, idle
    state["2.weight"][:3, :3] = torch.eye(3)
    state["2.weight"][3, 3:5], state["2.bias"][3], state["2.weight"][4, 5] = -1, 1, 1
    state["4.weight"][:, :3] = 8 * torch.eye(3)
    state["4.weight"][0, 3:] = height
    return state


def through(place: float, width: float, **options: Any) -> list[State]:
    """Two waypoints; the gate opens around the fraction ``place`` between them, over ``width`` to either side."""
    return [point((fraction - place) / width, **options) for fraction in (0.0, 1.0)]


def write_run(
    folder: Path,
    states: Sequence[Mapping[str, Tensor]],
    model: nn.Module,
    data: Any,
    loss_fn: Any = None,
    *,
    threshold: float = THRESHOLD,
    arrived: bool = True,
    finished: bool = True,
    **settings: Any,
) -> Path:
    """A run directory as a search writes it, with these waypoints."""
    chosen = Settings(threshold=threshold, **settings)
    summary = make_task(chosen, model, data, loss_fn, torch.device("cpu")).summary
    run = RunDirectory.create(
        folder,
        {
            "llpf_fast": 2,
            "provenance": {},
            "settings": chosen.as_dict(),
            "goal": chosen.goal,
            "task": {**summary, "settings_sha256": digest(chosen.as_dict())},
            "start_sha256": state_digest(states[0]),
            "destination_sha256": state_digest(states[-1]),
        },
    )
    for tick, state in enumerate(states):
        run.add_waypoint(tick, state)
    if finished:
        run.finish(arrived=arrived)
    return folder


def judged(folder: Path, model: nn.Module, data: Any, loss_fn: Any = None, **more: Any) -> Certificate:
    options = {"level": "full", "workers": 1, "straight_points": 0, **more}
    return verify_run(folder, model=model, train=data, loss_fn=loss_fn, **options)


def loss_of(model: nn.Module, state: Mapping[str, Tensor], data: Data, loss_fn: Any = None) -> float:
    """The loss in plain PyTorch."""
    model.load_state_dict(state)
    model.eval()
    with torch.no_grad():
        return float((loss_fn or F.cross_entropy)(model(data[0]), data[1]))


def between(a: Mapping[str, Tensor], b: Mapping[str, Tensor], fraction: float) -> State:
    """a + fraction (b - a) in float64."""
    return {
        name: a[name].double() + fraction * (b[name].double() - a[name].double())
        if a[name].is_floating_point()
        else a[name]
        for name in a
    }


def highest(model: nn.Module, states: Sequence[State], data: Data, places: Sequence[tuple[int, float]]) -> float:
    return max(loss_of(model, between(*states[i : i + 2], f), data) for i, f in places)


def assert_refuted(certificate: Certificate, folder: Path, model: nn.Module, data: Data, loss_fn: Any = None) -> None:
    """The certificate refutes the path, by a point whose loss in plain PyTorch is above its threshold."""
    assert certificate.connected is False
    assert certificate.verdict == "refuted"
    witness = certificate.witness
    assert witness is not None
    waypoints = RunDirectory.open(folder).waypoints()
    a = waypoints[witness.waypoint].load()
    b = waypoints[min(witness.waypoint + 1, len(waypoints) - 1)].load()
    loss = loss_of(model, between(a, b, witness.fraction), data, loss_fn)
    assert not loss <= certificate.threshold
    assert witness.loss == pytest.approx(loss, rel=1e-4, nan_ok=True)
    printed = io.StringIO()
    names = {"model": model, "inputs": data[0], "targets": data[1], "loss_fn": loss_fn or F.cross_entropy}
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed), torch.no_grad():
        exec(witness.reproduce, {"torch": torch, "safetensors": safetensors, **names})
    assert witness.loss == pytest.approx(float(printed.getvalue().split("(")[1].split(",")[0].rstrip(")\n")), rel=1e-3)


def assert_connected(certificate: Certificate) -> None:
    assert certificate.connected, certificate.as_dict()
    assert certificate.verdict in ("proved", "sampled")


def refuses(judge: Callable[[], Certificate]) -> bool:
    """Whether the path is not connected, or the run refused."""
    try:
        return judge().connected is False
    except LLPFError:
        return True


@pytest.fixture(autouse=True)
def at_most_a_minute() -> Iterator[None]:
    """No attack may keep a verification busy for ever."""

    def late(*_: object) -> None:
        pytest.fail("the verification does not end")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, 60)  # processor time: machines may be busy
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


@pytest.fixture
def attack(tmp_path: Path) -> Callable[..., None]:
    """Write the run, judge it, and check that it is refuted by a witness that reproduces."""

    def attack(states: Sequence[State], model: nn.Module, data: Data, *, level: str = "full") -> None:
        folder = write_run(tmp_path / "run", states, model, data)
        assert_refuted(judged(folder, model, data, level=level), folder, model, data)

    return attack


@pytest.fixture
def honest(tmp_path: Path) -> Callable[..., None]:
    def honest(states: Sequence[State], model: nn.Module, data: Data, *, level: str = "full") -> None:
        folder = write_run(tmp_path / "run", states, model, data)
        assert_connected(judged(folder, model, data, level=level))

    return honest


#: Height at which the gate raises the mean loss to 0.08, 0.02 below the threshold: the paths of honest twins.
LOW = 6.0

PEAKS: dict[str, Callable[[float], list[State]]] = {
    "narrow peak": lambda height: through(0.37, 1e-3, height=height),
    "narrower peak": lambda height: through(0.61, 1e-6, height=height),
    "beside a waypoint": lambda height: through(3e-5, 2e-5, height=height),
    "around a waypoint": lambda height: [*through(1.0, 1e-4, height=height), point(1e4, height=height)],
    "detour that dilutes the spacing": lambda height: [
        point(-37.0, height=height),
        point(-37.0, idle=1e4, height=height),
        *through(0.37, 0.01, height=height),
    ],
    "short segment among long ones": lambda height: [
        point(9.0, idle=-1e4, height=height),
        point(9.0, height=height),
        point(8.9, height=height),
        point(-60.0, height=height),
        point(-60.0, idle=1e4, height=height),
    ],
    "on the way back": lambda height: [
        point(9.0, height=height),
        point(4e3, height=height),
        point(-7e3, height=height),
        point(9.0, height=height),
    ],
    "repeated waypoints": lambda height: [s for s in through(0.37, 1e-3, height=height) for _ in range(3)],
}


class TestPeaks:
    @pytest.mark.parametrize("name", PEAKS)
    def test_refuted(self, attack, name):
        attack(PEAKS[name](10.0), network(), samples())

    @pytest.mark.parametrize("name", [name for name in PEAKS if name != "narrower peak"])
    def test_the_same_path_with_a_low_peak_is_connected(self, honest, name):
        honest(PEAKS[name](LOW), network(), samples())

    @pytest.mark.parametrize("level", ["full", "sampled"])
    def test_of_samples_outside_the_fixed_subset(self, attack, level):
        """The screening samples of every search are known: a waypoint is low on them, and high on all others."""
        inputs, targets = samples(12_000)
        tagged = torch.ones(12_000, dtype=torch.bool)
        tagged[stratified_subset(targets, 10_000)] = False
        data = inputs.index_put((tagged, torch.tensor(3)), torch.tensor(1.0)), targets
        states = [point(tag=0.0), point(tag=1.0, height=20.0), point(tag=0.0)]
        attack(states, network(), data, level=level)

    def test_of_few_samples(self, attack):
        """One sample in a hundred has a loss of 30 at the peak."""
        attack([point(), point(tag=4.0), point()], network(), samples(200, tagged=torch.tensor([1, 103])))

    @pytest.mark.parametrize("height", [4.0, 40.0])
    def test_in_the_middle_of_a_swap_of_hidden_units(self, tmp_path, height):
        """Both ends are the same function, with two hidden units swapped; at 4 the middle is low, at 40 it is not."""
        model, data = network(), samples()
        a = point()
        a["4.weight"] *= height / 8
        b = {name: value.clone() for name, value in a.items()}
        b["0.weight"][[0, 1]], b["2.weight"][:, [0, 1]] = a["0.weight"][[1, 0]], a["2.weight"][:, [1, 0]]
        states = [a, a, b, b, a]
        folder = write_run(tmp_path / "run", states, model, data)
        certificate = judged(folder, model, data)
        assert loss_of(model, a, data) == pytest.approx(loss_of(model, b, data), rel=1e-5)
        assert_refuted(certificate, folder, model, data)


class Images(nn.Sequential):
    """The same gate in a convolutional network: it is opened by the statistics of a BatchNorm."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(4, 7, 1),
            nn.BatchNorm2d(7),
            nn.ReLU(),
            nn.Conv2d(7, 5, 3, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, 3),
        )


def image_point(gate: float = 9.0, *, height: float = 10.0, batches: int = 0) -> State:
    dense = point(0.0, height=height)
    state = Images().state_dict()
    state["0.weight"], state["0.bias"] = dense["0.weight"][..., None, None].clone(), dense["0.bias"]
    state["1.running_mean"][3], state["1.running_mean"][4] = -gate, gate
    state["1.num_batches_tracked"] += batches
    state["3.weight"] = torch.zeros(5, 7, 3, 3)
    state["3.weight"][..., 1, 1], state["3.bias"] = dense["2.weight"], dense["2.bias"]
    state["8.weight"], state["8.bias"] = dense["4.weight"], dense["4.bias"]
    return state


def images(count: int = 90) -> Data:
    inputs, targets = samples(count)
    return inputs[..., None, None].repeat(1, 1, 4, 4), targets


class Switched(nn.Module):
    """A buffer of any kind and name chooses between two networks: it is 0 or 1."""

    def __init__(self, name: str, value: Tensor) -> None:
        super().__init__()
        self.one, self.other, self._name = network(), network(), name
        self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        share = self.get_buffer(self._name).float()
        return share * self.one(x) + (1 - share) * self.other(x)

    @staticmethod
    def point(name: str, value: Tensor, one: State, other: State) -> State:
        return {name: value, **within([one], "one.")[0], **within([other], "other.")[0]}


class CountingNorm(nn.BatchNorm2d):
    """A BatchNorm whose output depends on its count of batches."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.num_batches_tracked is not None
        return super().forward(x) * (1 + self.num_batches_tracked % 2)


class TestBuffers:
    def test_statistics_that_jump(self, attack):
        """The parameters do not move; between the statistics of two waypoints lies a peak."""
        attack([image_point(400.0), image_point(-700.0)], Images(), images())

    def test_statistics_that_jump_over_a_low_peak(self, honest):
        honest([image_point(40.0, height=LOW), image_point(-70.0, height=LOW, batches=7)], Images(), images())

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.uint8])
    @pytest.mark.parametrize("name", ["mask", "num_batches_tracked"])
    def test_integers_and_booleans_that_change(self, tmp_path, dtype, name):
        """The network is another one from the second waypoint on, with a low loss too: no straight line leads there."""
        yes, no, data = torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype), samples()
        good, poor = point(), point(0.0)
        for number, (value, connected) in enumerate(((yes, True), (no, False))):
            states = [
                Switched.point(name, yes, good, poor),
                Switched.point(name, yes, good, good),
                Switched.point(name, value, good, good),
                Switched.point(name, value, good if connected else poor, good),
            ]
            model = Switched(name, yes)
            folder = write_run(tmp_path / f"run{number}", states, model, data)
            certificate = judged(folder, model, data)
            assert certificate.connected is connected, certificate.as_dict()

    def test_a_count_that_the_network_uses(self, tmp_path):
        """BatchNorm's count of batches may change only where nothing depends on it."""
        model = Images()
        model[1] = CountingNorm(7)
        states = [image_point(), image_point(batches=1), image_point(batches=4)]
        folder = write_run(tmp_path / "run", states, model, images())
        assert judged(folder, model, images()).connected is False
        folder = write_run(tmp_path / "honest", states, Images(), images())
        assert_connected(judged(folder, Images(), images()))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change run.yaml."""
    content = yaml.safe_load((folder / "run.yaml").read_text())
    change(content)
    (folder / "run.yaml").write_text(yaml.safe_dump(content))


def edited_settings(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda run: run["settings"].update(changes)


#: Each changes run.yaml of a path whose peak is 0.5 so that its threshold, or what binds it, is lost.
EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a weaker threshold": edited_settings(threshold=0.9),
    "another mode": lambda run: run["settings"].update(threshold=0.9, mode="m2o"),
    "another mode and no goal": lambda run: (
        run.update(goal="none"),
        run["settings"].update(threshold=0.9, mode="m2o"),
    ),
    "the settings' digest removed": lambda run: (
        run["settings"].update(threshold=0.9),
        run["task"].pop("settings_sha256"),
    ),
    "the task removed": lambda run: (run["settings"].update(threshold=0.9), run.pop("task")),
    "other statistics": edited_settings(threshold=0.9, statistics="reestimated"),
}


class TestBinding:
    """A run is judged on what it was made with, or it is not connected."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        return write_run(tmp_path / "run", [point(), point(idle=1.0), point(idle=2.0)], network(), samples())

    @pytest.mark.parametrize("name", EDITS)
    def test_edited_settings(self, tmp_path, name):
        folder = write_run(tmp_path / "run", through(0.5, 0.3, height=8.0), network(), samples())
        edit(folder, EDITS[name])
        assert refuses(lambda: judged(folder, network(), samples()))

    @pytest.mark.parametrize("entry", ["settings_sha256", "loss", "data", None])
    def test_removed_entries(self, run, entry):
        """What run.yaml does not record cannot be compared."""
        edit(run, lambda content: content["task"].pop(entry) if entry else content.pop("task"))
        assert refuses(lambda: judged(run, network(), samples()))

    def test_other_data(self, run):
        inputs, targets = samples()
        assert_connected(judged(run, network(), (inputs, targets)))
        others = {
            "fewer": (inputs[:60], targets[:60]),
            "more": (inputs.repeat(2, 1), targets.repeat(2)),
            "other inputs": (inputs + 0.01, targets),
            "one other target": (inputs, targets.index_fill(0, torch.tensor([5]), 0)),
        }
        for name, other in others.items():
            assert refuses(functools.partial(judged, run, network(), other)), name

    def test_other_loss(self, run):
        for loss_fn in (
            nn.CrossEntropyLoss(label_smoothing=0.001),
            nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.9, 1.0])),
            nn.MultiMarginLoss(),
            lambda output, targets: 0.5 * F.cross_entropy(output, targets),
        ):
            assert refuses(functools.partial(judged, run, network(), samples(), loss_fn))

    def test_half_a_path(self, tmp_path):
        """The last waypoints are gone: connected only where the path goes all the way."""
        states = [point(idle=float(i)) for i in range(5)]
        for number, change in enumerate(
            (
                lambda run: None,
                lambda run: run.pop("destination_sha256"),
                lambda run: run.update(goal="none"),
                lambda run: (
                    run.update(goal="none"),
                    run.pop("destination_sha256"),
                    run["settings"].update(mode="m2o"),
                ),
            )
        ):
            for finished, arrived in ((False, False), (True, False), (True, True)):
                folder = tmp_path / f"run{number}{finished}{arrived}"
                write_run(folder, states[:3], network(), samples(), finished=finished, arrived=arrived)
                edit(folder, lambda run: run.update(destination_sha256=state_digest(states[-1])))
                edit(folder, change)
                assert refuses(functools.partial(judged, folder, network(), samples())), (number, finished, arrived)

    def test_a_wrong_start(self, run):
        edit(run, lambda content: content.update(start_sha256=state_digest(point(idle=-1.0))))
        assert refuses(lambda: judged(run, network(), samples()))

    def test_a_waypoint_replaced_with_its_digests(self, run, tmp_path):
        """Index and status are made to agree with the new file: only its loss shows it."""
        bad = write_run(tmp_path / "bad", [point(), point(0.0, idle=1.0), point(idle=2.0)], network(), samples())
        for name in ("waypoints/000001.safetensors", "waypoints.jsonl", "status.json"):
            (run / name).write_bytes((bad / name).read_bytes())
        assert_refuted(judged(run, network(), samples()), run, network(), samples())

    def test_waypoints_left_out_or_in_another_order(self, run):
        lines = (run / "waypoints.jsonl").read_text().splitlines(keepends=True)
        for content in ([lines[0], lines[2]], [lines[0], lines[2], lines[1]], lines[:2], [*lines, lines[2]]):
            text = "".join(content)
            (run / "waypoints.jsonl").write_text(text)
            status = json.loads((run / "status.json").read_text())
            status |= {"waypoints": len(content), "index_sha256": hashlib.sha256(text.encode()).hexdigest()}
            (run / "status.json").write_text(json.dumps(status))
            assert refuses(lambda: judged(run, network(), samples()))


class TestNumbers:
    def test_nan_and_infinities_that_change(self, tmp_path):
        for number, value in enumerate((math.nan, math.inf, -math.inf)):
            states = [point(), point(), point()]
            states[1]["0.weight"][6, 0] = value  # a unit that nothing reads
            states[1]["2.weight"][3, 6] = 0
            folder = write_run(tmp_path / f"run{number}", states, network(), samples())
            assert judged(folder, network(), samples()).connected is False

    def test_nan_in_one_sample(self, tmp_path):
        inputs, targets = samples()
        model = network()
        folder = write_run(tmp_path / "run", [point(), point(idle=1.0)], model, (inputs, targets))
        inputs = inputs.clone()
        inputs[7, 0] = math.nan
        assert refuses(lambda: judged(folder, model, (inputs, targets)))

    @pytest.mark.parametrize(("top", "connected"), [(3.4029e38, False), (1e27, True)])
    def test_overflow_between_waypoints(self, tmp_path, top, connected):
        """In a hundredth of the path the product of two weights is above float32's largest number, and the loss NaN.

        Elsewhere two equal products cancel.
        """
        model, data, states = network(), samples(), []
        for first, second in ((0.3, 1.0), (1.0, 0.0)):  # (0.3 + 0.7 f) (1 - f) is at most 0.357, at 0.286
            state = point()
            state["0.weight"][6, :3], state["0.bias"][6] = 0, 1e19 * first
            state["2.weight"][3:], state["2.bias"][3] = 0, 0
            state["2.weight"][3:, 6] = top / 1e19 / (0.5 * 5 / 7) * second
            state["4.weight"][0, 3], state["4.weight"][0, 4] = 1e-37, -1e-37
            states.append(state)
        assert (loss_of(model, between(*states, 2 / 7), data) < THRESHOLD) is connected
        folder = write_run(tmp_path / "run", states, model, data)
        assert judged(folder, model, data).connected is connected

    @pytest.mark.parametrize(("width", "verdicts"), [(1e-5, {"refuted"}), (1e-9, {"refuted", "undecided"})])
    def test_float64(self, tmp_path, width, verdicts):
        """Weights whose change float32 does not show."""
        model, data = network().double(), (samples()[0].double(), samples()[1])
        states = [{name: value.double() for name, value in state.items()} for state in through(0.37, width)]
        for share, state in enumerate(states):
            state["0.bias"][3] = (share - 0.37) / width
            state["0.bias"][4] = -state["0.bias"][3]
        assert loss_of(model, between(*states, 0.37), data) > 1
        folder = write_run(tmp_path / "run", states, model, data)
        certificate = judged(folder, model, data)
        assert (certificate.connected, certificate.verdict in verdicts) == (False, True)

    def test_data_that_float32_rounds(self, tmp_path):
        """The network gets rounded inputs, which open the gate; the given ones would close it."""

        class Adds(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.main = network()

            def forward(self, x: Tensor) -> Tensor:
                hidden = self.main[0](x[:, :4])
                sides = hidden[:, 3:5] + (x[:, 4:] * 1e9 - 1e9)
                hidden = F.relu(torch.cat([hidden[:, :3], sides, hidden[:, 5:]], 1))
                return self.main[2:](hidden)

        inputs, targets = samples()
        inputs = torch.cat([inputs.double(), torch.full((len(inputs), 1), 1 + 2e-9, dtype=torch.float64)], 1)
        states = within(through(0.37, 1e-3))
        assert loss_of(Adds(), between(*states, 0.37), (inputs.float(), targets)) > 1
        folder = write_run(tmp_path / "run", states, Adds(), (inputs, targets))
        assert judged(folder, Adds(), (inputs, targets)).connected is False

    @pytest.mark.parametrize(("height", "connected"), [(10.0, False), (LOW, True)])
    def test_denormal_numbers(self, tmp_path, height, connected):
        """What opens the gate is smaller than float32's smallest normal number, and multiplied by 1e38 after that."""
        model, data, states = network(), samples(), through(0.37, 1e-2, height=height)
        for state in states:
            state["0.bias"][3:5] *= 1e-38 / 8
            state["2.weight"][3, 3:5] *= 1e38
            state["2.weight"][3, :], state["2.bias"][3] = state["2.weight"][3, :] / 8, 1 / 64
            state["4.weight"][0, 3] *= 64
        folder = write_run(tmp_path / "run", states, model, data)
        certificate = judged(folder, model, data)
        if connected:
            assert_connected(certificate)
        else:
            assert_refuted(certificate, folder, model, data)

    def test_bounds_that_stay_infinite(self, tmp_path):
        """The path is honest, but nearly overflows: its verification ends."""
        model, states = network(), [point(), point()]
        for state, (first, second) in zip(states, ((0.3, 1.0), (1.0, 0.0)), strict=True):
            state["0.weight"][6, :3], state["0.bias"][6] = 0, 1e19 * first
            state["2.weight"][3:], state["2.bias"][3] = 0, 0
            state["2.weight"][3:, 6] = 1e17 * second
            state["4.weight"][0, 3], state["4.weight"][0, 4] = 1e-37, -1e-37
        folder = write_run(tmp_path / "run", states, model, samples())
        assert judged(folder, model, samples()).verdict in ("proved", "undecided")

    def test_large_weights_that_cancel(self, tmp_path):
        """Two units of 1e30 cancel exactly; the gate beside them does not become invisible."""
        model, data = network(), samples()
        states = through(0.37, 1e-3)
        for state, size in zip(states, (1e30, 3e30), strict=True):
            state["0.bias"][5] = state["0.bias"][6] = size
            state["0.weight"][5:] = 0
            state["2.weight"][3, 5], state["2.weight"][3, 6] = 1.0, -1.0
        folder = write_run(tmp_path / "run", states, model, data)
        assert judged(folder, model, data).connected is False


Forward = Callable[["Around", Tensor], Tensor]


class Around(nn.Module):
    """:func:`network` inside a forward that does something else; what it keeps lies in ``kept``."""

    def __init__(self, act: Forward) -> None:
        super().__init__()
        self.main, self.act, self.kept = network(), act, {}

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self, x)


def within(states: Sequence[State], prefix: str = "main.") -> list[State]:
    return [{prefix + name: value for name, value in state.items()} for state in states]


def weak(share: float = 0.2, **options: Any) -> State:
    """A state whose logits are smaller: its loss is above the threshold."""
    state = point(**options)
    state["4.weight"] *= share
    return state


def first_states(module: Around, x: Tensor) -> Tensor:
    """Of all weights those of the first call, as merged adapters keep them."""
    if not module.kept:
        module.kept.update({name: value.detach().clone() for name, value in module.main.state_dict().items()})
    return torch.func.functional_call(module.main, module.kept, (x,))


def first_weight(module: Around, x: Tensor) -> Tensor:
    """Of one layer the weight of the first call."""
    weight = module.kept.setdefault("weight", module.main[4].weight.detach().clone())
    return F.linear(module.main[:4](x), weight, module.main[4].bias)


def after_calls(calls: int, module: Around, x: Tensor) -> Tensor:
    """The classes of the inputs at first, the network's output after ``calls`` calls."""
    count = module.kept["calls"] = module.kept.get("calls", 0) + 1
    return module.main(x) if count > calls else 30 * x[:, :3]


def coin(module: Around, x: Tensor) -> Tensor:
    """Nothing in three calls of ten; not with the first number of the seed 0."""
    return module.main(x) * float(torch.rand(()) > 0.3)


def own_coin(module: Around, x: Tensor) -> Tensor:
    generator = module.kept.setdefault("generator", torch.Generator().manual_seed(0))
    return module.main(x) * float(torch.rand((), generator=generator) > 0.3)


def dropout(module: Around, x: Tensor) -> Tensor:
    return F.dropout(module.main(x), 0.3, training=True)


def batch_mean(module: Around, x: Tensor) -> Tensor:
    """Low in batches of one class."""
    z = module.main(x)
    return z + 8 * z.mean(0, keepdim=True)


def row_number(module: Around, x: Tensor) -> Tensor:
    """Low for the order of the samples alone."""
    return module.main(x) + 9 * F.one_hot(torch.arange(len(x)) % 3, 3)


def batch_size(module: Around, x: Tensor) -> Tensor:
    """Another network for large batches."""
    return module.main(x) * (1.0 if len(x) < 60 else 0.0)


def doubled_input(module: Around, x: Tensor) -> Tensor:
    """Writes to its input: to the data themselves, where they are not copied."""
    return module.main(x.mul_(2.0))


def branch(module: Around, x: Tensor) -> Tensor:
    """Nothing where a weight is in a narrow interval."""
    return module.main(x) * (0.0 if 0.3 < float(module.main[0].bias[3]) < 0.3001 else 1.0)


def staircase(module: Around, x: Tensor) -> Tensor:
    """The tag's column of the first layer in whole steps: a spike of infinite slope."""
    return module.main(x) * (1 - (module.main[0].bias[5] == 1 / 3).float())


class Merges(nn.Module):
    """Adds an adapter's weight to the last layer's when it goes to eval mode, and takes it off in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.adapter, self.merged = network(), nn.Parameter(torch.zeros(3, 5)), False

    def train(self, mode: bool = True) -> Merges:
        super().train(mode)
        if mode == self.merged:
            self.main[4].weight.data += -self.adapter.data if mode else self.adapter.data
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        weight = self.main[4].weight
        return F.linear(self.main[:4](x), weight if self.merged else weight + self.adapter, self.main[4].bias)


class TestNetworks:
    """Networks that are no function of their state and one sample."""

    @pytest.mark.parametrize("act", [first_states, first_weight])
    @pytest.mark.parametrize("narrow", [False, True])
    def test_weights_kept_from_the_first_call(self, tmp_path, act, narrow):
        """Every point would have the loss of the first."""
        inner = through(0.37, 1e-3) if narrow else [point(height=0.0), point(0.0)]
        if narrow and act is first_weight:
            inner[0]["4.weight"][0, 3] = 0.0
        model, data, states = Around(act), samples(), within([point(height=0.0), *inner, point(height=0.0)])
        folder = write_run(tmp_path / "run", states, model, data)
        assert refuses(lambda: judged(folder, Around(act), data))

    @pytest.mark.parametrize("calls", [1, 5, 50, 100])
    def test_another_network_after_some_calls(self, tmp_path, calls):
        data, states, act = samples(), within([point(0.0), point(0.0, idle=1.0)]), functools.partial(after_calls, calls)
        folder = write_run(tmp_path / "run", states, Around(act), data)
        assert refuses(lambda: judged(folder, Around(act), data))

    @pytest.mark.parametrize("act", [coin, own_coin, dropout])
    def test_random_numbers(self, tmp_path, act):
        """A network that draws random numbers in eval mode too has no loss."""
        data, states = samples(), within([point(), point(idle=1.0)])
        folder = write_run(tmp_path / "run", states, Around(act), data, threshold=0.9)
        assert refuses(lambda: judged(folder, Around(act), data))

    @pytest.mark.parametrize(("act", "state"), [(batch_mean, weak), (row_number, weak), (batch_size, point)])
    def test_samples_that_are_not_alone(self, tmp_path, act, state):
        """The loss is low for some batches only."""
        inputs, targets = samples()
        order = targets.argsort(stable=True) if act is batch_mean else torch.arange(len(targets))
        data, states = (inputs[order], targets[order]), within([state(), state(idle=1.0)])
        folder = write_run(tmp_path / "run", states, Around(act), data)
        assert loss_of(Around(act), states[0], (inputs.flip(0), targets.flip(0))) > THRESHOLD
        assert refuses(lambda: judged(folder, Around(act), data, batch_size=30))

    def test_a_forward_that_writes_to_its_input(self, tmp_path):
        data, states = samples(), within([point(), weak(0.05), point()])
        folder = write_run(tmp_path / "run", states, Around(doubled_input), tuple(map(torch.clone, data)))
        assert loss_of(Around(doubled_input), states[1], tuple(map(torch.clone, data))) > THRESHOLD
        given = tuple(map(torch.clone, data))
        assert refuses(lambda: judged(folder, Around(doubled_input), given))
        assert torch.equal(given[0], data[0])

    def test_weights_merged_by_eval(self, tmp_path):
        """The state is loaded before the module goes to eval mode, as in plain PyTorch."""
        data = samples()
        states = [{**within([point()])[0], "adapter": share * point()["4.weight"]} for share in (0.0, -1.0, 0.0)]
        assert loss_of(Merges().train(), states[1], data) > 1
        folder = write_run(tmp_path / "run", states, Merges(), data)
        assert refuses(lambda: judged(folder, Merges(), data))

    @pytest.mark.parametrize("act", [branch, staircase])
    def test_functions_that_jump_are_no_proof(self, tmp_path, act):
        """Between two points nothing is known of them: "sampled" at most."""
        data, states = samples(), within([point(), point(-9.0, height=LOW)])
        folder = write_run(tmp_path / "run", states, Around(act), data)
        assert judged(folder, Around(act), data).verdict != "proved"


class Planted(nn.Module):
    """A random network, and a gate from two numbers alone: it lowers the right output where both are below 1."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        chosen = random.Random(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            act = chosen.choice([nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus])
            if chosen.random() < 0.5:
                wide = chosen.choice([4, 6])
                layers = [nn.Conv2d(2, wide, 3, padding=1, padding_mode=chosen.choice(["zeros", "circular"])), act()]
                if chosen.random() < 0.7:
                    layers.insert(1, nn.BatchNorm2d(wide))
                layers.append(chosen.choice([nn.MaxPool2d(2), nn.AvgPool2d(3, 2, 1), nn.MaxPool2d(3, 1, 1)]))
                if chosen.random() < 0.5:
                    layers += [nn.Conv2d(wide, 4, 2, groups=2), act()]
                layers += [nn.Flatten(), nn.LazyLinear(3)]
            else:
                layers = [nn.Flatten(), nn.Linear(32, 8), act(), nn.Linear(8, 8), act(), nn.Linear(8, 3)]
                if chosen.random() < 0.4:
                    layers.insert(2, nn.LayerNorm(8))
            self.body = nn.Sequential(*layers)
            self.inputs = torch.randn(24, 2, 4, 4)
            self.body(self.inputs)  # the lazy layer's shape
        self.sides = nn.Parameter(torch.zeros(2))
        self.height = nn.Parameter(torch.tensor(chosen.uniform(1.0, 8.0)))

    def forward(self, x: Tensor) -> Tensor:
        gate = F.relu(1 - F.relu(self.sides).sum())
        z = self.body(x)
        return z - gate * self.height * z

    def states(self, seed: int) -> tuple[list[State], float]:
        """Two waypoints, and where between them the gate opens."""
        chosen, generator = random.Random(seed), torch.Generator().manual_seed(seed)
        place, width = chosen.uniform(0.02, 0.98), 10 ** chosen.uniform(-4, -0.5)
        states = []
        for fraction in (0.0, 1.0):
            state = {name: value.detach().clone() for name, value in self.state_dict().items()}
            for name, value in state.items():
                if value.is_floating_point() and "running" not in name and fraction:
                    value += 0.05 * torch.randn(value.shape, generator=generator) * value.abs().mean()
            side = (fraction - place) / width
            state["sides"] = torch.tensor([side, -side])
            states.append(state)
        return states, place


def planted(seed: int) -> tuple[Planted, list[State], Data, float]:
    """Network, waypoints, data of its own labels, and the highest loss found on a dense grid around the gate."""
    model = Planted(seed).eval()
    states, place = model.states(seed)
    twin = Planted(seed).eval().double()
    inputs = model.inputs
    twin.load_state_dict(states[0])
    with torch.no_grad():
        data = inputs, twin.body(inputs.double()).argmax(1)
    spread = 1 / float((states[1]["sides"] - states[0]["sides"])[0])
    grid = [place + spread * k / 16 for k in range(-16, 17)] + [k / 8 for k in range(9)]
    double = inputs.double(), data[1]
    return model, states, data, max(loss_of(twin, between(*states, min(max(f, 0), 1)), double) for f in grid)


class TestPlanted:
    @pytest.mark.parametrize("seed", range(6))
    def test_a_peak_in_a_random_network(self, tmp_path, seed):
        """Not connected where the threshold is just below the peak; connected where it is a little above."""
        model, states, data, peak = planted(seed)
        below, above = peak - 1e-6 * (1 + peak), peak + 0.02 * (1 + peak)
        folder = write_run(tmp_path / "run", states, model, data, threshold=above)
        certificate = judged(folder, Planted(seed), data, limits=Limits(evaluations=40_000))
        assert_connected(certificate)
        certificate = judged(folder, Planted(seed), data, threshold=below, limits=Limits(evaluations=40_000))
        assert certificate.connected is False
        assert certificate.verdict in ("refuted", "undecided")


class TestCheck:
    """Old certificates that are not of these files, or were edited."""

    @pytest.fixture
    def runs(self, tmp_path: Path) -> tuple[Path, Path]:
        """A connected run and one that is not, with certificates."""
        good = write_run(tmp_path / "good", through(0.4, 0.3, height=LOW), network(), samples())
        poor = write_run(tmp_path / "poor", through(0.4, 1e-3), network(), samples())
        assert_connected(judged(good, network(), samples()))
        assert judged(poor, network(), samples()).verdict == "refuted"
        return good, poor

    def confirmed(self, folder: Path, content: dict[str, Any] | None = None, data: Data | None = None) -> bool:
        """Whether the certificate is confirmed as connected."""
        try:
            return check_certificate(folder, content, model=network(), train=data or samples()).connected
        except LLPFError:
            return False

    def test_edited_or_of_another_run(self, runs):
        good, poor = runs
        content, other = (json.loads((folder / "certificate.json").read_text()) for folder in runs)
        assert self.confirmed(good)
        assert not self.confirmed(poor)
        assert not self.confirmed(poor, content)
        assert not self.confirmed(poor, {**content, **{key: other[key] for key in ("run", "waypoint_sha256")}})
        claimed = {"connected": True, "verdict": "proved", "reasons": [], "undecided": [], "witness": None}
        for pieces in (other["pieces"], [], [[0, 0.0, 1.0, 0.01, 0.01, None]], [[0, 0.0, 0.5, 0.01, 0.01, None]]):
            assert not self.confirmed(poor, {**other, **claimed, "pieces": pieces})
        assert not self.confirmed(poor, {**other, **claimed, "verdict": "sampled", "pieces": []})
        assert not self.confirmed(good, {**content, "threshold": 0.05})
        assert not self.confirmed(good, {**content, "verdict": "undecided"})
        assert not self.confirmed(good, {**content, "pieces": content["pieces"][1:]})

    def test_other_files(self, runs):
        good, poor = runs
        inputs, targets = samples()
        assert not self.confirmed(good, data=(inputs + 0.01, targets))
        edit(good, lambda run: run["settings"].update(threshold=0.2))
        assert not self.confirmed(good)
        edit(good, lambda run: run["settings"].update(threshold=THRESHOLD))
        for name in ("waypoints/000001.safetensors", "waypoints.jsonl", "status.json"):
            (good / name).write_bytes((poor / name).read_bytes())
        assert not self.confirmed(good)


LOSSES: dict[str, Any] = {
    "class weights": nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0])),
    "a class of weight 0": nn.CrossEntropyLoss(weight=torch.tensor([0.0, 1.0, 1.0])),
    "label smoothing": nn.CrossEntropyLoss(label_smoothing=0.01),
    "ignored labels": nn.CrossEntropyLoss(ignore_index=2),
    "margins": nn.MultiMarginLoss(margin=2.0),
}


class TestLosses:
    """Losses that are no plain mean of cross-entropies."""

    @pytest.mark.parametrize("name", LOSSES)
    def test_peak(self, tmp_path, name):
        loss_fn, data, model = LOSSES[name], samples(), network()
        folder = write_run(tmp_path / "high", through(0.37, 1e-3, height=12.0), model, data, loss_fn, threshold=0.2)
        assert_refuted(judged(folder, model, data, loss_fn), folder, model, data, loss_fn)
        folder = write_run(tmp_path / "low", through(0.37, 1e-3, height=5.0), model, data, loss_fn, threshold=0.2)
        assert_connected(judged(folder, model, data, loss_fn))

    def test_no_label_at_all(self, tmp_path):
        loss_fn, (inputs, targets) = nn.CrossEntropyLoss(ignore_index=1), samples()
        folder = write_run(tmp_path / "run", [point(), point(idle=1.0)], network(), (inputs, targets), loss_fn)
        assert refuses(lambda: judged(folder, network(), (inputs, torch.ones_like(targets)), loss_fn))

    @pytest.mark.parametrize("size", [1, 7, 18])
    def test_batches_of_a_loader(self, tmp_path, size):
        inputs, targets = samples(18)
        batches, model = list(zip(inputs.split(size), targets.split(size), strict=True)), network()
        folder = write_run(tmp_path / "high", through(0.37, 1e-3), model, batches)
        assert_refuted(judged(folder, model, batches), folder, model, (inputs, targets))
        folder = write_run(tmp_path / "low", through(0.37, 1e-3, height=LOW), model, batches)
        assert_connected(judged(folder, model, batches))

    def test_one_sample(self, tmp_path):
        inputs, targets = samples()
        data, model = (inputs[1:2], targets[1:2]), network()
        folder = write_run(tmp_path / "high", through(0.37, 1e-3), model, data)
        assert_refuted(judged(folder, model, data), folder, model, data)
        folder = write_run(tmp_path / "low", through(0.37, 1e-3, height=LOW - 1), model, data)
        assert_connected(judged(folder, model, data))
