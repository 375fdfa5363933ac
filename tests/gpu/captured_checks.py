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
from llpf_fast.correct import Correction
from llpf_fast.correct.step import Step
from llpf_fast.correct.while_graph import UntilClosed
from llpf_fast.flat import FlatParameters
from llpf_fast.models import build_model
from llpf_fast.ops.loss_gate import LAST, OPEN, WINDOW
from llpf_fast.ops.loss_gate import ROUNDS as COUNTED

ROUNDS = 12
#: Nodes of the graph that are the engine's: draw_, two gathers, loss_gate_, sgd_ and a copy for the gradient of each
#: parameter; a copy, a comparison and a where for the buffers of each dtype.
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
    rule = {"threshold": 0.0, "min_rounds": 5, "max_rounds": ROUNDS, "lr": 0.01, "momentum": 0.9, **given}
    return Correction(FlatParameters(module), nn.functional.cross_entropy, batches, **rule)


def lenet5() -> nn.Module:
    return build_model("lenet5")


def check_captured_values(device: torch.device) -> None:
    """Rounds, losses and values of the ordinary path; the float32 sums of some backward kernels have no fixed order."""
    for make in (lenet5, normalized):
        for augment in ("none", "mnist"):
            runs = [correction(make, device, augment=augment, capture=how) for how in ("off", "on")]
            ends = [one.run(0) for one in runs]
            assert runs[1].captured
            assert ends[0].rounds == ends[1].rounds == ROUNDS
            assert abs(ends[0].loss - ends[1].loss) < 1e-4, ends
            torch.testing.assert_close(runs[1]._flat.data, runs[0]._flat.data, rtol=1e-3, atol=1e-5)
            ours, theirs = (dict(one.module.named_buffers()) for one in runs)
            for name, buffer in ours.items():
                torch.testing.assert_close(theirs[name], buffer, rtol=1e-3, atol=1e-5, msg=name)


def check_closed_gate(device: torch.device) -> None:
    """Replays after the gate closed keep every bit: parameters, momentum, buffers, counters."""
    one = correction(normalized, device, capture="on")
    one.run(0)
    replays, state = one._replays, one._step.state
    assert replays is not None
    assert replays._replay is not None
    held = [one._flat.data, one.momentum_buffer, state, *one.module.buffers()]
    replays._replay()
    before = [value.clone() for value in held if value is not None]
    for _ in range(5):
        replays._replay()
    for i, (value, old) in enumerate(zip([v for v in held if v is not None], before, strict=True)):
        same = torch.equal(value.reshape(-1).view(torch.uint8), old.reshape(-1).view(torch.uint8))
        assert same, f"tensor {i} changed after the gate closed"


def check_steady_replays(device: torch.device) -> None:
    """Queued replays neither wait for the device nor take memory; a look waits once."""
    one = correction(lenet5, device, capture="on")
    one.run(0)
    replays = one._replays
    assert replays is not None
    assert replays._replay is not None
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    torch.cuda.set_sync_debug_mode("error")
    try:
        one._step.state.copy_(one._fresh)
        one._batches.start_at(40)  # type: ignore[union-attr]
        for _ in range(20):
            replays._replay()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    made = torch.cuda.memory_stats()["allocation.all.allocated"] - before
    assert made == 0, f"{made} allocations in twenty replays"


def check_nodes(device: torch.device, nodes: Callable[[Callable[[], object]], int]) -> None:
    """Kernels of an iteration beside those of forward and backward alone."""
    for make in (lenet5, normalized):
        one = correction(make, device, capture="on")
        one.run(0)
        inputs, targets = one._batches.draw(0)

        def passes(one: Correction = one, inputs: Tensor = inputs, targets: Tensor = targets) -> None:
            for parameter in one.module.parameters():
                parameter.grad = None
            nn.functional.cross_entropy(one.module(inputs), targets).backward()

        most = NODES + len(list(one.module.parameters())) + NODES_OF_BUFFERS * any(True for _ in one.module.buffers())
        more = nodes(one._step) - nodes(passes)
        assert more <= most, f"{make.__name__}: the engine adds {more} nodes, {most} allowed"


def check_a_failing_capture_goes_on(device: torch.device) -> None:
    """What cannot be captured costs one warning, and the device works on."""

    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = lenet5()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if float(x.sum()) > -1e30 else x

    one, stream = correction(Asks, device), torch.cuda.current_stream(device)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert one.run(0).rounds == ROUNDS
    assert not one.captured
    assert torch.cuda.current_stream(device) == stream, "the stream was not put back"
    assert bool(torch.rand(4, device=device).isfinite().all())
    assert sum("not captured as a CUDA graph" in str(warning.message) for warning in told) == 1
    other = correction(lenet5, device, capture="on")
    assert other.run(0).rounds == ROUNDS


class OnTheHost(UntilClosed):
    """What a WHILE graph does, by the rule of csrc/core/loss_gate.h in Python: for tests without a GPU."""

    def __init__(self, step: Step) -> None:
        self._step, self.calls, self.iterations = step, 0, 0

    def __call__(self) -> None:
        self.calls += 1
        while self._goes_on():
            self._step()
            self.iterations += 1

    def _goes_on(self) -> bool:
        state = self._step.state.tolist()
        if state[OPEN] == 0 or state[LAST] != 0:
            return False
        rounds = int(state[COUNTED])
        return rounds == 0 or math.isfinite(state[WINDOW + (rounds - 1) % self._step.rule["min_rounds"]])


def lasting(one: Correction) -> dict[str, Tensor]:
    """All that a correction leaves behind. A launch ends with ``last`` set, a replay too many closes the gate."""
    found: dict[str, Tensor | None] = {"parameters": one._flat.data, "momentum": one.momentum_buffer}
    found |= {"gate": one._step.state[COUNTED:], "cursor": one._batches._first}  # type: ignore[union-attr]
    found |= {f"buffer {name}": buffer for name, buffer in one.module.named_buffers()}
    return {name: value.detach().cpu().clone() for name, value in found.items() if value is not None}


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
        one = correction(make, device, augment=augment, threshold=threshold, keep_momentum=True, capture=how)
        ends.append([one.run(0), one.run(ROUNDS, go_on=True)])
        runs.append(one)
        left.append(lasting(one))
    replays = runs[2]._replays
    reasons = [str(warning.message) for warning in told if "capture" in str(warning.message)]
    assert replays is not None, reasons
    assert isinstance(replays._replay, UntilClosed), reasons
    assert ends[0][0].rounds == (5 if threshold else ROUNDS)
    for first, second, what in ((0, 1, "plain replays do not repeat"), (0, 2, "one launch differs")):
        label = f"{make.__name__}, {augment}, threshold {threshold}: {what}"
        assert ends[first] == ends[second], f"{label}: {ends[first]}, {ends[second]}"
        for name, value in left[first].items():
            bits, others = (tensor.reshape(-1).view(torch.uint8) for tensor in (value, left[second][name]))
            assert torch.equal(bits, others), f"{label} in {name}"
