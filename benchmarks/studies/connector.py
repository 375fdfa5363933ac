"""A certified connector of three optima: six triangles, certified inside and on their edges.

    python -m benchmarks.studies.connector digits
    python -m benchmarks.studies.connector lenet5 --data-dir DIR [--models A B C]

writes CASE.{json,csv,png,svg} to runs/studies/connector. LeNet5 is trained with the authors' settings
(20 epochs, seeds 1 to 3) where no ``--models`` are given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.studies.study import option_parser, parse, save, train
from llpf_fast.analysis import Networks, Problem
from llpf_fast.analysis.connector import ConnectorSettings, certify_connector, find_connector
from llpf_fast.cli.output import Progress
from llpf_fast.report.connector import draw_connector

THRESHOLD = 0.1
CASES: dict[str, dict[str, Any]] = {
    "digits": {
        "names": ("mlp", "digits"),
        "training": {"epochs": 30, "lr": 0.05},
        "search": ConnectorSettings(steps=600, surface_steps=2000),
        "samples": 0,
    },
    "lenet5": {
        "names": ("lenet5", "mnist"),
        "training": {"epochs": 20},
        "search": ConnectorSettings(steps=400, surface_steps=2000, lr=0.01),
        "samples": 5000,
    },
}
EXPECTED = (
    "three optima of the digits' network, 600 steps a point, no surface steps: straight segments peak at 0.63 to 0.95, "
    "centroid 1.51, pair connectors at most 0.027, centre 0.005, all 2-simplices at most 0.088"
)


def straight(problem: Problem, optima: Networks) -> dict[str, float]:
    """Highest loss on each straight line between the optima, and the loss at their centroid."""
    evaluate = problem.evaluator("train")
    lines = {}
    for a, b in ((0, 1), (0, 2), (1, 2)):
        losses = [evaluate(optima.between(a, b, i / 10)).loss for i in range(11)]
        lines[f"line {optima.names[a]} - {optima.names[b]}"] = max(losses)
    return {**lines, "centroid": evaluate(optima.combine([1 / 3] * 3)).loss}


def main() -> None:
    parser = option_parser(__doc__, "connector", CASES)
    parser.add_argument("--models", nargs=3, type=Path)
    args = parse(parser)
    case = CASES[args.case]
    model, data = case["names"]
    files = args.models or [
        train(args.work, model, data, data_dir=args.data_dir, seed=seed, **case["training"]) for seed in (1, 2, 3)
    ]
    problem = Problem.from_names(
        model, data, data_dir=args.data_dir, samples=case["samples"], cache=args.work / "cache", seed=0
    )
    optima = problem.networks(files, names=["seed 1", "seed 2", "seed 3"])
    with Progress("step", upper_bound=True) as progress:
        progress.begin("search")
        settings = case["search"]
        connector = find_connector(
            problem.module, optima, problem.loss_fn, problem.train, settings, progress=progress.update
        )
    with Progress("point") as progress:
        progress.begin("certificate")
        certificate = certify_connector(problem, connector, threshold=THRESHOLD, progress=progress.update)
    about = {
        **problem.about(),
        "networks": optima.digests_by_name(),
        "expected": EXPECTED,
    }
    numbers = {**connector.numbers(), "without_connector": straight(problem, optima)}
    save(args.out, args.case, numbers=numbers, about=about)
    draw_connector(connector, args.out, args.case)
    verdict = "connected" if certificate.connected else "not connected"
    print(f"{args.case}: {verdict}, highest loss {certificate.max_loss:.4f}; {numbers['without_connector']}")


if __name__ == "__main__":
    main()
