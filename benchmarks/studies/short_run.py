"""A shortened run on the CPU, with little data and the first stages only. It shows that everything works, no more.

    python -m benchmarks.studies.short_run resnet18 --data-dir DIR
    python -m benchmarks.studies.short_run cct7 --data-dir DIR

trains two networks on a small fixed subset as `llpf train` does, searches M2M for a few ticks with adaptive pacing,
certifies the path, which does not arrive, and writes runs/studies/paths/MODEL-cifar10-m2m-cpu-short.{json,png}. The
data are CIFAR-10 re-encoded as JPEG. It takes about 15 minutes of one core; files in --work are used again.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.studies.record_path import record
from benchmarks.studies.study import WORK, option_parser, parse
from llpf_fast.batches import stratified_subset
from llpf_fast.cli.train import train_endpoint
from llpf_fast.data import ImageData, load_dataset, register_dataset
from llpf_fast.find import PathFinder
from llpf_fast.models import build_model
from llpf_fast.path import LowLossPath, load_model_file
from llpf_fast.recipes import load_recipe
from llpf_fast.types import StateDict
from llpf_fast.verify import Limits

_SOURCE = "cifar10-jpeg"
_TEST_IMAGES = 50
#: A point costs 5 to 10 s: what is not closed after ten minutes stays open.
_VERIFICATION: dict[str, Any] = {"limits": Limits(seconds=600), "straight_points": 5}


@dataclass(frozen=True)
class Short:
    """Number of images and ticks, training of the endpoints, and overrides of the quick recipe."""

    images: int
    ticks: int
    training: dict[str, Any]
    overrides: tuple[str, ...]


_COMMON = (
    "step.relative=0.05",
    "pacing.kind=adaptive",
    "augmentation=none",
    "correction.batch_size=16",
    "correction.window=2",
    "correction.max_steps=12",
    "record.every=1",
    "arrival.every=1000",
    "record.checkpoint_every=1000",
)
_SHORT = {
    "resnet18": Short(
        images=200,
        ticks=15,
        training={"epochs": 12, "batch_size": 20, "lr": 1e-3, "optimizer": "adamw", "schedule": "one-cycle"},
        overrides=(
            "schedule.stages=[{start: 0, layers: [conv1.*, bn1.*]}, {start: 5, layers: [conv1.*, bn1.*, layer1.*]}, "
            "{start: 10, layers: [conv1.*, bn1.*, layer1.*, layer2.*]}]",
            "screening.samples=100",
        ),
    ),
    # Fewer images than ResNet18: each costs more than twice as much.
    "cct7": Short(
        images=32,
        ticks=12,
        training={"epochs": 40, "batch_size": 4, "lr": 5e-4, "optimizer": "adamw", "schedule": "one-cycle"},
        overrides=(
            "schedule.kind=data-flow",
            "schedule.ticks=2",
            "schedule.distance=null",
            "screening.samples=0",
            "correction.batch_size=8",
        ),
    ),
}


def register_subset(images: int) -> str:
    """Register a fixed stratified subset of the data; returns its name, which contains its size."""
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


def shares_left(names: list[str], start: StateDict, point: StateDict, destination: StateDict) -> dict[str, float]:
    """Remaining share of the distance start to destination, for the layers where it is below 98 %."""
    shares = {n: float((destination[n] - point[n]).norm() / (destination[n] - start[n]).norm()) for n in names}
    return {name: round(share, 4) for name, share in shares.items() if share < 0.98}


def pictured(images: int) -> str:
    return f"{images} CIFAR-10 JPEGs, first stages"


def covers(waypoints: int) -> str:
    return (
        f"{waypoints} waypoints from the start: max_loss is the highest loss along them, destination_loss that of the "
        "last waypoint, where straight_line ends too; connected is false because the destination is not reached"
    )


def short_run(model: str, data_dir: str, work: Path, out: Path, images: int | None, ticks: int | None) -> None:
    short = _SHORT[model]
    images, ticks = images or short.images, ticks or short.ticks
    data_name = register_subset(images)
    work.mkdir(parents=True, exist_ok=True)
    files = [work / f"{model}-{images}-{seed}.model.pt" for seed in (1, 2)]
    for seed, file in enumerate(files, 1):
        if not file.exists():
            train_endpoint(model, data_name, file, seed=seed, data_dir=data_dir, **short.training)
    data = load_dataset(data_name, data_dir)
    recipe = f"{model}-cifar10-m2m-quick"
    settings = load_recipe(recipe, [*_COMMON, *short.overrides, f"max_ticks={ticks}", f"data={data_name}"])
    start, destination = (load_model_file(file).state for file in files)
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
        provenance={"recipe": recipe, "start": files[0].name, "destination": files[1].name},
    ).run()
    path = LowLossPath(run)
    names = [name for name, _ in build_model(model, classes=data.classes).named_parameters()]
    left = shares_left(names, start, path[-1], destination)
    label = {
        "label": "shortened run on the CPU; it says nothing about the full data set",
        "data": f"{images} of the 50,000 training images and {_TEST_IMAGES} test images of CIFAR-10 re-encoded as JPEG",
        "covers": covers(len(path)),
        "distance_left": left,
        "endpoints": short.training,
    }
    numbers = record(
        run,
        f"{model}-cifar10-m2m-cpu-short",
        data_dir,
        out=out,
        label=label,
        pictured=pictured(images),
        **_VERIFICATION,
    )
    certificate = numbers["certificate"]
    print(f"{model}: highest training loss {certificate['max_loss']:.4f}; {'; '.join(certificate['reasons'])}")


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("model", choices=sorted(_SHORT))
    parser.add_argument("--data-dir", required=True, help="folder of cifar10-jpeg.npz")
    parser.add_argument("--images", type=int, help="training images (resnet18: 200, cct7: 32)")
    parser.add_argument("--ticks", type=int, help="resnet18: 15, cct7: 12")
    parser.add_argument("--work", type=Path, help="folder of endpoints and run; a temporary one when missing")
    parser.add_argument("--out", type=Path, default=WORK / "paths", help="folder of the results")
    args = parse(parser)
    work = args.work or Path(tempfile.mkdtemp(prefix="llpf-short-"))
    short_run(args.model, args.data_dir, work, args.out, args.images, args.ticks)


if __name__ == "__main__":
    main()
