"""``llpf info``: versions, hardware, which kernels are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "versions, hardware, which kernels are loaded and why the rest is not"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(args: Namespace) -> int:
    import json

    from ..ops import info

    values = info()
    if args.json:
        print(json.dumps(values, indent=2, default=str))
    else:
        _print(values)
    return 0


def _print(value: object, name: str = "", indent: int = 0) -> None:
    space = "  " * indent
    if isinstance(value, dict):
        if name:
            print(f"{space}{name}:")
        for key, inner in value.items():
            _print(inner, str(key), indent + bool(name))
    elif isinstance(value, (list, tuple)):
        print(f"{space}{name}: {', '.join(map(str, value)) or 'none'}")
    else:
        print(f"{space}{name}: {'none' if value is None else value}")
