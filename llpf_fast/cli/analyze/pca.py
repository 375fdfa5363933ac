"""``llpf analyze pca``: one or many paths along their principal components."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..options import add_device, add_quiet, choose_device, user_path
from ..output import Progress
from .options import out_folder

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "paths along their principal components, with loss as colour; the whole network, or layer by layer"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("runs", type=user_path, nargs="+", metavar="RUN", help="run directories of one architecture")
    parser.add_argument("--layers", action="store_true", help="also every layer separately")
    parser.add_argument("--components", type=int, default=3, metavar="N", help="how many (3); 2: no 3-D view")
    parser.add_argument("--memory", type=int, default=256, metavar="MB", help="for values read at a time (256)")
    parser.add_argument("--out", type=user_path, default="pca", metavar="DIR", help="folder of the results (pca)")
    add_device(parser)
    add_quiet(parser)


def run(args: Namespace) -> int:
    device = choose_device(args.device)
    folder = out_folder(args)

    from ...analysis.output import write_result
    from ...analysis.pca import principal_components
    from ...analysis.trajectory import Trajectory, architecture, distinct_names
    from ...errors import LLPFError
    from ...path import RunDirectory
    from ...report.pca import draw_components

    if args.components < 2:
        raise LLPFError(f"--components must be at least 2, got {args.components}")
    if args.memory < 1:
        raise LLPFError(f"--memory must be at least 1 megabyte, got {args.memory}")
    runs = [RunDirectory.open(name) for name in args.runs]
    module = architecture(runs[0])
    paths = [Trajectory(run, module, name=name) for run, name in zip(runs, distinct_names(args.runs), strict=True)]
    with Progress("step", quiet=args.quiet) as progress:
        components = principal_components(
            paths,
            components=args.components,
            per_layer=args.layers,
            memory=args.memory * 2**20,
            device=device,
            progress=progress.update,
        )
    pictures = draw_components(components, folder)
    numbers = {
        "whole": components.whole.numbers(),
        "layers": {name: part.numbers() for name, part in components.layers.items()},
    }
    about = {
        "runs": {path.name: path.directory.index_digest() for path in paths},
        "waypoints": [len(path) for path in paths],
        "parameters": paths[0].size,
    }
    file = write_result(folder, "pca", numbers=numbers, about=about)
    share = 100 * float(components.whole.explained[:2].sum())
    print(f"two components have {share:.1f} % of the squared deviation of {sum(map(len, paths))} waypoints")
    print(f"numbers: {file}\npictures: {' '.join(map(str, pictures))}")
    return 0
