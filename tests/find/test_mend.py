"""Chords are checked for narrow peaks; a path that its certificate refutes is mended, durably and always alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llpf_fast import LLPFError
from llpf_fast.find import PathFinder, SearchJob, StackedFinder
from llpf_fast.find import chord as chord_module
from llpf_fast.find import mend as mend_module
from llpf_fast.find.chord import ChordCheck
from llpf_fast.path import LowLossPath, RunDirectory
from llpf_fast.verify import verify_run

from .conftest import State, network, quick

SETTINGS = quick(pacing={"kind": "adaptive", "midpoint": True}, step={"relative": 0.2}, arrival={"every": 1})
Data = tuple[Tensor, Tensor]


class Spiked(nn.Module):
    """The network; its loss is high where 3.weight is within ``radius`` (L1) of ``peak``."""

    def __init__(self, peak: Tensor, radius: float) -> None:
        super().__init__()
        self.net, self.peak, self.radius = network(), peak, radius

    def forward(self, x: Tensor) -> Tensor:
        relu = nn.functional.relu
        away = self.net[3].weight - self.peak
        height = relu(1 - (relu(away) + relu(-away)).sum() / self.radius)
        return self.net(x) + 30 * height * torch.arange(10.0)


def prefixed(state: State) -> State:
    return {f"net.{name}": value for name, value in state.items()}


@pytest.fixture(scope="module")
def found(endpoints: tuple[State, State], digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that arrived, and whose path is low."""
    out: Path = tmp_path_factory.mktemp("found") / "run"
    assert PathFinder(network(), *endpoints, settings=SETTINGS, train=digits, out=out).run().arrived
    return out


def certify(out: Path, digits: Data, model: nn.Module | None = None, **options: Any) -> dict[str, Any]:
    options = {"straight_points": 0, "seed": 1, **options}
    return verify_run(out, model=model or network(), train=digits, **options).as_dict()


# Chords


def peak_between(found: Path, number: int, fraction: float) -> tuple[Tensor, float]:
    """A point of the path, and 4 % of the L1 length of its segment."""
    a, b = (LowLossPath(found)[i]["3.weight"] for i in (number, number + 1))
    return torch.lerp(a, b, fraction), 0.04 * float((b - a).abs().sum())


@pytest.mark.parametrize("last", [False, True], ids=["a tick's chord", "the last chord"])
@pytest.mark.parametrize("encloses", [True, False], ids=["enclosure", "points"])
def test_a_narrow_peak_beside_the_middle_is_walked_around(
    found: Path,
    endpoints: tuple[State, State],
    digits: Data,
    tmp_path: Path,
    last: bool,
    encloses: bool,
    monkeypatch: Any,
) -> None:
    number = len(LowLossPath(found)) - 2 if last else 2
    peak = peak_between(found, number, 0.31)
    if not encloses:

        def refuse(*_: Any) -> None:
            raise chord_module.NotEnclosedError("none")

        monkeypatch.setattr(chord_module, "LossEnclosure", refuse)

    def search(out: Path) -> dict[str, Any]:
        finder = PathFinder(Spiked(*peak), *map(prefixed, endpoints), settings=SETTINGS, train=digits, out=out)
        assert finder.run().arrived
        return certify(out, digits, Spiked(*peak))

    assert search(tmp_path / "around")["verdict"] == "proved"
    monkeypatch.setattr(ChordCheck, "suspect", lambda *_: None)
    assert search(tmp_path / "through")["verdict"] == "refuted", "the points that a search evaluates miss this peak"


def test_a_stack_checks_chords_as_a_single_search(
    found: Path, endpoints: tuple[State, State], digits: Data, tmp_path: Path
) -> None:
    peak = peak_between(found, 2, 0.31)
    start, end = map(prefixed, endpoints)
    single = PathFinder(Spiked(*peak), start, end, settings=SETTINGS, train=digits, out=tmp_path / "single").run()
    jobs = [SearchJob(lambda: (start, end), tmp_path / name) for name in ("a", "b")]
    for job, result in StackedFinder(Spiked(*peak), settings=SETTINGS, train=digits, parallel=2).run(jobs):
        assert not isinstance(result, LLPFError)
        assert (result.ticks, result.sgd_steps) == (single.ticks, single.sgd_steps)
        assert index(job.out) == index(tmp_path / "single")
    ordinary = RunDirectory.open(found).status or {}
    assert single.ticks > ordinary["ticks"], "no tick was taken back"


def index(out: Any) -> list[str]:
    return [waypoint.sha256 for waypoint in RunDirectory.open(out).waypoints()]


# Mending


def spiked(found: Path, out: Path, number: int, *, replace: bool) -> list[str]:
    """Copy the run to ``out``, with a waypoint of high loss after waypoint ``number`` or in place of the next."""
    shutil.copytree(found, out)
    run = RunDirectory.open(out)
    state = run.waypoints()[number].load()
    noise = torch.Generator().manual_seed(0)
    state["3.weight"] = state["3.weight"] + 0.4 * torch.randn(state["3.weight"].shape, generator=noise)
    run.splice(number, number + (2 if replace else 1), [state], {})
    return index(out)


@pytest.mark.parametrize("replace", [False, True], ids=["a waypoint more", "a waypoint replaced"])
def test_a_refuted_path_is_mended_and_then_certified(
    finder: Callable[..., PathFinder], found: Path, digits: Data, tmp_path: Path, replace: bool
) -> None:
    out = tmp_path / "run"
    before = spiked(found, out, 2, replace=replace)
    steps = (RunDirectory.open(out).status or {})["sgd_steps"]
    assert certify(out, digits)["verdict"] == "refuted"
    shutil.copytree(out, tmp_path / "again")
    result = finder(out, settings=SETTINGS, resume=True).run()
    assert result.mending.startswith("mended: the training loss was 0.7")
    mended = RunDirectory.open(out)
    mended.check()
    assert set(before) - set(index(out)) == {before[3]}, "all other waypoints stay"
    assert index(out)[:3] == before[:3]
    assert result.waypoints == len(index(out)) == (mended.status or {})["waypoints"]
    assert result.sgd_steps > steps
    assert result.arrived
    assert "outdated" in (mended.certificate() or {})
    again = finder(out, settings=SETTINGS, resume=True).run()
    assert again.mending.startswith("nothing is mended: certificate.json is of another path")
    assert certify(out, digits)["verdict"] == "proved"
    assert finder(out, settings=SETTINGS, resume=True).run().mending == ""
    finder(tmp_path / "again", settings=SETTINGS, resume=True).run()
    assert index(tmp_path / "again") == index(out), "the same certificate, the same bits"


def test_a_high_waypoint_beside_the_witness_is_replaced(
    finder: Callable[..., PathFinder], found: Path, digits: Data, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    before = spiked(found, out, 2, replace=False)
    refuted = certify(out, digits)
    for number, (waypoint, fraction) in enumerate(((2, 0.9), (3, 0.1))):
        copy = tmp_path / str(number)
        shutil.copytree(out, copy)
        witness = {**refuted["witness"], "waypoint": waypoint, "fraction": fraction}
        RunDirectory.open(copy).write_certificate({**refuted, "witness": witness})
        finder(copy, settings=SETTINGS, resume=True).run()
        assert set(before) - set(index(copy)) == {before[3]}
        assert certify(copy, digits)["verdict"] == "proved"


def test_new_segments_that_are_high_are_split(
    finder: Callable[..., PathFinder], found: Path, digits: Data, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(found, out)
    RunDirectory.open(out).splice(0, len(index(out)) - 1, [], {})
    assert len(index(out)) == 2, "the straight line"
    # Lower than the search's: no single waypoint between these networks does it.
    assert certify(out, digits, threshold=0.03)["verdict"] == "refuted"
    finder(out, settings=SETTINGS, resume=True).run()
    assert len(index(out)) > 3
    assert certify(out, digits, threshold=0.03)["verdict"] == "proved"


def test_a_narrow_peak_between_waypoints_is_mended(
    found: Path, endpoints: tuple[State, State], digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peak = peak_between(found, 2, 0.31)

    def finder(**options: Any) -> PathFinder:
        out = tmp_path / "run"
        return PathFinder(Spiked(*peak), *map(prefixed, endpoints), settings=SETTINGS, train=digits, out=out, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ChordCheck, "suspect", lambda *_: None)
        finder().run()
    assert certify(tmp_path / "run", digits, Spiked(*peak))["verdict"] == "refuted"
    before = index(tmp_path / "run")
    assert finder(resume=True).run().mending.startswith("mended")
    assert set(before) < set(index(tmp_path / "run"))
    assert certify(tmp_path / "run", digits, Spiked(*peak))["verdict"] == "proved"


def test_a_path_toward_the_origin_is_mended_also_at_its_last_waypoint(
    finder: Callable[..., PathFinder], digits: Data, tmp_path: Path
) -> None:
    settings = SETTINGS.changed(mode="m2o", max_ticks=6)
    finder(tmp_path / "found", settings=settings).run()
    for number in (2, 5):
        out = tmp_path / str(number)
        before = spiked(tmp_path / "found", out, number, replace=True)
        assert certify(out, digits)["verdict"] == "refuted"
        finder(out, settings=settings, resume=True).run()
        assert before[number + 1] not in index(out)
        assert certify(out, digits)["verdict"] == "proved"


def test_open_pieces_close_to_the_threshold_are_mended(
    finder: Callable[..., PathFinder], found: Path, digits: Data, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(found, out)
    certificate = certify(out, digits)
    highest = max(certificate["points"], key=lambda point: point["train_loss"])["at"]
    waypoint = min(highest["waypoint"], len(index(out)) - 2)
    certificate |= {"verdict": "undecided", "connected": False}
    pieces = [(0.0, 0.25, 0.2, "width"), (0.25, 0.5, 0.3, "samples"), (0.5, 1.0, 0.4, "budget"), (0.5, 1.0, 0.1, None)]
    certificate["pieces"] = [[waypoint, start, end, bound, bound, cause] for start, end, bound, cause in pieces]
    RunDirectory.open(out).write_certificate(certificate)
    result = finder(out, settings=SETTINGS, resume=True).run()
    assert f"at waypoint {waypoint} + 0.375" in result.mending
    assert len(index(out)) > len(index(found))
    assert certify(out, digits)["verdict"] == "proved"


def test_open_pieces_on_both_sides_of_a_high_waypoint_are_one_fault(
    finder: Callable[..., PathFinder], found: Path, digits: Data, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    before = spiked(found, out, 2, replace=False)
    certificate = certify(out, digits) | {"verdict": "undecided"}
    certificate["pieces"] = [[2, 0.75, 1.0, 0.1, 0.2, "samples"], [3, 0.0, 0.25, 0.2, 0.1, "samples"]]
    RunDirectory.open(out).write_certificate(certificate)
    result = finder(out, settings=SETTINGS, resume=True).run()
    assert result.mending.count("mended: ") == 1
    assert set(before) - set(index(out)) == {before[3]}
    assert certify(out, digits)["verdict"] == "proved"


class Killed(BaseException):
    pass


def test_a_mending_that_is_killed_begins_anew(
    finder: Callable[..., PathFinder], found: Path, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it trains, and between the index and status.json: the path is the old one or the new one."""
    out = tmp_path / "run"
    before = spiked(found, out, 2, replace=False)
    certify(out, digits)
    shutil.copytree(out, tmp_path / "whole")
    finder(tmp_path / "whole", settings=SETTINGS, resume=True).run()

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    for where, name in ((PathFinder, "_correct"), (RunDirectory, "splice"), (RunDirectory, "write_certificate")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, die)
            with pytest.raises(Killed):
                finder(out, settings=SETTINGS, resume=True).run()
        RunDirectory.open(out).check()
        assert index(out) == (before if name != "write_certificate" else index(tmp_path / "whole"))
    assert finder(out, settings=SETTINGS, resume=True).run().mending.startswith("nothing is mended")
    assert certify(out, digits)["verdict"] == "proved"


def test_what_cannot_be_mended_is_said_in_one_line(
    finder: Callable[..., PathFinder], found: Path, digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    before = spiked(found, out, 2, replace=False)
    refuted = certify(out, digits)
    run = RunDirectory.open(out)

    def resume(**changes: Any) -> str:
        run.write_certificate({**refuted, **changes})
        try:
            return finder(out, settings=SETTINGS, resume=True).run().mending
        except LLPFError as error:
            assert index(out) == before
            return str(error)

    witness = refuted["witness"]
    assert "was it verified on other data?" in resume(witness={**witness, "waypoint": 1, "fraction": 0.0})
    assert "the start of" in resume(witness={**witness, "waypoint": 0, "fraction": 0.0})
    assert "another reason than the loss" in resume(verdict="undecided", pieces=[[0, 0.0, 1.0, 1.0, 1.0, "budget"]])
    for damaged in ({"witness": None}, {"witness": {**witness, "waypoint": 99}}, {"verdict": "undecided", "pieces": 3}):
        assert "certificate.json is damaged" in resume(**damaged)
    assert resume(connected=True) == ""
    monkeypatch.setattr(mend_module, "_LEAST_STEPS", 1)
    hopeless = SETTINGS.changed(correction={"max_steps": 1, "window": 1, "lr": 1e-6})
    content = (out / "run.yaml").read_text()
    finder_of = {"settings": hopeless, "resume": True}
    run.write_certificate(refuted)
    monkeypatch.setattr("llpf_fast.find.record.check_same_search", lambda *_: None)
    with pytest.raises(LLPFError, match=r"cannot be mended: \d gradient steps do not bring the loss below 0\.12"):
        finder(out, **finder_of).run()
    assert index(out) == before
    assert (out / "run.yaml").read_text() == content
    assert json.loads((out / "certificate.json").read_text())["verdict"] == "refuted"
