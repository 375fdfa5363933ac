"""LLPF beside Bezier curve, polychain, AutoNEB and straight lines, between the same two networks.

    python -m benchmarks.studies.curves digits
    python -m benchmarks.studies.curves lenet5 --data-dir DIR [--models FILE FILE]

writes CASE.{json,csv,png,svg}, CASE-{table,growth}.csv and CASE.md to runs/studies/curves: every curve
certified, at equal budgets (the gradient steps that LLPF took, batches of 64) and with budgets that grow until the
peak stops falling. Networks and measurements are cached, so an interrupted comparison continues. Without
--models the two networks are trained first (LeNet5: 20 epochs as in ``llpf train``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.studies.study import option_parser, parse, save, train
from llpf_fast.analysis import Problem
from llpf_fast.analysis.compare_curves import Comparison, Plan, compare
from llpf_fast.analysis.curve_methods import CURVES
from llpf_fast.batches import stratified_subset
from llpf_fast.cli.output import Progress
from llpf_fast.data import load_dataset
from llpf_fast.models import build_model
from llpf_fast.recipes import load_recipe
from llpf_fast.report.curves import draw_curves

CASES: dict[str, dict[str, Any]] = {
    "digits": {
        "names": ("mlp", "digits"),
        "training": {"epochs": 40, "lr": 0.05},
        "recipe": "mlp-digits-m2m-quick",
        "samples": 0,
        "test_samples": 0,
        "most_steps": 20_000,
        "rates": (0.01, 0.03, 0.1, 0.3, 1.0),
    },
    "lenet5": {
        "names": ("lenet5", "mnist"),
        "training": {"epochs": 20},
        "recipe": "lenet5-mnist-m2m-quick",
        "samples": 2000,
        "test_samples": 2500,
        "most_steps": 4500,
        "rates": (0.01, 0.03, 0.1),
    },
}
SEEDS = (1, 2)


def markdown(result: Comparison) -> str:
    """The table as Markdown, with notes."""
    lines = [
        "| method | budget | peak training loss | lowest test accuracy | gradient steps | seconds | connected |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result.rows:
        accuracy = "" if row["min_test_accuracy"] is None else f"{row['min_test_accuracy']:.4f}"
        lines.append(
            f"| {row['method']} | {row['budget']} | {row['peak_train_loss']:.4f} | {accuracy} | "
            f"{row['gradient_steps']:,} | {row['seconds']:.1f} | {'yes' if row['connected'] else 'no'} |"
        )
    about = result.about
    notes = [
        f"Threshold {about['threshold']:g}; peak: certified on the whole training set; no path peaks below "
        f"{result.rows[0]['higher_end_loss']:.4f}, the higher loss of the two endpoints. Test accuracy: on "
        f"{about['problem']['test_samples']:,} images. Equal budget: "
        f"{about['equal_budget_steps']:,} gradient steps, what LLPF took. Rates: {about['rate_rule']}. Convergence: "
        f"{about['convergence_rule']}. Seconds are of the one search that is shown, on a machine with other work. "
        "aligned-linear ends at the second network with its units in another order: the same function, another point."
    ]
    return "\n".join([*lines, "", *notes]) + "\n"


def main() -> None:
    parser = option_parser(__doc__, "curves", CASES)
    parser.add_argument("--models", nargs=2, metavar="FILE")
    parser.add_argument("--most-steps", type=int)
    parser.add_argument("--test-samples", type=int, help="a fixed stratified subset of the test set")
    parser.add_argument("--equal-only", action="store_true", help="no larger budgets")
    args = parse(parser)
    case = CASES[args.case]
    model, data = case["names"]
    files = args.models or [
        train(args.work, model, data, data_dir=args.data_dir, seed=seed, **case["training"]) for seed in SEEDS
    ]
    images = load_dataset(data, args.data_dir)
    chosen = stratified_subset(images.test_targets, args.test_samples or case["test_samples"])
    problem = Problem(
        build_model(model),
        train=images.train,
        test=(images.test_inputs[chosen], images.test_targets[chosen]),
        samples=case["samples"],
        cache=args.work / "cache",
        names={"model": model, "data": data},
    )
    networks = problem.networks(files, names=[f"seed {seed}" for seed in SEEDS])
    settings = load_recipe(case["recipe"])
    # Equal budgets first: their results are on disk before the long part begins, which reuses them from the cache.
    for converge in (False,) if args.equal_only else (False, True):
        plan = Plan(
            threshold=settings.threshold,
            converge=converge,
            most_steps=args.most_steps or case["most_steps"],
            times=() if converge else (2, 8),
            rates=dict.fromkeys(CURVES, case["rates"]),
            llpf_settings=settings,
        )
        with Progress("step") as progress:
            result = compare(
                problem,
                networks,
                plan,
                args.work / "curves" / args.case,
                begin=progress.begin,
                progress=progress.update,
                workers=1,
            )
        about = {"recipe": case["recipe"], "models": [Path(f).name for f in files]}
        write(result, about, args.out, args.case)


def write(result: Comparison, about: dict[str, Any], out: Path, case: str) -> None:
    tables = {"table": result.rows, "growth": result.growth}
    numbers = {"rows": result.rows, "growth": result.growth}
    save(out, case, numbers=numbers, tables=tables, about={**result.about, **about})
    draw_curves(result, out, case)
    text = markdown(result)
    (out / f"{case}.md").write_text(text, encoding="utf-8")
    print(text, flush=True)


if __name__ == "__main__":
    main()
