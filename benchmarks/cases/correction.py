"""A whole correction iteration of LeNet5 beside its forward and backward passes alone: what the engine adds."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from llpf_fast.batches import TensorBatches
from llpf_fast.batches.augment import augmentation
from llpf_fast.correct import Correction
from llpf_fast.correct.correction import Capture
from llpf_fast.flat import FlatParameters
from llpf_fast.models import build_model

from ..harness.case import OURS, Case, Contender, Cost, Prepared
from ..harness.sizes import parameters

IMAGES, BATCH, ROUNDS, LR = 10_000, 64, 20, 1e-3
PASSES = "forward and backward"
#: On a GPU: the device repeats the iteration by itself, instead of replays that the host queues.
ONE_LAUNCH = "one launch"
#: Multiplications and additions of one LeNet5 image forward (convolutions and linear layers); backward is twice that.
FLOPS_OF_FORWARD = 2 * (150 * 28 * 28 + 2400 * 10 * 10 + 48_000 + 10_080 + 840)


class Iterations:
    """``ROUNDS`` iterations of one correction that never meets its threshold."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        targets: Tensor,
        augment: str,
        momentum: float,
        capture: Capture = "auto",
    ) -> None:
        # As a search has it by default: the passes take less time so, and the engine's share is larger.
        last = inputs.device.type == "cpu"
        self.batches = TensorBatches(inputs, targets, BATCH, seed=1, augment=augmentation(augment), channels_last=last)
        self.flat = FlatParameters(model)
        self.correction = Correction(
            self.flat,
            nn.functional.cross_entropy,
            self.batches,
            threshold=0.0,
            min_rounds=ROUNDS,
            max_rounds=ROUNDS,
            lr=LR,
            momentum=momentum,
            capture=capture,
        )
        self.round = 0

    def __call__(self) -> None:
        self.correction.run(self.round)
        self.round += ROUNDS


def in_float64(model: nn.Module, batches: TensorBatches, rounds: int, lr: float, momentum: float) -> list[Tensor]:
    """What the first ``rounds`` iterations make of the parameters, by torch's own optimiser."""
    model = copy.deepcopy(model).double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    for round_ in range(rounds):
        inputs, targets = batches.draw(round_)
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
    fresh = copy.deepcopy(model)
    run = Iterations(model, inputs, targets, augment, momentum)
    batch = run.batches.draw(0)

    def error(run: Iterations) -> float:
        start = [parameter.detach().double().clone() for parameter in fresh.parameters()]
        want = in_float64(fresh, run.batches, ROUNDS, LR, momentum)
        run.flat.data.copy_(run.flat.flatten(fresh.state_dict()))
        run.round = 0
        run()
        got = run.flat.state_dict().values()
        return off_by(list(got), want, start)

    def passes() -> None:
        for _ in range(ROUNDS):
            loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
            loss.backward()

    contenders = {OURS: Contender([run], partial(error, run), 1e-3)}
    if device.type == "cuda":
        launch = Iterations(copy.deepcopy(fresh), inputs, targets, augment, momentum, "while")
        contenders[ONE_LAUNCH] = Contender([launch], partial(error, launch), 1e-3)
    # There is nothing to get wrong in the passes: they are the model's own.
    contenders[PASSES] = Contender([passes], lambda: 0.0, 0.0)
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
