"""Second call: two ResNet18 of CIFAR-10 (JPEG) are trained, a path between them is searched and certified; then LeNet5
paths are searched 1, 8 and 64 at once. Rows are written as things happen: each epoch, each tick, each path.

    python3 -m benchmarks.gpu.networks --device cuda --carry build/carry --to OUT/networks.jsonl --out OUT

What ends when the time is up ends there; its rows say so. On a CPU a narrow ResNet18 and a part of the images go the
same way in three minutes of one core, which shows that every line works, and no more.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llpf_fast import LLPFError
from llpf_fast.batches.augment import augmentation
from llpf_fast.batches.statistics import STATISTICS_SIZE
from llpf_fast.data import ImageData, load_dataset
from llpf_fast.find import PathFinder
from llpf_fast.find.record import FindResult, TickProgress
from llpf_fast.find.stacked_finder import SearchJob, StackedFinder
from llpf_fast.models import TrainingProgress, build_model, train_model
from llpf_fast.path import load_model_file
from llpf_fast.recipes import load_recipe
from llpf_fast.verify import Evaluator, Limits, verify_run

from . import carried
from .rows import Emit, Row, why, writer

Pair = tuple[Tensor, Tensor]
State = dict[str, Tensor]

SEEDS = (1, 2)
#: Points that a certificate evaluates inside a segment whose statistics are re-estimated, about.
_POINTS = 6
#: Shares of the budget after which training, search and certificate are to be over. The stacks have the rest.
TRAINED, SEARCHED, CERTIFIED = 0.3, 0.64, 0.86


@dataclass(frozen=True)
class Size:
    """How much of it all."""

    images: int
    #: Channels are divided by this.
    narrow: int
    batch_size: int
    lr: float
    most_epochs: int
    #: Images that a certificate may rest on, the most that fit into its time.
    certified: tuple[int, ...]
    #: LeNet5 searches at once, their training images, their ticks.
    paths: tuple[int, ...]
    digits: int
    ticks: int
    #: Over ``SETTINGS``.
    settings: tuple[str, ...] = ()


RECIPE = "resnet18-cifar10-m2m-quick"
#: The quick recipe, changed. Seen on a CPU only, between two ResNet18 with an eighth of the channels, trained on 1,000
#: images to a loss of 0.002: it arrived after 60 ticks and 982 gradient steps with none taken back, and all of its
#: points were below 0.182 on these images (the straight line rises to 2.5). With steps of at most a quarter of the way
#: (``pacing.max_scale=2.5``) it took 160 ticks and 1,481 gradient steps; without ``pacing.midpoint`` the path was the
#: same.
#: Half of what BatchNorm's running statistics say is still older than the last seven gradient steps, so each point
#: gets statistics of its own; the stored ones were not tried.
SETTINGS = (
    "threshold=0.3",
    "statistics=reestimated",
    "pacing.kind=adaptive",
    "augmentation=none",
    "schedule.stages=[{start: 0}]",
    "schedule.kind=data-flow",
    "schedule.distance=0.5",
    "step.relative=0.1",
    "correction.threshold=0.2",
    "correction.window=5",
    "correction.max_steps=100",
    "correction.precision=bfloat16",
    "correction.channels_last=true",
    "pacing.target_steps=20",
    "pacing.margin=0.8",
    "pacing.midpoint=true",
    "pacing.max_scale=6",
    "record.every=2",
    "arrival.every=5",
    "record.checkpoint_every=1000000",
    "max_ticks=100000",
)
SIZES = {
    "cuda": Size(
        images=50_000,
        narrow=1,
        batch_size=512,
        lr=0.2,
        most_epochs=30,
        certified=(50_000, 10_000, 5_000, 2_500, 1_000),
        paths=(1, 8, 64),
        digits=60_000,
        ticks=200,
    ),
    "cpu": Size(
        images=200,
        narrow=8,
        batch_size=50,
        lr=0.05,
        most_epochs=6,
        certified=(200, 100),
        paths=(1, 8),
        digits=1_000,
        ticks=2,
        settings=("threshold=2.5", "correction.threshold=2.3", "correction.batch_size=50", "max_ticks=4"),
    ),
}


class TimeUpError(Exception):
    """Thrown through a search or a certificate by the callback that reports its progress."""


class Clock:
    """Seconds of the budget."""

    def __init__(self, budget: float) -> None:
        self.budget, self._began = budget, time.monotonic()

    def now(self) -> float:
        return time.monotonic() - self._began

    def left(self, share: float) -> float:
        """Seconds until that share of the budget is over."""
        return share * self.budget - self.now()

    def alarm(self, share: float) -> Callable[[], None]:
        """Raises once that share of the budget is over."""

        def check() -> None:
            if self.left(share) < 0:
                raise TimeUpError("the time was up")

        return check


def narrowed(model: nn.Module, divisor: int) -> nn.Module:
    """``model`` with so many times fewer channels everywhere but at its ends; initial values drawn anew."""
    if divisor == 1:
        return model
    for name, layer in list(model.named_modules()):
        made: nn.Module
        if isinstance(layer, nn.Conv2d):
            inputs = layer.in_channels if layer.in_channels == 3 else layer.in_channels // divisor
            form: dict[str, Any] = {key: getattr(layer, key) for key in ("kernel_size", "stride", "padding")}
            made = nn.Conv2d(inputs, layer.out_channels // divisor, **form, bias=False)
        elif isinstance(layer, nn.BatchNorm2d):
            made = nn.BatchNorm2d(layer.num_features // divisor)
        elif isinstance(layer, nn.Linear):
            made = nn.Linear(layer.in_features // divisor, layer.out_features)
        else:
            continue
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, made)
    return model


def fresh(size: Size, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return narrowed(build_model("resnet18", classes=10), size.narrow)


@torch.no_grad()
def measured(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Loss and accuracy in eval mode, in bfloat16; the mode stays. For the rows of epochs only."""
    training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=inputs.device)
    right = torch.zeros((), dtype=torch.int64, device=inputs.device)
    with torch.autocast(inputs.device.type, torch.bfloat16):
        for x, y in zip(inputs.split(2000), targets.split(2000), strict=True):
            output = model(x).float()
            loss += nn.functional.cross_entropy(output, y, reduction="sum")
            right += (output.argmax(1) == y).sum()
    model.train(training)
    return float(loss) / len(targets), float(right) / len(targets)


class Networks:
    """All of it, a method a part; ``emit`` takes the rows."""

    def __init__(self, device: torch.device, size: Size, clock: Clock, work: Path, emit: Emit) -> None:
        self._device, self._size, self._clock, self._work, self._emit = device, size, clock, work, emit

    def row(self, what: str, began: float, **said: Any) -> None:
        """With the seconds since ``began`` on the clock."""
        seconds = {"seconds": round(self._clock.now() - began, 3), "at": round(self._clock.now(), 1)}
        self._emit({"what": what, "device": self._device.type, **said, **seconds})

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """A failure is a row, and the parts that do not need this one go on."""
        began = self._clock.now()
        try:
            yield
        except Exception as error:  # whatever it is, it is the finding
            self.row(what, began, result="failed", why=why(error))

    def images(self, carry: Path) -> tuple[Pair, Pair]:
        """Training and test images with their classes."""
        began, count = self._clock.now(), self._size.images
        data = load_dataset("cifar10-jpeg", carried.cifar10(carry, self._work / "cifar10"))
        assert isinstance(data, ImageData)
        self.row("data", began, data=data.label, images=count, of=len(data.train_targets))
        (x, y), (test_x, test_y) = data.train, data.test
        return (x[:count], y[:count]), (test_x[:count], test_y[:count])

    def train(self, train: Pair, test: Pair) -> list[State]:
        """Two networks, for as many epochs as the time allows; the seconds of one are measured on a third."""
        size, device = self._size, self._device
        x, y = (part.to(device) for part in train)
        seen = [part.to(device) for part in test]
        options: Row = {
            "batch_size": size.batch_size,
            "lr": size.lr,
            "weight_decay": 5e-4,
            "schedule": "one-cycle",
            "augment": augmentation("cifar"),
            "precision": "bfloat16",
            "channels_last": True,
        }
        some, began = min(len(y), 20 * size.batch_size), self._clock.now()
        for _ in range(2):  # libraries choose their kernels in the first
            before = self._clock.now()
            train_model(fresh(size, 0).to(device), x[:some], y[:some], seed=0, epochs=1, **options)
        epoch = (self._clock.now() - before) * len(y) / some
        epochs = max(2, min(int(self._clock.left(TRAINED) / len(SEEDS) / epoch), size.most_epochs))
        self.row("training", began, epochs=epochs, seconds_an_epoch=round(epoch, 3), narrow=size.narrow)
        states = []
        for seed in SEEDS:
            began, model = self._clock.now(), fresh(size, seed).to(device)

            def after(at: TrainingProgress, seed: int = seed, began: float = began, model: nn.Module = model) -> None:
                said = {"seed": seed, "epoch": at.epoch, "loss": at.loss}
                loss, accuracy = measured(model, *seen)
                self.row("epoch", began, **said, test_loss=loss, test_accuracy=accuracy)

            train_model(model, x, y, seed=seed, epochs=epochs, progress=after, **options)
            loss, accuracy = measured(model, x, y)
            self.row("trained", began, seed=seed, train_loss=loss, train_accuracy=accuracy)
            states.append({name: value.detach().cpu() for name, value in model.state_dict().items()})
        return states

    def search(self, train: Pair, states: list[State]) -> Path:
        """The run directory, whole or not: the row says which."""
        size, folder, alarm = self._size, self._work / "resnet18", self._clock.alarm(SEARCHED)
        began = self._clock.now()
        changes = [*SETTINGS, *size.settings]
        settings = load_recipe(RECIPE, changes).changed(
            data="cifar10-jpeg", model="resnet18" if size.narrow == 1 else ""
        )
        self.row("settings", began, recipe=RECIPE, changes=changes)

        def after(at: TickProgress) -> None:
            metrics = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
            said = {"loss": at.loss, "rounds": at.rounds, "sgd_steps": at.steps, "distance_left": at.distance}
            said |= {"active": metrics["stage"], "step": metrics["step"][1]}
            self.row("tick", began, tick=at.tick, accepted="rolled_back" not in metrics, **said)
            alarm()

        finder = PathFinder(
            fresh(size, 0), *states, settings=settings, train=train, device=self._device, out=folder, progress=after
        )
        self.row("prepared", began)
        try:
            found = finder.run()
            said: Row = {"ended": found.ended, "ticks": found.ticks, "sgd_steps": found.sgd_steps}
        except TimeUpError as error:
            said = {"ended": str(error)}
        waypoints = len(list((folder / "waypoints").iterdir()))
        self.row("search", began, **said, captured=finder._correction.captured, waypoints=waypoints)
        return folder

    def certify(self, folder: Path, train: Pair) -> None:
        """On as many images as the time allows; what they are is in the row, and in ``differs``."""
        size, alarm, began = self._size, self._clock.alarm(CERTIFIED), self._clock.now()
        segments, few = len(list((folder / "waypoints").iterdir())) - 1, min(STATISTICS_SIZE, len(train[1]))
        part = tuple(side[:few] for side in train)
        evaluator = Evaluator(
            fresh(size, 0), None, *part, device=self._device, statistics="reestimated", statistics_inputs=part[0]
        )
        state = fresh(size, 0).state_dict()
        for _ in range(2):
            before = self._clock.now()
            evaluator(state)
        # As many images again give the statistics.
        an_image, points = (self._clock.now() - before) / (2 * few), _POINTS * segments + 20
        # The other half is for reading waypoints and for what lies between them.
        seconds = self._clock.left(CERTIFIED) / 2
        fits = (images for images in size.certified if an_image * (few + images) * points < seconds)
        images = next(fits, size.certified[-1])
        done = 0

        def after(points: int, expected: int, text: str) -> None:
            nonlocal done
            done = points
            alarm()

        try:
            found = verify_run(
                folder,
                model=fresh(size, 0),
                train=tuple(side[:images] for side in train),
                device=self._device,
                level="full",
                limits=Limits(seconds=2 * seconds),
                straight_points=5,
                progress=after,
            )
        except TimeUpError as error:
            self.row("certificate", began, verdict="none", why=str(error), points=done, images=images)
            return
        names = (
            "verdict",
            "covers",
            "bound",
            "reasons",
            "undecided",
            "differs",
            "threshold",
            "max_loss",
            "start_loss",
            "destination_loss",
        )
        said = {name: getattr(found, name) for name in names} | {"max_loss_at": str(found.max_loss_at)}
        said |= {"straight_line": [round(point.train_loss, 4) for point in found.straight_line]}
        self.row("certificate", began, **said, points=found.points_evaluated, waypoints=found.waypoints, images=images)

    def stacks(self, carry: Path) -> None:
        """The same two LeNet5, in both directions in turn, so many times at once."""
        size, began = self._size, self._clock.now()
        data = load_dataset("mnist", carried.mnist(carry, self._work / "mnist"))
        assert isinstance(data, ImageData)
        x, y = data.train
        ends = [load_model_file(file).state for file in sorted((carry / "endpoints").iterdir())[:2]]
        self.row("data", began, data=data.label, images=size.digits, of=len(y))
        train = x[: size.digits], y[: size.digits]
        for paths in size.paths:
            with self.part("stack"):
                self._stack(paths, train, ends)

    def _stack(self, paths: int, train: Pair, ends: list[State]) -> None:
        size, alarm, began = self._size, self._clock.alarm(1.0), self._clock.now()
        settings = load_recipe("lenet5-mnist-m2m-quick", [f"max_ticks={size.ticks}"])
        finder = StackedFinder(
            build_model("lenet5"), settings=settings, train=train, parallel=paths, device=self._device
        )
        folder = self._work / f"stack{paths}"
        jobs = [
            SearchJob((lambda turn=i % 2: (ends[turn], ends[1 - turn])), folder / str(i), progress=lambda _: alarm())  # type: ignore[misc]
            for i in range(paths)
        ]
        found: list[FindResult | LLPFError] = []
        ended = "all"
        try:
            for _, result in finder.run(jobs):
                found.append(result)
        except TimeUpError as error:
            ended = str(error)
        results = [result for result in found if isinstance(result, FindResult)]
        self.row(
            "stack",
            began,
            paths=paths,
            ended=ended,
            found=len(found),
            arrived=sum(result.arrived for result in results),
            sgd_steps=sum(result.sgd_steps for result in results),
            ticks=sum(result.ticks for result in results),
            errors=sorted({str(result) for result in found if isinstance(result, LLPFError)}),
        )
        shutil.rmtree(folder, ignore_errors=True)


def line(row: Row) -> str:
    return f"{row['what']}: { ({key: value for key, value in row.items() if key not in ('stage', 'what')}) }"


def workplace(device: str) -> str | None:
    """In memory where there is room: a waypoint is 45 MB, and there may be a hundred."""
    shared = Path("/dev/shm")
    room = device == "cuda" and shared.is_dir() and shutil.disk_usage(shared).free > 20 << 30
    return str(shared) if room else None


def run(networks: Networks, carry: Path, out: Path) -> None:
    with networks.part("networks"):
        train, test = networks.images(carry)
        states = networks.train(train, test)
        folder = networks.search(train, states)
        for name in ("run.yaml", "metrics.jsonl"):
            shutil.copy(folder / name, out / f"resnet18-{name}")
        networks.certify(folder, train)
        if (folder / "certificate.json").exists():
            shutil.copy(folder / "certificate.json", out / "resnet18-certificate.json")
    torch.backends.cudnn.benchmark = False
    with networks.part("stacks"):
        networks.stacks(carry)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", required=True, choices=("cuda", "cpu"))
    parser.add_argument("--carry", required=True, type=Path, help="folder that pack.sh made")
    parser.add_argument("--to", required=True, type=Path, help="file that rows are appended to")
    parser.add_argument("--out", required=True, type=Path, help="folder for run.yaml, metrics and certificate")
    parser.add_argument("--budget", type=float, default=240.0, metavar="SECONDS")
    given = parser.parse_args()
    failed: list[Row] = []
    write = writer(given.to, "networks", line)

    def emit(row: Row) -> None:
        write(row)
        failed.extend([row] if row.get("result") == "failed" else [])

    # Shapes stay the same from the first batch to the last.
    torch.backends.cudnn.benchmark = True
    with tempfile.TemporaryDirectory(dir=workplace(given.device)) as work:
        device, clock = torch.device(given.device), Clock(given.budget)
        run(Networks(device, SIZES[given.device], clock, Path(work), emit), given.carry, given.out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
