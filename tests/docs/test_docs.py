"""docs/your-own-model.md agrees with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llpf_fast.find.pairing import PAIRINGS
from llpf_fast.recipes import load_recipe

DOCS = Path(__file__).parents[2] / "docs"
pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="the documents are not beside the tests")


def test_your_own_model(tmp_path):
    text = (DOCS / "your-own-model.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (DOCS / link).exists(), link
    (block,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(block)
    settings = load_recipe(recipe)
    assert (settings.model, settings.data) == ("mine.py:MyModel", "mine.py:data")
    assert all(f"`{pairing}`" in text for pairing in PAIRINGS)
    assert f"**arrival.margin** ({settings.arrival.margin})" in text
