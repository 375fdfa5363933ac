"""Where finished paths go: principal components with loss as colour, layer by layer, as a film, and tick by tick.

    python -m benchmarks.studies.pca CASE RUN [RUN ...]

writes CASE{,-3d,-layers}.{png,svg,csv} and CASE.json to runs/studies/pca, and of the first run
CASE-film.{gif,png,svg,csv} and CASE-ticks.{png,svg,csv}. The gallery shows LeNet5 on MNIST: one path from model to
model, one from the same model toward the origin, both by the quick recipes.
"""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.studies.study import WORK, option_parser, parse, save
from llpf_fast.analysis.pca import principal_components
from llpf_fast.analysis.ticks import read_ticks
from llpf_fast.analysis.trajectory import Trajectory, architecture, distinct_names
from llpf_fast.path import RunDirectory
from llpf_fast.report.film import animate_path
from llpf_fast.report.pca import draw_components
from llpf_fast.report.ticks import draw_ticks

#: Keeps the film below 300 kB.
FRAMES = 20


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("case")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--names", nargs="*", help="what figures call the runs")
    parser.add_argument("--out", type=Path, default=WORK / "pca")
    args = parse(parser)
    runs = [RunDirectory.open(run) for run in args.runs]
    module = architecture(runs[0])
    names = args.names or distinct_names(args.runs)
    paths = [Trajectory(run, module, name=name) for run, name in zip(runs, names, strict=True)]
    start = time.monotonic()
    components = principal_components(paths, per_layer=True)
    seconds = time.monotonic() - start
    draw_components(components, args.out, args.case)
    animate_path(
        principal_components(paths[:1], components=2), args.out, f"{args.case}-film", frames=FRAMES, seconds=6.0
    )
    draw_ticks(read_ticks(runs[0]), args.out, f"{args.case}-ticks", title=paths[0].name)
    save(
        args.out,
        args.case,
        numbers={
            "waypoints": sum(map(len, paths)),
            "parameters": paths[0].size,
            "seconds": seconds,
            "share_of_two_components": float(components.whole.explained[:2].sum()),
            "whole": components.whole.numbers(),
            "layers": {name: part.numbers() for name, part in components.layers.items()},
        },
        about={
            "model": runs[0].run["settings"]["model"],
            "data": runs[0].run["settings"]["data"],
            "runs": {path.name: path.directory.index_digest() for path in paths},
        },
    )


if __name__ == "__main__":
    main()
