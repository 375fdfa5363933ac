"""The plane through a path's ends and its farthest waypoint, and what the path's shadow on it hides.

    python -m benchmarks.studies.plane CASE RUN [--data-dir DIR]

writes CASE{,-surface}.{png,svg,csv} and CASE.json to benchmarks/results/analysis/plane: 21 x 21 points, each on a fixed
stratified subset of 2,000 training samples. What is read off the picture under the path is the loss of its shadow; its
own stands beside it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.studies.record_path import commit
from benchmarks.studies.trained import RESULTS, WORK
from llpf_fast.analysis import Problem, write_result
from llpf_fast.analysis.plane import farthest_from_line, loss_on_plane
from llpf_fast.analysis.trajectory import Trajectory
from llpf_fast.cli.output import Progress
from llpf_fast.report.plane import draw_plane

RESOLUTION, SAMPLES = 21, 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case")
    parser.add_argument("run")
    parser.add_argument("--name", help="what figures call the run")
    parser.add_argument("--data-dir")
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--out", type=Path, default=RESULTS / "plane")
    args = parser.parse_args()
    torch.set_num_threads(1)
    problem = Problem.from_run(args.run, data_dir=args.data_dir, samples=SAMPLES, cache=args.work / "cache")
    path = Trajectory(args.run, problem.module, name=args.name)
    beside = farthest_from_line(path)
    points = [f"{args.run}@{i}" for i in (0, len(path) - 1, beside)]
    networks = problem.networks(points, names=["start", "destination", f"waypoint {beside}"])
    began = time.monotonic()
    with Progress("point") as progress:
        found = loss_on_plane(
            problem.evaluator("train", statistics=problem.statistics[-1]),
            networks,
            path=path,
            resolution=RESOLUTION,
            progress=progress.update,
        )
    draw_plane(found, args.out, args.case)
    write_result(
        args.out,
        args.case,
        numbers={**found.numbers(), "seconds": time.monotonic() - began},
        about={**problem.about(), "commit": commit(), "run": path.directory.index_digest()},
    )


if __name__ == "__main__":
    main()
