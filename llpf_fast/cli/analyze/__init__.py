"""``llpf analyze``: one command for each analysis of a loss landscape."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import LLPFError, require

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "barriers, layer-wise connectivity, connectors, widths, other curves, sharpness, pictures of a landscape"

#: Command -> module of this package with HELP, add_arguments and run. Imported for ``llpf analyze ...`` only; further
#: imports are inside ``run``.
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


def add_arguments(parser: ArgumentParser, chosen: str | None = None) -> None:
    """With ``chosen``, the name of an analysis, only the options of that one."""
    commands = parser.add_subparsers(dest="analysis", metavar="ANALYSIS")
    for name in _ANALYSES:
        module = _module(name)
        sub = commands.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False)
        if chosen == name or chosen not in _ANALYSES:
            module.add_arguments(sub)


def run(args: Namespace) -> int:
    from ..written_files import list_written

    if args.analysis is None:
        raise LLPFError(f"name an analysis, one of {{{','.join(_ANALYSES)}}}; see llpf analyze --help")
    # Before hours of evaluations.
    for package in ("scipy", "matplotlib"):
        require(package, "llpf analyze")
    name = args.analysis
    module = _module(name)
    with list_written(Path(args.out), getattr(module, "FILES", files(name)), f"llpf analyze {name}"):
        status: int = module.run(args)
    return status


def files(*stems: str) -> list[str]:
    """Globs of the files of results with these stems."""
    kinds = ("json", "csv", "png", "svg")
    return [f"{stem}{more}.{kind}" for stem in stems for more in ("", "-*") for kind in kinds]


def _module(name: str) -> Any:
    return import_module(f"{__name__}.{_ANALYSES[name]}")
