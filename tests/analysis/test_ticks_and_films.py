"""Layers against ticks, the film of a path, and the pictures of components, from runs made by hand."""

from __future__ import annotations

import csv
import math
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from PIL import Image

from llpf_fast.analysis.pca import principal_components
from llpf_fast.analysis.ticks import read_ticks
from llpf_fast.errors import LLPFError
from llpf_fast.models import build_model
from llpf_fast.path import RunDirectory
from llpf_fast.report.film import animate_path
from llpf_fast.report.pca import draw_components
from llpf_fast.report.ticks import draw_ticks
from llpf_fast.verify import Evaluator, certify


def record(tick, count, **more):
    values = {"distances": [1.0 / tick] * count, "variances": [0.1 * tick] * count}
    return {"tick": tick, "loss": 0.01 * tick, "rounds": 5, **values, **more}


@pytest.fixture
def run(tmp_path):
    """Four waypoints of the registered perceptron, with ticks of its six tensors."""
    made = RunDirectory.create(tmp_path / "run", {"settings": {"model": "mlp", "data": "digits", "mode": "m2m"}})
    start = build_model("mlp").state_dict()
    for tick in range(4):
        made.add_waypoint(tick, {name: value + 0.1 * tick * (tick + value) for name, value in start.items()})
    for tick in range(1, 4):
        made.append_metrics(record(tick, len(start), **({"rolled_back": True} if tick == 2 else {})))
    return made


def texts(svg):
    return [element.text or "" for element in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_ticks_have_the_layers_names(run, tmp_path):
    ticks = read_ticks(run.folder)
    assert ticks.layers == [name for name, _ in build_model("mlp").named_parameters()]
    assert ticks.taken_back == [False, True, False]
    picture = draw_ticks(ticks, tmp_path / "out", title="mine")
    rows = list(csv.DictReader(picture.with_suffix(".csv").open()))
    assert len(rows) == 3 * len(ticks.layers)
    assert float(rows[-1]["variance"]) == pytest.approx(0.3)
    output = texts(picture.with_suffix(".svg"))
    assert "distance to the destination" in output
    assert "tick rolled back" in output


def test_ticks_without_a_known_model_have_numbers(tmp_path):
    made = RunDirectory.create(tmp_path / "run", {"settings": {"mode": "m2o"}})
    made.append_metrics(record(1, 30, loss=math.nan))
    ticks = read_ticks(made)
    assert ticks.layers[3] == "segment 3"
    output = texts(draw_ticks(ticks, tmp_path / "out").with_suffix(".svg"))
    assert "distance to the origin" in output


def test_ticks_that_cannot_be_read(tmp_path):
    made = RunDirectory.create(tmp_path / "run", {})
    with pytest.raises(LLPFError, match="no ticks yet"):
        read_ticks(made)
    made.append_metrics(record(1, 2))
    made.append_metrics(record(2, 3))
    with pytest.raises(LLPFError, match=r"metrics\.jsonl is damaged.*2, 3"):
        read_ticks(made)


def certified(run):
    inputs, targets = torch.randn(9, 64), torch.arange(9)
    train = Evaluator(build_model("mlp"), None, inputs, targets)
    run.write_certificate(certify(run.waypoints(), train, threshold=100).as_dict())


def test_components_drawn_with_layers(run, tmp_path):
    pictures = draw_components(principal_components([run], per_layer=True), tmp_path)
    assert [picture.name for picture in pictures] == ["pca.png", "pca-3d.png", "pca-layers.png"]
    assert all(picture.with_suffix(kind).exists() for picture in pictures for kind in (".svg", ".csv"))
    assert any("no finite loss known" in text for text in texts(tmp_path / "pca.svg"))
    rows = list(csv.DictReader((tmp_path / "pca-layers.csv").open()))
    assert {row["layer"] for row in rows} == {
        name.rpartition(".")[0] for name, _ in build_model("mlp").named_parameters()
    }


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_film_of_a_certified_path(run, tmp_path, kind):
    if kind == "mp4":
        pytest.importorskip("imageio_ffmpeg")
    certified(run)
    components = principal_components([run], components=2)
    film = animate_path(components, tmp_path / "out", kind=kind, frames=5, seconds=0.5)
    rows = list(csv.DictReader((tmp_path / "out" / "animation.csv").open()))
    assert len(rows) == 5
    assert (float(rows[0]["arc"]), float(rows[-1]["arc"])) == (0, 1)
    assert {path.suffix for path in film.parent.iterdir()} == {f".{kind}", ".png", ".svg", ".csv"}
    if kind == "gif":
        with Image.open(film) as image:
            assert image.n_frames == 5
            assert image.size == (880, 400)
    else:
        import imageio_ffmpeg

        assert imageio_ffmpeg.read_frames(str(film)).__next__()["size"] == (880, 400)


def test_positions_between_waypoints_are_those_of_the_interpolated_states(run, tmp_path):
    certified(run)
    components = principal_components([run], components=2)
    animate_path(components, tmp_path, frames=200, seconds=0.5)
    inside = [row for row in csv.DictReader((tmp_path / "animation.csv").open()) if float(row["fraction"]) == 0.5]
    assert len(inside) >= 3
    row = next(row for row in inside if row["waypoint"] == "1")
    first, second = components.whole.coordinates[0][1:3]
    assert [float(row["pc1"]), float(row["pc2"])] == pytest.approx(list((first + second) / 2))


def test_film_without_certificate_shows_waypoints(run, tmp_path):
    animate_path(principal_components([run], components=2), tmp_path, frames=9, seconds=0.5)
    rows = list(csv.DictReader((tmp_path / "animation.csv").open()))
    assert [row["loss"] for row in rows] == ["", "0.01", "0.02", "0.03"]


def test_film_refusals(run, tmp_path):
    components = principal_components([run], components=2)
    for wrong in ({"kind": "avi"}, {"frames": 1}, {"seconds": 0.0}):
        with pytest.raises(LLPFError, match="animation"):
            animate_path(components, tmp_path, **wrong)
    assert list(tmp_path.glob("animation*")) == []
