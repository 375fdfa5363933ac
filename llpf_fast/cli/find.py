"""``llpf find``: search a path between two checkpoints, into a run directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..errors import LLPFError
from .common import add_device, add_quiet, add_threads, choose_device, set_threads
from .progress import Progress, duration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jsonargparse import ArgumentParser, Namespace

    from ..find import FindResult, TickProgress

HELP = "search a low-loss path between two trained networks"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--recipe", type=str, required=True, metavar="NAME", help="a name, a YAML file, or 'list' to see the names"
    )
    parser.add_argument("--start", type=str, metavar="FILE", help="checkpoint the path begins at")
    parser.add_argument("--destination", type=str, metavar="FILE", help="checkpoint the path leads to")
    parser.add_argument("--data", type=str, metavar="DIR", help="folder that holds the data; digits need none")
    parser.add_argument("--out", type=str, metavar="RUN", help="run directory to create")
    parser.add_argument("--seed", type=int, metavar="N", help="of the batches (default: the recipe's)")
    parser.add_argument(
        "--set",
        type=str,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of the recipe, for example step.relative=0.01; may be repeated",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in RUN, given the same command")
    parser.add_argument("--download", action="store_true", help="let torchvision fetch data that is not there")
    add_device(parser)
    add_threads(parser)
    add_quiet(parser)


def run(args: Namespace) -> int:
    if args.recipe == "list":
        from .recipes import show

        show()
        return 0
    for name in ("start", "destination", "out"):
        if args[name] is None:
            raise LLPFError(f"llpf find needs --{name}; see llpf find --help")
    overrides = [*args.set, *([f"seed={args.seed}"] if args.seed is not None else [])]
    result = find_between(
        args.recipe,
        args.start,
        args.destination,
        args.out,
        overrides=overrides,
        data_dir=args.data,
        device=args.device,
        threads=args.threads,
        resume=args.resume,
        download=args.download,
        quiet=args.quiet,
    )
    print(summary(result))
    if not result.arrived:
        print("raise max_ticks or step.relative: --set max_ticks=...")
        return 1
    print(f"certify it: llpf verify {result.folder}")
    return 0


def find_between(
    recipe: str,
    start: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    data_dir: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    resume: bool = False,
    download: bool = False,
    quiet: bool = False,
) -> FindResult:
    """Load everything, refuse what cannot work before the run directory is touched, and search."""
    from ..recipes import load_recipe

    settings = load_recipe(recipe, overrides)
    for key in ("model", "data"):
        if not getattr(settings, key):
            raise LLPFError(f"recipe {recipe!r} names no {key}; add it to the file or pass --set {key}=NAME")
    where = choose_device(device)

    from ..data import load_dataset
    from ..find import PathFinder
    from ..models import build_model, check_images
    from ..path import check_finite, compare_architectures, load_model_file

    first, last = load_model_file(start), load_model_file(destination)
    for end in (first, last):
        check_finite(end.state, end.path)
    model = build_model(settings.model)
    compare_architectures(first.state, last.state, os.fspath(start), os.fspath(destination))
    compare_architectures(model.state_dict(), first.state, f"model {settings.model}", os.fspath(start))
    set_threads(threads, model)
    data = load_dataset(settings.data, data_dir, download=download)
    check_images(settings.model, data.train_inputs)

    with Progress("tick", quiet=quiet, upper_bound=True) as progress:

        def show(at: TickProgress) -> None:
            progress.update(at.tick, at.max_ticks, tick_text(at))

        finder = PathFinder(
            model,
            first.state,
            last.state,
            settings=settings,
            train=data.train,
            device=where,
            out=out,
            progress=show,
            resume=resume,
            provenance={
                "recipe": recipe,
                "start": os.path.abspath(start),
                "destination": os.path.abspath(destination),
                "data_dir": None if data_dir is None else os.path.abspath(data_dir),
            },
        )
        return finder.run()


def tick_text(at: TickProgress) -> str:
    """Loss, share of the way that is left, SGD steps so far."""
    return f"loss {at.loss:.4f}  distance left {at.distance:.1%}  {at.steps:,} SGD steps"


def summary(result: FindResult) -> str:
    """One line: how the search ended."""
    ended = "arrived" if result.arrived else "did not arrive"
    return (
        f"{result.folder}: {ended} after {result.ticks:,} ticks, {result.sgd_steps:,} SGD steps, "
        f"{duration(result.seconds)}; {result.waypoints:,} waypoints"
    )
