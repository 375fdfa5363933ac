"""``llpf analyze``: one command of its own for each question about a landscape."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

if TYPE_CHECKING:
    from jsonargparse import Namespace

HELP = "barriers, layer-wise connectivity, connectors, widths, other curves, sharpness, pictures of a landscape"

#: Command and the module of this package that carries it out (HELP, add_arguments, run). They are imported when the
#: command line is ``llpf analyze ...``; what they need beyond options they import when they run.
_ANALYSES: dict[str, str] = {
    "linear": "linear",
    "layers": "layers",
    "pca": "pca",
    "plane": "plane",
    "ticks": "ticks",
    "animate": "animate",
    "curves": "curves",
    "connect": "connect",
    "widths": "widths",
    "width-sweep": "width_sweep",
    "subspace": "subspace",
    "sharpness": "sharpness",
    "ensemble": "ensemble",
}


def names() -> list[str]:
    return list(_ANALYSES)


def add_arguments(parser: ArgumentParser) -> None:
    commands = parser.add_subcommands(dest="analysis", required=True, metavar="ANALYSIS")
    for name in _ANALYSES:
        module = _module(name)
        sub = ArgumentParser(description=module.HELP, exit_on_error=False, allow_abbrev=False)
        commands.add_subcommand(name, sub, help=module.HELP)
        module.add_arguments(sub)


def run(args: Namespace) -> int:
    status: int = _module(args.analysis).run(args[args.analysis])
    return status


def _module(name: str) -> Any:
    return import_module(f"{__name__}.{_ANALYSES[name]}")
