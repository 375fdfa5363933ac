"""Variants of the quick recipe for LeNet5/MNIST that change one thing each: gradient steps and highest loss.

    python -m benchmarks.studies.pacing run MODEL.pt MODEL.pt ... --data-dir DIR [--only NAME ...] [--out FILE]
    python -m benchmarks.studies.pacing page [--out FILE]

``run`` searches every pair (each model to the next, the first after the last) under every variant, or those named, and
adds to FILE what it lacks; it may be interrupted and repeated. ``page`` writes docs/performance-pacing.md from FILE.
Losses are those of 5,000 training images at every waypoint and at the middle of every segment, which is enough to
compare; the certificates of the recipe are in search-cost.json.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.studies.pacing_trials import Backwards, Clipped, Decaying, SlowConvolutions
from benchmarks.studies.study import CPU, ROOT, option_parser, parse, save_json
from llpf_fast.data import load_dataset
from llpf_fast.find import PathFinder
from llpf_fast.models import build_model
from llpf_fast.ops.info import describe
from llpf_fast.path import load_model_file, open_path
from llpf_fast.recipes import load_recipe

RECIPE = "lenet5-mnist-m2m-quick"
PAGE = ROOT / "docs" / "performance-pacing.md"
IMAGES, STEP_IMAGES = 5_000, 64

Optimizer = Callable[[Iterable[Tensor], dict[str, Tensor], nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Variant:
    """One change: settings over the recipe's, or an optimiser (parameters, destination, module) in place of SGD."""

    about: str
    changes: list[str] = field(default_factory=list)
    optimizer: Optimizer | None = None


_LAST_POINT = ["pacing.iterate_average=null", "pacing.early_reject=null", "correction.threshold=0.05"]
_NO_MOMENTUM = ["correction.momentum=0", "correction.lr=0.1"]
#: The recipe as it was before these trials.
_BEFORE = [*_LAST_POINT, *_NO_MOMENTUM, "screening.samples=1000", "pacing.margin=0.7"]

VARIANTS = {
    "recipe": Variant("the quick recipe"),
    "before": Variant("the recipe before: last point instead of the mean, no momentum", _BEFORE),
    "last point": Variant("the last point instead of the mean of the points", _LAST_POINT),
    "no momentum": Variant("mean of the points, no momentum, rate 0.1", _NO_MOMENTUM),
    "mean of all": Variant(
        "all points of a correction weigh the same (`pacing.iterate_average: 0`)", ["pacing.iterate_average=0"]
    ),
    "half the rate": Variant("half the learning rate", ["correction.lr={half}"]),
    "twice the rate": Variant("twice the learning rate", ["correction.lr={twice}"]),
    "momentum 0.9": Variant("momentum 0.9 at rate 0.01", ["correction.momentum=0.9", "correction.lr=0.01"]),
    "momentum kept": Variant("momentum carried across ticks", ["correction.keep_momentum=true"]),
    "no walking back": Variant(
        "the gradient's component along the direction of travel removed, a tensor at a time",
        optimizer=lambda ps, end, module: Backwards(ps, end, module, **_sgd()),
    ),
    "decay": Variant(
        "rate divided by 1 + r/50 in round r of a correction",
        optimizer=lambda ps, end, module: Decaying(ps, rounds=50, **_sgd()),
    ),
    "clip": Variant("gradients clipped to norm 1", optimizer=lambda ps, end, module: Clipped(ps, norm=1.0, **_sgd())),
    "slow convolutions": Variant(
        "half the rate for convolutions", optimizer=lambda ps, end, module: SlowConvolutions(module, 0.5, **_sgd())
    ),
    "adam": Variant("Adam at rate 0.001", optimizer=lambda ps, end, module: torch.optim.Adam(ps, lr=0.001)),
    "small batches": Variant("batches of 32 images (steps counted in 64 images)", ["correction.batch_size=32"]),
    "large batches": Variant("batches of 128 images (steps counted in 64 images)", ["correction.batch_size=128"]),
    "short corrections": Variant("`pacing.target_steps: 40`: shorter steps", ["pacing.target_steps=40"]),
    "long steps": Variant("steps of up to 0.4 of the way", ["pacing.max_scale=4"]),
    "no chord": Variant("middles of segments not evaluated", ["pacing.midpoint=false"]),
    "small screen": Variant("points evaluated on 500 images", ["screening.samples=500"]),
}


def _sgd() -> dict[str, float]:
    recipe = load_recipe(RECIPE).correction
    return {"lr": recipe.lr, "momentum": recipe.momentum}


def search(variant: Variant, start: Path, end: Path, data: str) -> dict[str, Any]:
    """Search one path under one variant; returns its cost and its highest loss."""
    lr = load_recipe(RECIPE).correction.lr
    changes = [change.format(half=lr / 2, twice=lr * 2) for change in variant.changes]
    settings = load_recipe(RECIPE, changes)
    images = load_dataset(settings.data, data)
    a, b = (load_model_file(file).state for file in (start, end))
    module = build_model(settings.model)
    make = variant.optimizer
    optimizer = None if make is None else (lambda parameters: make(parameters, b, module))
    with tempfile.TemporaryDirectory() as folder:
        start_time, cpu = time.perf_counter(), time.process_time()
        result = PathFinder(module, a, b, settings=settings, train=images.train, optimizer=optimizer, out=folder).run()
        waypoints = list(open_path(folder))
        seconds, cpu = time.perf_counter() - start_time, time.process_time() - cpu
    x, y = images.train[0][:IMAGES], images.train[1][:IMAGES]
    module = build_model(settings.model)  # the parameters of the first alias the search's buffer
    losses = [_loss(module, state, x, y) for state in _along(waypoints)]
    return {
        "start": start.name,
        "destination": end.name,
        "ended": result.ended,
        "ticks": result.ticks,
        "sgd_steps": result.sgd_steps,
        "steps_of_64": result.sgd_steps * settings.correction.batch_size / STEP_IMAGES,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "max_loss": max(losses),
    }


def _along(waypoints: list[dict[str, Tensor]]) -> Iterable[dict[str, Tensor]]:
    for a, b in pairwise(waypoints):
        for share in (0.0, 0.5):
            yield {name: torch.lerp(a[name], b[name], share) for name in a}
    yield waypoints[-1]


@torch.no_grad()
def _loss(module: nn.Module, state: dict[str, Tensor], x: Tensor, y: Tensor) -> float:
    module.load_state_dict(state)
    module.eval()
    parts = zip(x.split(1000), y.split(1000), strict=True)
    return sum(float(F.cross_entropy(module(a), b, reduction="sum")) for a, b in parts) / len(x)


def run(models: list[Path], data: str, only: list[str], out: Path) -> None:
    content = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    settings = load_recipe(RECIPE).as_dict()
    content = content or {
        "recipe": RECIPE,
        "settings": settings,
        "environment": describe(torch.device("cpu")),
        "runs": {},
    }
    if content["settings"] != settings:
        raise SystemExit(f"{out} holds trials of other settings than {RECIPE} has now: give another --out")
    for name in only or VARIANTS:
        rows = content["runs"].setdefault(name, [])
        done = {(row["start"], row["destination"]) for row in rows}
        for i, start in enumerate(models):
            end = models[(i + 1) % len(models)]
            if (start.name, end.name) in done:
                continue
            rows.append(search(VARIANTS[name], start, end, data))
            print(name, json.dumps(rows[-1]), flush=True)
            save_json(out, content)


def page(source: Path) -> str:
    """The text of docs/performance-pacing.md from the results in ``source``."""
    content = json.loads(source.read_text(encoding="utf-8"))
    base = statistics.median(row["steps_of_64"] for row in content["runs"]["recipe"])
    pairs = [_pair(row) for row in content["runs"]["recipe"]]
    lines = [
        "# What was tried to need fewer gradient steps",
        "",
        f"Every line is one change to `{content['recipe']}` (how that works: [algorithm](algorithm.md), "
        "*Adaptive steps*), the other",
        f"settings as they are in it. {len(pairs)} pairs of LeNet5 on MNIST, one thread of a CPU; gradient steps count",
        "64 images each, rolled-back ones included. `highest loss` is the worst pair's, on 5,000 training images (the",
        "threshold is 0.1). The settings of the recipe were chosen on five other pairs of the same networks (1-3, 2-4,",
        "3-5, 4-1, 5-2). Rates were not tuned again for each line. A difference of a tenth between medians is within",
        "the spread between pairs.",
        "",
        f"Made by `python -m benchmarks.studies.pacing page` from `benchmarks/results/cpu/{source.name}`.",
        "",
        "| change | " + " | ".join(pairs) + " | median steps | against the recipe | highest loss | |",
        "|---" * (len(pairs) + 5) + "|",
    ]
    for name, variant in VARIANTS.items():
        rows = content["runs"].get(name, [])
        by_pair = {_pair(row): row for row in rows}
        if set(by_pair) != set(pairs):
            continue
        cells = [_cell(by_pair.get(pair)) for pair in pairs]
        median = statistics.median(row["steps_of_64"] if _arrived(row) else float("inf") for row in rows)
        ratio = median / base
        shown = f"{median:.0f} | {ratio:.2f}" if median < float("inf") else "- | -"
        highest = max(row["max_loss"] for row in rows)
        lines.append(
            f"| {variant.about} | {' | '.join(cells)} | {shown} | {highest:.3f} | {_verdict(name, ratio, rows)} |"
        )
    lines += ["", *_CLOSING, ""]
    return "\n".join(lines)


_CLOSING = [
    "A number in brackets is a search that did not arrive. Not tried: larger batches only near the end of a",
    "correction, since the mean of the points does what they would do (less noise at the end) without more images.",
    "Two searches toward each other, one tick each in turn, needed 2.17 times as many steps (median of these pairs).",
]


def _pair(row: dict[str, Any]) -> str:
    return "-".join(row[key].split(".")[0].removeprefix("lenet5-") for key in ("start", "destination"))


def _arrived(row: dict[str, Any]) -> bool:
    return bool(row["ended"] == "arrived")


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{row['steps_of_64']:.0f}" if _arrived(row) else f"({row['steps_of_64']:.0f})"


def _verdict(name: str, ratio: float, rows: list[dict[str, Any]]) -> str:
    if name == "recipe":
        return "kept"
    if not all(map(_arrived, rows)):
        return "not kept: does not always arrive"
    if max(row["max_loss"] for row in rows) > 0.09:
        return "not kept: no room below the threshold"
    return "not kept: more steps" if ratio > 1.1 else "not kept: no clear gain"


def main() -> None:
    parser = option_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("models", nargs="+", type=Path)
    running.add_argument("--data-dir", required=True)
    running.add_argument("--only", nargs="*", default=[], choices=list(VARIANTS), metavar="NAME")
    for command in (running, commands.add_parser("page")):
        command.add_argument("--out", type=Path, default=CPU / "pacing.json")
    args = parse(parser)
    if args.command == "run":
        run(args.models, args.data_dir, args.only, args.out)
    else:
        PAGE.write_text(page(args.out), encoding="utf-8")


if __name__ == "__main__":
    main()
