"""``llpf demo``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

HELP = "train two small networks on the digits, find the path between them, certify and draw it"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=str, default="demo", metavar="DIR", help="folder to write")


def run(args: Namespace) -> int:
    raise NotImplementedError
