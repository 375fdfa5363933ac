"""Sharpness, averages and ensembles along runs; what moving toward the origin does to test accuracy.

    python -m benchmarks.studies.sharpness digits
    python -m benchmarks.studies.sharpness lenet5 NAME=RUN [NAME=RUN ...] --data-dir DIR

writes CASE.{json,csv,png,svg}, CASE-{points,ensembles}.csv and CASE.md to runs/studies/sharpness; with
runs toward the origin also CASE-origin.{csv,png,svg}, against the norm. ``digits`` trains two networks and searches
two paths: between them, and from the first toward the origin.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.studies.study import option_parser, parse, save, train
from llpf_fast.analysis import Problem
from llpf_fast.analysis.ensemble import ensemble_along
from llpf_fast.analysis.sharpness import sharpness_along
from llpf_fast.cli.find import find_between
from llpf_fast.cli.output import Progress
from llpf_fast.path import RunDirectory
from llpf_fast.report.sharpness import draw_sharpness

CASES: dict[str, dict[str, Any]] = {
    "digits": {"samples": 0, "points": 9, "probes": 32},
    "lenet5": {"samples": 500, "points": 6, "probes": 10},
}
RHO = 0.05
RECIPE = "mlp-digits-m2m-quick"
#: Toward the origin with the recipe's steps, as long as the norm falls.
ORIGIN = ("mode=m2o", "max_ticks=60")


def digits_runs(work: Path) -> dict[str, Path]:
    first, second = (train(work, "mlp", "digits", data_dir=None, seed=seed, epochs=40, lr=0.05) for seed in (1, 2))
    runs = {"m2m": work / "sharpness" / "digits-m2m", "m2o": work / "sharpness" / "digits-m2o"}
    for name, folder in runs.items():
        if not (folder / "status.json").exists():
            overrides = ORIGIN if name == "m2o" else ()
            destination = None if name == "m2o" else second
            find_between(
                RECIPE, first, destination, folder, overrides=overrides, resume=folder.exists(), quiet=True, threads=1
            )
    return runs


def toward_origin(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Test accuracy at the start, at its highest and at the end, and its change in standard errors."""
    start, end = rows[0], rows[-1]
    best = max(rows, key=lambda row: row["test_accuracy"])
    error = math.hypot(start["test_accuracy_standard_error"], end["test_accuracy_standard_error"])
    return {
        "start": start["test_accuracy"],
        "best": best["test_accuracy"],
        "best_at_norm_share": best["norm_share"],
        "end": end["test_accuracy"],
        "end_norm_share": end["norm_share"],
        "change": end["test_accuracy"] - start["test_accuracy"],
        "change_standard_errors": (end["test_accuracy"] - start["test_accuracy"]) / error if error else None,
        "top_eigenvalue_ratio": end["top_eigenvalue"] / start["top_eigenvalue"],
        "scaled_top_eigenvalue_ratio": end["top_eigenvalue_times_norm2"] / start["top_eigenvalue_times_norm2"],
    }


def markdown(points: list[dict[str, Any]], ensembles: list[dict[str, Any]], origin: dict[str, Any]) -> str:
    """The tables as Markdown."""
    lines = [
        "| run | waypoint | norm | training loss | top eigenvalue | trace | SAM, one step | test accuracy |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {p['run']} | {p['waypoint']} | {p['norm_share']:.3f} | {p['train_loss']:.4f} | {p['top_eigenvalue']:.4g} | "
        f"{p['trace']:.4g} ± {p['trace_standard_error']:.2g} | {p['sam_one_step']:.4f} | {p['test_accuracy']:.4f} |"
        for p in points
    ]
    lines += ["", "| run | what | networks | test loss | test accuracy |", "|---|---|---|---|---|"]
    lines += [
        f"| {e['run']} | {e['what']} | {e['networks']} | {e['test_loss']:.4f} | {e['test_accuracy']:.4f} |"
        for e in ensembles
    ]
    for name, summary in origin.items():
        errors = summary["change_standard_errors"]
        lines += [
            "",
            f"{name}, toward the origin: test accuracy {summary['start']:.4f} at the start, {summary['end']:.4f} at "
            f"{summary['end_norm_share']:.2f} of its norm ({errors or 0:+.1f} standard errors, regarding the two as "
            f"independent), highest {summary['best']:.4f} at {summary['best_at_norm_share']:.2f}; top eigenvalue times "
            f"{summary['top_eigenvalue_ratio']:.3g}, times the squared norm "
            f"{summary['scaled_top_eigenvalue_ratio']:.3g}.",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = option_parser(__doc__, "sharpness", CASES)
    parser.add_argument("runs", nargs="*", metavar="NAME=RUN")
    args = parse(parser)
    case = CASES[args.case]
    given = {name: Path(folder) for name, _, folder in (run.partition("=") for run in args.runs)}
    runs = given or digits_runs(args.work)
    by_run: dict[str, list[dict[str, Any]]] = {}
    ensembles: list[dict[str, Any]] = []
    about: dict[str, Any] = {"rho": RHO, "runs": {}}
    with Progress("point") as progress:
        for name, folder in runs.items():
            progress.begin(name)
            problem = Problem.from_run(
                folder, data_dir=args.data_dir, samples=case["samples"], cache=args.work / "cache"
            )
            sharp = sharpness_along(
                problem, folder, points=case["points"], rho=RHO, probes=case["probes"], progress=progress.update
            )
            by_run[name] = sharp.rows
            ensemble = ensemble_along(problem, folder, points=case["points"])
            ensembles += [{"run": name, **row} for row in ensemble.rows]
            run = RunDirectory.open(folder)
            about["runs"][name] = {
                "mode": (run.run.get("settings") or {}).get("mode"),
                "waypoints": len(run.waypoints()),
                "waypoint_index_sha256": run.index_digest(),
            }
            about |= {**problem.about(), **sharp.settings}
    origin = {name: rows for name, rows in by_run.items() if str(about["runs"][name]["mode"]).startswith("m2o")}
    summary = {name: toward_origin(rows) for name, rows in origin.items()}
    points = [{"run": name, **row} for name, rows in by_run.items() for row in rows]
    save(
        args.out,
        args.case,
        numbers={"points": points, "ensembles": ensembles, "toward_origin": summary},
        tables={"points": points, "ensembles": ensembles},
        about=about,
    )
    draw_sharpness(by_run, args.out, args.case)
    if origin:
        draw_sharpness(origin, args.out, f"{args.case}-origin", along="norm_share")
    text = markdown(points, ensembles, summary)
    (args.out / f"{args.case}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
