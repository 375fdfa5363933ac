"""Imports only point down: docs/design.md's floors, held against every file of the package and the Triton kernels."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Which rooms a room may import, besides the ground below. Ground first: a room names lower ones only.
FLOORS: dict[str, set[str]] = {
    "errors": set(),
    "types": set(),
    "user_code": set(),
    "modes": set(),
    "setting_types": set(),
    "settings": {"modes", "setting_types"},
    "ops": {"kernels", "modes"},  # inside a function: which implementation runs
    "kernels": {"modes", "ops"},
    "flat": {"ops"},
    "path": {"flat"},
    "recipes": {"path", "setting_types", "settings"},
    "batches": {"flat", "ops"},
    "tick": {"flat", "modes", "ops", "settings"},
    "correct": {"batches", "flat", "ops"},
    "data": {"batches", "user_code"},
    "models": {"batches", "user_code"},
    "verify": {"batches", "data", "flat", "models", "modes", "ops", "path", "user_code"},
    "find": {"batches", "correct", "flat", "modes", "ops", "path", "settings", "tick", "user_code", "verify"},
    "analysis": {"batches", "correct", "data", "find", "flat", "models", "ops", "path", "user_code", "verify"},
    "report": {"analysis", "modes", "path", "verify"},
}
#: What any room may import: they import nothing of the package but each other.
GROUND = {"errors", "types"}
#: The command line stands on everything.
TOP = {"cli", ""}


def modules() -> dict[str, Path]:
    found = {}
    for path in [*(ROOT / "llpf_fast").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] == "kernels":
            parts = ("llpf_fast", *parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    return [*module.split("."), ""][1]


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """Modules of the package that a module imports, and whether it does so when it is imported itself."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) + 1 - node.level], node.module or ""]).strip(".")
            origin = base if node.level else node.module or ""
            for name in node.names:
                if name.name == "__version__":  # the package itself imports nothing
                    continue
                full = f"{origin}.{name.name}"
                if (target := full if full in MODULES else origin) in MODULES:
                    yield target, node in tree.body
        elif isinstance(node, ast.Import):
            yield from ((name.name, node in tree.body) for name in node.names if name.name in MODULES)


@pytest.mark.parametrize("floor", sorted({room(module) for module in MODULES} - TOP))
def test_imports_only_point_down(floor: str) -> None:
    above = {
        f"{module} imports {target}"
        for module in MODULES
        if room(module) == floor
        for target, _ in imports(module)
        if room(target) not in FLOORS[floor] | GROUND | {floor}
    }
    assert not above, sorted(above)


def test_floors_have_an_order() -> None:
    try:
        list(TopologicalSorter({name: below - {"kernels"} for name, below in FLOORS.items()}).static_order())
    except CycleError as error:
        pytest.fail(f"the floors go round: {error.args[1]}")


def test_no_modules_import_each_other() -> None:
    graph = {
        module: {target for target, at_import in imports(module) if at_import and target != module}
        for module in MODULES
    }
    # A package's __init__ imports its modules, and these import their package's names from where they are defined.
    for module, targets in graph.items():
        targets -= {target for target in targets if module.startswith(f"{target}.")}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")
