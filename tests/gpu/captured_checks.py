"""What the captured iteration of a correction must do on a GPU, as plain functions; gpu_checks.py lists them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from llpf_fast.batches import TensorBatches
from llpf_fast.batches.augment import augmentation
from llpf_fast.batches.precision import Precision, float32_products
from llpf_fast.correct import Correction
from llpf_fast.correct.graphs import LoopingReplay, capture
from llpf_fast.correct.sgd_step import SgdStep
from llpf_fast.correct.stacked_correction import StackedCorrection
from llpf_fast.flat import FlatParameters
from llpf_fast.models import build_model
from llpf_fast.ops.loss_gate import ACTIVE, FINAL, WINDOW
from llpf_fast.ops.loss_gate import STEPS as COUNTED

ROUNDS = 12
#: Arithmetic of both sides of every comparison; torch's own default would run convolutions in TF32 on one of them.
PRECISION: Precision = "float32"
#: Nodes of the graph that are the engine's: counter_randint_, two gathers, loss_gate_, sgd_ and a copy for the gradient
#: of each parameter; a copy, a comparison and a where for the buffers of each dtype.
NODES, NODES_OF_BUFFERS = 5, 5


def normalized() -> nn.Module:
    convolution = [nn.Conv2d(1, 8, 5), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten()]
    return nn.Sequential(*convolution, nn.Linear(8 * 36, 10))


def correction(make: Callable[[], nn.Module], device: torch.device, **given: Any) -> Correction:
    torch.manual_seed(0)
    module = make().to(device)
    data: tuple[Tensor, Tensor] = (torch.randn(500, 1, 28, 28), torch.randint(10, (500,)))
    augment = augmentation(given.pop("augment", "none"))
    batches = TensorBatches(*(part.to(device) for part in data), 64, seed=3, augment=augment)
    rule = {"threshold": 0.0, "window": 5, "max_steps": ROUNDS, "lr": 0.01, "momentum": 0.9}
    rule |= {"precision": PRECISION, **given}
    return Correction(FlatParameters(module), nn.functional.cross_entropy, batches, **rule)


def lenet5() -> nn.Module:
    return build_model("lenet5")


def check_captured_values(device: torch.device) -> None:
    """Rounds, losses and values of the ordinary path; the float32 sums of some backward kernels have no fixed order."""
    for make in (lenet5, normalized):
        for augment in ("none", "mnist"):
            runs = [correction(make, device, augment=augment, cuda_graph=how) for how in ("off", "on")]
            ends = [one.run(0) for one in runs]
            assert runs[1].captured
            assert ends[0].steps == ends[1].steps == ROUNDS
            assert abs(ends[0].loss - ends[1].loss) < 1e-4, ends
            torch.testing.assert_close(runs[1]._flat.data, runs[0]._flat.data, rtol=1e-3, atol=1e-5)
            ours, theirs = (dict(one.module.named_buffers()) for one in runs)
            for name, buffer in ours.items():
                torch.testing.assert_close(theirs[name], buffer, rtol=1e-3, atol=1e-5, msg=name)


def check_captured_bits(device: torch.device) -> None:
    """Where torch's kernels have a fixed order, replays have the values of calls, to a zero's sign."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for hyper in ({"momentum": 0.0}, {"nesterov": True, "weight_decay": 1e-3}):
            runs = [correction(normalized, device, cuda_graph=how, **hyper) for how in ("off", "on")]
            ends = [[one.run(first) for first in (0, 50)] for one in runs]
            assert [one.captured for one in runs] == [False, True]
            assert ends[0] == ends[1], f"{hyper}: {ends}"
            torch.testing.assert_close(runs[1]._flat.data, runs[0]._flat.data, rtol=0, atol=0, msg=str(hyper))
            for ours, theirs in zip(*(one.module.buffers() for one in runs), strict=True):
                assert torch.equal(ours, theirs), f"{hyper}: buffers"
    finally:
        torch.use_deterministic_algorithms(False)


def check_closed_gate(device: torch.device) -> None:
    """Replays after the gate closed keep every bit, however gradients reach the buffer; an open gate changes all."""
    for gather in (True, False):
        one = correction(normalized, device, cuda_graph="on", augment="mnist")
        one.run(0)
        replays, state = one._replays, one._step.state
        assert replays is not None
        one._step.bind_batches(one._batches, gather=gather)  # type: ignore[arg-type]
        replays._replay = None  # captured anew
        one.run(0)
        assert replays._replay is not None
        before = lasting(one)
        for extra in range(5):
            replays._replay()
            assert state[[ACTIVE, FINAL]].tolist() == [0.0, 0.0]
            changed = differing(before, lasting(one))
            assert not changed, f"{changed} changed {extra + 1} replays after the gate closed, gather {gather}"
        state[ACTIVE] = 1.0
        replays._replay()
        assert set(before) - set(differing(before, lasting(one))) <= {"cursor"}, "an open gate changed nothing"


def check_steady_replays(device: torch.device) -> None:
    """Queued replays neither wait for the device nor take memory; a look waits once."""
    one = correction(lenet5, device, cuda_graph="on")
    one.run(0)
    replays = one._replays
    assert replays is not None
    assert replays._replay is not None
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        one._step.state.copy_(one._open_gate)
        one._batches.seek(40)  # type: ignore[union-attr]
        for _ in range(20):
            replays._replay()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    made = torch.cuda.memory_stats()["allocation.all.allocated"] - before
    assert made == 0, f"{made} allocations in twenty replays"


def check_nodes(device: torch.device, nodes: Callable[[Callable[[], object]], int]) -> dict[str, list[int]]:
    """Kernels of an iteration beside those of forward and backward alone: both captured, both in ``PRECISION``."""
    found = {}
    for make in (lenet5, normalized):
        one = correction(make, device, cuda_graph="on")
        one.run(0)
        inputs, targets = one._batches.batch(0)

        def passes(one: Correction = one, inputs: Tensor = inputs, targets: Tensor = targets) -> None:
            for parameter in one.module.parameters():
                parameter.grad = None
            nn.functional.cross_entropy(one.module(inputs), targets).backward()

        most = NODES + len(list(one.module.parameters())) + NODES_OF_BUFFERS * any(True for _ in one.module.buffers())
        with float32_products(PRECISION, device):
            whole, alone = nodes(one._step), nodes(passes)
        found[make.__name__] = [whole, alone]
        assert whole - alone <= most, f"{make.__name__}: the engine adds {whole - alone} nodes, {most} allowed"
    return found


def check_a_failing_capture_goes_on(device: torch.device) -> None:
    """What cannot be captured costs one warning, and the device works on."""
    stream, x = torch.cuda.current_stream(device), torch.ones(3, device=device)
    for _ in range(2):
        try:
            capture(lambda: x * float(x.sum()), device)
        except RuntimeError:
            pass
        else:
            raise AssertionError("a wait for the device was captured")
        assert torch.cuda.current_stream(device) == stream, "the stream was not put back"
        assert bool(torch.rand(4, device=device).isfinite().all())
    capture(lambda: x.mul_(2.0), device).replay()
    assert x.tolist() == [2.0, 2.0, 2.0]

    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = lenet5()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if float(x.sum()) > -1e30 else x

    one = correction(Asks, device)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert one.run(0).steps == ROUNDS
    assert not one.captured
    assert torch.cuda.current_stream(device) == stream, "the stream was not put back"
    assert bool(torch.rand(4, device=device).isfinite().all())
    assert sum("not captured as a CUDA graph" in str(warning.message) for warning in told) == 1
    other = correction(lenet5, device, cuda_graph="on")
    assert other.run(0).steps == ROUNDS


# ---- many paths at once

PATHS = 6
STACKED: dict[str, Any] = {"threshold": 0.0, "window": 5, "max_steps": 13, "lr": 0.02, "momentum": 0.5}


def _small() -> nn.Module:
    first = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*first, nn.Linear(4 * 36, 10))


def _small_batches(device: torch.device) -> TensorBatches:
    inputs = torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
    return TensorBatches(inputs, torch.arange(300, device=device) % 10, 64, seed=1)


def stacked(device: torch.device, how: Any, block: int) -> list[dict[str, Tensor]]:
    """What six corrections in a stack of eight end with; ``block`` iterations between two looks at their gates."""
    torch.manual_seed(0)
    flats = [FlatParameters(_small().to(device)) for _ in range(PATHS)]
    given: dict[str, Any] = {"paths": 8, "block": block, "cuda_graph": how, **STACKED}
    stack = StackedCorrection(flats[0], nn.functional.cross_entropy, _small_batches(device), **given)
    for i, path in enumerate([stack.take(flat) for flat in flats]):
        path.begin(3 * i)
    ended = 0
    while ended < PATHS:
        ended += len(stack.iterate())
    return [{name: value.cpu() for name, value in flat.state_dict().items()} for flat in flats]


def check_stacked_replays(device: torch.device) -> None:
    """Replays of a stack's iteration have the bits of calls, wherever the host looks."""
    called = stacked(device, "off", 1)
    for block in (1, 4):
        for k, (one, other) in enumerate(zip(called, stacked(device, "on", block), strict=True)):
            wrong = [name for name in one if not torch.equal(one[name], other[name])]
            assert not wrong, f"path {k}, a look every {block} iterations: {wrong} differ"


def check_stacked_rows(device: torch.device, how: str = "on") -> None:
    """Each row of a stack is its path alone."""
    rows = stacked(device, how, 4)
    torch.manual_seed(0)
    flats = [FlatParameters(_small().to(device)) for _ in range(PATHS)]
    for i, (row, flat) in enumerate(zip(rows, flats, strict=True)):
        given = STACKED | {"precision": PRECISION}
        Correction(flat, nn.functional.cross_entropy, _small_batches(device), **given).run(3 * i)
        for name, value in flat.state_dict().items():
            torch.testing.assert_close(row[name], value.cpu(), rtol=1e-3, atol=1e-4, msg=f"path {i}, {name}")


# ---- one launch a correction


class OnTheHost(LoopingReplay):
    """What a WHILE graph does, by the rule of csrc/core/loss_gate.h in Python: for tests without a GPU."""

    def __init__(self, step: SgdStep) -> None:
        self._step, self.calls, self.iterations = step, 0, 0

    def __call__(self) -> None:
        self.calls += 1
        while self._goes_on():
            self._step()
            self.iterations += 1

    def _goes_on(self) -> bool:
        state = self._step.state.tolist()
        if state[ACTIVE] == 0 or state[FINAL] != 0:
            return False
        rounds = int(state[COUNTED])
        return rounds == 0 or math.isfinite(state[WINDOW + (rounds - 1) % self._step.rule["window"]])


def lasting(one: Correction) -> dict[str, Tensor]:
    """All that a correction leaves behind. A launch ends with ``final`` set, a replay too many closes the gate."""
    found: dict[str, Tensor | None] = {"parameters": one._flat.data, "momentum": one.momentum_buffer}
    found |= {"gate": one._step.state[COUNTED:], "cursor": one._batches._first}  # type: ignore[union-attr]
    found |= {f"buffer {name}": buffer for name, buffer in one.module.named_buffers()}
    return {name: value.detach().cpu().clone() for name, value in found.items() if value is not None}


def differing(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Names of those with other bits."""

    def bits(value: Tensor) -> Tensor:
        return value.reshape(-1).view(torch.uint8)

    return [name for name in before if not torch.equal(bits(before[name]), bits(after[name]))]


def check_while_graph(device: torch.device) -> None:
    """One launch a correction leaves the bits that replays leave which the host queues; both ends of the gate."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for make in (lenet5, normalized):
                for augment, threshold in (("none", 0.0), ("mnist", 0.0), ("none", 100.0)):
                    _one_launch(make, device, augment, threshold, told)
    finally:
        torch.use_deterministic_algorithms(False)


def _one_launch(make: Callable[[], nn.Module], device: torch.device, augment: str, threshold: float, told: Any) -> None:
    runs, ends, left = [], [], []
    for how in ("on", "on", "while"):
        one = correction(make, device, augment=augment, threshold=threshold, keep_momentum=True, cuda_graph=how)
        ends.append([one.run(0), one.run(ROUNDS, continued=True)])
        runs.append(one)
        left.append(lasting(one))
    replays = runs[2]._replays
    reasons = [str(warning.message) for warning in told if "graph" in str(warning.message)]
    assert replays is not None, reasons
    assert isinstance(replays._replay, LoopingReplay), reasons
    assert ends[0][0].steps == (5 if threshold else ROUNDS)
    for first, second, what in ((0, 1, "plain replays do not repeat"), (0, 2, "one launch differs")):
        label = f"{make.__name__}, {augment}, threshold {threshold}: {what}"
        assert ends[first] == ends[second], f"{label}: {ends[first]}, {ends[second]}"
        changed = differing(left[first], left[second])
        assert not changed, f"{label} in {changed}"
