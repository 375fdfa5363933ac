"""``llpf demo``: everything once, on data that ships inside scikit-learn."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LLPFError
from .common import add_quiet
from .find import find_between, summary
from .progress import duration
from .train import train_endpoint
from .verify import draw, verdict, verify

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

HELP = "train two small networks on the digits, find the path between them, certify and draw it"

_RECIPE = "mlp-digits-m2m-quick"
_START, _DESTINATION, _RUN = "start.pt", "destination.pt", "run"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=str, default="demo", metavar="DIR", help="folder to write; an earlier demo goes")
    add_quiet(parser)


def run(args: Namespace) -> int:
    began = time.monotonic()
    folder = Path(args.out)
    _make_room(folder)
    start, destination, path = folder / _START, folder / _DESTINATION, folder / _RUN
    for seed, file in ((1, start), (2, destination)):
        train_endpoint("mlp", "digits", file, seed=seed, epochs=30, lr=0.05, quiet=args.quiet)
    result = find_between(_RECIPE, start, destination, path, quiet=args.quiet)
    print(summary(result))
    certificate = verify(path, quiet=args.quiet)
    print(verdict(path, certificate))
    print(f"picture: {draw(path)}")
    print(f"done in {duration(time.monotonic() - began)}")
    return 0 if certificate.connected else 1


def _make_room(folder: Path) -> None:
    """Remove an earlier demo from ``folder``; anything else in it is somebody's work and stays."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        strangers = sorted(entry.name for entry in folder.iterdir() if entry.name not in (_START, _DESTINATION, _RUN))
        if strangers:
            raise LLPFError(f"{folder} holds {strangers[0]}, which no demo wrote; choose another folder with --out")
        for name in (_START, _DESTINATION):
            (folder / name).unlink(missing_ok=True)
        if (folder / _RUN).exists():
            shutil.rmtree(folder / _RUN)
    except OSError as error:
        raise LLPFError(f"cannot write in {folder}: {error.strerror or error}; choose another with --out") from error
