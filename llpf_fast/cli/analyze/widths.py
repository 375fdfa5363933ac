"""``llpf analyze widths``: radial width around networks, or along and across a path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import LLPFError
from ..output import Progress
from .options import add_models, add_output, add_problem, load_problem, out_folder, show_rows

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from ...analysis.widths import WidthSettings

HELP = "radial width around networks, or along and across the path of one run"


def add_arguments(parser: ArgumentParser) -> None:
    add_models(parser, "model files; or one run directory: widths along and across its path")
    parser.add_argument("--points", type=int, default=9, metavar="N", help="points on a run's path")
    add_width(parser)
    add_problem(parser)
    add_output(parser, "widths")


def add_width(parser: ArgumentParser) -> None:
    """Options of :func:`width_settings`, shared with ``width-sweep``."""
    parser.add_argument("--threshold", type=float, default=0.5, help="training loss that ends a ray (0.5)")
    parser.add_argument("--relative", action="store_true", help="--threshold is a rise above each network's loss")
    parser.add_argument("--directions", type=int, default=10, metavar="N", help="random directions at each point")
    parser.add_argument(
        "--law",
        choices=("gaussian", "filter"),
        default="gaussian",
        help="of the directions: gaussian, or filter-normalised (Li et al.)",
    )


def width_settings(args: Namespace) -> WidthSettings:
    from ...analysis.widths import WidthSettings

    return WidthSettings(
        threshold=args.threshold, relative=args.relative, law=args.law, directions=args.directions, seed=args.seed
    )


def run(args: Namespace) -> int:
    problem = load_problem(args)

    from ...analysis.output import write_result
    from ...analysis.widths import measure_along_path, measure_widths
    from ...path import open_path
    from ...report.widths import draw_networks, draw_path_widths

    settings = width_settings(args)
    settings.validate()
    # A network's stored statistics are wrong away from it, where the BatchNorm layers get other values.
    evaluate = problem.evaluator("train", statistics=problem.statistics[-1])
    folder = out_folder(args)
    about: dict[str, Any] = {**problem.about(), "law": settings.in_words(), "run": None}
    about["batchnorm_statistics"] = problem.statistics[-1] if problem.has_statistics else None
    runs = [source for source in args.models if Path(source).is_dir()]
    with Progress("ray", quiet=args.quiet) as progress:
        if runs:
            if len(args.models) > 1:
                raise LLPFError("name one run directory, or model files (RUN@12 is waypoint 12 of a run)")
            path = open_path(runs[0])
            networks = problem.networks([f"{runs[0]}@0"], fewest=1)
            along_path = measure_along_path(
                networks, path, evaluate, settings, points=args.points, progress=progress.update
            )
            rows = [{"position": each.position, **each.width.row()} for each in along_path]
            picture = draw_path_widths(along_path, settings.in_words(), folder)
            about["run"] = runs[0]
        else:
            networks = problem.networks(args.models, fewest=1)
            widths = measure_widths(networks, evaluate, settings, progress=progress.update)
            rows = [each.row() for each in widths]
            picture = draw_networks(widths, settings.in_words(), folder)
            about["networks"] = networks.digests_by_name()
    file = write_result(folder, "widths", numbers={"widths": rows}, tables={"points": rows}, about=about)
    shown = ("point", "loss", "norm", "width_median", "width_min", "width_max", "relative_median")
    along = ("along_forward", "along_backward") if runs else ()
    show_rows([{name: row[name] for name in (*shown, *along, "open_rays")} for row in rows])
    print(settings.in_words())
    print(f"numbers: {file}\npicture: {picture}")
    return 0
