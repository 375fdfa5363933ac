"""The gallery shows every committed picture with its present numbers."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from benchmarks.studies.gallery import Shown, excerpt
from benchmarks.studies.study import small_picture

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    file = Path(__file__).parents[2] / "docs" / "gallery.py"
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


def test_every_link_leads_to_a_file_and_every_picture_is_shown(gallery: ModuleType) -> None:
    text = gallery.page()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) == 8
    for link in links:
        assert (gallery.PAGE.parent / link).resolve().is_file(), link
    for picture in (gallery.RESULTS / "gallery").glob("*.png"):
        assert f"benchmarks/results/gallery/{picture.name}" in text


def test_committed_results_are_small() -> None:
    """Under 1 MB in all, no picture above 100 kB but those of the benchmark."""
    files = [file for file in RESULTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 1_000_000
    for folder in ("gallery", "paths"):
        assert max(file.stat().st_size for file in (RESULTS / folder).iterdir()) < 100_000


def test_a_picture_without_description_is_refused(
    gallery: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gallery").mkdir()
    (tmp_path / "gallery" / "novelty.png").write_bytes(b"")
    monkeypatch.setattr(gallery, "RESULTS", tmp_path)
    with pytest.raises(SystemExit, match=r"gallery/novelty\.png"):
        gallery.page()


def test_the_gallery_takes_pictures_and_numbers_from_the_studies(tmp_path: Path) -> None:
    from PIL import Image

    content = {
        "about": {"problem": {"model": "mlp", "data": "digits"}, "commit": "abc"},
        "environment": {"machine": "a machine", "torch": "2"},
        "numbers": {"depth": {"loss": 0.5}, "rows": [{"a": 1, "b": 2}, {"b": 3}]},
    }
    shown = Shown("x case", "x/case", "x/case", {"the loss": "depth.loss"}, ("rows", ("a", "b")))
    result = excerpt(shown, content)
    assert result["numbers"] == {"the loss": 0.5}
    assert (result["columns"], result["rows"]) == (["a", "b"], [[1, 2], [None, 3]])
    assert (result["command"], result["model"]) == ("python -m benchmarks.studies.x case", "mlp")
    picture = Image.new("RGB", (8, 8), (200, 10, 10))
    picture.putpixel((3, 3), (0, 114, 178))
    picture.save(tmp_path / "a.png")
    small_picture(tmp_path / "a.png", tmp_path / "out" / "a.png")
    with Image.open(tmp_path / "out" / "a.png") as small:
        assert small.mode == "P"
        assert small.convert("RGB").getpixel((3, 3)) == (0, 114, 178)


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
