"""llpf analyze pca, plane, ticks, animate: from a finished run, and one line for what cannot be drawn."""

from __future__ import annotations

import json

import pytest


def test_components(llpf, finished, tmp_path):
    done = llpf("analyze", "pca", finished, "--layers", "--out", tmp_path, "--quiet")
    assert done.status == 0, done.err
    assert "of the squared deviation" in done.out
    for stem in ("pca", "pca-3d", "pca-layers"):
        assert all((tmp_path / f"{stem}.{kind}").stat().st_size > 0 for kind in ("png", "svg", "csv"))
    numbers = json.loads((tmp_path / "pca.json").read_text())["numbers"]
    assert 0.5 < sum(numbers["whole"]["explained"]) <= 1
    assert len(numbers["layers"]) >= 2


def test_plane_resumes_from_its_cache(llpf, finished, tmp_path):
    arguments = ("analyze", "plane", finished, "--resolution", "3", "--path-points", "4", "--samples", "100")
    first = llpf(*arguments, "--out", tmp_path, "--quiet")
    assert first.status == 0, first.err
    assert "at their projections on the plane" in first.out
    (cache,) = (tmp_path / "cache").glob("evaluations-*.jsonl")
    size, before = cache.stat().st_size, (tmp_path / "plane.csv").read_bytes()
    assert llpf(*arguments, "--out", tmp_path, "--quiet").out == first.out
    assert cache.stat().st_size == size
    assert (tmp_path / "plane.csv").read_bytes() == before


def test_ticks_and_film(llpf, finished, tmp_path):
    assert llpf("analyze", "ticks", finished, "--out", tmp_path).status == 0
    done = llpf("analyze", "animate", finished, "--frames", "3", "--out", tmp_path, "--quiet")
    assert done.status == 0, done.err
    assert (tmp_path / "animation.gif").read_bytes()[:3] == b"GIF"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pca", "EMPTY"], "is not the folder of a run"),
        (["pca", "RUN", "--components", "1"], "--components must be at least 2"),
        (["pca", "RUN", "--memory", "0"], "--memory must be at least 1"),
        (["ticks", "EMPTY"], "is not the folder of a run"),
        (["animate", "RUN", "--format", "avi"], "a gif or an mp4"),
        (["plane", "RUN@0", "RUN@1"], "at least 3 models are needed, 2 given"),
        (["plane", "RUN@0", "RUN@1", "RUN@2", "RUN@3"], "three points, 4 are given"),
        (["plane", "RUN@0", "RUN@1", "RUN@0"], "the same point"),
        (["plane", "RUN", "--statistics", "none"], "--statistics must be"),
        (["plane", "RUN", "--resolution", "1"], "resolution"),
    ],
)
def test_bad_input_is_one_line(llpf, finished, tmp_path, arguments, said):
    (tmp_path / "empty").mkdir()
    given = [a.replace("RUN", str(finished)).replace("EMPTY", str(tmp_path / "empty")) for a in arguments]
    done = llpf("analyze", *given, "--out", tmp_path / "out")
    assert done.status == 2
    assert said in done.err.replace("\n", " ")
    assert done.err.count("\n") == 1
