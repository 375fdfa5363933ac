"""Gradient steps and seconds of finding LeNet5/MNIST paths, beside what the authors' settings cost here.

    python -m benchmarks.search_cost MODEL.pt MODEL.pt ... --data DIR [--recipe NAME] [--out FILE]

Each model is a start, the next one (the first after the last) its destination. Every path is certified on the whole
polyline; the medians are over all pairs. The authors' side is measured, not assumed: a hundred ticks of per-layer eager
parameter work, DataLoader, augmentation on PIL images and five batches each, as their LeNet5 configuration has it
(30,000 such ticks, 150,000 gradient steps). Their evaluation of the test set at every tick is left out.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.baselines import authors
from llpf_fast.data import load_dataset
from llpf_fast.find import PathFinder
from llpf_fast.find.environment import describe
from llpf_fast.models import build_model
from llpf_fast.path import load_model_file
from llpf_fast.recipes import load_recipe
from llpf_fast.verify import verify_run

AUTHORS_TICKS, AUTHORS_STEPS, MEASURED_TICKS, ROUNDS = 30_000, 150_000, 100, 5


def search(recipe: str, start: Path, end: Path, data: str, workers: int | None) -> dict[str, Any]:
    """One path: found, certified, its cost."""
    settings = load_recipe(recipe)
    images = load_dataset(settings.data, data)
    ends = [load_model_file(file).state for file in (start, end)]
    with tempfile.TemporaryDirectory() as folder:
        finder = PathFinder(
            build_model(settings.model),
            *ends,
            settings=settings,
            train=images.train,
            out=Path(folder) / "run",
            provenance={"start": str(start), "destination": str(end), "data_dir": data},
        )
        began, cpu = time.perf_counter(), time.process_time()
        found = finder.run()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        certificate = verify_run(found.folder, data_dir=data, workers=workers)
    return {
        "start": start.name,
        "destination": end.name,
        "connected": certificate.connected,
        "ticks": found.ticks,
        "sgd_steps": found.sgd_steps,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "max_train_loss": certificate.max_loss,
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipe", default="lenet5-mnist-m2m-quick")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    models = args.models
    theirs = authors_ticks(models[0], models[1 % len(models)], args.data)
    runs = []
    for i, start in enumerate(models):
        runs.append(search(args.recipe, start, models[(i + 1) % len(models)], args.data, args.workers))
        print(json.dumps(runs[-1]), flush=True)
    steps = statistics.median(run["sgd_steps"] for run in runs)
    seconds = statistics.median(run["seconds"] for run in runs)
    whole = theirs["seconds_per_tick"] * AUTHORS_TICKS
    numbers = {
        "recipe": args.recipe,
        "runs": runs,
        "all_connected": all(run["connected"] for run in runs),
        "median_sgd_steps": steps,
        "fewer_steps_than_the_authors": AUTHORS_STEPS / steps,
        "median_seconds": seconds,
        "authors": theirs | {"seconds_for_30000_ticks": whole},
        "faster_than_the_authors": whole / seconds,
        "environment": describe(torch.device("cpu")),
    }
    text = json.dumps(numbers, indent=1)
    print(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
