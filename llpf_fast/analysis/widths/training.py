"""Training the networks whose widths are compared: by the engine's correction, stopping by for a loss on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...correct import Correction
from ...errors import LLPFError
from ...flat import FlatParameters
from ...flat.copying import copied
from ...flat.wrappers import unwrapped
from ...path.state import detached, state_digest
from ..cache import cached_training
from ..mini_batches import batches_an_epoch
from ..problem import Problem

#: How often an epoch it is looked whether the loss to be matched is reached.
_LOOKS = 5
_FINAL, _MATCHED = "final|", "matched|"


@dataclass(frozen=True)
class Training:
    """One network's training: SGD over ``epochs`` times as many batches as cover the training set.

    The number of steps is rounded up to a whole number of looks at the loss, a fifth of an epoch apart. Batches are
    drawn with replacement, from a counter (``batches.sampling``). ``width`` is the network's, where its factory
    takes one.
    """

    lr: float = 0.05
    batch_size: int = 64
    weight_decay: float = 0.0
    width: int | None = None
    momentum: float = 0.9
    epochs: int = 10
    seed: int = 0

    def validate(self) -> None:
        for name in ("lr", "batch_size", "epochs", *(["width"] if self.width is not None else [])):
            if not 0 < getattr(self, name) < math.inf:
                raise LLPFError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("weight_decay", "momentum"):
            if not 0 <= getattr(self, name) < math.inf:
                raise LLPFError(f"{name} must be 0 or more, got {getattr(self, name)}")

    def changed(self, name: str, value: float) -> Training:
        """With another value of one axis (``batch_size`` and ``width`` are whole numbers)."""
        values: dict[str, Any] = {name: int(value) if name in ("batch_size", "width") else value}
        return replace(self, **values)


@dataclass(frozen=True)
class Trained:
    """The network after training, and as it was when its loss first was at most the one to be matched (or None)."""

    final: dict[str, Tensor]
    matched: dict[str, Tensor] | None


def train_network(
    problem: Problem,
    build: Callable[[], nn.Module],
    training: Training,
    *,
    matched_loss: float | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Trained:
    """Train ``build()`` (its values drawn from ``training.seed``) on all training samples of ``problem``.

    The loss to be matched is looked at on ``problem.samples("train")`` 5 times an epoch. What was trained before with
    all the same (data, architecture, initial values, settings) comes from the problem's cache.

    Raises:
        LLPFError: training that diverges; settings that cannot work.
    """
    training.validate()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        module = unwrapped(build()).to(problem.device)
    begins = {name: detached(value) for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    train = lambda: _train(problem, module, training, matched_loss, progress)
    identity = problem.training_identity()
    if problem.cache is None or identity is None:
        found: Mapping[str, Tensor] = train()
    else:
        key: dict[str, Any] = {
            "what": "width sweep",
            "problem": identity,
            "initial": state_digest(begins),
            "training": asdict(training),
            "looks": [_LOOKS, matched_loss, problem.identity("train")],
        }
        found = cached_training(key, problem.cache, train)
    matched = _part(found, _MATCHED)
    return Trained(_part(found, _FINAL), matched or None)


def _part(found: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


def _train(
    problem: Problem,
    module: nn.Module,
    training: Training,
    matched_loss: float | None,
    progress: Callable[[int, int, str], None] | None,
) -> dict[str, Tensor]:
    flat = FlatParameters(copied(module))
    an_epoch = batches_an_epoch(problem.train, training.batch_size)
    stride = max(an_epoch // _LOOKS, 1)
    stretches = math.ceil(training.epochs * an_epoch / stride)
    correction = Correction(
        flat,
        problem.loss_fn,
        problem.batches(training.batch_size, seed=training.seed),
        threshold=-math.inf,  # never met: every stretch has its full length
        min_rounds=stride,
        max_rounds=stride,
        lr=training.lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )
    evaluate = problem.evaluator("train")
    matched: dict[str, Tensor] | None = None
    for number in range(stretches):
        corrected = correction.run(number * stride, go_on=True)
        if matched_loss is not None and matched is None:
            state = flat.state_dict()
            matched = state if evaluate(state).loss <= matched_loss else None
        if progress is not None:
            progress(number + 1, stretches, f"training  loss {corrected.loss:.4f}")
    final = {_FINAL + name: value for name, value in flat.state_dict().items()}
    return {**final, **{_MATCHED + name: value for name, value in (matched or {}).items()}}
