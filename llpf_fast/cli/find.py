"""``llpf find``: search a path between two checkpoints, or many paths between folders of checkpoints."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LLPFError
from .options import add_data_dir, add_device, add_loss, add_quiet, add_threads, user_path
from .output import Progress
from .search import SearchSetup, describe_end, describe_result, describe_tick

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Sequence

    from ..find import FindResult, TickProgress

HELP = "search low-loss paths between trained networks"

#: Options that set the setting of the same name.
_SETTINGS = ("mode", "model", "data", "optimizer", "seed")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "starts", type=user_path, nargs="?", metavar="STARTS", help="checkpoint, or folder of checkpoints"
    )
    parser.add_argument(
        "destinations",
        type=user_path,
        nargs="?",
        metavar="DESTINATIONS",
        help="the same, where the mode needs a destination",
    )
    search = parser.add_argument_group("search")
    search.add_argument(
        "--recipe",
        type=user_path,
        required=True,
        metavar="NAME",
        help="a name, a YAML file, or 'list' to see the names",
    )
    search.add_argument(
        "--out",
        type=user_path,
        metavar="RUN",
        help="run directory to create; with folders of models, the folder of the runs",
    )
    search.add_argument("--mode", type=str, metavar="MODE", help="m2m, m2o, m2o-o, ... (default: the recipe's)")
    search.add_argument("--seed", type=int, metavar="N", help="of the batches (default: the recipe's)")
    search.add_argument(
        "--set",
        type=str,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of the recipe, for example step.relative=0.01; may be repeated",
    )
    search.add_argument(
        "--resume",
        action="store_true",
        help="continue an interrupted run of the same command, or mend a complete one that llpf verify refuted; other "
        "complete runs stay as they are",
    )
    code = parser.add_argument_group("network, data and loss (default: the recipe's)")
    code.add_argument(
        "--model", type=user_path, metavar="NAME", help="lenet5, ..., FILE.py:FACTORY or PACKAGE.MODULE:FACTORY"
    )
    code.add_argument(
        "--data",
        type=user_path,
        metavar="NAME",
        help="mnist, ..., or FILE.py:FUNCTION that returns train_x, train_y, test_x, test_y",
    )
    add_data_dir(code)
    code.add_argument("--download", action="store_true", help="let torchvision download data that are missing")
    add_loss(code)
    code.add_argument(
        "--optimizer",
        type=user_path,
        metavar="CODE",
        help="of the corrections: FILE.py:FUNCTION that makes a torch optimizer of parameters (default: SGD)",
    )
    many = parser.add_argument_group("folders of models")
    many.add_argument(
        "--pairing",
        type=str,
        metavar="HOW",
        help="which models to join: each-to-each, all-to-all, one-to-all, all-to-one; each path has a folder in RUN",
    )
    many.add_argument(
        "--parallel",
        type=str,
        default="auto",
        metavar="N",
        help="paths searched in parallel; auto (the default): the number that is fastest, which is 1 on a CPU for "
        "networks with convolutions",
    )
    machine = parser.add_argument_group("machine")
    add_device(machine)
    add_threads(machine)
    add_quiet(machine)


def run(args: Namespace) -> int:
    if args.recipe == "list":
        from .recipes import show

        show()
        return 0
    starts, destinations = args.starts, args.destinations
    if starts is None or args.out is None:
        raise LLPFError(f"llpf find needs {'STARTS' if starts is None else '--out'}; see llpf find --help")
    # As JSON, because YAML reads a value such as "mine.py:" as a mapping.
    overrides = [f"{key}={json.dumps(value)}" for key in _SETTINGS if (value := getattr(args, key)) is not None]
    overrides += args.set
    search = SearchSetup(
        args.recipe,
        overrides,
        data_dir=args.data_dir,
        loss=args.loss,
        device=args.device,
        threads=args.threads,
        download=args.download,
    )
    search.check_destination(destinations is not None)
    if args.pairing is not None or any(
        models is not None and os.path.isdir(models) for models in (starts, destinations)
    ):
        return _run_many(search, args, starts, destinations)
    if args.parallel != "auto":
        raise LLPFError("--parallel is for folders of models; here is only one path")
    result = _find_one(search, starts, destinations, args.out, resume=args.resume, quiet=args.quiet)
    print(describe_result(result, search.endless))
    if not describe_end(result, search.endless)[1]:
        stuck = "raise threshold or correction.max_steps: --set correction.max_steps=..."
        print(stuck if result.ended == "stuck" else "raise max_ticks or step.relative: --set max_ticks=...")
        return 1
    print(f"certify it: llpf verify {result.folder}")
    return 0


def _run_many(search: SearchSetup, args: Namespace, starts: str, destinations: str | None) -> int:
    from .many import find_many, show_table

    out = Path(args.out)
    rows = find_many(
        search,
        starts,
        destinations,
        args.pairing,
        out,
        parallel=_parallel_paths(args.parallel),
        resume=args.resume,
        quiet=args.quiet,
    )
    show_table(rows)
    succeeded = sum(row.succeeded for row in rows)
    print(f"{succeeded:,} of {len(rows):,} paths found in {out}; certify each: llpf verify {out}/NAME")
    return 0 if succeeded == len(rows) else 1


def _parallel_paths(given: str) -> int | None:
    """The value of --parallel; None for auto."""
    if given == "auto":
        return None
    if not given.isdecimal() or int(given) < 1:
        raise LLPFError(f"--parallel must be auto or a number of paths, at least 1; got {given!r}")
    return int(given)


def find_between(
    recipe: str,
    start: str | os.PathLike[str],
    destination: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    data_dir: str | None = None,
    loss: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    resume: bool = False,
    download: bool = False,
    quiet: bool = False,
) -> FindResult:
    """Search one path; wrong input raises LLPFError before anything is written."""
    search = SearchSetup(
        recipe, overrides, data_dir=data_dir, loss=loss, device=device, threads=threads, download=download
    )
    search.check_destination(destination is not None)
    return _find_one(search, start, destination, out, resume=resume, quiet=quiet)


def _find_one(
    search: SearchSetup,
    start: str | os.PathLike[str],
    destination: str | os.PathLike[str] | None,
    out: str | os.PathLike[str],
    *,
    resume: bool,
    quiet: bool,
) -> FindResult:
    from ..find.pairing import Pair

    with Progress("tick", quiet=quiet, upper_bound=True) as progress:

        def show(at: TickProgress) -> None:
            progress.update(at.tick, at.max_ticks, describe_tick(at))

        pair = Pair(Path(start), None if destination is None else Path(destination))
        return search.run(pair, out, resume=resume, progress=show)
