"""The README's table of what is supported agrees with the code."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from llpf_fast.modes import MODES


@pytest.fixture(scope="module")
def supported() -> ModuleType:
    file = Path(__file__).parents[2] / "docs" / "supported.py"
    spec = importlib.util.spec_from_file_location("supported", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_readme_holds_what_the_code_supports(supported: ModuleType) -> None:
    assert supported.in_readme() == supported.block(), "run: python docs/supported.py --write"


def test_every_mode_is_described(supported: ModuleType) -> None:
    assert all(row.text and row.title and row.distance for row in MODES.values())
    rows = [line.split("|")[1:3] for line in supported.block().splitlines()[2 : 2 + len(MODES)]]
    assert rows == [[f" `{name}` ", f" {row.text} "] for name, row in MODES.items()]
