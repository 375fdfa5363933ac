"""``llpf verify``: the certificate of a run, from its files alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .common import add_device, add_quiet

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from ..verify import Certificate

HELP = "certify the path in a run directory: exit status 0 when it is connected, 1 when not"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=str, metavar="RUN", help="run directory")
    parser.add_argument("--data", type=str, metavar="DIR", help="folder that holds the data, where it has moved")
    parser.add_argument("--full", action="store_true", help="the whole training set at every point")
    add_device(parser)
    add_quiet(parser)


def run(args: Namespace) -> int:
    certificate = verify(args.run, data_dir=args.data, full=args.full, device=args.device, quiet=args.quiet)
    print(verdict(args.run, certificate))
    return 0 if certificate.connected else 1


def verify(
    run_folder: str | os.PathLike[str],
    *,
    data_dir: str | None = None,
    full: bool = False,
    device: str = "cpu",
    quiet: bool = False,
) -> Certificate:
    """Compute and write the certificate, showing progress."""
    raise NotImplementedError


def verdict(run_folder: str | os.PathLike[str], certificate: Certificate) -> str:
    """One line: the verdict and the numbers it rests on."""
    raise NotImplementedError


__all__ = ["Path"]
