"""``llpf report``: one HTML file about one or several runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .options import add_quiet, check_new_file, user_path
from .output import Progress

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "write one self-contained HTML file about runs: verdict, certificate, figures, settings, comparison"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("runs", type=user_path, nargs="+", metavar="RUN", help="run directories, finished or not")
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="FILE",
        help="file to write (default: RUN/report.html; report.html for several runs)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is not a report")
    parser.add_argument(
        "--no-components", action="store_true", help="do not compute principal components, which reads all waypoints"
    )
    add_quiet(parser)


def run(args: Namespace) -> int:
    from ..path import RunDirectory
    from ..report.html.page import is_report, write_report

    for name in args.runs:
        RunDirectory.open(name)
    out = Path(args.out or (Path(args.runs[0], "report.html") if len(args.runs) == 1 else "report.html"))
    check_new_file(out, overwrite=args.overwrite or is_report(out))
    with Progress("step", quiet=args.quiet) as progress:
        write_report(args.runs, out, components=not args.no_components, progress=progress.update)
    print(f"report: {out}")
    return 0
