"""The table of docs/models.md agrees with the code."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from llpf_fast.errors import LLPFError
from llpf_fast.models import build_model, check_images, model_names
from llpf_fast.recipes import load_recipe, recipe_names

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
QUICK = "-quick"


def rows() -> dict[str, list[str]]:
    lines = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_every_network_has_one_row() -> None:
    assert sorted(rows()) == model_names()


@pytest.mark.parametrize("name", model_names())
def test_row(name: str) -> None:
    source, images, change, parameters, normalization, recipes = rows()[name]
    model = build_model(name)
    library = {"vit-pytorch": "vit_pytorch", "here": "llpf_fast", "torchvision's": "torch"}
    word = re.split(r"[ ,]", source)[0]
    assert type(model).__module__.partition(".")[0] == library.get(word, word)
    shape = tuple(map(int, images.split("x")))
    check_images(name, torch.zeros(1, *shape))
    with pytest.raises(LLPFError, match="takes images of"):
        check_images(name, torch.zeros(1, shape[0], shape[1] + 1, shape[2]))
    assert change
    assert parameters == f"{sum(p.numel() for p in model.parameters()):,}"
    norms = Counter(type(layer).__name__ for layer in model.modules() if isinstance(layer, NORMS))
    assert normalization == (", ".join(f"{count} {kind}" for kind, count in norms.items()) or "none")
    expected = {each.removesuffix(QUICK) for each in recipe_names() if load_recipe(each).model == name}
    assert set(re.findall("`([^`]+)`", recipes)) == expected
    alone = [each for each in expected if each not in recipe_names()]
    assert ("(quick only)" in recipes) == bool(alone)
