"""``llpf analyze``: one command of its own for each question about a landscape."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
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


def add_arguments(parser: ArgumentParser, chosen: str | None = None) -> None:
    """With the name of an analysis, that one's options only."""
    commands = parser.add_subcommands(dest="analysis", required=True, metavar="ANALYSIS")
    for name in _ANALYSES:
        module = _module(name)
        sub = ArgumentParser(description=module.HELP, exit_on_error=False, allow_abbrev=False)
        commands.add_subcommand(name, sub, help=module.HELP)
        if chosen == name or chosen not in _ANALYSES:
            module.add_arguments(sub)


def run(args: Namespace) -> int:
    from ...errors import require
    from ..written import keeping_others

    # Before hours of measurements, not after them.
    for package in ("scipy", "matplotlib"):
        require(package, "llpf analyze")
    name, given = args.analysis, args[args.analysis]
    module = _module(name)
    with keeping_others(Path(given.out), getattr(module, "FILES", files(name)), f"llpf analyze {name}"):
        status: int = module.run(given)
    return status


def files(*stems: str) -> list[str]:
    """Globs of what results of these names are called."""
    kinds = ("json", "csv", "png", "svg")
    return [f"{stem}{more}.{kind}" for stem in stems for more in ("", "-*") for kind in kinds]


def _module(name: str) -> Any:
    return import_module(f"{__name__}.{_ANALYSES[name]}")
