"""Training loss and test accuracy of M2O runs against the norm of the network.

    python -m benchmarks.studies.toward_origin NAME=RUN [NAME=RUN ...] --data-dir DIR [--out STEM]

writes STEM.json, STEM.png and STEM.svg (runs/studies/toward-origin). Norms are the whole network's, as a share of the
start's. Every value is of a waypoint on disk, on the whole training and test set.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.studies.study import WORK, commit, option_parser, parse, save_json
from llpf_fast.data import load_dataset
from llpf_fast.models import accuracy, build_model
from llpf_fast.ops.info import describe
from llpf_fast.path import RunDirectory

POINTS = 16


def norm(state: dict[str, Tensor], names: set[str]) -> float:
    return math.sqrt(sum(float(state[name].double().square().sum()) for name in names))


@torch.no_grad()
def along(folder: Path, data: str) -> dict[str, Any]:
    """The run's numbers at evenly spaced waypoints."""
    run = RunDirectory.open(folder)
    settings = run.run["settings"]
    images = load_dataset(settings["data"], data)
    model = build_model(settings["model"]).eval()
    names = {name for name, _ in model.named_parameters()}
    waypoints = run.waypoints()
    chosen = sorted({round(i * (len(waypoints) - 1) / (POINTS - 1)) for i in range(POINTS)})
    start, rows = norm(waypoints[0].load(), names), []
    inputs, targets = images.train
    for i in chosen:
        state = waypoints[i].load()
        model.load_state_dict(state)
        parts = zip(inputs.split(1000), targets.split(1000), strict=True)
        total = sum(float(F.cross_entropy(model(x), y, reduction="sum")) for x, y in parts)
        rows.append(
            {
                "tick": waypoints[i].tick,
                "norm": norm(state, names) / start,
                "train_loss": total / len(inputs),
                "test_accuracy": accuracy(model, *images.test),
            }
        )
    status = run.status or {}
    return {
        "recipe": run.run["provenance"].get("recipe"),
        "settings": settings,
        "complete": run.complete,
        "ended": status.get("ended"),
        "ticks": status.get("ticks"),
        "sgd_steps": status.get("sgd_steps"),
        "seconds": status.get("seconds"),
        "points": rows,
    }


def draw(runs: dict[str, dict[str, Any]], stem: Path) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for name, run in runs.items():
        share = [point["norm"] for point in run["points"]]
        axes[0].plot(share, [point["train_loss"] for point in run["points"]], marker="o", ms=3, label=name)
        axes[1].plot(share, [100 * point["test_accuracy"] for point in run["points"]], marker="o", ms=3, label=name)
    for axis, label in zip(axes, ("training loss", "test accuracy (%)"), strict=True):
        axis.set(xlabel="norm, share of the start's", ylabel=label)
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
    axes[0].legend()
    for suffix in (".png", ".svg"):
        figure.savefig(stem.with_suffix(suffix), dpi=150, metadata={"Date": None} if suffix == ".svg" else None)


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", type=Path, default=WORK / "toward-origin")
    args = parse(parser)
    runs = {name: along(Path(folder), args.data_dir) for name, _, folder in (run.partition("=") for run in args.runs)}
    numbers = {"commit": commit(), "environment": describe(torch.device("cpu")), "runs": runs}
    save_json(args.out.with_suffix(".json"), numbers)
    draw(runs, args.out)
    for name, run in runs.items():
        for p in run["points"]:
            loss, test = p["train_loss"], p["test_accuracy"]
            print(f"{name} tick {p['tick']}: norm {p['norm']:.3f} loss {loss:.4f} test {test:.4f}")


if __name__ == "__main__":
    main()
