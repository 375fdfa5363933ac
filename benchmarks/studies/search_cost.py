"""Gradient steps and seconds of finding LeNet5/MNIST paths, beside what the authors' settings cost here.

    python -m benchmarks.studies.search_cost find MODEL.pt MODEL.pt ... --data-dir DIR --runs DIR [--recipe NAME]
    python -m benchmarks.studies.search_cost certify --runs DIR --data-dir DIR [--out FILE]

Each model is a start, and the next one (the first after the last) its destination. ``find`` times the searches, on an
idle machine, and writes the runs; pairs that are done already are skipped. ``certify`` verifies every path as
`llpf verify` does, takes medians over all pairs, and writes FILE. The authors' cost is measured: a hundred ticks of
per-layer eager parameter work, DataLoader, augmentation of PIL images and five batches, as in their LeNet5
configuration (30,000 such ticks, 150,000 gradient steps). Their evaluation of the test set at every tick is left out.
"""

from __future__ import annotations

import io
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.baselines import authors
from benchmarks.studies.study import CPU, option_parser, parse, save_json
from llpf_fast.data import load_dataset
from llpf_fast.find import PathFinder
from llpf_fast.models import build_model
from llpf_fast.ops.info import describe
from llpf_fast.path import RunDirectory, load_model_file
from llpf_fast.recipes import load_recipe
from llpf_fast.verify import verify_run

AUTHORS_TICKS, AUTHORS_STEPS, MEASURED_TICKS, ROUNDS = 30_000, 150_000, 100, 5


def search(recipe: str, start: Path, end: Path, data: str, folder: Path) -> dict[str, Any]:
    """Search one path; returns how the search ended and what it cost."""
    settings = load_recipe(recipe)
    images = load_dataset(settings.data, data)
    endpoints = [load_model_file(file).state for file in (start, end)]
    # Construction counts; models and data are read before, as in the authors' loop.
    start_time, cpu = time.perf_counter(), time.process_time()
    finder = PathFinder(
        build_model(settings.model),
        *endpoints,
        settings=settings,
        train=images.train,
        out=folder,
        provenance={"start": str(start), "destination": str(end), "recipe": recipe},
    )
    search_result = finder.run()
    seconds, cpu = time.perf_counter() - start_time, time.process_time() - cpu
    return {
        "start": start.name,
        "destination": end.name,
        "ended": search_result.ended,
        "ticks": search_result.ticks,
        "sgd_steps": search_result.sgd_steps,
        "seconds": seconds,
        "cpu_seconds": cpu,
    }


def authors_ticks(start: Path, end: Path, data: str, ticks: int = MEASURED_TICKS) -> dict[str, float]:
    """Seconds a tick with the authors' settings and code."""
    from torchvision import datasets, transforms

    change = transforms.Compose(
        [
            transforms.RandomRotation(5, fill=0),
            transforms.RandomCrop(28, padding=2),
            transforms.ToTensor(),
            transforms.Normalize((0.1307,), (0.3081,)),
        ]
    )
    loader = torch.utils.data.DataLoader(
        datasets.MNIST(data, train=True, transform=change), batch_size=64, shuffle=True
    )
    model = build_model("lenet5")
    model.load_state_dict(load_model_file(start).state)
    goal = load_model_file(end).state
    variance = {name: value.var().item() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    sink = io.StringIO()
    start_time, cpu, moving = time.perf_counter(), time.process_time(), 0.0
    for _ in range(ticks):
        tick_start = time.perf_counter()
        authors.tick_(model, goal, variance, 0.001, 0.0, sink)
        moving += time.perf_counter() - tick_start
        _five_batches(model, loader, optimizer)
    return {
        "ticks": ticks,
        "seconds_per_tick": (time.perf_counter() - start_time) / ticks,
        "cpu_seconds_per_tick": (time.process_time() - cpu) / ticks,
        "of_which_parameter_work": moving / ticks,
    }


def _five_batches(model: nn.Module, loader: Any, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    for at, (images, targets) in enumerate(loader):
        if at == ROUNDS:
            return
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        loss.item()


def find(models: list[Path], recipe: str, data: str, runs: Path) -> None:
    """Search every pair; writes runs and costs to ``runs``."""
    file = runs / "cost.json"
    costs: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"recipe": recipe}
    if costs["recipe"] != recipe:
        raise SystemExit(f"{runs} holds runs of {costs['recipe']}: give another folder")

    def add(key: str, value: Any) -> None:
        costs[key] = value
        print(key, json.dumps(value), flush=True)
        file.write_text(json.dumps(costs, indent=1) + "\n", encoding="utf-8")

    runs.mkdir(parents=True, exist_ok=True)
    if "authors" not in costs:
        add("authors", authors_ticks(models[0], models[1 % len(models)], data))
        add("environment", describe(torch.device("cpu")))
    for i, start in enumerate(models):
        folder = runs / f"pair-{i}"
        if folder.name not in costs:
            shutil.rmtree(folder, ignore_errors=True)
            add(folder.name, search(recipe, start, models[(i + 1) % len(models)], data, folder))


def _valid_certificate(folder: Path) -> dict[str, Any] | None:
    """The run's certificate if it belongs to the run's present waypoints, else None."""
    try:
        certificate: dict[str, Any] = json.loads((folder / "certificate.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return (
        certificate if certificate["run"]["waypoint_index_sha256"] == RunDirectory.open(folder).index_digest() else None
    )


def certify(runs: Path, data: str, workers: int | None) -> dict[str, Any]:
    """Verify the runs that :func:`find` wrote; returns the content of search-cost.json."""
    costs = json.loads((runs / "cost.json").read_text(encoding="utf-8"))
    pairs = []
    for folder in sorted(runs.glob("pair-*")):
        certificate = _valid_certificate(folder) or verify_run(folder, data_dir=data, workers=workers).as_dict()
        pairs.append(
            costs[folder.name] | {"connected": certificate["connected"], "max_train_loss": certificate["max_loss"]}
        )
        print(json.dumps(pairs[-1]), flush=True)
    steps = statistics.median(pair["sgd_steps"] for pair in pairs)
    seconds = statistics.median(pair["seconds"] for pair in pairs)
    whole = costs["authors"]["seconds_per_tick"] * AUTHORS_TICKS
    return {
        "recipe": costs["recipe"],
        "settings": load_recipe(costs["recipe"]).as_dict(),
        "runs": pairs,
        "all_connected": all(pair["connected"] for pair in pairs),
        "highest_train_loss": max(pair["max_train_loss"] for pair in pairs),
        "median_sgd_steps": steps,
        "fewer_steps_than_the_authors": AUTHORS_STEPS / steps,
        "median_seconds": seconds,
        "authors": costs["authors"] | {"seconds_for_30000_ticks": whole},
        "faster_than_the_authors": whole / seconds,
        "environment": costs["environment"],
    }


def main() -> None:
    parser = option_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    finding, certifying = commands.add_parser("find"), commands.add_parser("certify")
    finding.add_argument("models", nargs="+", type=Path)
    finding.add_argument("--recipe", default="lenet5-mnist-m2m-quick")
    for command in (finding, certifying):
        command.add_argument("--data-dir", required=True)
        command.add_argument("--runs", type=Path, required=True)
    certifying.add_argument("--workers", type=int)
    certifying.add_argument("--out", type=Path, default=CPU / "search-cost.json")
    args = parse(parser)
    if args.command == "find":
        find(args.models, args.recipe, args.data_dir, args.runs)
        return
    save_json(args.out, certify(args.runs, args.data_dir, args.workers))
    print(args.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
