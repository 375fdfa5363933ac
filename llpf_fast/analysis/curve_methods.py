"""The methods that join two networks, each as one call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..batches import TensorData, as_data
from ..batches.fixed_samples import fixed_subset
from ..batches.forward import forward, shape_of
from ..batches.precision import module_in
from ..errors import LLPFError, require
from ..find import LowerSettings, PathFinder, PathLowering, Settings, TickProgress
from ..find.curve import Bezier, Curve, PolyChain, point, straight
from ..flat.copying import copied
from ..path import RunDirectory, state_digest
from ..types import ProgressCallback, StateDict
from .curve import CurveResult, FitSettings, fit
from .elastic_band import BandSettings, auto_neb
from .networks import load_state
from .permutations import trace_permutations
from .problem import Problem
from .vector_loss import BatchGradient, VectorLoss, seeded
from .weight_matching import align


def straight_line(a: StateDict, b: StateDict) -> CurveResult:
    """The straight line, which needs no search."""
    return CurveResult("linear", [dict(a), dict(b)], 0, 0.0)


def aligned_line(problem: Problem, a: StateDict, b: StateDict, *, seed: int = 0, restarts: int = 3) -> CurveResult:
    """The straight line from ``a`` to ``b`` with its hidden units put in the order that fits ``a`` best.

    It ends at another point than ``b``, at a network that computes the same function.

    Raises:
        LLPFError: the network cannot be traced, or has no units that may be permuted.
    """
    # Imported before the time is taken: the import takes seconds, once a process.
    require("scipy.optimize", "weight matching")

    begin = time.perf_counter()
    specification = trace_permutations(problem.module, _example(problem, 2))
    alignment = align(a, b, specification, seed=seed, restarts=restarts)
    check_same_function(problem, b, alignment.state)
    return CurveResult(
        "aligned-linear",
        [dict(a), alignment.state],
        0,
        time.perf_counter() - begin,
        destination="b permuted",
        settings={
            "restarts": restarts,
            "seed": seed,
            "groups": [group.size for group in specification.groups],
            "distance_before": alignment.before,
            "distance_after": alignment.after,
        },
    )


def _example(problem: Problem, count: int) -> Tensor:
    """Inputs of a few training samples, on the CPU; LLPFError where they are not one tensor."""
    data = problem.train
    inputs = data.inputs if isinstance(data, TensorData) else data[0][0]
    if not isinstance(inputs, Tensor):
        raise LLPFError(
            f"{type(problem.module).__name__} takes {shape_of(inputs)}, and only networks of one input tensor can be "
            "aligned; leave out aligned-linear"
        )
    return inputs[:count].detach().cpu()


def check_same_function(problem: Problem, before: StateDict, after: StateDict) -> None:
    """LLPFError where two states of one network give other outputs on training data (float64, relative 1e-6)."""
    inputs = _example(problem, 64)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    twin = module_in(copied(problem.module, "the model"), torch.device("cpu"), torch.float64).eval()
    outputs = []
    with torch.set_grad_enabled(problem.mode.gradients):
        for state in (before, after):
            load_state(twin, state)
            outputs.append(forward(twin, inputs).detach())
    if not torch.allclose(outputs[0], outputs[1], rtol=1e-6, atol=1e-6 * float(outputs[0].abs().max())):
        raise LLPFError(
            f"aligning {type(problem.module).__name__} changes what it computes: its units are used in a way that "
            "the trace does not follow; leave out aligned-linear"
        )


class _OutOfBudgetError(Exception):
    pass


def llpf(
    problem: Problem,
    a: StateDict,
    b: StateDict,
    settings: Settings,
    folder: Path,
    *,
    steps: int | None = None,
    progress: ProgressCallback | None = None,
) -> CurveResult:
    """LLPF's path between ``a`` and ``b`` with ``settings``; a run that is in ``folder`` already is continued.

    It is stopped after ``steps`` gradient steps; a straight segment then leads to ``b``.

    Raises:
        LLPFError: as the finder's; it got stuck or ended without arriving.
    """
    settings = replace(settings, mode="m2m")

    def watch(at: TickProgress) -> None:
        if progress is not None:
            text = f"tick {at.tick}  loss {at.loss:.4f}  distance left {at.distance:.1%}"
            progress(at.steps, max(steps or 0, at.steps), text)
        if steps is not None and at.steps >= steps and at.distance > 0:
            raise _OutOfBudgetError

    run = RunDirectory.open(folder) if (folder / "run.yaml").exists() else None
    if run is not None and not run.complete and steps is not None and _steps(run) >= steps:
        return _stopped(run, b, steps, math.nan)
    if run is None or not run.complete:
        finder = PathFinder(
            copied(problem.module, "the model"),
            dict(a),
            dict(b),
            settings=settings,
            train=as_data(problem.train),
            loss_fn=problem.loss_fn,
            device=problem.device,
            out=folder,
            progress=watch,
            resume=run is not None,
        )
        begin = time.perf_counter()
        try:
            result = finder.run()
        except _OutOfBudgetError:
            return _stopped(RunDirectory.open(folder), b, steps, time.perf_counter() - begin)
        if not result.arrived:
            raise LLPFError(f"LLPF ended ({result.ended}) before it arrived; its run is in {folder}")
        run = RunDirectory.open(folder)
    status = run.status or {}
    waypoints = [waypoint.load() for waypoint in run.waypoints()]
    return CurveResult(
        "llpf",
        waypoints,
        int(status.get("sgd_steps", 0)),
        float(status.get("seconds", 0.0)),
        settings={"recipe_settings": settings.as_dict()},
    )


#: The threshold of a search whose path is lowered, in multiples of that of a search that is not: LeNet5 then takes 65
#: gradient steps instead of 295, and lowering gets as low from there.
_LOOSE = 2.0


def llpf_lowered(
    problem: Problem,
    a: StateDict,
    b: StateDict,
    settings: Settings,
    folder: Path,
    *,
    steps: int,
    lr: float | None = None,
    progress: ProgressCallback | None = None,
) -> CurveResult:
    """LLPF's path at twice the threshold of ``settings``, lowered for the rest of ``steps`` gradient steps.

    Search and lowering are runs in ``folder``; what is there already is continued. ``lr``: of the lowering; its default
    when missing. Errors as of :func:`llpf` and :class:`~llpf_fast.find.PathLowering`.
    """
    loose = settings.changed(threshold=_LOOSE * settings.threshold, correction={"threshold": None})
    search = llpf(problem, a, b, loose, folder / "search", steps=steps, progress=progress)
    left = steps - search.gradient_steps
    if left < 1 or "stopped_at_steps" in search.settings:
        return replace(search, method="llpf+lower")
    out = folder / (f"lowered-{left}" + ("" if lr is None else f"-{lr:g}"))
    lowering = PathLowering(
        copied(problem.module, "the model"),
        folder / "search",
        settings=LowerSettings(steps=left, lr=lr),
        train=as_data(problem.train),
        loss_fn=problem.loss_fn,
        device=problem.device,
        out=out,
        resume=(out / "run.yaml").exists(),
    )
    result = lowering.run(progress)
    run = RunDirectory.open(out)
    lower = run.run["settings"]["lower"]
    return CurveResult(
        "llpf+lower",
        [waypoint.load() for waypoint in run.waypoints()],
        result.sgd_steps,
        search.seconds + result.seconds,
        settings={
            "recipe_settings": loose.as_dict(),
            "search_steps": search.gradient_steps,
            "lower": lower,
            "lr": lower["lr"],
        },
    )


def _steps(run: RunDirectory) -> int:
    metrics = run.metrics()
    return int(metrics[-1]["sgd_steps"]) if metrics else 0


def _stopped(run: RunDirectory, b: StateDict, steps: int | None, seconds: float) -> CurveResult:
    """The waypoints of a search that was stopped, and ``b``."""
    waypoints = [waypoint.load() for waypoint in run.waypoints()]
    return CurveResult("llpf", [*waypoints, dict(b)], _steps(run), seconds, settings={"stopped_at_steps": steps})


Method = Literal["llpf", "llpf+lower", "bezier", "polychain", "autoneb", "linear", "aligned-linear"]
METHODS: tuple[Method, ...] = ("llpf", "llpf+lower", "bezier", "polychain", "autoneb", "linear", "aligned-linear")
#: Those that :func:`find_curve` trains.
CURVES: tuple[Method, ...] = ("bezier", "polychain", "autoneb")
#: Those that have a learning rate and a budget of gradient steps.
TRAINED: tuple[Method, ...] = ("llpf+lower", *CURVES)

#: Segments of the polyline through a smooth curve; a quadratic is at most |a - 2 c + b| / (4 * 32^2) away from them.
_PIECES = 32
#: Training samples of the loss that tells AutoNEB where to insert: as many as LLPF's quick recipe screens on.
_SCREENING_SAMPLES = 1000


@dataclass(frozen=True)
class Budget:
    """``steps`` gradient steps on batches of ``batch_size`` at learning rate ``lr``; ``bends`` inner nodes."""

    steps: int
    lr: float
    batch_size: int = 64
    bends: int = 1
    seed: int = 0


def find_curve(
    method: Method,
    problem: Problem,
    a: StateDict,
    b: StateDict,
    budget: Budget,
    progress: ProgressCallback | None = None,
) -> CurveResult:
    """Bezier, polychain or AutoNEB between the networks ``a`` and ``b``, on ``problem``'s batches.

    Training is in train mode, as in the authors' code. BatchNorm statistics of inner waypoints are
    re-estimated from training data at each; the two endpoints are ``a`` and ``b`` bit for bit. With ``problem.cache`` a
    curve of the same data, endpoints and settings is taken from there, with its cost.

    Raises:
        LLPFError: training diverges; a method that does not train.
    """

    def train() -> dict[str, Tensor]:
        nodes, steps, seconds = _train(method, problem, a, b, budget, progress)
        return {"nodes": nodes, "cost": torch.tensor([steps, seconds], dtype=torch.float64)}

    key = {
        "what": "curve",
        "method": method,
        "budget": asdict(budget),
        "settings": _settings(method, budget),
        "endpoints": [state_digest(a), state_digest(b)],
    }
    trained = problem.cached_training(key, train)
    steps, seconds = trained["cost"].tolist()
    waypoints = _waypoints(method, problem, a, b, trained["nodes"], budget)
    return CurveResult(method, waypoints, int(steps), seconds, settings=_settings(method, budget))


def _settings(method: Method, budget: Budget) -> dict[str, Any]:
    if method == "autoneb":
        return {"batch_size": budget.batch_size, "seed": budget.seed, **asdict(_band(budget))}
    return {"batch_size": budget.batch_size, "bends": budget.bends, **asdict(_fit(budget))}


def _fit(budget: Budget) -> FitSettings:
    return FitSettings(steps=budget.steps, lr=budget.lr, seed=budget.seed)


def _band(budget: Budget) -> BandSettings:
    return BandSettings(steps=budget.steps, lr=budget.lr)


def _curve(method: Method, budget: Budget) -> Curve:
    return Bezier(budget.bends) if method == "bezier" else PolyChain(budget.bends)


def _train(
    method: Method, problem: Problem, a: StateDict, b: StateDict, budget: Budget, progress: ProgressCallback | None
) -> tuple[Tensor, int, float]:
    """Nodes ``[n, P]``, gradient steps, seconds."""
    network = problem.vector_loss(train=True)
    start, end = network.pack(a, "the start"), network.pack(b, "the destination")
    gradient = BatchGradient(network, problem.batches(budget.batch_size, seed=budget.seed))
    # Dropout draws from torch's generator.
    with seeded(budget.seed, problem.device):
        begin = time.perf_counter()
        if method == "autoneb":
            band = auto_neb(start, end, gradient, _screening_loss(problem, network), _band(budget), progress)
            nodes = band.pivots
        elif method in ("bezier", "polychain"):
            curve = _curve(method, budget)
            nodes = fit(curve, straight(curve, start, end), gradient, _fit(budget), progress)
        else:
            raise LLPFError(f"{method} is no method that trains a curve; those that do: {', '.join(CURVES)}")
        seconds = time.perf_counter() - begin
    return nodes.cpu(), gradient.steps, seconds


def _screening_loss(problem: Problem, network: VectorLoss) -> Callable[[Tensor], float]:
    """The loss on a fixed subset of training samples, with the statistics of the batch where there are any."""
    samples = problem.fixed(fixed_subset(problem.train, _SCREENING_SAMPLES), batch_size=_SCREENING_SAMPLES)
    shares = samples.shares(network.reduction)

    def measure(vector: Tensor) -> float:
        batches = zip(samples, shares, strict=True)
        return float(sum(share * float(network.value(vector, x, y)) for (x, y, _), share in batches if share))

    return measure


def _waypoints(
    method: Method, problem: Problem, a: StateDict, b: StateDict, nodes: Tensor, budget: Budget
) -> list[StateDict]:
    network = problem.vector_loss()
    if method == "autoneb":
        vectors = list(nodes)
    else:
        curve = _curve(method, budget)
        pieces = _PIECES if method == "bezier" else curve.nodes - 1
        vectors = [point(curve, nodes, i / pieces) for i in range(pieces + 1)]
    inner = [network.unpack(vector, a) for vector in vectors[1:-1]]
    return [dict(a), *problem.reestimated(inner), dict(b)]
