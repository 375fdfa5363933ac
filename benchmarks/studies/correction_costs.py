"""Time of an iteration of the correction: LeNet5's passes in every setting, and the rest of the iteration.

    python -m benchmarks.studies.correction_costs [--rounds 15] [--out FILE]

One thread, batches of 64, processor time of this process (other programs disturb it less), all variants alternately,
medians with quartiles.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.clock import quartiles
from benchmarks.harness.environment import load, record
from benchmarks.studies.study import CPU, option_parser, parse, save_json
from llpf_fast.batches import TensorBatches
from llpf_fast.correct import Correction
from llpf_fast.flat import FlatParameters
from llpf_fast.models import build_model

BATCH, IMAGES, ITERATIONS = 64, 10_000, 20
#: Seconds of one sample: a hundred periods of the processor-time clock where that runs at 1 kHz.
SAMPLE = 0.1

Call = Callable[[], object]


def alternate(calls: Mapping[str, Call], rounds: int, scale: float) -> dict[str, dict[str, float]]:
    """Quartiles of the processor time of one call of each, times ``scale``; the calls alternate."""

    def sample(call: Call, number: int) -> float:
        start = time.process_time()
        for _ in range(number):
            call()
        return (time.process_time() - start) / number

    numbers = {}
    for name, call in calls.items():
        call()  # compiles, allocates
        numbers[name] = max(1, round(SAMPLE / max(sample(call, 3), 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(scale * sample(call, numbers[name]))
    return {name: quartiles(values) for name, values in times.items()}


def passes(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of one forward and backward pass of LeNet5 in each setting of the correction."""
    torch.manual_seed(0)
    images, targets = torch.randn(BATCH, 1, 28, 28), torch.randint(10, (BATCH,))
    orders = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}

    def once(loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, around: Callable[[], Any]) -> None:
        with around():
            value = loss(inputs, targets)
        value.backward()

    def loss_of(module: nn.Module, inputs: Tensor, wanted: Tensor) -> Tensor:
        return nn.functional.cross_entropy(module(inputs), wanted)

    calls: dict[str, Call] = {}
    for order, layout in orders.items():
        inputs = images.to(memory_format=layout)
        eager = partial(loss_of, build_model("lenet5").train())
        calls[order] = partial(once, eager, inputs, contextlib.nullcontext)
        compiled = torch.compile(partial(loss_of, build_model("lenet5").train()))
        calls[f"{order}, compiled"] = partial(once, compiled, inputs, contextlib.nullcontext)
    narrow = partial(torch.autocast, "cpu", torch.bfloat16)
    inputs = images.to(memory_format=torch.channels_last)
    eager = partial(loss_of, build_model("lenet5").train())
    calls["channels last, bfloat16 under autocast"] = partial(once, eager, inputs, narrow)
    with_passes = partial(once, partial(loss_of, build_model("lenet5").train()), images, contextlib.nullcontext)

    def without_onednn() -> None:
        with torch.backends.mkldnn.flags(enabled=False):
            with_passes()

    calls["channels first, without oneDNN"] = without_onednn
    return alternate(calls, rounds, 1e3)


class Weightless(nn.Module):
    """A network's parameters with next to no passes: the output is the sum of one number of each tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.stack([parameter.view(-1)[0] for parameter in self.network.parameters()]).sum().expand(BATCH, 10)


def iterations(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of one iteration: of LeNet5, and of its parameters without its passes."""
    torch.manual_seed(0)
    images, targets = torch.randn(IMAGES, 1, 28, 28), torch.randint(10, (IMAGES,))

    def correction_of(model: nn.Module, momentum: float) -> Call:
        batches = TensorBatches(images, targets, BATCH, seed=1, channels_last=True)
        correction = Correction(
            FlatParameters(model),
            nn.functional.cross_entropy,
            batches,
            threshold=0.0,
            window=ITERATIONS,
            max_steps=ITERATIONS,
            lr=1e-3,
            momentum=momentum,
        )
        return lambda: correction.run(0)

    def bare_passes(model: nn.Module) -> Call:
        inputs, wanted = images[:BATCH], targets[:BATCH]

        def run() -> None:
            for _ in range(ITERATIONS):
                nn.functional.cross_entropy(model(inputs), wanted).backward()

        return run

    lenet5 = build_model("lenet5").train()
    calls = {
        "LeNet5": correction_of(copy.deepcopy(lenet5), 0.0),
        "LeNet5, momentum": correction_of(copy.deepcopy(lenet5), 0.9),
    }
    weightless = Weightless(copy.deepcopy(lenet5))
    calls["without its passes"] = correction_of(copy.deepcopy(weightless), 0.0)
    calls["without its passes, momentum"] = correction_of(copy.deepcopy(weightless), 0.9)
    calls["what stands for the passes"] = bare_passes(weightless)
    return alternate(calls, rounds, 1e3 / ITERATIONS)


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=CPU / "correction.json")
    args = parse(parser)
    result: dict[str, Any] = {"environment": record(torch.device("cpu")), "rounds": args.rounds}
    result["passes_ms"] = passes(args.rounds)
    result["iteration_ms"] = iterations(args.rounds)
    result["environment"]["load_after"] = load()
    save_json(args.out, result)
    print(args.out.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
