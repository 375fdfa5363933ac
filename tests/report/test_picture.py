import copy
import csv
import json
import math
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from matplotlib import image as images
from torch import nn
from torch.nn import functional as F

from llpf_fast.errors import LLPFError
from llpf_fast.path import RunDirectory
from llpf_fast.report import draw_path
from llpf_fast.verify import Evaluator, certify


def loss_at(x):
    return 0.01 + 0.05 * math.sin(3 * x) ** 2


class Wave(nn.Module):
    """The mean of its first output is ``loss_at`` x; of two outputs the second is the larger one at some samples."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.zeros(()))

    def forward(self, inputs):
        return inputs + loss_at(float(self.x))


@pytest.fixture(scope="module")
def certificate():
    train = Evaluator(Wave(), F.l1_loss, torch.zeros(100, 1), torch.zeros(100, 1))
    test = Evaluator(Wave(), lambda output, target: output.mean(), torch.eye(2)[[0, 1, 1]], torch.tensor([0, 1, 0]))
    line = [{"x": torch.tensor(float(i), dtype=torch.float64)} for i in range(5)]
    about = {"evaluation": {"model": "lenet5", "data": "mnist"}}
    return certify(line, train, test, threshold=0.1, about=about, seed=0)


@pytest.fixture
def run(certificate, tmp_path):
    directory = RunDirectory.create(tmp_path / "run", {})
    directory.add_waypoint(0, {"x": torch.zeros(1)})
    directory.write_certificate(certificate.as_dict())
    return directory.folder


def texts(svg):
    return [element.text or "" for element in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_files_beside_the_run(run):
    picture = draw_path(run)
    assert picture == run / "path.png"
    height, width, _ = images.imread(picture).shape
    assert (height, width) == (900, 1500)
    text = " ".join(texts(run / "path.svg"))
    for words in (
        "lenet5 on mnist: connected (sampled)",
        "threshold 0.1",
        "straight line",
        "training loss",
        "test accuracy (%)",
    ):
        assert words in text


def test_numbers_are_the_certificates(run, certificate):
    draw_path(run)
    rows = list(csv.DictReader((run / "path.csv").open()))
    path = [row for row in rows if row["line"] == "path"]
    assert len(path) == certificate.points_evaluated
    for row in path:
        here = loss_at(int(row["waypoint"]) + float(row["fraction"]))
        assert float(row["train_loss"]) == pytest.approx(here, rel=1e-5)
        assert float(row["position"]) == pytest.approx((int(row["waypoint"]) + float(row["fraction"])) / 4)
    straight = [row for row in rows if row["line"] == "straight"]
    assert [float(row["position"]) for row in straight] == [point.fraction for point in certificate.straight_line]


def test_same_files_again(run, certificate, tmp_path):
    draw_path(run)
    draw_path(certificate, tmp_path / "again.svg")
    draw_path(json.loads((run / "certificate.json").read_text()), tmp_path / "plain")
    for suffix in ("png", "svg", "csv"):
        expected = (run / f"path.{suffix}").read_bytes()
        assert (tmp_path / f"again.{suffix}").read_bytes() == expected
        assert (tmp_path / f"plain.{suffix}").read_bytes() == expected


def test_not_finite_and_no_accuracy(certificate, tmp_path):
    odd = copy.deepcopy(certificate.as_dict())
    odd.update(
        connected=False,
        verdict="refuted",
        max_loss=None,
        min_test_accuracy=None,
        min_test_accuracy_at=None,
        straight_line=[],
    )
    odd["lengths"] = {"arc": None, "straight": None}
    for number, point in enumerate(odd["points"]):
        point["test_accuracy"] = None
        if number in (4, 5):
            point["train_loss"] = None
    draw_path(odd, tmp_path / "odd")
    text = " ".join(texts(tmp_path / "odd.svg"))
    assert "refuted" in text
    assert "loss not finite" in text
    assert "accuracy" not in text


@pytest.mark.parametrize(
    ("reasons", "run", "words"),
    [
        ([], {}, "position between the endpoints"),
        ([], {"start_sha256": "a", "destination_sha256": "b"}, "position between the endpoints"),
        ([], {"start_sha256": "a", "destination_sha256": None}, "position from the start to where the search ended"),
        (
            ["the destination is not reached: the search stopped before it arrived"],
            {"start_sha256": "a", "destination_sha256": "b"},
            "position from the start to where the search stopped, short of its destination",
        ),
    ],
)
def test_says_what_the_line_leads_through(certificate, tmp_path, reasons, run, words):
    partial = {**certificate.as_dict(), "connected": not reasons, "reasons": reasons, "run": run}
    draw_path(partial, tmp_path / "partial")
    assert any(text.startswith(words + " (share") for text in texts(tmp_path / "partial.svg"))


def test_bound_and_witness(certificate, tmp_path):
    """Closed pieces are a band above the curve, an open one a bar, and the witness a mark with its loss."""
    values = json.loads(json.dumps(certificate.as_dict()))
    values["pieces"] = [[0, 0.0, 0.5, 0.07, 0.09, None], [0, 0.5, 1.0, math.inf, math.inf, "budget"]]
    values["witness"] = {"waypoint": 0, "fraction": 0.75, "loss": 0.123, "samples": 100, "reproduce": ""}
    draw_path(values, tmp_path / "with")
    text = " ".join(texts(tmp_path / "with.svg"))
    assert "bound of the loss" in text
    assert "witness 0.123" in text
    values |= {"pieces": [], "witness": None}
    draw_path(values, tmp_path / "without")
    text = " ".join(texts(tmp_path / "without.svg"))
    assert "bound of the loss" not in text
    assert "witness" not in text


def test_one_waypoint(tmp_path):
    train = Evaluator(nn.Linear(1, 1), F.l1_loss, torch.zeros(3, 1), torch.zeros(3, 1))
    certificate = certify([nn.Linear(1, 1).state_dict()], train, threshold=9)
    assert draw_path(certificate, tmp_path / "dot.png").exists()


def test_does_not_touch_matplotlibs_settings(run):
    import matplotlib

    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend(auto_select=False)
    draw_path(run)
    assert dict(matplotlib.rcParams) == before
    assert matplotlib.get_backend(auto_select=False) == backend


def test_refusals(certificate, tmp_path):
    bare = RunDirectory.create(tmp_path / "bare", {}).folder
    with pytest.raises(LLPFError, match="llpf verify"):
        draw_path(bare)
    with pytest.raises(LLPFError, match="name the picture"):
        draw_path(certificate)
    with pytest.raises(LLPFError, match="nowhere"):
        draw_path(certificate, tmp_path / "nowhere" / "path.png")
