"""The report of runs in every state, and what a real browser makes of it."""

from __future__ import annotations

import copy
import json
import math
import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from llpf_fast.cli.main import main
from llpf_fast.errors import LLPFError
from llpf_fast.path import RunDirectory, state_digest
from llpf_fast.report.html.page import is_report, write_report
from llpf_fast.verify import Evaluator, certify

from .browser import Browser, find_browser

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def state(x):
    return {"layer.weight": torch.full((3, 2), float(x)), "layer.bias": torch.tensor([float(x), x * x, 1.0])}


class Layer(nn.Module):
    """Outputs whose mean is ``loss`` of the first weight."""

    def __init__(self, loss):
        super().__init__()
        self.layer, self._loss = nn.Linear(2, 3), loss

    def forward(self, inputs):
        return inputs - 0.5 + self._loss(float(self.layer.weight[0, 0]))


def make_run(
    folder, *, certificate=True, finished=True, note="none", loss=lambda x: 0.01 + 0.05 * math.sin(3 * x) ** 2
):
    points = [state(x) for x in (0, 1, 2, 3)]
    run = RunDirectory.create(
        folder,
        {
            "settings": {"model": "mlp", "data": "digits", "mode": "m2m", "threshold": 0.1, "remark": note},
            "provenance": {"start": f"/secret/place/{note[:8]}.pt", "remark": note},
            "environment": {"machine": "a machine", "torch": "2"},
            "start_sha256": state_digest(points[0]),
            "destination_sha256": state_digest(points[-1]),
        },
    )
    for tick, point in enumerate(points):
        run.add_waypoint(tick, point)
        values = {"distances": [3.0 - tick, 1e-3], "variances": [0.5, 0.1 + tick]}
        run.append_metrics({"tick": tick + 1, "loss": 0.02, "rounds": 5, "sgd_steps": 5 * tick, **values})
    if finished:
        run.finish(arrived=True, ticks=4, sgd_steps=15, seconds=75.0)
    if certificate:
        inputs, targets = torch.eye(2)[[0, 1, 1]], torch.tensor([0, 1, 1])
        train = Evaluator(Layer(loss), lambda output, target: output.mean(), inputs, targets)
        run.write_certificate(certify(run.waypoints(), train, train, threshold=0.1, seed=0).as_dict())
    return run


def edit_certificate(run, **changes):
    content = copy.deepcopy(run.certificate())
    content.update(changes)
    (run.folder / "certificate.json").write_text(json.dumps(content))


class Page(HTMLParser):
    """Elements with their attributes, and the text outside scripts and styles."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.text, self._inside = [], "", ""
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("script", "style"):
            self.text += data


def report(tmp_path, *runs):
    out = write_report([run.folder for run in runs], tmp_path / "report.html")
    return Page(out.read_text())


def test_a_certified_run(tmp_path):
    page = report(tmp_path, make_run(tmp_path / "mine"))
    for words in (
        *("Connected (sampled) at training loss 0.1", "mlp on digits, from model to model", "1 min 15 s", "a machine"),
        *("Loss along the path", "Where the path goes", "highest training loss", "100.00 %", "Settings"),
    ):
        assert words in page.text
    plots = [a["id"] for tag, a in page.elements if tag == "div" and a.get("class", "").startswith("plot")]
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', (tmp_path / "report.html").read_text())[1])
    assert sorted(plots) == sorted(figures)
    assert len(plots) == 5


def test_one_file_with_one_plotly_and_nothing_from_elsewhere(tmp_path):
    page = report(tmp_path, make_run(tmp_path / "one"), make_run(tmp_path / "two"))
    assert [tag for tag, _ in page.elements].count("script") == 3
    assert (tmp_path / "report.html").read_text().count("* plotly.js v") == 1
    for tag, attributes in page.elements:
        assert not attributes.keys() & {"src", "srcset", "onclick", "onload", "onerror"}
        if "href" in attributes:
            assert tag == "a"
            assert attributes["href"].startswith("#")
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert policy.count("'sha256-") == 2
    assert next(a for tag, a in page.elements if a.get("name") == "viewport")["content"].startswith(
        "width=device-width"
    )
    assert (tmp_path / "report.html").stat().st_size < 6e6


def test_the_same_runs_give_the_same_file(tmp_path):
    run = make_run(tmp_path / "run")
    first = write_report([run.folder], tmp_path / "a.html").read_bytes()
    assert write_report([run.folder], tmp_path / "b.html").read_bytes() == first


def test_runs_in_any_state_say_so(tmp_path):
    bare = make_run(tmp_path / "bare", certificate=False, finished=False)
    assert "Not certified" in (text := report(tmp_path, bare).text)
    assert "There is no certificate" in text
    assert "not finished" in text

    empty = RunDirectory.create(tmp_path / "empty", {"settings": None})
    assert "No waypoints yet" in (text := report(tmp_path, empty).text)
    assert "recorded no ticks" in text

    failed = make_run(tmp_path / "failed", loss=lambda x: math.nan if x == 2 else 0.5)
    assert "Refuted at training loss 0.1" in (text := report(tmp_path, failed).text)
    assert "not finite" in text

    noted = make_run(tmp_path / "noted", finished=False)
    noted.finish(arrived=True, ticks=4, notes=["layer.bias had no direction to go"])
    assert "layer.bias had no direction to go" in report(tmp_path, noted).text

    changed = make_run(tmp_path / "changed")
    waypoint = changed.waypoints()[1].path
    waypoint.write_bytes(waypoint.read_bytes()[:-1] + b"\1")
    text = report(tmp_path, changed).text
    assert "Changed or damaged files" in text
    assert "000001.safetensors was changed after it was recorded" in text
    assert "Connected (" not in text


def test_certificates_that_are_not_this_paths(tmp_path):
    other = make_run(tmp_path / "other")
    edit_certificate(other, waypoint_sha256=["0" * 64] * 4)
    assert "Certificate of another path" in report(tmp_path, other).text

    edits = [
        *(
            {"max_loss": 0.001},
            {"threshold": 0.03},
            {"reasons": ["because"]},
            {"points": None},
            {"points": [{"at": 3}]},
        ),
        *({"reasons": [7]}, {"waypoints": None}, {"evaluation": {"train": {"screened": True}}}),
    ]
    for number, changes in enumerate(edits):
        run = make_run(tmp_path / f"edited{number}")
        edit_certificate(run, **changes)
        text = report(tmp_path, run).text
        assert "Certificate damaged" in text, changes
        assert "onnected (" not in text, changes

    torn = make_run(tmp_path / "torn")
    (torn.folder / "certificate.json").write_text("{")
    assert "not JSON" in report(tmp_path, torn).text


def test_odd_values_inside_a_certificate_are_reported_not_raised(tmp_path):
    run = make_run(tmp_path / "run")
    points = run.certificate()["points"]
    points[1]["train_samples"] = EVIL
    edit_certificate(run, points=points)
    page = report(tmp_path, run)
    assert "Certificate damaged" in page.text
    run = make_run(tmp_path / "records")
    run_metrics = run.folder / "metrics.jsonl"
    run_metrics.write_text(run_metrics.read_text().replace('"rounds": 5', '"rounds": [1]'))
    assert "cannot be shown" in report(tmp_path, run).text


def test_text_from_runs_is_only_text(tmp_path):
    run = make_run(tmp_path / "<b>run & co", note=EVIL)
    edit_certificate(run, connected=False, verdict="refuted", reasons=[EVIL])
    page = report(tmp_path, run)
    assert [tag for tag, _ in page.elements].count("script") == 3
    assert "img" not in [tag for tag, _ in page.elements]
    assert EVIL in page.text
    source = (tmp_path / "report.html").read_text()
    assert EVIL not in source
    assert "/secret/place" not in source
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', source)[1])
    names = [trace["name"] for figure in figures.values() for trace in figure["data"]]
    assert "&lt;b&gt;run &amp; co" in names


def test_several_runs_are_compared(tmp_path):
    runs = [make_run(tmp_path / "one"), make_run(tmp_path / "two", loss=lambda x: 0.02 * x)]
    page = report(tmp_path, *runs, make_run(tmp_path / "three", certificate=False))
    assert "Comparison" in page.text
    rows = page.text[page.text.index("Comparison") :]
    assert rows.index("one") < rows.index("two") < rows.index("three")
    assert "0.06" in rows


def test_refusals(tmp_path):
    with pytest.raises(LLPFError, match="no run is given"):
        write_report([], tmp_path / "x.html")
    with pytest.raises(LLPFError, match="not the folder of a run"):
        write_report([tmp_path], tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


def test_command(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert main(["report", str(run.folder), "--quiet"]) == 0
    assert is_report(run.folder / "report.html")
    run.check()
    assert main(["report", str(run.folder), "--quiet", "--no-components"]) == 0
    assert "Left out, as asked for" in (run.folder / "report.html").read_text()
    mine = tmp_path / "mine.html"
    mine.write_text("something dear")
    assert main(["report", str(run.folder), "--out", str(mine)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert mine.read_text() == "something dear"
    assert main(["report", str(tmp_path)]) == 2
    assert "not the folder of a run" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    executable = find_browser()
    if executable is None:
        pytest.skip("no chromium or chrome on this machine")
    with Browser(executable, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def test_in_a_browser(browser, tmp_path):
    runs = [
        make_run(tmp_path / "one", note=EVIL),
        make_run(tmp_path / ("long-" * 20), finished=False, certificate=False),
    ]
    runs.append(make_run(tmp_path / "failed", loss=lambda x: math.nan if x == 2 else 0.5 * x))
    file = write_report([run.folder for run in runs], tmp_path / "report.html")
    for width, height, dark in ((390, 844, False), (1280, 900, True)):
        browser.view(width, height, dark=dark, mobile=width < 500)
        browser.open(file)
        browser.wait("document.documentElement.dataset.drawn === " + ("'dark'" if dark else "'light'"))
        assert browser.errors == []
        assert browser.requests == [file.as_uri()]
        assert browser.evaluate("document.title") == "3 runs – low-loss paths"
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        plots = browser.evaluate(
            "[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('path.js-line').length)"
        )
        assert len(plots) > 10
        assert all(lines > 0 for lines in plots), plots
        background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
    browser.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    browser.view(390, 844, dark=True, mobile=True)
    browser.wait("document.documentElement.clientWidth === 390")
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_browser_sees_what_it_is_to_forbid(browser, tmp_path):
    """The checks above can fail: a page with an error, a request and an overflow shows all three."""
    file = tmp_path / "bad.html"
    file.write_text("<img src='http://127.0.0.1:9/x.png' width=2000><script>console.error('bad')</script>")
    browser.view(390, 844, dark=False)
    browser.open(file)
    assert browser.requests[1:] == ["http://127.0.0.1:9/x.png"]
    assert any("bad" in error for error in browser.errors)
    assert browser.evaluate("document.documentElement.scrollWidth") > 390
