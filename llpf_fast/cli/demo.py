"""``llpf demo``: everything once, on data that ships inside scikit-learn."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LLPFError
from .find import find_between, summary
from .options import add_quiet, user_path
from .output import duration
from .train import train_endpoint
from .verify import draw, verdict, verify
from .written import keeping_others, remove_ours

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

HELP = "train two small networks on the digits, find the path between them, certify and draw it"

_RECIPE = "mlp-digits-m2m-quick"
_START, _DESTINATION, _RUN = "start.pt", "destination.pt", "run"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=user_path,
        default="demo",
        metavar="DIR",
        help="folder to write; an untouched demo goes",
    )
    add_quiet(parser)


def run(args: Namespace) -> int:
    folder = Path(args.out)
    _make_room(folder)
    with keeping_others(folder, ["**/*"], "llpf demo"):
        return _show(folder, quiet=args.quiet)


def _show(folder: Path, *, quiet: bool) -> int:
    began = time.monotonic()
    start, destination, path = folder / _START, folder / _DESTINATION, folder / _RUN
    for seed, file in ((1, start), (2, destination)):
        train_endpoint("mlp", "digits", file, seed=seed, epochs=30, lr=0.05, quiet=quiet)
    result = find_between(_RECIPE, start, destination, path, quiet=quiet)
    print(summary(result))
    certificate = verify(path, quiet=quiet)
    print(verdict(path, certificate))
    print(f"picture: {draw(path)}")
    print(f"done in {duration(time.monotonic() - began)}")
    return 0 if certificate.connected else 1


def _make_room(folder: Path) -> None:
    """Remove an earlier demo from ``folder``; anything else in it, or changed in it, is somebody's work and stays."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_ours(folder, "llpf demo")
    except OSError as error:
        raise LLPFError(f"cannot write in {folder}: {error.strerror or error}; choose another with --out") from error
