"""``llpf demo``: train, find, certify and draw, on the digits of scikit-learn."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LLPFError
from .find import find_between
from .options import add_quiet, user_path
from .output import duration
from .search import describe_result
from .train import train_endpoint
from .verify import draw, verdict, verify
from .written_files import list_written, remove_listed

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "train two small networks on the digits, find the path between them, certify and draw it"

_RECIPE = "mlp-digits-m2m-quick"
_START, _DESTINATION, _RUN = "start.pt", "destination.pt", "run"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=user_path,
        default="demo",
        metavar="DIR",
        help="folder to write; an earlier, unchanged demo in it is deleted",
    )
    add_quiet(parser)


def run(args: Namespace) -> int:
    folder = Path(args.out)
    _remove_earlier_demo(folder)
    with list_written(folder, ["**/*"], "llpf demo"):
        return _demonstrate(folder, quiet=args.quiet)


def _demonstrate(folder: Path, *, quiet: bool) -> int:
    began = time.monotonic()
    start, destination, path = folder / _START, folder / _DESTINATION, folder / _RUN
    for seed, file in ((1, start), (2, destination)):
        train_endpoint("mlp", "digits", file, seed=seed, epochs=30, lr=0.05, quiet=quiet)
    result = find_between(_RECIPE, start, destination, path, quiet=quiet)
    print(describe_result(result))
    certificate = verify(path, quiet=quiet)
    print(verdict(path, certificate))
    print(f"picture: {draw(path)}")
    print(f"done in {duration(time.monotonic() - began)}")
    return 0 if certificate.connected else 1


def _remove_earlier_demo(folder: Path) -> None:
    """Delete an earlier demo in ``folder``; LLPFError where the folder holds other or changed files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_listed(folder, "llpf demo")
    except OSError as error:
        raise LLPFError(f"cannot write in {folder}: {error.strerror or error}; choose another with --out") from error
