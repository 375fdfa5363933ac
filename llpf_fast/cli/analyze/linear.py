"""``llpf analyze linear``: barriers on the straight lines between networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..options import user_path
from ..output import Progress
from .options import add_models, add_output, add_problem, load, out_folder, show_rows

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "loss, error and barriers along the straight lines between networks"


def add_arguments(parser: ArgumentParser) -> None:
    add_models(parser)
    parser.add_argument(
        "--base",
        type=user_path,
        metavar="MODEL",
        help="also angles and distances relative to this network (the common trunk)",
    )
    parser.add_argument(
        "--points", type=int, default=25, metavar="N", help="of each line, endpoints and middle included"
    )
    add_problem(parser)
    add_output(parser, "linear")


def run(args: Namespace) -> int:
    problem, networks = load(args)

    from ...analysis.linear import linear_connectivity
    from ...analysis.output import write_result
    from ...report.linear import draw_linear

    base = None if args.base is None else problem.networks([args.base], fewest=1)[0]
    with Progress("point", quiet=args.quiet) as progress:
        connectivity = linear_connectivity(
            problem, networks, points=args.points, base=base, base_name=args.base or "", progress=progress.update
        )
    folder = out_folder(args)
    about = {
        **problem.about(),
        "points": args.points,
        "networks": networks.digests_by_name(),
    }
    file = write_result(
        folder, "linear", numbers=connectivity.numbers(), tables={"pairs": connectivity.summary()}, about=about
    )
    picture = draw_linear(connectivity, folder)
    show_rows(
        [
            {
                "line": f"{row['first']} – {row['second']}",
                **({"statistics": row["batchnorm_statistics"]} if problem.has_statistics else {}),
                "Entezari": row["train_loss_barrier_entezari"],
                "Frankle": row["train_loss_barrier_frankle"],
                "midpoint": row["train_loss_barrier_midpoint"],
                **({"test error": row["test_error_barrier_frankle"]} if "test_error_barrier_frankle" in row else {}),
                "distance": row["distance"],
                "angle": row["angle"],
                **({"angle at base": row["base_angle"]} if "base_angle" in row else {}),
            }
            for row in connectivity.summary()
        ]
    )
    print("barriers: training loss by three definitions, test error by Frankle's; angles in degrees")
    print(f"numbers: {file}\npicture: {picture}")
    return 0
