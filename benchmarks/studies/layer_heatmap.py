"""Layer-wise connectivity of networks from one initialisation and from two.

    python -m benchmarks.studies.layer_heatmap digits
    python -m benchmarks.studies.layer_heatmap lenet5 --data-dir DIR [--models A B]

writes NAME.{json,csv,png,svg} to benchmarks/results/analysis/layers; NAME is digits-shared, digits-independent or
lenet5-independent.
LeNet5 is trained with the authors' settings (20 epochs, seeds 1 and 2) where no ``--models`` are given.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.studies.record_path import commit
from benchmarks.studies.trained import RESULTS, WORK, train, trunk
from llpf_fast.analysis import Problem, write_result
from llpf_fast.analysis.layers import LayerConnectivity, layer_connectivity
from llpf_fast.cli.output import Progress
from llpf_fast.report.layers import draw_layers

DIGITS: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "batch_size": 16}
EXPECTED = (
    "layer-wise connectivity is claimed for a shared initialisation; with independent ones single-layer barriers are "
    "large; predictions rank layers correctly in runs from one initialisation, not in ReLU networks of independent ones"
)


def pairs(case: str, work: Path, data_dir: str | None, models: list[Path]) -> dict[str, list[Path]]:
    """Result name -> two model files."""
    if case == "lenet5":
        found = models or [train(work, "lenet5", "mnist", data_dir=data_dir, seed=seed, epochs=20) for seed in (1, 2)]
        return {"lenet5-independent": found}
    digits = {"data_dir": None, **DIGITS}
    start = trunk(work, "mlp", "digits", [0], seed=1, **digits)[0]
    shared = [train(work, "mlp", "digits", seed=1000 + i, init=start, epochs=20, **digits) for i in (1, 2)]
    independent = [train(work, "mlp", "digits", seed=1500 + i, epochs=20, **digits) for i in (1, 2)]
    return {"digits-shared": shared, "digits-independent": independent}


def agreement(found: LayerConnectivity, shared: bool) -> dict[str, Any]:
    """Held against the facts file: the largest single layer as a share of the whole, the rank correlations."""
    whole = found.midpoint()["train_loss"]
    alone = [group.barriers["train_loss"] for base in (0, 1) for group in found.select("alone", base)]
    ranks = found.ranks()
    return {
        "expected": EXPECTED,
        "initialisation": "shared" if shared else "independent",
        "largest_single_layer_barrier": max(alone),
        "barrier_of_all_layers": whole,
        "rank_correlation_of_single_layers": ranks["alone"].rho,
        "layers_ranked": ranks["alone"].count,
    }


def headline(found: LayerConnectivity) -> dict[str, float | None]:
    """The few numbers that a reader wants first."""
    assert found.whole is not None
    assert found.integral is not None
    alone = [group.barriers["train_loss"] for base in (0, 1) for group in found.select("alone", base)]
    return {
        "barrier_of_the_midpoint": found.midpoint()["train_loss"],
        "second_order": found.whole.midpoint,
        "curvature_integral": found.integral.integral,
        "largest_barrier_of_one_layer": max(alone),
        "smallest_barrier_of_one_layer": min(alone),
        "rank_correlation_single_layers": found.ranks()["alone"].rho,
        "rank_correlation_from_the_input": found.ranks()["shallow"].rho,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["digits", "lenet5"])
    parser.add_argument("--data-dir")
    parser.add_argument("--models", type=Path, nargs=2, default=[])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--out", type=Path, default=RESULTS / "layers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, data = ("lenet5", "mnist") if args.case == "lenet5" else ("mlp", "digits")
    problem = Problem.from_names(model, data, data_dir=args.data_dir, samples=10_000, cache=args.work / "cache")
    for name, files in pairs(args.case, args.work, args.data_dir, args.models).items():
        networks = problem.networks(files, names=["1", "2"])
        with Progress("step") as progress:
            progress.begin(name)
            found = layer_connectivity(problem, networks, progress=progress.update)
        about = {
            **problem.about(),
            "command": f"python -m benchmarks.studies.layer_heatmap {args.case}",
            "commit": commit(),
            "networks_sha256": networks.digests(),
            "training": DIGITS
            if args.case == "digits"
            else "llpf train --epochs 20 (authors' settings), seeds 1 and 2",
        }
        numbers = {**headline(found), **found.numbers(), "comparison": agreement(found, name.endswith("shared"))}
        print(write_result(args.out, name, numbers=numbers, about=about))
        print(draw_layers(found, args.out, name))


if __name__ == "__main__":
    main()
