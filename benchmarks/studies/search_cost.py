"""Gradient steps and seconds of finding LeNet5/MNIST paths, beside what the authors' settings cost here.

    python -m benchmarks.studies.search_cost find MODEL.pt MODEL.pt ... --data DIR --runs DIR [--recipe NAME]
    python -m benchmarks.studies.search_cost certify --runs DIR --data DIR [--out FILE]

Each model is a start, the next one (the first after the last) its destination. ``find`` takes the times (a quiet
machine, please) and keeps the runs; what is there already is not done again. ``certify`` judges every path on its whole
polyline as `llpf verify` does (once), takes the medians over all pairs, and writes FILE. The authors' side is measured,
not assumed: a hundred ticks of per-layer eager parameter work, DataLoader, augmentation on PIL images and five batches
each, as their LeNet5 configuration has it (30,000 such ticks, 150,000 gradient steps). Their evaluation of the test set
at every tick is left out.
"""

from __future__ import annotations

import argparse
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
from llpf_fast.data import load_dataset
from llpf_fast.find import PathFinder
from llpf_fast.models import build_model
from llpf_fast.ops.environment import describe
from llpf_fast.path import RunDirectory, load_model_file
from llpf_fast.recipes import load_recipe
from llpf_fast.verify import verify_run

RESULTS = Path(__file__).parent / "results" / "cpu" / "search-cost.json"
AUTHORS_TICKS, AUTHORS_STEPS, MEASURED_TICKS, ROUNDS = 30_000, 150_000, 100, 5


def search(recipe: str, start: Path, end: Path, data: str, folder: Path) -> dict[str, Any]:
    """One path found, and its cost."""
    settings = load_recipe(recipe)
    images = load_dataset(settings.data, data)
    ends = [load_model_file(file).state for file in (start, end)]
    # Together with what comes before the first tick: models and data are read already, as in the authors' loop.
    began, cpu = time.perf_counter(), time.process_time()
    finder = PathFinder(
        build_model(settings.model),
        *ends,
        settings=settings,
        train=images.train,
        out=folder,
        provenance={"start": str(start), "destination": str(end), "recipe": recipe},
    )
    found = finder.run()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "start": start.name,
        "destination": end.name,
        "ended": found.ended,
        "ticks": found.ticks,
        "sgd_steps": found.sgd_steps,
        "seconds": seconds,
        "cpu_seconds": cpu,
    }


def authors_ticks(start: Path, end: Path, data: str, ticks: int = MEASURED_TICKS) -> dict[str, float]:
    """Seconds a tick with the authors' settings and habits."""
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
    began, cpu, moving = time.perf_counter(), time.process_time(), 0.0
    for _ in range(ticks):
        here = time.perf_counter()
        authors.tick_(model, goal, variance, 0.001, 0.0, sink)
        moving += time.perf_counter() - here
        _five_batches(model, loader, optimizer)
    return {
        "ticks": ticks,
        "seconds_per_tick": (time.perf_counter() - began) / ticks,
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
    """Runs and costs, into ``runs``."""
    file = runs / "cost.json"
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"recipe": recipe}
    if known["recipe"] != recipe:
        raise SystemExit(f"{runs} holds runs of {known['recipe']}: give another folder")

    def keep(key: str, value: Any) -> None:
        known[key] = value
        print(key, json.dumps(value), flush=True)
        file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")

    runs.mkdir(parents=True, exist_ok=True)
    if "authors" not in known:
        keep("authors", authors_ticks(models[0], models[1 % len(models)], data))
        keep("environment", describe(torch.device("cpu")))
    for i, start in enumerate(models):
        folder = runs / f"pair-{i}"
        if folder.name not in known:
            shutil.rmtree(folder, ignore_errors=True)
            keep(folder.name, search(recipe, start, models[(i + 1) % len(models)], data, folder))


def _judged(folder: Path) -> dict[str, Any] | None:
    """The certificate that lies in a run already, if it is about the waypoints that lie there."""
    try:
        verdict: dict[str, Any] = json.loads((folder / "certificate.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return verdict if verdict["run"]["waypoint_index_sha256"] == RunDirectory.open(folder).index_digest() else None


def certify(runs: Path, data: str, workers: int | None) -> dict[str, Any]:
    """The whole result, of what :func:`find` left."""
    known = json.loads((runs / "cost.json").read_text(encoding="utf-8"))
    pairs = []
    for folder in sorted(runs.glob("pair-*")):
        verdict = _judged(folder) or verify_run(folder, data_dir=data, workers=workers).as_dict()
        pairs.append(known[folder.name] | {"connected": verdict["connected"], "max_train_loss": verdict["max_loss"]})
        print(json.dumps(pairs[-1]), flush=True)
    steps = statistics.median(pair["sgd_steps"] for pair in pairs)
    seconds = statistics.median(pair["seconds"] for pair in pairs)
    whole = known["authors"]["seconds_per_tick"] * AUTHORS_TICKS
    return {
        "recipe": known["recipe"],
        "settings": load_recipe(known["recipe"]).as_dict(),
        "runs": pairs,
        "all_connected": all(pair["connected"] for pair in pairs),
        "highest_train_loss": max(pair["max_train_loss"] for pair in pairs),
        "median_sgd_steps": steps,
        "fewer_steps_than_the_authors": AUTHORS_STEPS / steps,
        "median_seconds": seconds,
        "authors": known["authors"] | {"seconds_for_30000_ticks": whole},
        "faster_than_the_authors": whole / seconds,
        "environment": known["environment"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    finding, certifying = commands.add_parser("find"), commands.add_parser("certify")
    finding.add_argument("models", nargs="+", type=Path)
    finding.add_argument("--recipe", default="lenet5-mnist-m2m-quick")
    for command in (finding, certifying):
        command.add_argument("--data", required=True)
        command.add_argument("--runs", type=Path, required=True)
    certifying.add_argument("--workers", type=int)
    certifying.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.command == "find":
        find(args.models, args.recipe, args.data, args.runs)
        return
    text = json.dumps(certify(args.runs, args.data, args.workers), indent=1)
    print(text)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
