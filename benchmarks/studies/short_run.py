"""A shortened run on the CPU: little data, the first stages of the way. It shows that everything works, and no more.

    python benchmarks/studies/short_run.py resnet18 --data DIR
    python benchmarks/studies/short_run.py cct7 --data DIR

trains two networks on a small fixed subset as `llpf train` does, searches M2M for a few ticks with adaptive pacing,
certifies the part of the path that was found, which does not arrive, and writes
benchmarks/results/paths/MODEL-cifar10-m2m-cpu-short.*. The data are CIFAR-10 re-encoded as JPEG. About 15 minutes of
one core; what --work holds already is used again.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.studies.record_path import RESULTS, record
from llpf_fast.batches import stratified_subset
from llpf_fast.cli.train import train_endpoint
from llpf_fast.data import ImageData, load_dataset, register_dataset
from llpf_fast.find import PathFinder
from llpf_fast.models import build_model
from llpf_fast.path import LowLossPath, load_model_file
from llpf_fast.recipes import load_recipe
from llpf_fast.verify import Refinement

State = dict[str, Tensor]

_SOURCE = "cifar10-jpeg"
_TEST_IMAGES = 50
#: A point costs 5 to 10 s: every waypoint, every middle, and a few more where the loss may be highest.
_LOOK: dict[str, Any] = {
    "interior": 1,
    "refinement": Refinement(rounds=1, gaps=4, most_rounds=2),
    "straight_points": 5,
}


@dataclass(frozen=True)
class Short:
    """What is shortened beside the data: training of the endpoints, and overrides of the quick recipe."""

    images: int
    ticks: int
    training: dict[str, Any]
    overrides: tuple[str, ...]


_COMMON = (
    "step.relative=0.05",
    "pacing=adaptive",
    "augmentation=none",
    "correction.batch_size=16",
    "correction.min_rounds=2",
    "correction.max_rounds=12",
    "record_every=1",
    "arrival_every=1000",
    "checkpoint_every=1000",
)
_SHORT = {
    "resnet18": Short(
        images=200,
        ticks=15,
        training={"epochs": 12, "batch_size": 20, "lr": 1e-3, "optimizer": "adamw", "schedule": "one-cycle"},
        overrides=(
            "stages=[{start: 0, layers: [conv1.*, bn1.*]}, {start: 5, layers: [conv1.*, bn1.*, layer1.*]}, "
            "{start: 10, layers: [conv1.*, bn1.*, layer1.*, layer2.*]}]",
            "screen_size=100",
        ),
    ),
    # Kept smaller than ResNet18's: an image costs more than twice as much.
    "cct7": Short(
        images=32,
        ticks=12,
        training={"epochs": 40, "batch_size": 4, "lr": 5e-4, "optimizer": "adamw", "schedule": "one-cycle"},
        overrides=("schedule=data-flow", "data_flow={ticks: 2}", "screen_size=0", "correction.batch_size=8"),
    ),
}


def register_subset(images: int) -> str:
    """Name under which a fixed stratified subset of the data is registered from now on; it says how small it is."""
    name = f"{_SOURCE} ({images} of 50,000 images)"
    known: list[ImageData] = []

    def read(root: Path | None, _: bool) -> ImageData:
        if not known:
            data = load_dataset(_SOURCE, root)
            assert isinstance(data, ImageData)
            train = stratified_subset(data.train_targets, images)
            test = stratified_subset(data.test_targets, _TEST_IMAGES)
            known.append(
                replace(
                    data,
                    name=name,
                    label=f"{data.label}, {images} of 50,000 images",
                    train_inputs=data.train_inputs[train],
                    train_targets=data.train_targets[train],
                    test_inputs=data.test_inputs[test],
                    test_targets=data.test_targets[test],
                )
            )
        return known[0]

    register_dataset(name, read, classes=10, replace=True)
    return name


def shares_left(names: list[str], start: State, here: State, destination: State) -> dict[str, float]:
    """Share of the distance between the ends that is left, for the layers where it is less than 98%."""
    shares = {n: float((destination[n] - here[n]).norm() / (destination[n] - start[n]).norm()) for n in names}
    return {name: round(share, 4) for name, share in shares.items() if share < 0.98}


def pictured(images: int) -> str:
    return f"{images} CIFAR-10 JPEGs, first stages"


def covers(waypoints: int) -> str:
    return (
        f"the part found, {waypoints} waypoints from the start: max_loss is the highest along it, destination_loss is "
        "that of its last waypoint, to which straight_line leads too; connected is false because the destination is "
        "not reached"
    )


def short_run(model: str, data_dir: str, work: Path, out: Path, images: int | None, ticks: int | None) -> None:
    short = _SHORT[model]
    images, ticks = images or short.images, ticks or short.ticks
    data_name = register_subset(images)
    work.mkdir(parents=True, exist_ok=True)
    ends = [work / f"{model}-{images}-{seed}.model.pt" for seed in (1, 2)]
    for seed, file in enumerate(ends, 1):
        if not file.exists():
            train_endpoint(model, data_name, file, seed=seed, data_dir=data_dir, **short.training)
    data = load_dataset(data_name, data_dir)
    recipe = f"{model}-cifar10-m2m-quick"
    settings = load_recipe(recipe, [*_COMMON, *short.overrides, f"max_ticks={ticks}"])
    settings.data = data_name
    start, destination = (load_model_file(file).state for file in ends)
    run = work / f"{model}-{images}-{ticks}-run"
    PathFinder(
        build_model(model, classes=data.classes),
        start,
        destination,
        settings=settings,
        train=data.train,
        out=run,
        resume=run.exists(),
        progress=lambda at: print(f"tick {at.tick}: loss {at.loss:.4f}, {at.rounds} rounds, {at.seconds:.0f} s"),
        provenance={"recipe": recipe, "start": ends[0].name, "destination": ends[1].name},
    ).run()
    path = LowLossPath(run)
    names = [name for name, _ in build_model(model, classes=data.classes).named_parameters()]
    left = shares_left(names, start, path[-1], destination)
    label = {
        "label": "shortened run on the CPU: it shows that everything works, nothing about the full data set",
        "data": f"{images} of the 50,000 training images and {_TEST_IMAGES} test images of CIFAR-10 re-encoded as JPEG",
        "covers": covers(len(path)),
        "distance_left": left,
        "endpoints": short.training,
    }
    numbers = record(
        run, f"{model}-cifar10-m2m-cpu-short", data_dir, out=out, label=label, pictured=pictured(images), **_LOOK
    )
    verdict = numbers["certificate"]
    print(
        f"{model}: highest training loss on the part found {verdict['max_loss']:.4f}; {'; '.join(verdict['reasons'])}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(_SHORT))
    parser.add_argument("--data", required=True, help="folder that holds cifar10-jpeg.npz")
    parser.add_argument("--images", type=int, help="training images (resnet18: 200, cct7: 32)")
    parser.add_argument("--ticks", type=int, help="resnet18: 15, cct7: 12")
    parser.add_argument("--work", type=Path, help="folder of endpoints and run; a temporary one when missing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work = arguments.work or Path(tempfile.mkdtemp(prefix="llpf-short-"))
    short_run(arguments.model, arguments.data, work, arguments.out, arguments.images, arguments.ticks)


if __name__ == "__main__":
    main()
