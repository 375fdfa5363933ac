"""Each method by name: from two networks and a budget to a :class:`FoundCurve`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...batches.fixed_samples import held_subset
from ...errors import LLPFError
from ...path import state_digest
from ..cache import cached_training
from ..problem import Problem
from ..statistics import own_statistics
from ..vector_network import BatchGradient, VectorNetwork, seeded
from .band import BandSettings, auto_neb
from .curve import Bezier, Curve, PolyChain, point, straight
from .fit import FitSettings, Progress, fit
from .found import FoundCurve

State = Mapping[str, Tensor]
Method = Literal["llpf", "bezier", "polychain", "autoneb", "linear", "aligned-linear"]
METHODS: tuple[Method, ...] = ("llpf", "bezier", "polychain", "autoneb", "linear", "aligned-linear")
#: Those that train, and so have a learning rate and a budget of gradient steps of their own.
TRAINED: tuple[Method, ...] = ("bezier", "polychain", "autoneb")

#: Straight pieces that a smooth curve is judged by: the chord of a quadratic leaves it by |a - 2 c + b| / (4 * 32^2).
_PIECES = 32
#: Training samples on which AutoNEB looks where to insert: as many as LLPF's quick recipe screens on.
_LOOK = 1000


@dataclass(frozen=True)
class Budget:
    """``steps`` gradient steps on batches of ``batch_size`` at learning rate ``lr``; ``bends`` inner nodes."""

    steps: int
    lr: float
    batch_size: int = 64
    bends: int = 1
    seed: int = 0


def find_curve(
    method: Method, problem: Problem, a: State, b: State, budget: Budget, progress: Progress | None = None
) -> FoundCurve:
    """Bezier, polychain or AutoNEB between the networks ``a`` and ``b``, on ``problem``'s batches.

    Training goes on in train mode, as the methods' authors have it. BatchNorm statistics of inner waypoints are
    re-estimated from training data at each; the two ends are ``a`` and ``b`` bit for bit. With ``problem.cache`` a
    curve that was found already under the same data, ends and settings is taken from there, with its cost.

    Raises:
        LLPFError: training diverges; a method that does not train.
    """

    def train() -> dict[str, Tensor]:
        nodes, steps, seconds = _train(method, problem, a, b, budget, progress)
        return {"nodes": nodes, "cost": torch.tensor([steps, seconds], dtype=torch.float64)}

    identity = None if problem.cache is None else problem.training_identity()
    if problem.cache is None or identity is None:
        found = train()
    else:
        key = {
            "what": "curve",
            "method": method,
            "budget": asdict(budget),
            "settings": _settings(method, budget),
            "problem": identity,
            "ends": [state_digest(a), state_digest(b)],
        }
        found = cached_training(key, problem.cache, train)
    steps, seconds = found["cost"].tolist()
    waypoints = _waypoints(method, problem, a, b, found["nodes"], budget)
    return FoundCurve(method, waypoints, int(steps), seconds, settings=_settings(method, budget))


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
    method: Method, problem: Problem, a: State, b: State, budget: Budget, progress: Progress | None
) -> tuple[Tensor, int, float]:
    """Nodes ``[n, P]``, gradient steps, seconds."""
    network = problem.vector_network(train=True)
    start, end = network.pack(a, "the start"), network.pack(b, "the destination")
    gradient = BatchGradient(network, problem.batches(budget.batch_size, seed=budget.seed))
    # Dropout's numbers come from torch's own generator: fixed inside, left as it was outside.
    with seeded(budget.seed, problem.device):
        began = time.perf_counter()
        if method == "autoneb":
            band = auto_neb(start, end, gradient, _look(problem, network), _band(budget), progress)
            nodes = band.pivots
        elif method in ("bezier", "polychain"):
            curve = _curve(method, budget)
            nodes = fit(curve, straight(curve, start, end), gradient, _fit(budget), progress)
        else:
            raise LLPFError(f"{method} is no method that trains a curve; those that do: {', '.join(TRAINED)}")
        seconds = time.perf_counter() - began
    return nodes.cpu(), gradient.steps, seconds


def _look(problem: Problem, network: VectorNetwork) -> Callable[[Tensor], float]:
    """The loss on a fixed subset of training samples, with the statistics of the batch where there are any."""
    samples = problem.fixed(held_subset(problem.train, _LOOK), batch_size=_LOOK)
    shares = samples.shares(network.reduction)

    def measure(vector: Tensor) -> float:
        batches = zip(samples, shares, strict=True)
        return float(sum(share * float(network.value(vector, x, y)) for (x, y, _), share in batches if share))

    return measure


def _waypoints(method: Method, problem: Problem, a: State, b: State, nodes: Tensor, budget: Budget) -> list[State]:
    network = problem.vector_network()
    if method == "autoneb":
        vectors = list(nodes)
    else:
        curve = _curve(method, budget)
        pieces = _PIECES if method == "bezier" else curve.nodes - 1
        vectors = [point(curve, nodes, i / pieces) for i in range(pieces + 1)]
    inner = [network.unpack(vector, a) for vector in vectors[1:-1]]
    return [dict(a), *own_statistics(problem, inner), dict(b)]
