"""LLPF beside other curves: the same certificate, the same budget, results that repeat."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from llpf_fast.analysis import Problem
from llpf_fast.analysis import curve_methods as methods
from llpf_fast.analysis.compare_curves import Comparison, Plan, compare
from llpf_fast.analysis.curve import CurveResult, write_run
from llpf_fast.analysis.curve_methods import METHODS, Budget, find_curve
from llpf_fast.batches import stratified_subset
from llpf_fast.errors import LLPFError
from llpf_fast.find.curve_training import CurveTrainer
from llpf_fast.path import RunDirectory
from llpf_fast.path.polyline import interpolate
from llpf_fast.report.curves import draw_curves
from llpf_fast.verify import verify_run

from . import blobs

RATES = {"bezier": (0.1,), "polychain": (0.1,), "autoneb": (0.1,)}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    folder = tmp_path_factory.mktemp("curves")
    plan = Plan(threshold=0.1, rates=RATES, batch_size=32, llpf_settings=blobs.llpf_settings())
    return compare(blobs.problem(cache=folder / "cache"), blobs.networks(), plan, folder / "runs"), folder


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_method_has_a_row_and_a_run_with_the_verifiers_verdict(comparison: tuple[Comparison, Path]) -> None:
    result, folder = comparison
    assert [row["method"] for row in result.rows] == list(METHODS)
    for row in result.rows:
        run = RunDirectory.open(folder / "runs" / row["run"])
        run.check()
        start, end = blobs.networks()
        waypoints = run.waypoints()
        assert same(waypoints[0].load(), start)
        assert same(waypoints[-1].load(), end) == (row["destination"] == "b")
        again = verify_run(run.folder, model=blobs.module(), train=blobs.data(), test=blobs.data(90))
        # The verifier evaluates other points inside the segments.
        assert again.max_loss == pytest.approx(row["peak_train_loss"], rel=1e-2)
        assert again.connected == row["connected"]
        assert again.min_test_accuracy == pytest.approx(row["min_test_accuracy"], abs=2 / 90)


def test_the_linear_peak_is_the_highest_loss_of_the_line(comparison: tuple[Comparison, Path]) -> None:
    row = next(row for row in comparison[0].rows if row["method"] == "linear")
    evaluate = blobs.problem().evaluator()
    start, end = blobs.networks()
    dense = max(evaluate(interpolate(start, end, i / 1000)).loss for i in range(1001))
    assert row["peak_train_loss"] == pytest.approx(dense, rel=1e-3)
    assert row["length_over_straight"] == pytest.approx(1.0, abs=1e-6)


def test_budgets_are_equal_and_training_lowers_the_peak(comparison: tuple[Comparison, Path]) -> None:
    rows = {row["method"]: row for row in comparison[0].rows}
    steps = rows["llpf"]["gradient_steps"]
    assert steps > 20
    assert comparison[0].about["equal_budget_steps"] == steps
    for method in ("llpf+lower", "bezier", "polychain"):
        assert rows[method]["gradient_steps"] == steps
        assert rows[method]["peak_train_loss"] < rows["linear"]["peak_train_loss"]
    # A band takes whole rounds of all its pivots.
    assert steps - 10 < rows["autoneb"]["gradient_steps"] <= steps
    assert rows["aligned-linear"]["peak_train_loss"] < rows["linear"]["peak_train_loss"]


def test_the_figure_and_its_numbers(comparison: tuple[Comparison, Path], tmp_path: Path) -> None:
    draw_curves(comparison[0], tmp_path)
    assert len((tmp_path / "curves.csv").read_text().splitlines()) == len(comparison[0].profiles) + 1
    assert all((tmp_path / f"curves.{kind}").stat().st_size > 1000 for kind in ("png", "svg"))


def test_a_second_call_trains_nothing_and_says_the_same(
    comparison: tuple[Comparison, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    result, folder = comparison

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(methods, "_train", never)
    monkeypatch.setattr(CurveTrainer, "step", never)
    plan = Plan(threshold=0.1, rates=RATES, batch_size=32, llpf_settings=blobs.llpf_settings())
    again = compare(blobs.problem(cache=folder / "cache"), blobs.networks(), plan, folder / "runs")
    changing = ("seconds",)
    for old, new in zip(result.rows, again.rows, strict=True):
        skip = changing if old["method"] == "aligned-linear" else ()
        assert {k: v for k, v in old.items() if k not in skip} == {k: v for k, v in new.items() if k not in skip}
    with pytest.raises(AssertionError, match="trained again"):
        compare(
            blobs.problem(cache=folder / "cache"),
            blobs.networks(),
            Plan(methods=("bezier",), steps=7, threshold=0.1),
            folder / "other",
        )


def test_budgets_in_multiples_of_the_equal_one(tmp_path: Path) -> None:
    settings = blobs.llpf_settings()
    plan = Plan(
        methods=("llpf+lower", "bezier"), threshold=0.1, rates=RATES, steps=60, times=(2,), llpf_settings=settings
    )
    rows = compare(blobs.problem(), blobs.networks(), plan, tmp_path).rows
    assert [(row["method"], row["budget"], row["gradient_steps"]) for row in rows] == [
        ("llpf+lower", "equal", 60),
        ("llpf+lower", "2x", 120),
        ("bezier", "equal", 60),
        ("bezier", "2x", 120),
    ]
    # One search for both budgets, at twice the threshold.
    (search,) = tmp_path.glob("*/search/run.yaml")
    assert RunDirectory.open(search.parent).run["settings"]["threshold"] == 0.2
    with pytest.raises(LLPFError, match=r"llpf\+lower needs settings"):
        Plan(methods=("llpf+lower",))


def test_what_is_trained_on_tells_problems_apart_even_where_the_same_is_measured() -> None:
    inputs, targets = blobs.data()
    measured = set(stratified_subset(targets, 30).tolist())
    changed = inputs.clone()
    changed[next(i for i in range(len(inputs)) if i not in measured)] += 1
    one, other = (Problem(blobs.module(), train=(x, targets), samples=30) for x in (inputs, changed))
    assert one.identity() == other.identity()
    assert one.training_identity() != other.training_identity()
    whole = Problem(blobs.module(), train=(inputs, targets))
    assert one.training_identity() == whole.training_identity()


def test_larger_budgets_until_they_help_no_more(tmp_path: Path) -> None:
    settings = blobs.llpf_settings()
    plan = Plan(
        methods=("llpf", "bezier"),
        threshold=0.1,
        rates=RATES,
        converge=True,
        most_steps=400,
        steps=50,
        llpf_settings=settings,
    )
    result = compare(blobs.problem(cache=tmp_path / "cache"), blobs.networks(), plan, tmp_path / "runs")
    budgets = {(row["method"], row["budget"]): row for row in result.rows}
    assert budgets["llpf", "equal"]["gradient_steps"] <= 50 + settings.correction.max_steps
    bezier = [row for row in result.growth if row["method"] == "bezier"]
    assert [row["gradient_steps"] for row in bezier][:2] == [50, 100]
    doubled = next(row for key, row in budgets.items() if key[0] == "bezier" and key[1] != "equal")
    assert doubled["budget"] in ("converged", "not converged")
    assert doubled["peak_train_loss"] <= budgets["bezier", "equal"]["peak_train_loss"] * 1.02
    if doubled["budget"] == "converged":
        assert bezier[-1]["screened_peak"] > bezier[-2]["screened_peak"] * (1 - plan.tolerance)


def test_llpf_that_runs_out_of_budget_goes_straight_on(tmp_path: Path) -> None:
    plan = Plan(methods=("llpf",), steps=3, threshold=0.1, llpf_settings=blobs.llpf_settings())
    result = compare(blobs.problem(), blobs.networks(), plan, tmp_path)
    row = result.rows[0]
    assert 3 <= row["gradient_steps"] < 60
    run = RunDirectory.open(tmp_path / row["run"])
    assert same(run.waypoints()[-1].load(), blobs.networks()[1])


def test_batchnorm_statistics_belong_to_each_point(tmp_path: Path) -> None:
    problem, networks = blobs.problem(norm=True), blobs.networks(norm=True)
    curve = find_curve("polychain", problem, networks[0], networks[1], Budget(40, 0.1, 32))
    assert same(dict(curve.waypoints[0]), networks[0])
    assert same(dict(curve.waypoints[-1]), networks[1])
    middle = dict(curve.waypoints[1])
    hidden = blobs.data()[0] @ middle["0.weight"].T + middle["0.bias"]
    # Batches of 125: two whole ones of 300 samples count, each alike.
    mean = torch.stack([part.mean(0) for part in hidden[:250].split(125)]).mean(0)
    assert torch.allclose(middle["1.running_mean"], mean, atol=1e-4)


def test_a_rate_that_diverges_does_not_decide(tmp_path: Path) -> None:
    plan = Plan(methods=("bezier",), steps=60, threshold=0.1, rates={"bezier": (1e6, 0.1)})
    result = compare(blobs.problem(), blobs.networks(), plan, tmp_path)
    assert result.rows[0]["lr"] == 0.1
    assert result.growth[0]["screened_peak"] == float("inf")
    plan = Plan(methods=("bezier",), steps=60, threshold=0.1, rates={"bezier": (1e6,)})
    with pytest.raises(LLPFError, match="diverged"):
        compare(blobs.problem(), blobs.networks(), plan, tmp_path)


def test_bad_input_is_named(tmp_path: Path) -> None:
    problem, networks = blobs.problem(), blobs.networks()
    with pytest.raises(LLPFError, match="unknown method snake"):
        Plan(methods=("snake",))  # type: ignore[arg-type]
    with pytest.raises(LLPFError, match="needs settings"):
        Plan(methods=("llpf",))
    with pytest.raises(LLPFError, match="at least 1"):
        Plan(methods=("linear",), steps=0)
    with pytest.raises(LLPFError, match="above the threshold"):
        compare(problem, networks, Plan(methods=("linear",), threshold=1e-9), tmp_path)
    with pytest.raises(LLPFError, match="two models"):
        compare(problem, networks.select(0), Plan(methods=("linear",)), tmp_path)
    other = {"x": torch.zeros(2)}
    with pytest.raises(LLPFError, match="different architectures"):
        find_curve("bezier", problem, other, other, Budget(5, 0.1))
    (tmp_path / "run.yaml").write_text("settings: {mode: m2m}\n")
    with pytest.raises(LLPFError, match="is no curve"):
        write_run(CurveResult("linear", [networks[0], networks[1]], 0, 0.0), tmp_path, problem, threshold=1, about={})
