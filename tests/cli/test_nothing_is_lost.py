"""What llpf did not write, or what was changed since, is never deleted and never overwritten; ``~`` is home."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from llpf_fast.cli import demo as demo_command
from llpf_fast.cli.written_files import list_written, remove_listed
from llpf_fast.errors import LLPFError


def content(folder):
    return {str(file.relative_to(folder)): file.is_file() and file.read_bytes() for file in folder.rglob("*")}


@pytest.fixture
def demo(llpf, tmp_path, monkeypatch):
    """llpf demo, with something quick in the place of its work."""

    def show(folder: Path, *, quiet: bool) -> int:
        (folder / "start.pt").write_text("a network")
        (folder / "run" / "waypoints").mkdir(parents=True)
        (folder / "run" / "run.yaml").write_text("a run")
        (folder / "run" / ".lock").touch()
        return 0

    monkeypatch.setattr(demo_command, "_demonstrate", show)
    return lambda: llpf("demo", "--out", tmp_path / "demo", "--quiet")


def test_an_untouched_demo_is_replaced(demo, tmp_path):
    assert demo().status == 0
    first = content(tmp_path / "demo")
    assert demo().status == 0
    assert content(tmp_path / "demo") == first


@pytest.mark.parametrize(
    "name", ["run/notes.txt", "thesis.tex", ".hidden", "run/waypoints/x", "start.pt", "run/run.yaml"]
)
def test_a_demo_with_something_else_in_it_stays(demo, tmp_path, name):
    assert demo().status == 0
    (tmp_path / "demo" / name).write_text("precious")
    before = content(tmp_path / "demo")
    refused = demo()
    assert refused.status == 2
    assert f"demo holds {name}, which llpf demo did not write, or which was changed since" in refused.err
    assert refused.err.count("\n") == 1
    assert content(tmp_path / "demo") == before


def test_a_demo_of_which_the_list_is_lost_or_forged_stays(demo, tmp_path):
    assert demo().status == 0
    listed = tmp_path / "demo" / ".llpf-written.json"
    for text in ("", "[]", "[[[", json.dumps({"start.pt": "0"}), json.dumps({"start.pt": None})):
        listed.write_text(text)
        before = content(tmp_path / "demo")
        assert demo().status == 2
        assert content(tmp_path / "demo") == before


def test_a_folder_of_networks_is_no_demo(llpf, tmp_path):
    """Names that a demo has too."""
    (tmp_path / "start.pt").write_text("days of training")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text("a search of days")
    before = content(tmp_path)
    assert llpf("demo", "--out", tmp_path, "--quiet").status == 2
    assert content(tmp_path) == before


def test_a_demo_that_fails_can_be_begun_again(demo, tmp_path, monkeypatch):
    def fail(folder: Path, *, quiet: bool) -> int:
        (folder / "start.pt").write_text("half")
        raise LLPFError("no")

    good = demo_command._demonstrate
    monkeypatch.setattr(demo_command, "_demonstrate", fail)
    assert demo().status == 2
    monkeypatch.setattr(demo_command, "_demonstrate", good)
    assert demo().status == 0


def test_list_written(tmp_path):
    patterns = ["a*.csv"]

    def write(name="a.csv", text="ours"):
        with list_written(tmp_path, patterns, "this"):
            (tmp_path / name).write_text(text)

    (tmp_path / "b.csv").write_text("not asked about")
    write()
    write(text="ours again")
    (tmp_path / "a.csv").write_text("edited")
    with pytest.raises(LLPFError, match=r"a\.csv was not written by this, or was changed since; move it away"):
        write()
    (tmp_path / "a.csv").unlink()
    write()
    (tmp_path / "a-more.csv").write_text("somebody's")
    with pytest.raises(LLPFError, match=r"a-more\.csv was not written by this"):
        write()
    with pytest.raises(LLPFError, match=r"holds a-more\.csv, which this did not write"):
        remove_listed(tmp_path, "this")
    assert (tmp_path / "a.csv").read_text() == "ours"


@pytest.mark.parametrize(
    ("analysis", "name"),
    [("ticks", "ticks.csv"), ("pca", "pca.json"), ("pca", "pca-3d.png"), ("animate", "animation.gif")],
)
def test_results_replace_only_results(llpf, finished, tmp_path, analysis, name):
    more = {"ticks": [], "pca": ["--components", "2"], "animate": ["--frames", "2"]}[analysis]
    command = ["analyze", analysis, finished, *more, "--out", tmp_path]
    (tmp_path / name).write_text("measured by hand")
    refused = llpf(*command)
    assert refused.status == 2
    assert f"{name} was not written by llpf analyze {analysis}, or was changed since; move it away" in refused.err
    assert (tmp_path / name).read_text() == "measured by hand"
    (tmp_path / name).unlink()
    for _ in range(2):
        done = llpf(*command)
        assert done.status == 0, done.err


def test_a_picture_in_a_run_that_verify_did_not_draw_stays(llpf, finished, tmp_path):
    import shutil

    for name in ("path.png", "path.csv", "path.svg"):
        run = tmp_path / name
        shutil.copytree(finished, run)
        for old in run.glob("path.*"):
            old.unlink()
        (run / name).write_bytes(b"\x89PNG Matplotlib version 1" if name == "path.png" else b"mine")
        before = content(run)
        refused = llpf("verify", run, "--quiet")
        assert refused.status == 2
        assert f"{run / name} is not the picture of llpf verify, which would replace it; move it away" in refused.err
        assert content(run) == before


def test_verify_draws_again_over_its_own(llpf, finished, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for _ in range(2):
        assert llpf("verify", run, "--quiet").status == 0


@pytest.mark.parametrize("name", ["bench.json", "bench.md", "bandwidth.png", "throughput.png"])
def test_bench_replaces_only_benchmarks(llpf, tmp_path, name):
    (tmp_path / name).write_text('{"rows": 3}')
    refused = llpf("bench", "--only", "no such case", "--out", tmp_path)
    assert refused.status == 2
    assert f"{name} was not written by llpf bench" in refused.err
    assert (tmp_path / name).read_text() == '{"rows": 3}'


def test_bench_takes_its_own_folder(llpf, tmp_path):
    (tmp_path / "bench.json").write_text('{"rows": [], "environment": {}}')
    (tmp_path / "bench.md").write_text("of the last time")
    assert "no case was timed" in llpf("bench", "--only", "no such case", "--out", tmp_path).err


def test_a_curve_of_which_the_run_holds_notes_is_kept(llpf, ends, finished, tmp_path):
    import shutil

    run = tmp_path / "curves" / "runs" / "linear"
    shutil.copytree(finished, run)
    (run / "notes.txt").write_text("mine")
    before = content(run)
    refused = llpf(
        "analyze", "curves", ends.start, ends.destination, "--methods", "linear", "--out", tmp_path / "curves"
    )
    assert refused.status == 2
    assert "notes.txt is no part of the run that would be replaced; move it away" in refused.err
    assert content(run) == before


@pytest.mark.parametrize("write", ["--out={}", "--out {}"])
def test_home(llpf, ends, tmp_path, monkeypatch, write):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    os.link(ends.start, tmp_path / "a.pt")
    (tmp_path / "tiny.yaml").write_text("model: mlp\ndata: digits\nmode: m2o\nmax_ticks: 1\nthreshold: 9\n")
    found = llpf("find", "~/a.pt", "--recipe=~/tiny.yaml", *write.format("~/run").split(), "--quiet")
    assert found.status == 0, found.err
    assert (tmp_path / "run" / "status.json").exists()
    assert llpf("verify", "~/run", "--quiet").status in (0, 1)
    assert llpf("report", "~/run", "--no-components", "--out=~/report.html", "--quiet").status == 0
    assert llpf("analyze", "ticks", "~/run", "--out=~/ticks").status == 0
    train = ["train", "--model", "mlp", "--data", "digits", "--epochs", 1, "--init=~/a.pt", "--out=~/b.pt", "--quiet"]
    assert llpf(*train).status == 0
    assert not (tmp_path / "~").exists()
    assert {"run", "ticks", "report.html", "b.pt"} <= {entry.name for entry in tmp_path.iterdir()}


def test_a_home_that_nobody_has_is_a_name(llpf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = llpf("verify", "~nobody-of-this-name/run")
    assert missing.status == 2
    assert "~nobody-of-this-name/run is missing" in missing.err
    (tmp_path / "mine.yaml").write_text("model: mlp\ndata: digits\n")
    given = ["--data-dir", "~nobody-of-this-name", "--set", "data=mnist"]
    assert llpf("find", "x.pt", "--recipe", "mine.yaml", "--out", "run", *given).status == 2


def test_an_empty_folder_and_a_link_are_somebodys_too(demo, llpf, finished, tmp_path):
    (tmp_path / "demo" / "plans").mkdir(parents=True)
    refused = demo()
    assert refused.status == 2
    assert "demo holds plans, which llpf demo did not write" in refused.err
    assert (tmp_path / "demo" / "plans").is_dir()
    link = tmp_path / "link.html"
    link.symlink_to(tmp_path / "not mounted now")
    refused = llpf("report", finished, "--out", link, "--quiet")
    assert refused.status == 2
    assert "link.html exists already" in refused.err
    assert link.is_symlink()
