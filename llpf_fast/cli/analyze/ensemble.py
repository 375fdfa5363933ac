"""``llpf analyze ensemble``: averages and ensembles of waypoints, beside the endpoints of the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..options import user_path
from ..output import Progress
from .options import add_output, add_problem, load_problem, out_folder, show_rows

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "weight average and ensemble of a run's waypoints and of its endpoints, on the test set"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=user_path, metavar="RUN", help="run directory")
    parser.add_argument("--points", type=int, default=9, metavar="N", help="waypoints, evenly spaced in length")
    add_problem(parser)
    add_output(parser, "ensemble")


def run(args: Namespace) -> int:
    problem = load_problem(args, [args.run])

    from ...analysis.ensemble import ensemble_along
    from ...analysis.output import write_result

    with Progress("network", quiet=args.quiet) as progress:
        ensemble = ensemble_along(problem, args.run, points=args.points, progress=progress.update)
    about = {**problem.about(), **ensemble.settings, "run": args.run}
    tables = {"table": ensemble.rows, "members": ensemble.members}
    file = write_result(out_folder(args), "ensemble", numbers={"rows": ensemble.rows}, tables=tables, about=about)
    show_rows(
        [
            {
                "what": row["what"],
                "networks": row["networks"],
                "test loss": row["test_loss"],
                "test accuracy": row["test_accuracy"],
                "disagreement": row.get("disagreement"),
            }
            for row in ensemble.rows
        ]
    )
    print(f"numbers: {file}")
    return 0
