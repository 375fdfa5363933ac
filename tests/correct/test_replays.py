"""One iteration without a decision of the host: replays change nothing once the gate is closed, and equal the loop."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llpf_fast import LLPFError
from llpf_fast.batches import TensorBatches
from llpf_fast.batches.augment import augmentation
from llpf_fast.batches.sampling import Augmentation
from llpf_fast.correct import Correction, CorrectionResult
from llpf_fast.correct.graphs import NotCapturableError, as_cuda_graph
from llpf_fast.correct.sgd_step import SgdStep
from llpf_fast.flat import FlatParameters
from llpf_fast.ops.loss_gate import ACTIVE, FINAL, STEPS

HYPER: list[dict[str, Any]] = [{}, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}]


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten()),
        *(nn.Linear(4 * 49, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)),
    )


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 1, 28, 28, generator=generator)
    y = torch.randint(3, (120,), generator=generator)
    return x + y[:, None, None, None], y


def build(*, augment: str = "none", module: nn.Module | None = None, **changes: Any) -> Correction:
    given = {"threshold": 0.5, "window": 3, "max_steps": 60, "lr": 0.05} | changes
    flat = FlatParameters(module or network())
    batches = TensorBatches(*images(), 16, seed=4, augment=augmentation(augment))
    return Correction(flat, nn.functional.cross_entropy, batches, **given)


def itself(step: SgdStep) -> Callable[[], None]:
    return step


def everything(correction: Correction) -> dict[str, Tensor]:
    """All that an iteration may change, but the columns of the gate that say that it is closed."""
    flat, momentum = correction._flat, correction.momentum_buffer
    tensors = {"parameters": flat.data, "gate": correction._step.state[STEPS:]}
    tensors |= {"momentum": flat.data[:0] if momentum is None else momentum}
    assert isinstance(correction._batches, TensorBatches)
    tensors |= {"first": correction._batches._first, "key": correction._batches._key}
    tensors |= {f"buffer {name}": buffer for name, buffer in flat.module.named_buffers()}
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}


def differences(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    def bits(value: Tensor) -> Tensor:
        return value.contiguous().reshape(-1).view(torch.uint8)

    return [name for name in before if not torch.equal(bits(before[name]), bits(after[name]))]


@pytest.mark.parametrize("hyper", HYPER, ids=["plain", "nesterov"])
@pytest.mark.parametrize("gather", [False, True])
def test_replays_after_the_gate_closed_change_nothing(hyper: dict[str, Any], gather: bool) -> None:
    correction = build(augment="mnist", **hyper)
    correction.replay(itself)
    correction._step.bind_batches(correction._batches, gather=gather)  # type: ignore[arg-type]
    result = correction.run(7)
    assert 3 <= result.steps < 60
    before = everything(correction)
    assert any(name.endswith("num_batches_tracked") for name in before)
    state = correction._step.state
    for extra in range(4):
        correction._step()
        assert (float(state[ACTIVE]), float(state[FINAL])) == (0.0, 0.0)
        assert differences(before, everything(correction)) == [], f"after {extra + 1} replays too many"
    # The check can see: an iteration that counts changes all of it.
    state[ACTIVE] = 1.0
    correction._step()
    changed = differences(before, everything(correction))
    assert set(before) - set(changed) <= {"first", "key", *([] if hyper else ["momentum"])}


def test_buffers_that_are_not_restored_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llpf_fast.correct.snapshots.BufferSnapshot.restore", lambda *_: None)
    correction = build()
    correction.replay(itself)
    correction.run(0)
    before = everything(correction)
    correction._step()
    assert "buffer 1.running_mean" in differences(before, everything(correction))


@pytest.mark.parametrize("augment", ["none", "mnist"])
@pytest.mark.parametrize("hyper", HYPER, ids=["plain", "nesterov"])
def test_equals_the_ordinary_path_bit_for_bit(augment: str, hyper: dict[str, Any]) -> None:
    """Two corrections after one another, the second continued, with a learning rate a segment in between."""
    ordinary, replayed = (build(augment=augment, keep_momentum=True, **hyper) for _ in range(2))
    replayed.replay(itself)
    scale = torch.linspace(0.5, 1.5, len(ordinary._flat.table), dtype=torch.float64)
    outcomes: list[list[CorrectionResult]] = []
    for correction in (ordinary, replayed):
        results = [correction.run(0)]
        correction.scale_lr(scale)
        results.append(correction.run(results[0].steps, continued=True))
        correction.scale_lr(None)
        results.append(correction.run(100))
        outcomes.append(results)
        assert correction.captured is (correction is replayed)
    assert outcomes[0] == outcomes[1]
    assert len({result.steps for result in outcomes[0]}) > 1
    # The ordinary path tells the generator every round, replays where they began.
    assert differences(everything(ordinary), everything(replayed)) == ["first"]


@pytest.mark.parametrize("max_steps", [3, 4, 5])
def test_stops_at_max_steps(max_steps: int) -> None:
    correction = build(threshold=1e-9, max_steps=max_steps)
    correction.replay(itself)
    assert (correction.run(0).steps, correction.run(9).met) == (max_steps, False)


class BreaksAt(nn.Module):
    """A loss that is infinite from the given call on: of train mode, warm-up included."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.inner = network()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self._call = call

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        worse = torch.where(self.calls >= self._call, torch.inf, 0.0)
        return self.inner(x) + torch.stack([worse, worse, -worse])


@pytest.mark.parametrize("call", [1, 2, 3, 4, 8])
def test_a_loss_that_is_not_finite_ends_both_in_the_same_round(call: int) -> None:
    ordinary, replayed = (build(threshold=1e-9, module=BreaksAt(call)) for _ in range(2))
    replayed.replay(itself)
    outcomes = [correction.run(0, stop_at_nan=True) for correction in (ordinary, replayed)]
    assert (outcomes[0].steps, outcomes[0].finite) == (outcomes[1].steps, outcomes[1].finite) == (call, False)
    for correction in (build(module=BreaksAt(call)), build(module=BreaksAt(call))):
        correction.replay(itself)
        with pytest.raises(LLPFError, match=rf"became (nan|inf) in step {call} of the correction"):
            correction.run(0)


def test_dropout_is_not_replayed_and_leaves_the_random_state_alone() -> None:
    with_dropout = nn.Sequential(network(), nn.Dropout(0.1))
    ordinary, asked = (build(module=copy.deepcopy(with_dropout)) for _ in range(2))
    asked.replay(itself)
    outcomes = []
    for correction in (ordinary, asked):
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            outcomes.append(correction.run(0))
        assert not correction.captured
    assert outcomes[0] == outcomes[1]
    assert differences(everything(ordinary), everything(asked)) == []


class Replaces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return self.inner(x)


def fails(step: SgdStep) -> Callable[[], None]:
    raise RuntimeError("operation not permitted when stream is capturing\nmore lines")


@pytest.mark.parametrize(
    ("module", "record", "reason"),
    [(Replaces, itself, "buffer count of the model is replaced"), (network, fails, "operation not permitted")],
)
def test_what_cannot_be_captured_runs_in_turn_with_one_line(
    module: Callable[[], nn.Module], record: Callable[[SgdStep], Callable[[], None]], reason: str
) -> None:
    ordinary, asked = build(module=module()), build(module=module())
    want = ordinary.run(0)
    asked.replay(record)
    with pytest.warns(UserWarning, match=reason) as caught:
        assert asked.run(0) == want
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert differences(everything(ordinary), everything(asked)) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked.run(want.steps)


def test_memory_that_moved_is_captured_anew() -> None:
    correction, made = build(), []

    def record(step: SgdStep) -> Callable[[], None]:
        made.append(step)
        return step

    correction.replay(record)
    correction.run(0)
    correction.run(30)
    assert len(made) == 1
    correction.module[0].weight.requires_grad_(False)  # type: ignore[index]
    correction.run(60)
    assert len(made) == 2
    correction.module.double()
    with pytest.warns(UserWarning, match="not captured"), pytest.raises(LLPFError):
        correction.run(90)  # the batches are float32 still


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_capture_on_says_why_not() -> None:
    with pytest.raises(LLPFError, match=r"correction.cuda_graph is on, but a cpu has no CUDA graphs"):
        build(cuda_graph="on")
    assert not build(cuda_graph="auto").captured
    assert issubclass(NotCapturableError, LLPFError)
    assert callable(as_cuda_graph)


def test_own_augmentation_cannot_be_counted() -> None:
    batches = TensorBatches(*images(), 4, seed=0, augment=lambda x, key: x)
    assert not batches.draws_on_device
    assert isinstance(augmentation("mnist"), Augmentation)


def test_the_order_of_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: the streams wait for each other around a capture that other threads may not disturb."""
    calls: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: Stream) -> None:
            calls.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def graph(graph: Any, *, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        calls.append(f"capture on {stream.name}, {capture_error_mode}")
        yield
        calls.append("captured")

    fake = SimpleNamespace(
        current_stream=lambda _: Stream("current"),
        Stream=lambda _: Stream("side"),
        CUDAGraph=lambda: SimpleNamespace(replay=lambda: calls.append("replay")),
        device=lambda _: contextlib.nullcontext(),
        stream=lambda _: contextlib.nullcontext(),
        graph=graph,
    )
    monkeypatch.setattr("llpf_fast.correct.graphs.torch.cuda", fake)

    class Called:
        flat = SimpleNamespace(data=torch.zeros(1))

        def __call__(self) -> None:
            calls.append("step")

    replay = as_cuda_graph(Called())  # type: ignore[arg-type]
    replay()
    assert calls == [
        "side waits for current",
        "capture on side, thread_local",
        "step",
        "captured",
        "current waits for side",
        "replay",
    ]
