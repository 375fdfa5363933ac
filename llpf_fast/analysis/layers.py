"""Layer-wise linear connectivity, cumulative too, and what second derivatives predict of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import LLPFError
from ..path.fingerprint import code_digest
from ..types import ProgressCallback, StateDict
from ..verify.evaluator import Statistics
from .directional_loss import DirectionalLoss, Taylor
from .measures import Measures, Rank, rank_correlation
from .networks import Networks
from .predict import NODES, CurvatureIntegral, Prediction, curvature_integral, displacement
from .problem import Problem
from .vector_loss import VectorLoss

#: "alone": one layer; the others are cumulative: from the input, from the output, in a random order.
Order = Literal["alone", "shallow", "deep", "random"]
ORDERS: tuple[Order, ...] = ("alone", "shallow", "deep", "random")
#: Training samples that second derivatives are taken on.
HESSIAN_SAMPLES = 2_000


@dataclass(frozen=True)
class GroupBarrier:
    """One network with some layers halfway to the other's (Adilova et al., arXiv 2307.06966):

    barrier = f(base with ``layers`` at the midpoint) - (f(base) + f(other)) / 2 for each value f (``train_loss``, ...).

    ``base`` 0 or 1; ``layer`` is the one added last. ``predicted`` is the same for the training loss to second order
    in the base's derivatives, 1/2 g.D + 1/8 D^T H D over the group's D, plus (L(base) - L(other)) / 2 (ours; exact on
    quadratics); ``curvature`` is its last term alone. None where nothing was predicted.
    """

    order: Order
    base: int
    layer: str
    layers: list[str]
    statistics: Statistics
    barriers: dict[str, float]
    predicted: float | None = None
    curvature: float | None = None


@dataclass(frozen=True)
class LayerShare:
    """A layer: number of parameters, distance between the two networks in it, its share of the squared distance, and
    its norm in both networks."""

    layer: str
    parameters: int
    distance: float
    share: float
    norm_1: float
    norm_2: float


@dataclass(frozen=True)
class LayerConnectivity:
    """Result of ``layer_connectivity``.

    ``endpoint_values``: statistics -> value name -> value at each network. ``blocks`` [2, L, L]: D_k^T H D_l at both
    networks, D being the difference to the other network.
    """

    names: list[str]
    layers: list[LayerShare]
    groups: list[GroupBarrier]
    endpoint_values: dict[str, dict[str, list[float]]]
    whole: Prediction | None = None
    integral: CurvatureIntegral | None = None
    blocks: list[list[list[float]]] | None = None
    hessian_samples: int | None = None

    def select(self, order: Order, base: int, statistics: Statistics = "stored") -> list[GroupBarrier]:
        return [g for g in self.groups if (g.order, g.base, g.statistics) == (order, base, statistics)]

    @property
    def statistics(self) -> list[Statistics]:
        return list(dict.fromkeys(group.statistics for group in self.groups))

    def midpoint(self, statistics: Statistics = "stored") -> dict[str, float]:
        """The barrier of all layers, at the midpoint of the two networks."""
        for order in ("shallow", "deep", "random"):
            if groups := self.select(order, 0, statistics):
                return groups[-1].barriers
        return {}

    def ranks(self) -> dict[str, Rank]:
        """Spearman's correlation of measured training-loss barriers with predicted ones: ``alone_base_0``, ..., and
        ``alone``, over the layers of both directions."""
        ranks = {}
        for order in dict.fromkeys(group.order for group in self.groups):
            both: list[GroupBarrier] = []
            for base in (0, 1):
                groups = [group for group in self.select(order, base) if group.predicted is not None]
                ranks[f"{order}_base_{base}"] = _rank(groups)
                both += groups
            ranks[order] = _rank(both)
        return ranks

    def numbers(self) -> dict[str, Any]:
        """Plain values for a results file."""
        whole = None
        if self.whole is not None:
            parts = {name: getattr(self.whole, name) for name in ("midpoint", "sixteenth", "highest")}
            whole = {**asdict(self.whole), **parts}
        return {
            "networks": self.names,
            "endpoint_values": self.endpoint_values,
            "layers": [asdict(layer) for layer in self.layers],
            "midpoint_barrier": {kind: self.midpoint(kind) for kind in self.statistics},
            "predicted": whole,
            "curvature_integral": None if self.integral is None else asdict(self.integral),
            "rank_correlation": {name: asdict(rank) for name, rank in self.ranks().items()} if whole else None,
            "curvature_blocks": self.blocks,
            "hessian_samples": self.hessian_samples,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One record a group."""
        return [
            {
                "order": group.order,
                "base": self.names[group.base],
                "batchnorm_statistics": group.statistics,
                "layer": group.layer,
                "layers": len(group.layers),
                **{f"{name}_barrier": value for name, value in group.barriers.items()},
                "predicted": group.predicted,
                "predicted_by_curvature": group.curvature,
            }
            for group in self.groups
        ]


def _rank(groups: Sequence[GroupBarrier]) -> Rank:
    measured = [group.barriers["train_loss"] for group in groups]
    return rank_correlation([group.predicted or 0.0 for group in groups], measured)


def layer_connectivity(
    problem: Problem,
    networks: Networks,
    *,
    orders: Sequence[Order] = ORDERS,
    tensors: bool = False,
    predict: bool = True,
    integral: bool = True,
    hessian_samples: int = HESSIAN_SAMPLES,
    nodes: int = NODES,
    progress: ProgressCallback | None = None,
) -> LayerConnectivity:
    """Measure how the loss of each of two networks changes as layers go halfway to the other's.

    A layer is a module that owns parameters, with its buffers (BatchNorm statistics go along). Where there are
    BatchNorm layers everything is measured with the stored and with re-estimated statistics.

    Args:
        networks: exactly two; the order of layers is the architecture's.
        orders: which groups: each layer alone, and groups that grow. The random order is drawn from ``problem.seed``.
        tensors: whether every parameter tensor counts as a layer.
        predict: also take second derivatives: L Hessian-vector products at each network, on ``hessian_samples`` fixed
            training samples (0: all that are measured) in float64.
        integral: with ``predict``, also the curvature integral along the whole line: 2 ``nodes`` more.
        progress: called with (done, expected, text).

    Raises:
        LLPFError: not two networks, networks that are equal, an unknown order.
    """
    if len(networks) != 2:
        raise LLPFError(f"layer-wise connectivity is between two networks, {len(networks)} are given")
    unknown = [order for order in orders if order not in ORDERS]
    if unknown or not orders:
        raise LLPFError(f"unknown order {', '.join(map(repr, unknown))}; known: {', '.join(ORDERS)}")
    layers = {name: [name] for name in networks.parameter_names} if tensors else networks.layers
    move = displacement(networks)
    shares = _shares(networks, layers, move)
    if not any(share.distance for share in shares):
        raise LLPFError(
            f"{networks.names[0]} and {networks.names[1]} have the same parameters: there is nothing between them"
        )
    plan = _plan(list(layers), orders, problem.seed)
    kinds = problem.statistics
    work = _ProgressCounter(
        progress, 2 * len(kinds) * (len(plan) + 1) + (2 + (2 * nodes if integral else 0) if predict else 0)
    )
    expansions: list[Taylor] | None = None
    whole = curvature_along = None
    directional = DirectionalLoss(problem, hessian_samples) if predict else None
    if directional is not None:
        expansions = [_expansion(problem, networks, layers, directional, base, work) for base in (0, 1)]
        whole = _whole(expansions)
        if integral:
            curvature_along = curvature_integral(
                directional,
                networks,
                nodes=nodes,
                progress=lambda *_: work.report("curvature along the line"),
                cached=lambda key, compute: _cached(problem, networks, directional, key, compute),
            )
    groups: list[GroupBarrier] = []
    endpoint_values: dict[str, dict[str, list[float]]] = {}
    for kind in kinds:
        measure = Measures(problem, kind)
        measured = [measure(networks[i]) for i in (0, 1)]
        work.report("both networks", 2)
        endpoint_values[kind] = {name: [one[name] for one in measured] for name in measured[0]}
        for base in (0, 1):
            for order, layer, members in plan:
                state = _halfway(networks, layers, members, base)
                values = measure(state)
                work.report(f"{order}, base {networks.names[base]}, {layer}")
                means = {name: sum(pair) / 2 for name, pair in endpoint_values[kind].items()}
                barriers = {name: value - means[name] for name, value in values.items()}
                predicted = curvature = None
                if expansions is not None and kind == "stored":
                    predicted, curvature = _predicted(expansions, base, [list(layers).index(name) for name in members])
                groups.append(GroupBarrier(order, base, layer, members, kind, barriers, predicted, curvature))
    return LayerConnectivity(
        networks.names,
        shares,
        groups,
        endpoint_values,
        whole,
        curvature_along,
        None if expansions is None else [expansion.curvature.tolist() for expansion in expansions],
        None if directional is None else directional.samples,
    )


class _ProgressCounter:
    def __init__(self, progress: ProgressCallback | None, expected: int) -> None:
        self._progress, self._expected, self._done = progress, expected, 0

    def report(self, text: str, count: int = 1) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, max(self._expected, self._done), text)


def _plan(layers: list[str], orders: Sequence[Order], seed: int) -> list[tuple[Order, str, list[str]]]:
    """(order, the layer added last, all layers of the group), each in the order in which they are added."""
    shuffled = torch.randperm(len(layers), generator=torch.Generator().manual_seed(seed)).tolist()
    sequences: dict[Order, list[str]] = {
        "alone": layers,
        "shallow": layers,
        "deep": layers[::-1],
        "random": [layers[i] for i in shuffled],
    }
    return [
        (order, layer, [layer] if order == "alone" else sequences[order][: i + 1])
        for order in dict.fromkeys(orders)
        for i, layer in enumerate(sequences[order])
    ]


def _shares(networks: Networks, layers: Mapping[str, list[str]], move: StateDict) -> list[LayerShare]:
    total = sum(float(move[name].square().sum()) for name in networks.parameter_names)
    shares = []
    for layer, names in layers.items():
        squared = sum(float(move[name].square().sum()) for name in names)
        norms = [math.sqrt(sum(float(network[name].double().square().sum()) for name in names)) for network in networks]
        count = sum(networks[0][name].numel() for name in names)
        share = squared / total if total else 0.0
        shares.append(LayerShare(layer, count, math.sqrt(squared), share, *norms))
    return shares


def _names(networks: Networks, layers: Mapping[str, list[str]], members: Sequence[str]) -> set[str]:
    """State-dict names that belong to ``members``: parameters under all their names, and the layers' buffers."""
    names = {alias for layer in members for name in layers[layer] for alias in networks.aliases(name)}
    parameters = {alias for name in networks.parameter_names for alias in networks.aliases(name)}
    owners = {name.rpartition(".")[0] for name in names}
    buffers = {name for name in networks[0] if name not in parameters and name.rpartition(".")[0] in owners}
    return names | buffers


def _halfway(
    networks: Networks, layers: Mapping[str, list[str]], members: Sequence[str], base: int
) -> dict[str, Tensor]:
    middle = networks.between(base, 1 - base, 0.5)
    chosen = _names(networks, layers, members)
    return {name: middle[name] if name in chosen else value for name, value in networks[base].items()}


def _expansion(
    problem: Problem,
    networks: Networks,
    layers: Mapping[str, list[str]],
    directional: DirectionalLoss,
    base: int,
    work: _ProgressCounter,
) -> Taylor:
    """Expansion at network ``base``, along each layer's difference to the other network."""
    move = displacement(networks, base, 1 - base)

    def compute() -> dict[str, Any]:
        directions = [
            {alias: move[alias] for name in names for alias in networks.aliases(name)} for names in layers.values()
        ]
        expansion = directional.expand(networks[base], directions)
        return {"loss": expansion.loss, "slopes": expansion.slopes, "curvature": expansion.curvature}

    work.report(f"second derivatives at {networks.names[base]}")
    numbers = _cached(problem, networks, directional, {"what": "layers", "base": base, "layers": layers}, compute)
    slopes, curvature = (torch.as_tensor(numbers[name], dtype=torch.float64) for name in ("slopes", "curvature"))
    return Taylor(numbers["loss"], slopes, curvature)


def _cached(
    problem: Problem,
    networks: Networks,
    directional: DirectionalLoss,
    key: Mapping[str, Any],
    compute: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """``compute()``, or what it gave before for the same networks, data and loss."""
    code = code_digest(DirectionalLoss, Prediction, LayerConnectivity, VectorLoss)
    key = {**key, "networks": networks.digests(), "on": directional.settings(), "code": code}
    return problem.cached_numbers(key, compute)


def _whole(expansions: Sequence[Taylor]) -> Prediction:
    """The prediction for the whole line; at the second network D has the opposite sign."""
    slopes = [float(expansion.slopes.sum()) for expansion in expansions]
    curvatures = [float(expansion.curvature.sum()) for expansion in expansions]
    return Prediction(slopes[0], -slopes[1], *curvatures)


def _predicted(expansions: Sequence[Taylor], base: int, members: Sequence[int]) -> tuple[float, float]:
    here, other = expansions[base], expansions[1 - base]
    chosen = torch.tensor(list(members))
    curvature = float(here.curvature[chosen][:, chosen].sum()) / 8
    return (here.loss - other.loss) / 2 + float(here.slopes[chosen].sum()) / 2 + curvature, curvature
