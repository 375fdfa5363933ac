"""Correction iterations of K paths as one stack, beside the same corrections one after the other.

One after the other at most ``MOST_IN_TURN`` run, and their time an iteration counts for K: on a GPU each captures a
graph each. Both sides run in float32 and in the same way: captured on a GPU, called on a CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from llpf_fast.batches import TensorBatches
from llpf_fast.correct import Correction
from llpf_fast.correct.stacked_correction import StackedCorrection
from llpf_fast.flat import FlatParameters
from llpf_fast.models import build_model

from ..harness.case import OURS, Case, Contender, Cost, Prepared
from ..harness.throughput import IN_TURN, variant
from .correction import FLOPS_OF_FORWARD, PRECISION, Way, in_float64, off_by

IMAGES, BATCH, LR = 2_000, 64, 1e-3


@dataclass(frozen=True)
class Network:
    """What is stacked: the registered name, its parameters, and additions and multiplications of one image forward."""

    model: str
    shape: tuple[int, ...]
    parameters: int
    flops: int
    rounds: int


NETWORKS = {
    "MLP": Network("mlp", (64,), 8_970, 2 * 8_832, 12),
    "LeNet5": Network("lenet5", (1, 28, 28), 61_706, FLOPS_OF_FORWARD, 4),
}
#: Paths, and where.
ON_A_CPU, ON_A_GPU = (1, 2, 4, 8, 16), (1, 8, 64)
MOST_IN_TURN = 8


class Stacked(Way):
    """``rounds`` iterations of a stack whose gates stay open."""

    def __init__(self, modules: list[nn.Module], batches: TensorBatches, rounds: int) -> None:
        super().__init__()
        self.flats = [FlatParameters(module) for module in modules]
        self.rounds, self.round = rounds, 0
        self.stack = StackedCorrection(
            self.flats[0],
            nn.functional.cross_entropy,
            batches,
            paths=len(modules),
            # One path too is timed as a stack: what that costs is the point of the row.
            least=1,
            threshold=0.0,
            window=rounds,
            max_steps=rounds,
            lr=LR,
        )
        self.paths = [self.stack.take(flat) for flat in self.flats]

    def __call__(self) -> None:
        for path in self.paths:
            path.begin(self.round)
        # On a GPU the host reads the gates now and then only.
        training = set(self.paths)
        while training:
            training -= {path for path, _ in self.stack.iterate()}
        self.round += self.rounds

    def captured(self) -> bool:
        graphs = [getattr(replay, "__self__", None) for replay in self.stack._graphs.values()]
        return bool(graphs) and all(isinstance(graph, torch.cuda.CUDAGraph) for graph in graphs)


class InTurn(Way):
    """The same corrections, one whole path after the other."""

    def __init__(self, modules: list[nn.Module], batches: TensorBatches, rounds: int) -> None:
        super().__init__()
        self.flats = [FlatParameters(module) for module in modules]
        self.rounds, self.round = rounds, 0
        rule = {"threshold": 0.0, "window": rounds, "max_steps": rounds, "lr": LR, "precision": PRECISION}
        self.corrections = [
            Correction(flat, nn.functional.cross_entropy, batches, **rule)  # type: ignore[arg-type]
            for flat in self.flats
        ]

    def __call__(self) -> None:
        for correction in self.corrections:
            correction.run(self.round)
        self.round += self.rounds

    def captured(self) -> bool:
        return all(correction.captured for correction in self.corrections)


def judged(errors: list[float]) -> float:
    """Of K paths: the worst, but of more than 19 one in twenty may be off by what ``BATCH`` times less allows.

    Where two values of a pooling window are equal up to rounding, float32 may take the other one than float64: a part
    of one image, of 1 / BATCH of the gradient, then goes elsewhere (LeNet5: once in 64 paths of four iterations).
    """
    errors = sorted(errors)
    return max(errors[-1 - len(errors) // 20], errors[-1] / BATCH)


def prepare(network: Network, paths: int, device: torch.device, pool: int) -> Prepared:
    torch.manual_seed(0)
    initial = [build_model(network.model, classes=10).to(device) for _ in range(paths)]
    inputs = torch.randn(IMAGES, *network.shape, device=device)
    targets = torch.randint(10, (IMAGES,), device=device)
    # As the finder does by itself: single LeNet5 paths are much faster so.
    batches = TensorBatches(inputs, targets, BATCH, seed=1, channels_last=device.type == "cpu")
    ways: dict[str, Stacked | InTurn] = {
        OURS: Stacked([copy.deepcopy(module) for module in initial], batches, network.rounds),
        IN_TURN: InTurn([copy.deepcopy(module) for module in initial[:MOST_IN_TURN]], batches, network.rounds),
    }

    def error(way: Stacked | InTurn) -> float:
        way.round = 0
        pairs = list(zip(way.flats, initial, strict=False))
        for flat, module in pairs:
            flat.load(module.state_dict())
        way.watched()
        errors = []
        for flat, module in pairs:
            start = [parameter.detach().double() for parameter in module.parameters()]
            want = in_float64(module, batches, network.rounds, LR, 0.0)
            errors.append(off_by(list(flat.state_dict().values()), want, start))
        return judged(errors)

    contenders = {
        name: Contender([way], partial(error, way), 1e-3, way.how, network.rounds * len(way.flats))
        for name, way in ways.items()
    }
    return Prepared(contenders, units=network.rounds * paths)


def cases() -> Iterator[Case]:
    for size, network in NETWORKS.items():
        n = network.parameters
        for paths in sorted({*ON_A_CPU, *ON_A_GPU}):
            yield Case(
                op="many_paths",
                size=size,
                parameters=n,
                dtype="float32",
                variant=variant(paths),
                # Of one path's iteration: the update's words; activations stay in the caches.
                cost=Cost(touched=12 * n, read=0, triad=0, flops=3 * BATCH * network.flops + 2 * n),
                prepare=partial(prepare, network, paths),
                caches=("warm",),
                threads=(1,),
                member_bytes=1,
                memory=1 << 27,
                devices=tuple(name for name, some in (("cpu", ON_A_CPU), ("cuda", ON_A_GPU)) if paths in some),
            )
