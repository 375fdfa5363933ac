"""A whole correction iteration of LeNet5 beside its forward and backward passes alone: what the engine adds.

Both run in ``PRECISION`` and in the same way: on a CPU call by call, on a GPU as replays of one captured iteration,
with one wait for all of them. The gate asks both how they ran, and times neither where they differ.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from llpf_fast.batches import TensorBatches
from llpf_fast.batches.augment import augmentation
from llpf_fast.batches.precision import Precision, float32_products
from llpf_fast.correct import Correction
from llpf_fast.correct.correction import CudaGraph
from llpf_fast.correct.graphs import LoopingReplay, capture
from llpf_fast.errors import LLPFError
from llpf_fast.flat import FlatParameters
from llpf_fast.models import build_model

from ..harness.case import OURS, Case, Contender, Cost, Prepared
from ..harness.sizes import parameters

IMAGES, BATCH, ROUNDS, LR = 10_000, 64, 20, 1e-3
PASSES = "forward and backward"
#: Of everything that is timed here. Torch's default on a GPU is another one: convolutions in TF32.
PRECISION: Precision = "float32"
#: On a GPU: the device repeats the iteration by itself, instead of replays that the host queues.
ONE_LAUNCH = "one launch"
#: Multiplications and additions of one LeNet5 image forward (convolutions and linear layers); backward is twice that.
FLOPS_OF_FORWARD = 2 * (150 * 28 * 28 + 2400 * 10 * 10 + 48_000 + 10_080 + 840)


@contextmanager
def record_arithmetic(modes: set[str]) -> Iterator[None]:
    """In which arithmetic the networks run that are called inside; replays of a call show nothing any more."""

    def record(*_: Any) -> None:
        conv = getattr(torch.backends.cudnn, "conv").fp32_precision  # noqa: B009  (unknown to its stubs)
        modes.add(f"convolutions {conv}, products {torch.backends.cuda.matmul.fp32_precision}")

    handle = nn.modules.module.register_module_forward_pre_hook(record)
    try:
        yield
    finally:
        handle.remove()


class Way:
    """One way to run iterations, which can say how it did."""

    def __init__(self) -> None:
        self.arithmetic: set[str] = set()

    def __call__(self) -> None:
        raise NotImplementedError

    def captured(self) -> bool:
        """Whether the last call was replays of a graph."""
        raise NotImplementedError

    def watched(self) -> None:
        """A call, and the arithmetic of it."""
        with record_arithmetic(self.arithmetic):
            self()

    def how(self) -> dict[str, str]:
        return {"arithmetic": "; ".join(sorted(self.arithmetic)), "runs": "captured" if self.captured() else "called"}


class Iterations(Way):
    """``ROUNDS`` iterations of one correction that never meets its threshold."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        augment: str,
        momentum: float,
        capture: CudaGraph = "auto",
    ) -> None:
        super().__init__()
        # As a search has it by default: the passes take less time so, and the engine's share is larger.
        last = inputs.device.type == "cpu"
        self.batches = TensorBatches(inputs, targets, BATCH, seed=1, augment=augmentation(augment), channels_last=last)
        self.flat = FlatParameters(model)
        self.correction = Correction(
            self.flat,
            nn.functional.cross_entropy,
            self.batches,
            threshold=0.0,
            window=ROUNDS,
            max_steps=ROUNDS,
            lr=LR,
            momentum=momentum,
            cuda_graph=capture,
            precision=PRECISION,
        )
        self.launched = capture == "while"
        self.round = 0

    def __call__(self) -> None:
        self.correction.run(self.round)
        self.round += ROUNDS

    def watched(self) -> None:
        super().watched()
        replays = self.correction._replays
        if self.launched and not (replays and isinstance(replays._replay, LoopingReplay)):
            raise LLPFError("one launch a correction fell back to what the host queues")

    def captured(self) -> bool:
        return self.correction.captured


class Passes(Way):
    """``ROUNDS`` times forward and backward on one batch, run as a correction runs its iterations."""

    def __init__(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self._model, self._batch, self._device = model, batch, batch[0].device
        self._replay: Callable[[], object] | None = None
        self._loss = torch.zeros((), device=self._device)
        self._seen = torch.empty((), pin_memory=True) if self._on_gpu else self._loss

    @property
    def _on_gpu(self) -> bool:
        return self._device.type == "cuda"

    def _once(self) -> None:
        if self._on_gpu:  # as the engine's: gradients made anew take no kernel to be added
            for parameter in self._model.parameters():
                parameter.grad = None
        inputs, targets = self._batch
        loss = nn.functional.cross_entropy(self._model(inputs), targets)
        if self._on_gpu:
            self._loss.copy_(loss.detach())
        loss.backward()

    def _recorded(self) -> Callable[[], object]:
        current, side = torch.cuda.current_stream(self._device), torch.cuda.Stream(self._device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(3):
                self._once()
        current.wait_stream(side)
        return capture(self._once, self._device).replay

    def __call__(self) -> None:
        with float32_products(PRECISION, self._device):
            if self._on_gpu and self._replay is None:
                self._replay = self._recorded()
            once = self._replay or self._once
            for _ in range(ROUNDS):
                once()
            if self._on_gpu:  # one wait, as for the gate
                self._seen.copy_(self._loss, non_blocking=True)
                torch.cuda.current_stream(self._device).synchronize()

    def captured(self) -> bool:
        return self._replay is not None

    def error(self) -> float:
        """There is nothing to get wrong in the passes, which are the model's, but not to have run."""
        self.watched()
        return 0.0 if bool(self._loss.isfinite()) and self.arithmetic else float("nan")


def in_float64(model: nn.Module, batches: TensorBatches, rounds: int, lr: float, momentum: float) -> list[Tensor]:
    """What the first ``rounds`` iterations make of the parameters, by torch's optimiser."""
    model = copy.deepcopy(model).double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    for round_ in range(rounds):
        inputs, targets = batches.batch(round_)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs.double()), targets).backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def off_by(got: list[Tensor], want: list[Tensor], start: list[Tensor]) -> float:
    """How far the values are off, as a share of how far they went."""
    off = sum(float((g.double() - w).square().sum()) for g, w in zip(got, want, strict=True))
    moved = sum(float((w - s).square().sum()) for w, s in zip(want, start, strict=True))
    return (off / moved) ** 0.5


def prepare(augment: str, momentum: float, device: torch.device, pool: int) -> Prepared:
    torch.manual_seed(0)
    model = build_model("lenet5").to(device)
    inputs = torch.randn(IMAGES, 1, 28, 28, device=device)
    targets = torch.randint(10, (IMAGES,), device=device)
    initial = copy.deepcopy(model)
    run = Iterations(model, inputs, targets, augment, momentum)
    batch = run.batches.batch(0)

    def error(run: Iterations) -> float:
        start = [parameter.detach().double().clone() for parameter in initial.parameters()]
        want = in_float64(initial, run.batches, ROUNDS, LR, momentum)
        run.flat.data.copy_(run.flat.flatten(initial.state_dict()))
        run.round = 0
        run.watched()
        got = run.flat.state_dict().values()
        return off_by(list(got), want, start)

    contenders = {OURS: Contender([run], partial(error, run), 1e-3, run.how)}
    if device.type == "cuda":
        launch = Iterations(copy.deepcopy(initial), inputs, targets, augment, momentum, "while")
        contenders[ONE_LAUNCH] = Contender([launch], partial(error, launch), 1e-3, launch.how)
    passes = Passes(model, batch)
    contenders[PASSES] = Contender([passes], passes.error, 0.0, passes.how)
    return Prepared(contenders, units=ROUNDS)


def cases() -> Iterator[Case]:
    n = parameters("LeNet5")
    for variant, augment, momentum in (
        ("", "none", 0.0),
        ("momentum", "none", 0.9),
        ("momentum, MNIST augmentation", "mnist", 0.9),
    ):
        yield Case(
            op="correction",
            size="LeNet5",
            parameters=n,
            dtype="float32",
            variant=variant,
            # The update's words; activations stay in the caches.
            cost=Cost(
                touched=(20 if momentum else 12) * n, read=0, triad=0, flops=3 * BATCH * FLOPS_OF_FORWARD + 4 * n
            ),
            prepare=partial(prepare, augment, momentum),
            caches=("warm",),
            threads=(1,),
            member_bytes=1,
            memory=1 << 27,
            tier="quick" if variant == "" else "usual",
        )
