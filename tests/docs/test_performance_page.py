"""docs/performance.md shows what benchmarks/results/cpu holds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def _writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("performance_page", ROOT / "docs" / "performance.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_committed_measurements() -> None:
    writer = _writer()
    text = writer.PAGE.read_text()
    assert writer.page(text, writer.block()) == text, "run python docs/performance.py --write"


def test_a_changed_figure_would_be_seen() -> None:
    writer = _writer()
    text = writer.PAGE.read_text()
    assert writer.page(text, writer.block().replace("map", "mop")) != text
