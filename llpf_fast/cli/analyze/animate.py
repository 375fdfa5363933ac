"""``llpf analyze animate``: a film of a path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import LLPFError
from ..options import add_quiet, user_path
from ..output import Progress
from .options import out_folder

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "a path as a film (GIF or MP4): its position along its first two components, and its loss"

_LONGEST = 3600
FILES = [f"animation.{kind}" for kind in ("gif", "mp4", "png", "svg", "csv")]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=user_path, metavar="RUN", help="run directory, certified or not")
    parser.add_argument("--format", type=str, default="gif", metavar="KIND", help="gif or mp4 (gif)")
    parser.add_argument("--frames", type=int, default=90, metavar="N", help="at most (90)")
    parser.add_argument("--seconds", type=float, default=9.0, metavar="S", help="length of the film (9)")
    parser.add_argument(
        "--out", type=user_path, default="animation", metavar="DIR", help="folder of the results (animation)"
    )
    add_quiet(parser)


def run(args: Namespace) -> int:
    if not 0 < args.seconds <= _LONGEST:
        raise LLPFError(f"--seconds must be above 0 and at most {_LONGEST:,}, got {args.seconds}")
    folder = out_folder(args)

    from ...analysis.pca import principal_components
    from ...analysis.trajectory import Trajectory, architecture, distinct_names
    from ...path import RunDirectory
    from ...report.film import animate_path, check_film

    check_film(args.format, args.frames, args.seconds)
    directory = RunDirectory.open(args.run)
    path = Trajectory(directory, architecture(directory), name=distinct_names([args.run])[0])
    with Progress("step", quiet=args.quiet) as progress:
        progress.begin("components")
        components = principal_components([path], components=2, progress=progress.update)
        progress.begin("frames")
        film = animate_path(
            components, folder, kind=args.format, frames=args.frames, seconds=args.seconds, progress=progress.update
        )
    print(f"film: {film}\nnumbers: {film.with_suffix('.csv')}")
    return 0
