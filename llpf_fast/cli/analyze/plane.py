"""``llpf analyze plane``: the loss on the plane through three networks, and of a path beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import LLPFError
from ..options import user_path
from ..output import Progress
from .options import add_models, add_output, add_problem, load_problem, out_folder

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "loss on the plane through three networks: contours and surface, and a path beside its projection"


def add_arguments(parser: ArgumentParser) -> None:
    add_models(
        parser,
        "three points: model files, RUN@12 for a run's waypoint 12, RUN for both its endpoints; a RUN alone: its "
        "endpoints and its waypoint farthest from the line between them",
    )
    parser.add_argument("--run", type=user_path, metavar="RUN", help="path to draw on the plane (default: a RUN alone)")
    parser.add_argument("--resolution", type=int, default=21, metavar="N", help="grid points a side (21)")
    parser.add_argument("--path-points", type=int, default=100, metavar="N", help="waypoints evaluated at most (100)")
    parser.add_argument(
        "--statistics",
        type=str,
        metavar="KIND",
        help="BatchNorm statistics: stored or reestimated (default: reestimated, where the network has BatchNorm)",
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

    models, run_folder = list(args.models), args.run
    if len(models) == 1 and Path(models[0]).is_dir():
        run_folder = run_folder or models[0]
        alone = Trajectory(models[0], problem.module)
        models = [f"{models[0]}@{i}" for i in (0, len(alone) - 1, farthest_from_line(alone))]
    networks = problem.networks(models, fewest=3)
    path = None if run_folder is None else Trajectory(run_folder, problem.module)
    statistics: Any = args.statistics or problem.statistics[-1]
    with Progress("point", quiet=args.quiet) as progress:
        plane = loss_on_plane(
            problem.evaluator("train", statistics=statistics),
            networks,
            path=path,
            resolution=args.resolution,
            path_points=args.path_points,
            progress=progress.update,
        )
    folder = out_folder(args)
    pictures = draw_plane(plane, folder)
    about = {
        **problem.about(),
        "networks": networks.digests_by_name(),
        **({} if path is None else {"path": {path.name: path.directory.index_digest()}}),
    }
    file = write_result(folder, "plane", numbers=plane.numbers(), about=about)
    if plane.path is not None:
        distance, loss = plane.path.distances.max(), plane.path.loss.max()
        projected = plane.path.projected_loss.max()
        print(f"{plane.path.name} is up to {distance:.3g} away from the plane")
        print(f"highest loss: {loss:.4g} at its waypoints, {projected:.4g} at their projections on the plane")
    if plane.gaps:
        print(f"{plane.gaps} of {plane.loss.size} grid points have no finite loss: hatched in the picture")
    print(f"numbers: {file}\npictures: {' '.join(map(str, pictures))}")
    return 0
