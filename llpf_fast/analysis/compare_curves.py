"""LLPF and other curves between the same two networks, certified and in one table."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..batches.fixed_samples import sample_count
from ..errors import LLPFError
from ..find import Settings
from ..path.fingerprint import digest
from ..path.polyline import Polyline, Position
from ..types import ProgressCallback
from ..verify import Certificate, Evaluation, certify
from ..verify.evaluator import Statistics
from ..verify.verdict import Level
from .curve import CurveResult, write_run
from .curve_methods import (
    METHODS,
    TRAINED,
    Budget,
    Method,
    aligned_line,
    find_curve,
    llpf,
    llpf_lowered,
    straight_line,
)
from .networks import Networks
from .problem import Problem

#: Learning rates tried where none is given. Garipov et al. used 0.015 to 0.05 on VGG and PreResNet, AutoNEB's authors
#: 0.1 and less; what suits depends on network and data, and one that diverges must not decide a comparison.
RATES: dict[str, tuple[float | None, ...]] = {
    "llpf+lower": (None,),  # its default, from the recipe: no trial
    "bezier": (0.01, 0.03, 0.1, 0.3, 1.0),
    "polychain": (0.01, 0.03, 0.1, 0.3, 1.0),
    "autoneb": (0.01, 0.03, 0.1, 0.3, 1.0),
}
#: Gradient steps where nothing else sets a budget.
_STEPS = 1000
#: Training samples and points on which curves are compared during their search; certificates use more of both.
_SCREEN_SAMPLES, _SCREEN_POINTS = 2000, 33


@dataclass(frozen=True)
class Plan:
    """What is compared, and how long each may search.

    Args:
        methods: of ``METHODS``.
        steps: gradient steps of every method that trains; when missing as many as LLPF takes, 1,000 without LLPF.
        batch_size: of every method but LLPF, which has it in its settings.
        threshold: of the certificates.
        rates: learning rates to try for each method; at the equal budget the one with the lowest peak on the screening
            set is taken, for larger budgets, too (LLPF's recipes were tuned by trials as well).
        bends: inner nodes of Bezier curve and polychain.
        times: further budgets, in multiples of the equal one, at the rate that was best there.
        converge: also double each method's budget until that lowers its screened peak by less than the share
            ``tolerance``, or until ``most_steps``; halve LLPF's thresholds as long as it still arrives within these.
        llpf_settings: LLPF's.
    """

    methods: tuple[Method, ...] = METHODS
    steps: int | None = None
    batch_size: int = 64
    threshold: float = 0.1
    rates: Mapping[str, Sequence[float | None]] = field(default_factory=lambda: dict(RATES))
    bends: int = 1
    times: tuple[int, ...] = ()
    converge: bool = False
    tolerance: float = 0.05
    most_steps: int = 20_000
    llpf_settings: Settings | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown or not self.methods:
            raise LLPFError(f"unknown method {', '.join(unknown) or '(none)'}; known: {', '.join(METHODS)}")
        if self.steps is not None and self.steps < 1:
            raise LLPFError(f"--steps must be at least 1, got {self.steps}")
        needing = [method for method in self.methods if method in ("llpf", "llpf+lower")]
        if needing and self.llpf_settings is None:
            raise LLPFError(f"{needing[0]} needs settings: name a recipe, or leave {needing[0]} out of the methods")
        if not math.isfinite(self.threshold):
            raise LLPFError(f"the threshold must be a finite number, got {self.threshold}")


@dataclass(frozen=True)
class Comparison:
    """The result of :func:`compare`.

    ``rows``: one a certified curve, as the table has them. ``profiles``: every evaluated point of each. ``growth``:
    peak on the screening set against gradient steps, a row for each curve of the search. ``about``: the settings.
    """

    rows: list[dict[str, Any]]
    profiles: list[dict[str, Any]]
    growth: list[dict[str, Any]]
    about: dict[str, Any]


def compare(
    problem: Problem,
    networks: Networks,
    plan: Plan,
    runs: Path,
    *,
    begin: Callable[[str], None] | None = None,
    progress: ProgressCallback | None = None,
    workers: int | None = None,
) -> Comparison:
    """Find, certify and tabulate curves between the first two of ``networks``.

    Every curve is written to a folder of ``runs`` as a run with a certificate of the polyline through its waypoints
    (:func:`llpf_fast.verify.certify`), all by the same rules: on chosen samples where the problem measures on some,
    BatchNorm statistics re-estimated at every point where the network has any. With ``problem.cache`` an interrupted
    comparison continues where it stopped.

    Args:
        begin: called with the name of each part of the work.

    Raises:
        LLPFError: fewer than two networks; an endpoint whose loss is above the threshold; whatever a method raises,
            except divergence at one of several rates.
    """
    if len(networks) < 2:
        raise LLPFError("curves need two models; name a start and a destination")
    comparison = _Running(problem, networks, plan, runs, begin or (lambda _: None), progress, workers)
    return comparison.run()


class _Running:
    """A comparison in progress."""

    def __init__(
        self,
        problem: Problem,
        networks: Networks,
        plan: Plan,
        runs: Path,
        begin: Callable[[str], None],
        progress: ProgressCallback | None,
        workers: int | None,
    ) -> None:
        self._problem, self._plan, self._runs = problem, plan, runs
        self._begin, self._progress, self._workers = begin, progress, workers
        self._networks = networks
        self._a, self._b = networks[0], networks[1]
        self._statistics: Statistics = "reestimated" if problem.has_statistics else "stored"
        self._screen = self._measured_on(min(sample_count(problem.measured), _SCREEN_SAMPLES))
        self._level: Level = "sampled" if sample_count(problem.measured) < sample_count(problem.train) else "full"
        self._train = problem.like(samples=0).new_evaluator("train", statistics=self._statistics)
        self._test = None if problem.test is None else problem.new_evaluator("test", statistics=self._statistics)
        self._comparison = Comparison([], [], [], {})

    def _measured_on(self, samples: int) -> Callable[[Mapping[str, Tensor]], Evaluation]:
        return self._problem.like(samples=samples).evaluator("train", statistics=self._statistics)

    def run(self) -> Comparison:
        plan, steps = self._plan, self._plan.steps
        self._check_endpoints()
        if "llpf" in plan.methods:
            curve = self._llpf(plan.steps)
            steps = steps or max(curve.gradient_steps, 1)
            self._add_growth("llpf", curve.gradient_steps, math.nan, self._screened(curve), curve)
            self._certify(curve, "equal")
            if plan.converge:
                self._lower_thresholds(curve)
        steps = steps or _STEPS
        for method in plan.methods:
            if method == "linear":
                self._certify(straight_line(self._a, self._b), "none")
            elif method == "aligned-linear":
                self._begin("aligning")
                self._certify(aligned_line(self._problem, self._a, self._b, seed=plan.seed), "none")
            elif method in TRAINED:
                self._trained(method, steps)
        self._comparison.about.update(self._about(steps))
        return self._comparison

    def _check_endpoints(self) -> None:
        for name, state in zip(self._networks.names, (self._a, self._b), strict=False):
            loss = self._screen(state).loss
            if not math.isfinite(loss):
                raise LLPFError(f"{name} has a training loss of {loss} on these data; curves need trained networks")
            if loss > self._plan.threshold:
                raise LLPFError(
                    f"{name} has a training loss of {loss:.4g}, above the threshold {self._plan.threshold:g}: no path "
                    "from it is below; raise the threshold or train it longer"
                )

    def _searching(self, shrink: float = 1.0) -> tuple[Settings, str]:
        """LLPF's settings with every threshold times ``shrink``, and a name of the search with them."""
        given = self._plan.llpf_settings
        assert given is not None
        threshold = self._plan.threshold
        settings = given.changed(
            threshold=threshold * shrink,
            correction={"threshold": min(given.correction_threshold, threshold) * shrink},
        )
        # Without an identity, an earlier search may have been on another problem: a new folder each time.
        about = {
            "problem": self._problem.training_identity() or time.time_ns(),
            "endpoints": self._networks.select(0, 1).digests(),
            "settings": settings.as_dict(),
        }
        return settings, digest(about)[:12]

    def _llpf(self, steps: int | None, shrink: float = 1.0) -> CurveResult:
        """LLPF with every threshold times ``shrink``."""
        settings, name = self._searching(shrink)
        self._begin("llpf" if shrink == 1.0 else f"llpf below {settings.threshold:g}")
        folder = self._runs / f"llpf-search-{name}"
        return llpf(self._problem, self._a, self._b, settings, folder, steps=steps, progress=self._progress)

    def _lower_thresholds(self, curve: CurveResult) -> None:
        """Halve LLPF's thresholds as long as it arrives, and certify the last path that did."""
        shrink = 1.0
        while True:
            shrink /= 2
            try:
                lower = self._llpf(self._plan.most_steps, shrink)
            except LLPFError:
                break
            if "stopped_at_steps" in lower.settings:
                break
            curve = lower
            self._add_growth("llpf", curve.gradient_steps, math.nan, self._screened(curve), curve)
        self._certify(curve, "converged")

    def _trained(self, method: Method, steps: int) -> None:
        rates = tuple(self._plan.rates.get(method) or RATES[method])
        best: tuple[float, float | None, CurveResult] | None = None
        failure: LLPFError | None = None
        for rate in rates:
            try:
                curve, peak = self._search(method, steps, rate)
            except LLPFError as error:
                failure = error
                self._add_growth(method, steps, rate, math.inf, None)
                continue
            if best is None or peak < best[0]:
                best = peak, rate, curve
        if best is None:
            assert failure is not None
            raise failure
        peak, rate, curve = best
        self._certify(curve, "equal")
        for factor in self._plan.times:
            self._certify(self._search(method, steps * factor, rate)[0], f"{factor}x")
        if self._plan.converge:
            self._converge(method, steps, rate, curve, peak)

    def _converge(self, method: Method, steps: int, rate: float | None, best: CurveResult, peak: float) -> None:
        """Double the budget until the peak stops falling; of the last two curves the lower one is certified."""
        budget = "not converged"
        while 2 * steps <= self._plan.most_steps and budget != "converged":
            steps *= 2
            try:
                curve, now = self._search(method, steps, rate)
            except LLPFError:
                self._add_growth(method, steps, rate, math.inf, None)
                break
            budget = "converged" if now > peak * (1 - self._plan.tolerance) else budget
            if now <= peak:
                best, peak = curve, now
        self._certify(best, budget)

    def _search(self, method: Method, steps: int, rate: float | None) -> tuple[CurveResult, float]:
        plan, problem = self._plan, self._problem
        self._begin(f"{method}, {steps:,} steps" + ("" if rate is None else f" at {rate:g}"))
        if method == "llpf+lower":
            settings, name = self._searching()
            folder = self._runs / f"llpf-lower-{name}"
            curve = llpf_lowered(
                problem, self._a, self._b, settings, folder, steps=steps, lr=rate, progress=self._progress
            )
        else:
            assert rate is not None
            budget = Budget(steps, rate, plan.batch_size, plan.bends, plan.seed)
            curve = find_curve(method, problem, self._a, self._b, budget, self._progress)
        peak = self._screened(curve)
        self._add_growth(method, steps, rate, peak, curve)
        return curve, peak

    def _add_growth(self, method: str, budget: int, rate: float | None, peak: float, curve: CurveResult | None) -> None:
        """Add a row to ``growth``; without ``curve`` the search diverged."""
        self._comparison.growth.append(
            {
                "method": method,
                "budget": budget,
                "gradient_steps": budget if curve is None else curve.gradient_steps,
                "lr": math.nan if rate is None else rate,
                "screened_peak": peak,
                "seconds": math.nan if curve is None else curve.seconds,
            }
        )

    def _screened(self, curve: CurveResult) -> float:
        line = Polyline(curve.waypoints)
        each = max(1, math.ceil((_SCREEN_POINTS - 1) / line.segments))
        positions = [Position(i, j / each) for i in range(line.segments) for j in range(each)]
        losses = [self._screen(line.state(position)).loss for position in (*positions, Position(line.segments, 0.0))]
        return max(math.inf if math.isnan(loss) else loss for loss in losses)

    def _certify(self, curve: CurveResult, budget: str) -> None:
        plan = self._plan
        self._begin(f"certifying {curve.method}" + ("" if budget in ("equal", "none") else f" ({budget})"))
        name = curve.method if budget in ("equal", "none") else f"{curve.method}-{budget.replace(' ', '-')}"
        about = {"endpoints": self._networks.names[:2], "destination": curve.destination}
        run = write_run(curve, self._runs / name, self._problem, threshold=plan.threshold, about=about)
        certificate = certify(
            run.waypoints(),
            self._train,
            self._test,
            threshold=plan.threshold,
            level=self._level,
            straight_points=0,
            # A function of the waypoints: repeatable, and no path can be fitted to it.
            seed=int(run.index_digest()[:12], 16),
            parameter_names={name for name, _ in self._problem.module.named_parameters()},
            workers=self._workers,
            progress=self._progress,
            about={"evaluation": self._problem.about(), "run": {"waypoint_index_sha256": run.index_digest()}},
        )
        run.write_certificate(certificate.as_dict())
        self._comparison.rows.append(_row(curve, budget, certificate, name))
        self._comparison.profiles.extend(_profile(name, certificate))

    def _about(self, steps: int) -> dict[str, Any]:
        plan = self._plan
        return {
            "problem": self._problem.about(),
            "endpoints": self._networks.select(0, 1).digests_by_name(),
            "threshold": plan.threshold,
            "equal_budget_steps": steps,
            "batch_size": plan.batch_size,
            "bends": plan.bends,
            "seed": plan.seed,
            "batchnorm_statistics": self._statistics,
            "rates": {method: list(plan.rates.get(method) or RATES[method]) for method in TRAINED},
            "rate_rule": "at the equal budget each method that trains is run at every rate and the one with the lowest "
            f"peak on the screening set ({_SCREEN_SAMPLES} training samples, {_SCREEN_POINTS} points) is certified",
            "convergence_rule": f"the budget is doubled until that lowers the screened peak by less than "
            f"{plan.tolerance:.0%}, or exceeds {plan.most_steps} steps; LLPF's thresholds are halved as long as it "
            f"arrives within {plan.most_steps} steps",
            "llpf_settings": None if plan.llpf_settings is None else plan.llpf_settings.as_dict(),
        }


def _row(curve: CurveResult, budget: str, certificate: Certificate, run: str) -> dict[str, Any]:
    return {
        "method": curve.method,
        "budget": budget,
        "peak_train_loss": certificate.max_loss,
        "higher_end_loss": max(certificate.start_loss, certificate.destination_loss),
        "connected": certificate.connected,
        "min_test_accuracy": certificate.min_test_accuracy,
        "max_test_loss": certificate.max_test_loss,
        "gradient_steps": curve.gradient_steps,
        "seconds": curve.seconds,
        "lr": curve.settings.get("lr"),
        "destination": curve.destination,
        "waypoints": certificate.waypoints,
        "points_evaluated": certificate.points_evaluated,
        "length_over_straight": certificate.lengths["arc"] / certificate.lengths["straight"]
        if certificate.lengths["straight"]
        else math.nan,
        "run": run,
    }


def _profile(run: str, certificate: Certificate) -> list[dict[str, Any]]:
    return [
        {
            "run": run,
            "arc": point.at.arc,
            "train_loss": point.train_loss,
            "test_loss": point.test_loss,
            "test_accuracy": point.test_accuracy,
        }
        for point in certificate.points
    ]
