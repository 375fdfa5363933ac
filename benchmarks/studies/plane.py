"""Loss in the plane through a path's endpoints and its farthest waypoint, and of the path beside the plane.

    python -m benchmarks.studies.plane CASE RUN [--data-dir DIR]

writes CASE{,-surface}.{png,svg,csv} and CASE.json to runs/studies/plane: 21 x 21 points, each on a fixed
stratified subset of 2,000 training samples. What is read off the picture under the path is the loss of its shadow; its
own stands beside it.
"""

from __future__ import annotations

import time

from benchmarks.studies.study import option_parser, parse, save
from llpf_fast.analysis import Problem
from llpf_fast.analysis.plane import farthest_from_line, loss_on_plane
from llpf_fast.analysis.trajectory import Trajectory
from llpf_fast.cli.output import Progress
from llpf_fast.report.plane import draw_plane

RESOLUTION, SAMPLES = 21, 2000


def main() -> None:
    parser = option_parser(__doc__, "plane")
    parser.add_argument("run")
    parser.add_argument("--name", help="what figures call the run")
    args = parse(parser)
    problem = Problem.from_run(args.run, data_dir=args.data_dir, samples=SAMPLES, cache=args.work / "cache")
    path = Trajectory(args.run, problem.module, name=args.name)
    beside = farthest_from_line(path)
    points = [f"{args.run}@{i}" for i in (0, len(path) - 1, beside)]
    networks = problem.networks(points, names=["start", "destination", f"waypoint {beside}"])
    start = time.monotonic()
    with Progress("point") as progress:
        plane = loss_on_plane(
            problem.evaluator("train", statistics=problem.statistics[-1]),
            networks,
            path=path,
            resolution=RESOLUTION,
            progress=progress.update,
        )
    draw_plane(plane, args.out, args.case)
    save(
        args.out,
        args.case,
        numbers={**plane.numbers(), "seconds": time.monotonic() - start},
        about={**problem.about(), "run": path.directory.index_digest()},
    )


if __name__ == "__main__":
    main()
