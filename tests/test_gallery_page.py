"""The gallery shows every committed result, as it is now."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    file = Path(__file__).parents[1] / "docs" / "gallery.py"
    spec = importlib.util.spec_from_file_location("gallery", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["gallery"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_current(gallery: ModuleType) -> None:
    assert gallery.PAGE.read_text(encoding="utf-8") == gallery.page(), "run: python docs/gallery.py --write"


def test_every_link_leads_somewhere_and_every_folder_is_shown(gallery: ModuleType) -> None:
    text = gallery.page()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 10
    for link in links:
        assert (gallery.PAGE.parent / link).resolve().is_file(), link
    for folder in (gallery.RESULTS / "analysis").iterdir():
        assert f"benchmarks/results/analysis/{folder.name}/" in text


def test_a_folder_without_description_is_noticed(
    gallery: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "paths").mkdir()
    (tmp_path / "analysis" / "novelty").mkdir(parents=True)
    monkeypatch.setattr(gallery, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match="analysis/novelty"):
        gallery.page()


def test_a_path_that_is_not_connected_says_why(
    gallery: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    certificate = {
        **{"connected": False, "threshold": 0.1, "max_loss": None, "points_evaluated": 5, "waypoints": 2},
        "reasons": ["the loss is not finite"],
    }
    (tmp_path / "benchmarks" / "paths").mkdir(parents=True)
    (tmp_path / "benchmarks" / "paths" / "x.json").write_text(json.dumps({"certificate": certificate}))
    (tmp_path / "benchmarks" / "paths" / "x.png").write_bytes(b"")
    monkeypatch.setattr(gallery, "ROOT", tmp_path)
    monkeypatch.setattr(gallery, "RESULTS", tmp_path / "benchmarks")
    text = gallery.page()
    assert "Not connected at 0.1; highest training loss not finite" in text
    assert "the loss is not finite" in text
