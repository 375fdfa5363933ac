"""Everything that decides a path, as typed dataclasses: recipes (YAML), the command line and Python callers set it.

A value is checked where it is set: types and bounds stand beside the fields, and what is wrong is one line that names
the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, field, is_dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator
from pydantic_core import PydanticCustomError

from .errors import LLPFError
from .modes import MODES, Destination, NormName
from .setting_types import (
    Bound,
    Count,
    CountOrZero,
    Flag,
    NotNegative,
    Positive,
    Share,
    ShareOrAll,
    Text,
    Whole,
    settings_group,
)


def _mode(value: Any) -> str:
    if not isinstance(value, str) or value not in MODES:
        raise PydanticCustomError("mode", "must be one of {modes};", {"modes": ", ".join(MODES)})
    return value


@settings_group("step")
class StepSettings:
    """Length of one move of a layer that is ``distance`` away from the destination (LLPF; units of the parameters).

    Switches left null take the value of the dialect.
    """

    fixed: NotNegative = 0.0
    relative: NotNegative = 0.001
    #: ``sum`` (paper) is ``fixed + relative * distance``, ``max`` (authors' code) the larger of both.
    combine: Literal["sum", "max"] | None = None
    #: Never step past the destination (paper dialect: true; the authors' code may step past it).
    clamp: Flag | None = None
    #: epsilon of the projection's scale: 0 in the paper, 1e-4 in the authors' code.
    epsilon: NotNegative | None = None
    #: A weight and its bias move along one common direction.
    join_bias: Flag = False

    @model_validator(mode="after")
    def _moves(self) -> StepSettings:
        if self.fixed == 0 and self.relative == 0:
            raise LLPFError("step.fixed and step.relative are both 0: nothing would move")
        return self


@settings_group("layers")
class LayerSettings:
    """Which layers a tick treats apart. Patterns are shell globs, or regular expressions after ``re:``."""

    #: Affine parameters of normalization layers, of any type. Null: move in m2m, m2o and the sphere modes, keep in
    #: m2o-o, infinity and mean; authors: in m2o, infinity and mean LayerNorm compensates and every other is kept.
    normalization: NormName | None = None
    #: Layers that are never moved.
    keep: list[Text] = field(default_factory=list)
    #: Layers that move away from the destination by the same fraction, and by twice that.
    compensate: list[Text] = field(default_factory=list)
    compensate_twice: list[Text] = field(default_factory=list)
    #: ``values``: query and key projections stay and only values move, also within a fused qkv tensor.
    attention: Literal["all", "values"] = "all"
    #: With ``values``: biases of queries and keys stay too.
    attention_biases: Flag = False
    #: Layers that do not move are still put back on their sphere (authors: true; by the paper they are left alone).
    rescale_skipped: Flag | None = None
    #: Normalization layers that move are put back on their sphere too (authors: true; paper dialect: false).
    rescale_normalization: Flag | None = None
    #: Parameters that do not train (``requires_grad=False``) move all the same; no correction can train them back.
    move_frozen: Flag = False


@settings_group("correction")
class CorrectionSettings:
    """Training after each move, until the mean of the last ``window`` batch losses is at most ``threshold``."""

    #: Null: the path's ``threshold``; it must not be above that.
    threshold: Bound | None = None
    #: Batch losses that are averaged: the fewest gradient steps of a correction.
    window: Count = 5
    #: The most gradient steps of a correction.
    max_steps: Count = 100
    batch_size: Count = 64
    lr: Positive = 0.001
    momentum: NotNegative = 0.0
    weight_decay: NotNegative = 0.0
    nesterov: Flag = False
    #: Keep the momentum buffer from one correction to the next.
    keep_momentum: Flag = False
    #: Learning rate of a layer times Var_now / Var_start (``var``) or its root (``std``). Null: ``var`` in m2o, m2o-o,
    #: infinity and mean, ``none`` elsewhere.
    lr_rule: Literal["none", "std", "var"] | None = None
    #: ``weights``: the rule holds for tensors with "weight" in their name only (authors' code). Null: the dialect's.
    lr_rule_layers: Literal["all", "weights"] | None = None
    #: On a GPU the iteration is captured as a CUDA graph wherever it can be (``auto``); ``on`` insists, ``off`` never.
    #: ``while``: the device repeats it until the gate closes (one path at a time; not run on a GPU yet).
    cuda_graph: Literal["auto", "on", "off", "while"] = "auto"
    #: Arithmetic of the forward and backward passes: ``tf32`` (GPU) rounds the factors of products to 10 bits,
    #: ``bfloat16`` is autocast. Parameters, updates, screening and certificate stay float32.
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    #: Images with their channels last in memory. Null: on a CPU, where LeNet5's iteration was measured 1.1 to 1.3
    #: times faster so and ResNet18's as fast.
    channels_last: Flag | None = None
    #: ``torch.compile`` for forward and loss. Measured on a CPU for LeNet5: 15 s of compiling, then 1.8 times slower.
    compile: Flag = False

    @model_validator(mode="after")
    def _enough_steps(self) -> CorrectionSettings:
        if self.max_steps < self.window:
            raise LLPFError(
                f"correction.max_steps ({self.max_steps}) must be at least correction.window ({self.window})"
            )
        return self


@settings_group("spheres")
class SphereSettings:
    """The spheres that layers stay on, or go to."""

    #: M2M's variance spheres: the start's; blending into the destination's along the path; or in two phases, toward the
    #: origin until no layer has more variance than the destination's, and from there on the spheres reached.
    variance: Literal["start", "blend", "shrink-first"] = "start"
    #: Ticks after which the first of the two phases ends in any case: training pushes back, some layers never shrink.
    shrink_ticks: Count = 1400
    #: For the sphere modes without a model: pattern to unbiased variance (or L2 norm). Other layers stay.
    radii: dict[Text, Positive] = field(default_factory=dict)


@settings_group("schedule.stages[...]")
class StageSettings:
    """Layers whose names match one of ``layers`` move from the stage's beginning to the next one's.

    A stage begins at tick ``start``, or as soon as every layer of the stage before has no more than the share
    ``distance`` of its initial distance left; where both are given, at whichever comes first.
    """

    start: Whole | None = None
    layers: list[Text] = field(default_factory=lambda: ["*"])
    distance: Share | None = None


@settings_group("schedule")
class ScheduleSettings:
    """Which layers move when.

    ``data-flow``: layers become active from input to output, one more at a time, and stay active. The next layer
    follows after ``ticks`` ticks, or as soon as the active ones have no more than the share ``distance`` of their
    initial distance left; where both are given, at whichever comes first.
    """

    kind: Literal["stages", "data-flow"] = "stages"
    stages: list[StageSettings] = field(default_factory=lambda: [StageSettings(start=0)])
    ticks: Count | None = None
    distance: Positive | None = 0.5

    @model_validator(mode="after")
    def _goes_on(self) -> ScheduleSettings:
        if self.kind == "data-flow":
            if self.ticks is None and self.distance is None:
                raise LLPFError(
                    "schedule data-flow needs schedule.ticks or schedule.distance: otherwise no second layer would "
                    "ever move"
                )
            return self
        if not self.stages:
            raise LLPFError("schedule.stages must hold at least one stage")
        for i, stage in enumerate(self.stages):
            key = f"schedule.stages[{i}]"
            if not stage.layers:
                raise LLPFError(f"{key}.layers is empty: nothing would move")
            if i and stage.start is None and stage.distance is None:
                raise LLPFError(f"{key} needs start (a tick) or distance (a share): otherwise it never begins")
        first = self.stages[0].start
        if first not in (None, 0):
            raise LLPFError(f"schedule.stages[0].start is {first}, but the first stage begins at tick 0")
        starts = [stage.start for stage in self.stages if stage.start is not None]
        if starts != sorted(set(starts)):
            raise LLPFError("schedule.stages must be in order of start, each start once")
        return self


@settings_group("pacing")
class PacingSettings:
    """The step's length. ``adaptive`` (ours): it follows from how long the corrections take; failures are undone."""

    kind: Literal["fixed", "adaptive"] = "fixed"
    #: Gradient steps that a correction should take: the step grows below, shrinks above twice that.
    target_steps: Count = 20
    #: Bounds of the product of all factors. A search that fails at the smallest is stuck and ends.
    max_scale: Positive = 8.0
    min_scale: Positive = 0.01
    #: Share of the threshold that a new waypoint may reach on the screening set.
    margin: ShareOrAll = 0.8
    #: Evaluate the middle of the segment to it too, half the margin wider: one more evaluation a tick, for long steps.
    midpoint: Flag = False
    #: What a correction leaves is the mean of its points after every ``correction.window`` gradient steps, the share of
    #: point k of k being (iterate_average + 1) / (k + iterate_average); it is screened once the mean of the training
    #: losses is at most ``correction.threshold``. Null: the last point. Running statistics are the last point's always.
    iterate_average: NotNegative | None = None
    #: A point is rejected on the first 500 screening images (or batches of a loader) where their mean is above this
    #: multiple of what it may have. Null: all images are evaluated.
    early_reject: Positive | None = None

    @model_validator(mode="after")
    def _scales_enclose_one(self) -> PacingSettings:
        if not self.min_scale <= 1 <= self.max_scale:
            raise LLPFError(
                f"pacing.min_scale and pacing.max_scale must enclose 1, got {self.min_scale} and {self.max_scale}"
            )
        return self


@settings_group("screening")
class ScreeningSettings:
    """The fixed training images on which the search itself evaluates points (arrival, midpoints)."""

    #: How many; 0 takes all.
    samples: CountOrZero = 2000


@settings_group("arrival")
class ArrivalSettings:
    """When a search has arrived: the straight rest of the way has low loss on the screening set."""

    #: Ticks between two such tests. The last tick is tested in any case.
    every: Count = 10
    #: Share of the difference between the destination's own loss and the threshold that the rest of the way may use.
    #: The certificate evaluates more images and more points: with 1.0 a LeNet5 run arrived on 2,000 images and measured
    #: 0.105 on all, above 0.1.
    margin: ShareOrAll = 0.6


@settings_group("record")
class RecordSettings:
    """What is written during a search."""

    #: Ticks between two recorded waypoints. The path is the polyline through those recorded, and the certificate
    #: is about that one: with long strides a segment may cut a corner that the ticks went round.
    every: Count = 1
    #: Ticks between two checkpoints.
    checkpoint_every: Count = 50


@settings_group()
class Settings:
    """Settings of one path search."""

    #: Registered names of model and data; empty where a Python caller brings its own.
    model: Text = ""
    data: Text = ""
    #: The user's code, ``file.py:name``: makes the correction's torch optimizer from the parameters (empty: the fused
    #: SGD); counts more modules as normalization layers, by their class or by a function of a module.
    optimizer: Text = ""
    is_norm: Text = ""
    #: Where to: another model, the origin (``m2o-o`` without normalization layers), infinity, each layer's own mean,
    #: or a sphere given by a model or by ``spheres.radii``.
    mode: Annotated[str, BeforeValidator(_mode)] = "m2m"
    #: What is left null elsewhere is set as in the paper (arXiv 2505.02604) or as in the authors' programs.
    dialect: Literal["paper", "authors"] = "paper"
    seed: Whole = 0
    #: Highest training loss allowed anywhere on the path: what the certificate is about.
    threshold: Bound = 0.1
    max_ticks: Count = 30000
    step: StepSettings = field(default_factory=StepSettings)
    layers: LayerSettings = field(default_factory=LayerSettings)
    correction: CorrectionSettings = field(default_factory=CorrectionSettings)
    spheres: SphereSettings = field(default_factory=SphereSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    pacing: PacingSettings = field(default_factory=PacingSettings)
    screening: ScreeningSettings = field(default_factory=ScreeningSettings)
    arrival: ArrivalSettings = field(default_factory=ArrivalSettings)
    record: RecordSettings = field(default_factory=RecordSettings)
    #: BatchNorm statistics of a point between waypoints: interpolated as they are ``stored``, or ``reestimated`` at
    #: every point from training samples. Search and certificate take the same.
    statistics: Literal["stored", "reestimated"] = "stored"
    #: Samples a forward pass where points are evaluated, in search and certificate; 0: 125 on a CPU, 2,000 on a GPU. It
    #: matters for the loss only where a network or a loss mixes the samples of a batch.
    evaluation_batch_size: CountOrZero = 0
    #: Random affine and crop of training batches as the authors do it; "none" trains on the images as they are.
    augmentation: Literal["none", "mnist", "cifar"] = "none"

    @property
    def goal(self) -> Literal["model", "sphere", "none"]:
        """What ends the path: another model, spheres, or nothing but ``max_ticks``."""
        return MODES[self.mode].goal

    @property
    def correction_threshold(self) -> float:
        """The mean loss that ends a correction."""
        return self.threshold if self.correction.threshold is None else self.correction.threshold

    def changed(self, **changes: Any) -> Settings:
        """These settings with other values; a group may be a dict of the keys that change in it."""
        for key, value in changes.items():
            group = getattr(self, key, None)
            if isinstance(value, Mapping) and is_dataclass(group):
                changes[key] = {**vars(group), **value}
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as written to run.yaml."""
        return asdict(self)

    @model_validator(mode="after")
    def _contradictions(self) -> Settings:
        if self.correction_threshold > self.threshold:
            raise LLPFError(
                f"correction.threshold ({self.correction.threshold:g}) is above threshold ({self.threshold:g}): "
                "points that a correction ends at would not pass; null takes threshold"
            )
        if self.pacing.kind == "adaptive" and not self.threshold > 0:
            raise LLPFError(
                "threshold must be positive with pacing.kind: adaptive, which holds points below a share of it, got "
                f"{self.threshold}: add a constant to the loss, or set pacing.kind: fixed"
            )
        if self.spheres.variance != "start" and not MODES[self.mode].projects:
            raise LLPFError(f"spheres.variance: {self.spheres.variance} belongs to mode m2m, not to {self.mode}")
        if self.spheres.radii and self.goal != "sphere":
            raise LLPFError(f"spheres.radii belongs to the modes variance-sphere and norm-sphere, not to {self.mode}")
        flow = self.schedule.kind == "data-flow"
        stages = [] if flow else self.schedule.stages[1:]
        if MODES[self.mode].destination is Destination.INFINITY and (
            (flow and self.schedule.ticks is None) or any(stage.start is None for stage in stages)
        ):
            key = "schedule.ticks" if flow else "schedule.stages[...].start"
            raise LLPFError(f"mode {self.mode} has no distance that gets smaller: give {key}, a number of ticks")
        return self


@settings_group("lower")
class LowerSettings:
    """How the path of a run is lowered."""

    #: Gradient steps, one batch at one point each. Null: seven times those of the search.
    steps: Count | None = None
    #: Stop before that, once no screened point has a higher loss; and the threshold of the run that is written.
    to: Bound | None = None
    #: ``bezier``: a Bezier curve, fitted to the waypoints. ``polygon``: straight sides between pivots that lie on the
    #: path at equal distances.
    curve: Literal["bezier", "polygon"] = "bezier"
    #: Nodes that are trained. Null: of a Bezier curve 1; of a polygon the fewest of 1, 3, 7, 15 and 31 whose sides stay
    #: below the run's threshold on the screening samples.
    bends: Count | None = None
    #: Null: the search's ``correction.lr / (1 - correction.momentum)``.
    lr: Positive | None = None
    momentum: NotNegative = 0.9
    #: A point is drawn with a density that is the loss there to this power, times length; 0: uniform in length.
    favor: NotNegative = 3.0
    #: After each step the pivots of a polygon are put back on the variance spheres of the search.
    spheres: Flag = False
    #: Waypoints of a Bezier curve, both ends included, at least 2.
    waypoints: Count = 17


def as_settings(value: Any) -> Settings:
    """``value``, or the settings that a mapping of their names gives; LLPFError for anything else."""
    if isinstance(value, Settings):
        return value
    if isinstance(value, Mapping):
        return Settings(**{str(key): item for key, item in value.items()})
    raise LLPFError(f"settings must be a Settings or a mapping of its fields, got {type(value).__name__}")
