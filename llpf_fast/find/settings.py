"""Everything that decides a path, as typed dataclasses: recipes (YAML), the command line and Python callers set it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..errors import LLPFError


@dataclass
class StepSettings:
    """Length of one move of a layer that is ``distance`` away from the destination (LLPF; units of the parameters).

    ``combine: sum`` is the paper's ``fixed + relative * distance``, ``max`` the authors' code's larger of both.
    """

    fixed: float = 0.0
    relative: float = 0.001
    combine: Literal["sum", "max"] = "sum"
    #: Never step past the destination.
    clamp: bool = True
    #: epsilon of the projection's scale: 0 in the paper, 1e-4 in the authors' code.
    epsilon: float = 0.0
    #: A weight and its bias move along one common direction.
    join_bias: bool = False


@dataclass
class CorrectionSettings:
    """Training after each move, until the mean of the last ``min_rounds`` batch losses is at most ``threshold``."""

    threshold: float = 0.1
    min_rounds: int = 5
    max_rounds: int = 100
    batch_size: int = 64
    lr: float = 0.001
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    #: Keep the momentum buffer from one correction to the next.
    keep_momentum: bool = False


@dataclass
class Stage:
    """From tick ``start`` on, the layers whose names match one of ``layers`` (shell globs) move."""

    start: int = 0
    layers: list[str] = field(default_factory=lambda: ["*"])


@dataclass
class Settings:
    """Settings of one path search."""

    #: Registered names of model and data; empty where a Python caller brings its own.
    model: str = ""
    data: str = ""
    mode: Literal["m2m"] = "m2m"
    seed: int = 0
    #: Highest training loss allowed anywhere on the path: what the certificate is about.
    threshold: float = 0.1
    max_ticks: int = 30000
    step: StepSettings = field(default_factory=StepSettings)
    correction: CorrectionSettings = field(default_factory=CorrectionSettings)
    stages: list[Stage] = field(default_factory=lambda: [Stage()])
    #: Fixed training images on which the finder itself judges points (arrival, chords); 0 takes all.
    screen_size: int = 2000
    #: Share of the threshold that the rest of the way may reach on the screening set. The certificate looks at more
    #: images and more points: with 1.0 a LeNet5 run arrived on 2,000 images and measured 0.105 on all, above 0.1.
    arrival_margin: float = 0.6
    #: Ticks between two looks at the rest of the way to the destination, taken straight.
    arrival_every: int = 10
    #: Ticks between two recorded waypoints. The path is the polyline through those recorded, and the certificate
    #: judges that one: with long strides a chord may cut a corner that the ticks went round.
    record_every: int = 1
    #: Ticks between two checkpoints.
    checkpoint_every: int = 50
    #: Random affine and crop of training batches as the authors do it; "none" trains on the images as they are.
    augmentation: Literal["none", "mnist", "cifar"] = "none"

    def validate(self) -> None:
        """Refuse values that cannot work, naming the key (:class:`LLPFError`)."""
        positive = {
            "threshold": self.threshold,
            "max_ticks": self.max_ticks,
            "correction.threshold": self.correction.threshold,
            "correction.min_rounds": self.correction.min_rounds,
            "correction.batch_size": self.correction.batch_size,
            "correction.lr": self.correction.lr,
            "arrival_margin": self.arrival_margin,
            "arrival_every": self.arrival_every,
            "record_every": self.record_every,
            "checkpoint_every": self.checkpoint_every,
        }
        for key, value in positive.items():
            if not value > 0 or not math.isfinite(value):
                raise LLPFError(f"{key} must be positive, got {value}")
        at_least_zero = {
            "step.fixed": self.step.fixed,
            "step.relative": self.step.relative,
            "step.epsilon": self.step.epsilon,
            "correction.momentum": self.correction.momentum,
            "correction.weight_decay": self.correction.weight_decay,
            "screen_size": self.screen_size,
        }
        for key, value in at_least_zero.items():
            if not value >= 0 or not math.isfinite(value):
                raise LLPFError(f"{key} must not be negative, got {value}")
        if self.step.fixed == 0 and self.step.relative == 0:
            raise LLPFError("step.fixed and step.relative are both 0: nothing would move")
        if self.correction.max_rounds < self.correction.min_rounds:
            raise LLPFError(
                f"correction.max_rounds ({self.correction.max_rounds}) must be at least "
                f"correction.min_rounds ({self.correction.min_rounds})"
            )
        if not self.stages or [s.start for s in self.stages] != sorted({s.start for s in self.stages}):
            raise LLPFError("stages must be in order of start, each start once, at least one stage")

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as written to run.yaml."""
        return asdict(self)
