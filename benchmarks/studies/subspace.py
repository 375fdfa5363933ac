"""Random subspaces: the wedge law, and the intrinsic dimension of networks.

    python -m benchmarks.studies.subspace wedge
    python -m benchmarks.studies.subspace digits
    python -m benchmarks.studies.subspace lenet5 --data-dir DIR

writes CASE.{json,csv,png,svg} to runs/studies/subspace. LeNet5 trains on a fixed stratified subset of
10,000 MNIST images.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from benchmarks.studies.study import option_parser, parse, save
from llpf_fast.analysis import Problem
from llpf_fast.analysis.subspace import SubspaceSettings, baseline_accuracy, intrinsic_dimension
from llpf_fast.analysis.toy_landscapes import best_distance_law, is_reached, nearest_in_subspace
from llpf_fast.batches import stratified_subset
from llpf_fast.cli.output import Progress
from llpf_fast.data import load_dataset
from llpf_fast.models import build_model
from llpf_fast.report.widths import draw_subspace, draw_wedge_law

#: Of the wedge: ambient dimension, dimension of the wedge, draws for each dimension of the subspace.
SIZE, WEDGE, DRAWS = 100, 40, 50
CASES: dict[str, dict[str, Any]] = {
    "digits": {
        "names": ("mlp", "digits"),
        "subset": 0,
        "dimensions": [10, 25, 50, 75, 100, 150, 200, 300],
        "settings": SubspaceSettings(steps=1500),
        "seeds": (0, 1, 2),
    },
    "lenet5": {
        "names": ("lenet5", "mnist"),
        "subset": 10_000,
        "dimensions": [100, 200, 250, 300, 350, 400],
        "settings": SubspaceSettings(steps=1600),
        "seeds": (0, 1),
    },
}
EXPECTED = {
    "wedge": "reached if and only if d >= D - n, else best distance about ||P0|| sqrt((D - n - d) / D)",
    "digits": "no number known; success rises with d",
    "lenet5": "about 290 for a LeNet of 44,426 parameters on all of MNIST (Li et al. 2018, from memory); here another "
    "LeNet5, fewer images and steps",
}


def wedge(out: Path) -> None:
    """Best distances to one linear wedge in random subspaces, by least squares, beside the law."""
    draws = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(SIZE, WEDGE, generator=draws, dtype=torch.float64)).Q
    rows = []
    for dimension in range(0, SIZE - WEDGE + 11, 5):
        distances = []
        for _ in range(DRAWS):
            point = torch.randn(SIZE, generator=draws, dtype=torch.float64)
            directions = torch.randn(SIZE, dimension, generator=draws, dtype=torch.float64)
            distances.append(nearest_in_subspace(point, directions, basis)[1] / float(point.norm()))
        rows.append(
            {
                "dimension": dimension,
                "law": best_distance_law(1.0, SIZE, WEDGE, dimension),
                "root_mean_square": math.sqrt(sum(value**2 for value in distances) / DRAWS),
                "nearest": min(distances),
                "farthest": max(distances),
                "reached": sum(value < 1e-9 for value in distances) / DRAWS,
                "reached_by_law": float(is_reached(SIZE, WEDGE, dimension)),
            }
        )
    about = {"D": SIZE, "n": WEDGE, "draws": DRAWS, "expected": EXPECTED["wedge"]}
    agrees = all(row["reached"] == row["reached_by_law"] for row in rows)
    save(out, "wedge", numbers={"rows": rows, "reached_as_by_law": agrees}, about=about)
    draw_wedge_law(rows, SIZE, WEDGE, out, "wedge")
    print(f"wedge: reached as the law says: {agrees}")


def network(name: str, work: Path, data_dir: str | None, out: Path) -> None:
    case = CASES[name]
    model, data = case["names"]
    loaded = load_dataset(data, data_dir)
    chosen = stratified_subset(loaded.train_targets, case["subset"])
    train = (loaded.train_inputs[chosen], loaded.train_targets[chosen])
    names = {"model": model, "data": data}
    problem = Problem(
        build_model(model), train=train, test=loaded.test, samples=2000, cache=work / "cache", names=names
    )
    starts = []
    for seed in case["seeds"]:
        torch.manual_seed(seed)
        starts.append(build_model(model).state_dict())
    with Progress("run") as progress:
        baseline = baseline_accuracy(problem, starts[0], case["settings"], progress=progress.update)
        progress.begin("subspaces")
        dimension = intrinsic_dimension(
            problem, starts, case["dimensions"], case["settings"], baseline=baseline, progress=progress.update
        )
    about = {
        **problem.about(),
        "settings": vars(case["settings"]),
        "seeds": list(case["seeds"]),
        "expected": EXPECTED[name],
        "in_words": dimension.in_words(),
    }
    save(out, name, numbers=dimension.numbers(), about=about)
    draw_subspace({f"{model} on {loaded.label}": dimension}, out, name, note=dimension.in_words())
    print(f"{name}: {dimension.in_words()}")


def main() -> None:
    parser = option_parser(__doc__, "subspace", ["wedge", *CASES])
    args = parse(parser)
    if args.case == "wedge":
        wedge(args.out)
    else:
        network(args.case, args.work, args.data_dir, args.out)


if __name__ == "__main__":
    main()
