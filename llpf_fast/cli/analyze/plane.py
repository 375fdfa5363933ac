"""``llpf analyze plane``: the loss on the plane through three networks, and a path over it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import LLPFError
from ..options import user_path
from ..output import Progress
from .options import add_models, add_output, add_problem, load_problem, out_folder

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

HELP = "loss on the plane through three networks: contours and surface, with a path's true loss beside its shadow's"


def add_arguments(parser: ArgumentParser) -> None:
    add_models(
        parser,
        "three points: model files, RUN@12 for a run's waypoint 12, RUN for both its ends; a RUN alone: its ends and "
        "its waypoint farthest from the line between them",
    )
    parser.add_argument(
        "--run", type=user_path, metavar="RUN", help="path to draw over the plane (default: a RUN alone)"
    )
    parser.add_argument("--resolution", type=int, default=21, metavar="N", help="grid points a side (21)")
    parser.add_argument("--path-points", type=int, default=100, metavar="N", help="waypoints evaluated at most (100)")
    parser.add_argument(
        "--statistics",
        type=str,
        metavar="KIND",
        help="BatchNorm statistics: stored or reestimated (default: reestimated where there are any)",
    )
    add_problem(parser)
    add_output(parser, "plane")


def run(args: Namespace) -> int:
    if args.statistics not in (None, "stored", "reestimated"):
        raise LLPFError(f"--statistics must be stored or reestimated, got {args.statistics}")
    problem = load_problem(args, [*args.models, *([args.run] if args.run else [])])

    from ...analysis.output import write_result
    from ...analysis.plane import farthest_from_line, loss_on_plane
    from ...analysis.trajectory import Trajectory
    from ...report.plane import draw_plane

    models, over = list(args.models), args.run
    if len(models) == 1 and Path(models[0]).is_dir():
        over = over or models[0]
        alone = Trajectory(models[0], problem.module)
        models = [f"{models[0]}@{i}" for i in (0, len(alone) - 1, farthest_from_line(alone))]
    networks = problem.networks(models, fewest=3)
    path = None if over is None else Trajectory(over, problem.module)
    statistics: Any = args.statistics or problem.statistics[-1]
    with Progress("point", quiet=args.quiet) as progress:
        found = loss_on_plane(
            problem.evaluator("train", statistics=statistics),
            networks,
            path=path,
            resolution=args.resolution,
            path_points=args.path_points,
            progress=progress.update,
        )
    folder = out_folder(args)
    pictures = draw_plane(found, folder)
    about = {
        **problem.about(),
        "networks": dict(zip(networks.names, networks.digests(), strict=True)),
        **({} if path is None else {"path": {path.name: path.directory.index_digest()}}),
    }
    file = write_result(folder, "plane", numbers=found.numbers(), about=about)
    if found.shadow is not None:
        away, true, seen = found.shadow.distances.max(), found.shadow.true.max(), found.shadow.seen.max()
        print(f"{found.shadow.name} lies up to {away:.3g} away from the plane")
        print(f"highest loss: {true:.4g} at its waypoints, {seen:.4g} at their shadows in the plane")
    if found.gaps:
        print(f"{found.gaps} of {found.loss.size} grid points have no finite loss: hatched in the picture")
    print(f"numbers: {file}\npictures: {' '.join(map(str, pictures))}")
    return 0
