"""``llpf analyze sharpness``: Hessian and one-step SAM sharpness along a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import LLPFError
from ..options import user_path
from ..output import Progress
from .options import add_output, add_problem, load_problem, out_folder, show_rows

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "top Hessian eigenvalue, trace and SAM's one-step sharpness along a run"

#: A product with the Hessian takes two backward passes over all samples; some 50 are needed a waypoint.
_SAMPLES = 1000


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=user_path, metavar="RUN", help="run directory")
    parser.add_argument("--points", type=int, default=9, metavar="N", help="waypoints, evenly spaced in length")
    parser.add_argument("--rho", type=float, default=0.05, metavar="R", help="radius of SAM's ball, L2 (default: 0.05)")
    parser.add_argument("--probes", type=int, default=16, metavar="N", help="of the trace's estimate (default: 16)")
    parser.add_argument("--tolerance", type=float, default=1e-3, metavar="X", help="of the eigenvalue, relative")
    add_problem(parser)
    add_output(parser, "sharpness")


def run(args: Namespace) -> int:
    if not args.tolerance > 0:
        raise LLPFError(f"--tolerance must be above 0, got {args.tolerance}")
    if args.samples is None:
        args.samples = _SAMPLES
    problem = load_problem(args, [args.run])

    from ...analysis.output import write_result
    from ...analysis.sharpness import sharpness_along
    from ...report.sharpness import draw_sharpness

    with Progress("point", quiet=args.quiet) as progress:
        sharpness = sharpness_along(
            problem,
            args.run,
            points=args.points,
            rho=args.rho,
            probes=args.probes,
            tolerance=args.tolerance,
            progress=progress.update,
        )
    folder = out_folder(args)
    about = {**problem.about(), **sharpness.settings, "run": args.run}
    file = write_result(
        folder, "sharpness", numbers={"rows": sharpness.rows}, tables={"points": sharpness.rows}, about=about
    )
    picture = draw_sharpness({args.run: sharpness.rows}, folder)
    show_rows(
        [
            {
                "waypoint": row["waypoint"],
                "norm": row["norm_share"],
                "training loss": row["train_loss"],
                "top eigenvalue": row["top_eigenvalue"],
                "trace": row["trace"],
                "+-": row["trace_standard_error"],
                "SAM, one step": row["sam_one_step"],
                **({} if problem.test is None else {"test accuracy": row["test_accuracy"]}),
            }
            for row in sharpness.rows
        ]
    )
    print(
        f"on {sharpness.settings['samples']:,} training samples; norm: share of the start's; SAM: rise of the loss "
        f"after one ascent step of length {args.rho:g}"
    )
    print(f"numbers: {file}\npicture: {picture}")
    return 0
