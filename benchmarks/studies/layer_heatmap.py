"""Layer-wise connectivity of networks from one initialisation and from two.

    python -m benchmarks.studies.layer_heatmap digits
    python -m benchmarks.studies.layer_heatmap lenet5 --data-dir DIR [--models A B]

writes NAME.{json,csv,png,svg} to runs/studies/layers; NAME is digits-shared, digits-independent or
lenet5-independent.
LeNet5 is trained with the authors' settings (20 epochs, seeds 1 and 2) where no ``--models`` are given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.studies.study import option_parser, parse, save, train, trunk
from llpf_fast.analysis import Problem
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
        files = models or [train(work, "lenet5", "mnist", data_dir=data_dir, seed=seed, epochs=20) for seed in (1, 2)]
        return {"lenet5-independent": files}
    digits = {"data_dir": None, **DIGITS}
    start = trunk(work, "mlp", "digits", [0], seed=1, **digits)[0]
    shared = [train(work, "mlp", "digits", seed=1000 + i, init=start, epochs=20, **digits) for i in (1, 2)]
    independent = [train(work, "mlp", "digits", seed=1500 + i, epochs=20, **digits) for i in (1, 2)]
    return {"digits-shared": shared, "digits-independent": independent}


def agreement(connectivity: LayerConnectivity, shared: bool) -> dict[str, Any]:
    """Expectation beside measurement: largest barrier of one layer, barrier of all layers, rank correlation."""
    whole = connectivity.midpoint()["train_loss"]
    alone = [group.barriers["train_loss"] for base in (0, 1) for group in connectivity.select("alone", base)]
    ranks = connectivity.ranks()
    return {
        "expected": EXPECTED,
        "initialisation": "shared" if shared else "independent",
        "largest_single_layer_barrier": max(alone),
        "barrier_of_all_layers": whole,
        "rank_correlation_of_single_layers": ranks["alone"].rho,
        "layers_ranked": ranks["alone"].count,
    }


def headline(connectivity: LayerConnectivity) -> dict[str, float | None]:
    """The main numbers of the result."""
    assert connectivity.whole is not None
    assert connectivity.integral is not None
    alone = [group.barriers["train_loss"] for base in (0, 1) for group in connectivity.select("alone", base)]
    return {
        "barrier_of_the_midpoint": connectivity.midpoint()["train_loss"],
        "second_order": connectivity.whole.midpoint,
        "curvature_integral": connectivity.integral.integral,
        "largest_barrier_of_one_layer": max(alone),
        "smallest_barrier_of_one_layer": min(alone),
        "rank_correlation_single_layers": connectivity.ranks()["alone"].rho,
        "rank_correlation_from_the_input": connectivity.ranks()["shallow"].rho,
    }


def main() -> None:
    parser = option_parser(__doc__, "layers", ["digits", "lenet5"])
    parser.add_argument("--models", type=Path, nargs=2, default=[])
    args = parse(parser)
    model, data = ("lenet5", "mnist") if args.case == "lenet5" else ("mlp", "digits")
    problem = Problem.from_names(model, data, data_dir=args.data_dir, samples=10_000, cache=args.work / "cache")
    for name, files in pairs(args.case, args.work, args.data_dir, args.models).items():
        networks = problem.networks(files, names=["1", "2"])
        with Progress("step") as progress:
            progress.begin(name)
            connectivity = layer_connectivity(problem, networks, progress=progress.update)
        about = {
            **problem.about(),
            "command": f"python -m benchmarks.studies.layer_heatmap {args.case}",
            "networks_sha256": networks.digests(),
            "training": DIGITS
            if args.case == "digits"
            else "llpf train --epochs 20 (authors' settings), seeds 1 and 2",
        }
        numbers = {
            **headline(connectivity),
            **connectivity.numbers(),
            "comparison": agreement(connectivity, name.endswith("shared")),
        }
        print(save(args.out, name, numbers=numbers, about=about))
        print(draw_layers(connectivity, args.out, name))


if __name__ == "__main__":
    main()
