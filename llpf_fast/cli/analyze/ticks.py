"""``llpf analyze ticks``: the layers of a search at each tick."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..options import user_path
from .options import out_folder

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "each layer's distance to the destination and variance, and the loss, against ticks"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=user_path, metavar="RUN", help="run directory, finished or not")
    parser.add_argument("--out", type=user_path, default="ticks", metavar="DIR", help="folder of the results (ticks)")


def run(args: Namespace) -> int:
    folder = out_folder(args)

    from ...analysis.ticks import read_ticks
    from ...analysis.trajectory import distinct_names
    from ...report.ticks import draw_ticks

    ticks = read_ticks(args.run)
    picture = draw_ticks(ticks, folder, title=distinct_names([args.run])[0])
    back = sum(ticks.taken_back)
    print(f"{len(ticks.ticks)} ticks of {len(ticks.layers)} layers" + (f", {back} taken back" if back else ""))
    print(f"numbers: {picture.with_suffix('.csv')}\npicture: {picture}")
    return 0
