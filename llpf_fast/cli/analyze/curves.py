"""``llpf analyze curves``: LLPF beside other curves between the same two networks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import LLPFError
from ..options import user_path
from ..output import Progress
from .options import add_models, add_output, add_problem, load, out_folder, show_rows

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from ...analysis import Problem
    from ...analysis.compare_curves import Plan

HELP = "LLPF beside Bezier curve, polychain, AutoNEB and straight lines: one certified table"

_METHODS = "llpf,llpf+lower,bezier,polychain,autoneb,linear,aligned-linear"


def add_arguments(parser: ArgumentParser) -> None:
    add_models(parser, "two model files, or RUN for both endpoints of a run")
    parser.add_argument(
        "--methods", type=str, default=_METHODS, metavar="A,B,...", help=f"which, by commas (default: {_METHODS})"
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="gradient steps of each that trains (default: what LLPF takes)"
    )
    parser.add_argument(
        "--times",
        type=str,
        default="",
        metavar="N,...",
        help="also budgets of so many times that: 2,8",
    )
    parser.add_argument(
        "--converge",
        action="store_true",
        help="also double every budget until the peak stops falling; takes much longer",
    )
    parser.add_argument(
        "--most-steps", type=int, default=20_000, metavar="N", help="where doubling ends (default: 20,000)"
    )
    parser.add_argument("--threshold", type=float, metavar="LOSS", help="of the certificates (default: the recipe's)")
    parser.add_argument("--recipe", type=user_path, metavar="NAME", help="LLPF's (default: MODEL-DATA-m2m-quick)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="of the other methods (default: 64)")
    parser.add_argument("--bends", type=int, default=1, metavar="N", help="inner nodes of Bezier curve and polychain")
    parser.add_argument(
        "--rate",
        type=str,
        action="append",
        default=[],
        metavar="METHOD=LR,...",
        help="learning rates to try, the best is taken: bezier=0.01,0.1; may be repeated",
    )
    add_problem(parser)
    add_output(parser, "curves")


def run(args: Namespace) -> int:
    problem, networks = load(args)
    plan = _plan(args, problem)

    from ...analysis.compare_curves import compare
    from ...analysis.output import write_result
    from ...report.curves import draw_curves

    folder = out_folder(args)
    _check_runs(folder / "runs")
    with Progress("step", quiet=args.quiet) as progress:
        comparison = compare(
            problem, networks, plan, folder / "runs", begin=progress.begin, progress=progress.update, workers=1
        )
    tables = {"table": comparison.rows, "profiles": comparison.profiles, "growth": comparison.growth}
    file = write_result(
        folder,
        "curves",
        numbers={"rows": comparison.rows},
        tables=tables,
        about=comparison.about,
        device=problem.device,
    )
    picture = draw_curves(comparison, folder)
    show_rows([table_row(row, problem.test is not None) for row in comparison.rows])
    endpoint = comparison.rows[0]["higher_end_loss"]
    print(f"peak: certified; {endpoint:.4g} at the higher endpoint; every curve is a run in {folder / 'runs'}")
    if any(row["destination"] != "b" for row in comparison.rows):
        print("aligned-linear ends at the second network with permuted units: the same function")
    print(f"numbers: {file}\npicture: {picture}")
    return 0


def _check_runs(folder: Path) -> None:
    """LLPFError where a run that would be replaced contains other files."""
    from ...path import RunDirectory

    for run in sorted(folder.glob("*/run.yaml")):
        strangers = RunDirectory.open(run.parent).foreign_files()
        if strangers:
            raise LLPFError(f"{strangers[0]} is no part of the run that would be replaced; move it away")


def table_row(row: dict[str, Any], test: bool) -> dict[str, Any]:
    """A row of the result as the table shows it."""
    return {
        "method": row["method"],
        "budget": row["budget"],
        "peak training loss": row["peak_train_loss"],
        "connected": "yes" if row["connected"] else "no",
        **({"lowest test accuracy": row["min_test_accuracy"]} if test else {}),
        "gradient steps": row["gradient_steps"],
        "seconds": row["seconds"],
    }


def _plan(args: Namespace, problem: Problem) -> Plan:
    from ...analysis.compare_curves import RATES, Plan
    from ...recipes import load_recipe, recipe_names

    methods: Any = tuple(name.strip() for name in args.methods.split(",") if name.strip())
    settings = None
    if {"llpf", "llpf+lower"} & set(methods):
        about = problem.about()
        recipe = args.recipe or f"{about['model']}-{about['data']}-m2m-quick"
        if args.recipe is None and recipe not in recipe_names():
            raise LLPFError(
                f"there is no recipe {recipe}: name one with --recipe, or leave llpf and llpf+lower out of --methods"
            )
        settings = load_recipe(recipe)
    threshold = args.threshold
    if threshold is None:
        threshold = 0.1 if settings is None else settings.threshold
    if args.batch_size < 1 or args.bends < 1:
        raise LLPFError("--batch-size and --bends must be at least 1")
    return Plan(
        methods=methods,
        steps=args.steps,
        batch_size=args.batch_size,
        threshold=threshold,
        rates={**RATES, **dict(map(_rates, args.rate))},
        bends=args.bends,
        times=_times(args.times),
        converge=args.converge,
        most_steps=args.most_steps,
        llpf_settings=settings,
        seed=args.seed,
    )


def _times(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) > 1 for part in parts):
        raise LLPFError(f"--times must be whole numbers above 1, by commas, got {text!r}")
    return tuple(map(int, parts))


def _rates(text: str) -> tuple[str, tuple[float, ...]]:
    from ...analysis.curve_methods import TRAINED

    method, _, values = text.partition("=")
    try:
        rates = tuple(float(value) for value in values.split(","))
    except ValueError:
        rates = ()
    if method not in TRAINED or not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise LLPFError(f"--rate {text}: write METHOD=LR,LR with METHOD one of {', '.join(TRAINED)}")
    return method, rates
