"""Everything that decides a path, as typed dataclasses: recipes (YAML), the command line and Python callers set it."""

from __future__ import annotations

import math
import numbers
import types
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal

from .errors import LLPFError, shown, unknown_name

Mode = Literal["m2m", "m2o", "m2o-o", "infinity", "mean", "variance-sphere", "norm-sphere"]
NormName = Literal["move", "keep", "compensate", "compensate-twice"]


@dataclass
class StepSettings:
    """Length of one move of a layer that is ``distance`` away from the destination (LLPF; units of the parameters).

    Switches left null take the value of the dialect.
    """

    fixed: float = 0.0
    relative: float = 0.001
    #: ``sum`` (paper) is ``fixed + relative * distance``, ``max`` (authors' code) the larger of both.
    combine: Literal["sum", "max"] | None = None
    #: Never step past the destination (paper dialect: true; the authors' code may step past it).
    clamp: bool | None = None
    #: epsilon of the projection's scale: 0 in the paper, 1e-4 in the authors' code.
    epsilon: float | None = None
    #: A weight and its bias move along one common direction.
    join_bias: bool = False


@dataclass
class LayerSettings:
    """Which layers a tick treats apart. Patterns are shell globs, or regular expressions after ``re:``."""

    #: Affine parameters of normalization layers, of any type. Null: move in m2m, m2o and the sphere modes, keep in
    #: m2o-o, infinity and mean; authors: in m2o, infinity and mean LayerNorm compensates and every other is kept.
    normalization: NormName | None = None
    #: Layers that are never moved.
    keep: list[str] = field(default_factory=list)
    #: Layers that move away from the destination by the same fraction, and by twice that.
    compensate: list[str] = field(default_factory=list)
    compensate_twice: list[str] = field(default_factory=list)
    #: ``values``: query and key projections stay and only values move, also within a fused qkv tensor.
    attention: Literal["all", "values"] = "all"
    #: With ``values``: biases of queries and keys stay too.
    attention_biases: bool = False
    #: Layers that do not move are still put back on their sphere (authors: true; by the paper they are left alone).
    rescale_skipped: bool | None = None
    #: Normalization layers that move are put back on their sphere too (authors: true; paper dialect: false).
    rescale_normalization: bool | None = None
    #: Parameters that do not train (``requires_grad=False``) move all the same; no correction can train them back.
    move_frozen: bool = False


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
    #: Learning rate of a layer times Var_now / Var_start (``var``) or its root (``std``). Null: ``var`` in m2o, m2o-o,
    #: infinity and mean, ``none`` elsewhere.
    lr_rule: Literal["none", "std", "var"] | None = None
    #: ``weights``: the rule holds for tensors with "weight" in their name only (authors' code). Null: the dialect's.
    lr_rule_layers: Literal["all", "weights"] | None = None
    #: On a GPU the iteration is captured as a CUDA graph wherever it can be (``auto``); ``on`` insists, ``off`` never.
    #: ``while``: the device repeats it until the gate closes (one path at a time; not run on a GPU yet).
    capture: Literal["auto", "on", "off", "while"] = "auto"
    #: Arithmetic of the forward and backward passes: ``tf32`` (GPU) rounds the factors of products to 10 bits,
    #: ``bfloat16`` is autocast. Parameters, updates, screening and certificate stay float32.
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    #: Images with their channels last in memory. Null: on a CPU, where LeNet5's iteration was measured 1.1 to 1.3
    #: times faster so and ResNet18's as fast.
    channels_last: bool | None = None
    #: ``torch.compile`` for forward and loss. Measured on a CPU for LeNet5: 15 s of compiling, then 1.8 times slower.
    compile: bool = False


@dataclass
class StageSettings:
    """Layers whose names match one of ``layers`` move from the stage's beginning to the next one's.

    A stage begins at tick ``start``, or as soon as every layer of the stage before has no more than the share
    ``distance`` of its initial distance left; where both are given, at whichever comes first.
    """

    start: int | None = None
    layers: list[str] = field(default_factory=lambda: ["*"])
    distance: float | None = None


@dataclass
class DataFlowSettings:
    """``schedule: data-flow``: layers become active from input to output, one more at a time, and stay active.

    The next layer follows after ``ticks`` ticks, or as soon as the active ones have no more than the share
    ``distance`` of their initial distance left; where both are given, at whichever comes first.
    """

    ticks: int | None = None
    distance: float | None = 0.5


@dataclass
class PaceSettings:
    """``pacing: adaptive`` (ours): the step follows from how long the corrections take; failures are rolled back."""

    #: Gradient steps that a correction should take: the step grows below, shrinks above twice that.
    rounds: int = 20
    #: Factors of the step after a short correction, a long one, and a failure.
    grow: float = 1.3
    shrink: float = 0.8
    back: float = 0.5
    #: Bounds of the product of all factors. A search that fails at the smallest is stuck and ends.
    largest: float = 8.0
    smallest: float = 0.01
    #: Share of the threshold that a new waypoint may reach on the screening set.
    margin: float = 0.8
    #: Judge the middle of the way to it too, half the margin wider: one more evaluation a tick, for long steps.
    chord: bool = False
    #: What a correction leaves is the mean of its points after every ``correction.min_rounds`` gradient steps, the
    #: share of point k of k being (average + 1) / (k + average); it is judged once the mean of the training losses is
    #: at most ``correction.threshold``. Null: the last point. Running statistics stay those of the last point.
    average: float | None = None
    #: A point is given up on the first 500 screening images (or batches of a loader) where their mean is above this
    #: multiple of what it may have. Null: all are looked at.
    glance: float | None = None


@dataclass
class Settings:
    """Settings of one path search."""

    #: Registered names of model and data; empty where a Python caller brings its own.
    model: str = ""
    data: str = ""
    #: Code of one's own, ``file.py:name``: makes the correction's torch optimiser from the parameters (empty: the fused
    #: SGD); counts more modules as normalization layers, by their class or by a function of a module.
    optimizer: str = ""
    is_norm: str = ""
    #: Where to: another model, the origin (``m2o-o`` without normalization layers), infinity, each layer's own mean,
    #: or a sphere given by a model or by ``spheres``.
    mode: Mode = "m2m"
    #: What is left null elsewhere is set as in the paper (arXiv 2505.02604) or as in the authors' programs.
    dialect: Literal["paper", "authors"] = "paper"
    seed: int = 0
    #: Highest training loss allowed anywhere on the path: what the certificate is about.
    threshold: float = 0.1
    max_ticks: int = 30000
    step: StepSettings = field(default_factory=StepSettings)
    layers: LayerSettings = field(default_factory=LayerSettings)
    correction: CorrectionSettings = field(default_factory=CorrectionSettings)
    #: M2M's variance spheres: the start's; blending into the destination's along the way; or in two legs, toward the
    #: origin until no layer has more variance than the destination's, and from there on the spheres reached.
    variance: Literal["start", "blend", "two-legs"] = "start"
    #: Ticks after which the first of two legs ends in any case: training pushes back, and some layers never shrink.
    shrink_ticks: int = 1400
    #: For the sphere modes without a model: pattern to unbiased variance (or L2 norm). Other layers stay.
    spheres: dict[str, float] = field(default_factory=dict)
    schedule: Literal["stages", "data-flow"] = "stages"
    stages: list[StageSettings] = field(default_factory=lambda: [StageSettings(start=0)])
    data_flow: DataFlowSettings = field(default_factory=DataFlowSettings)
    pacing: Literal["none", "adaptive"] = "none"
    pace: PaceSettings = field(default_factory=PaceSettings)
    #: BatchNorm statistics of a point between waypoints: interpolated as they are ``stored``, or ``reestimated`` at
    #: every point from training samples. Search and certificate take the same.
    statistics: Literal["stored", "reestimated"] = "stored"
    #: Samples a forward pass where points are evaluated, in search and certificate; 0: 125 on a CPU, 2,000 on a GPU. It
    #: matters for the loss only where a network or a loss mixes the samples of a batch.
    evaluation_batch_size: int = 0
    #: Fixed training images on which the finder itself judges points (arrival, chords); 0 takes all.
    screen_size: int = 2000
    #: Share of the room between the destination's own loss and the threshold that the rest of the way may use on the
    #: screening set. The certificate looks at more
    #: images and more points: with 1.0 a LeNet5 run arrived on 2,000 images and measured 0.105 on all, above 0.1.
    arrival_margin: float = 0.6
    #: Ticks between two looks at the rest of the way to the destination, taken straight. The last tick looks too.
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

        check_settings(self)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as written to run.yaml."""
        return asdict(self)


def as_settings(value: Any) -> Settings:
    """``value``, or the settings that a mapping of their names gives; LLPFError for anything else."""
    if isinstance(value, Settings):
        return value
    if isinstance(value, Mapping):
        unknown = sorted(set(map(str, value)) - {field.name for field in fields(Settings)})
        if not unknown:
            return Settings(**value)
        raise LLPFError(unknown_name("setting", unknown[0], (field.name for field in fields(Settings))))
    raise LLPFError(f"settings must be a Settings or a mapping of its fields, got {type(value).__name__}")


#: Losses may be negative, and so may what bounds them.
_FINITE = ("threshold", "correction.threshold")
_POSITIVE = (
    "max_ticks",
    "arrival_margin",
    "arrival_every",
    "record_every",
    "checkpoint_every",
    "shrink_ticks",
    "correction.min_rounds",
    "correction.batch_size",
    "correction.lr",
    "data_flow.ticks",
    "data_flow.distance",
    "pace.rounds",
    "pace.grow",
    "pace.shrink",
    "pace.back",
    "pace.largest",
    "pace.smallest",
    "pace.margin",
    "pace.glance",
)
_AT_LEAST_ZERO = (
    "step.fixed",
    "step.relative",
    "step.epsilon",
    "correction.momentum",
    "correction.weight_decay",
    "pace.average",
    "screen_size",
)


def check_settings(settings: Settings) -> None:
    """Raise :class:`LLPFError` naming the first key whose value cannot work; see also ``take_types``."""
    take_types(settings)
    for key in _FINITE:
        value = _value(settings, key)
        if value is not None and (not math.isfinite(value) or not value):
            raise LLPFError(f"{key} must be a finite number other than 0 (below 0 for losses that are), got {value}")
    for key in _POSITIVE:
        value = _value(settings, key)
        if value is not None and (not value > 0 or not math.isfinite(value)):
            raise LLPFError(f"{key} must be positive, got {value}")
    for key in _AT_LEAST_ZERO:
        value = _value(settings, key)
        if value is not None and (not value >= 0 or not math.isfinite(value)):
            raise LLPFError(f"{key} must not be negative, got {value}")
    if settings.step.fixed == 0 and settings.step.relative == 0:
        raise LLPFError("step.fixed and step.relative are both 0: nothing would move")
    correction = settings.correction
    if correction.max_rounds < correction.min_rounds:
        raise LLPFError(
            f"correction.max_rounds ({correction.max_rounds}) must be at least "
            f"correction.min_rounds ({correction.min_rounds})"
        )
    _check_pace(settings)
    _check_stages(settings)
    if settings.variance != "start" and settings.mode != "m2m":
        raise LLPFError(f"variance: {settings.variance} belongs to mode m2m, not to {settings.mode}")
    if settings.spheres and not settings.mode.endswith("-sphere"):
        raise LLPFError(f"spheres belongs to the modes variance-sphere and norm-sphere, not to {settings.mode}")
    for pattern, value in settings.spheres.items():
        if not value > 0 or not math.isfinite(value):
            raise LLPFError(f"spheres[{pattern!r}] must be positive, got {value}")


def _check_pace(settings: Settings) -> None:
    pace = settings.pace
    if settings.pacing == "adaptive" and not settings.threshold > 0:
        raise LLPFError(
            "threshold must be positive with pacing: adaptive, which holds points below a share of it, got "
            f"{settings.threshold}: add a constant to the loss, or set pacing: none"
        )
    if pace.grow < 1 or pace.shrink > 1 or pace.back >= 1:
        raise LLPFError(
            f"pace.grow must be at least 1, pace.shrink at most 1 and pace.back below 1; "
            f"got {pace.grow}, {pace.shrink}, {pace.back}"
        )
    if not pace.smallest <= 1 <= pace.largest:
        raise LLPFError(f"pace.smallest and pace.largest must enclose 1, got {pace.smallest} and {pace.largest}")


#: Whole numbers beyond it fit no counter of torch.
_WIDEST = 2**63
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list", dict: "a dict"}


def take_types(settings: Settings) -> None:
    """Make every value of ``settings`` one of its field's type, in place.

    Groups and stages may be dicts (``step={"relative": 0.1}``), lists tuples, and numbers NumPy's: run.yaml, where a
    search is compared with those given when it is resumed, knows plain values only. Raises :class:`LLPFError` naming
    the key of anything else: a dict with an unknown key, text for a number, true or false for a number, None where
    there must be a value.
    """
    _take_fields(settings, "")


def _take_fields(group: Any, prefix: str) -> None:
    for name, kind in typing.get_type_hints(type(group)).items():
        setattr(group, name, _typed(getattr(group, name), kind, prefix + name))


def _typed(value: Any, kind: Any, key: str) -> Any:
    """``value`` as ``kind``, one of the types that fields of :class:`Settings` have."""
    parts, origin = typing.get_args(kind), typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (kind,) = (part for part in parts if part is not type(None))
        return _typed(value, kind, key)
    if origin is typing.Literal:
        if not isinstance(value, str) or value not in parts:
            raise LLPFError(f"{key} must be one of {', '.join(parts)}; got {shown(value)}")
        return value
    if is_dataclass(kind):
        return _typed_group(value, typing.cast("type[Any]", kind), key)
    if origin is list and isinstance(value, (list, tuple)):
        return [_typed(item, parts[0], f"{key}[{place}]") for place, item in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {
            _typed(name, parts[0], f"a name in {key}"): _typed(item, parts[1], f"{key}[{name!r}]")
            for name, item in value.items()
        }
    flag = isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")
    if kind is bool and flag:
        return bool(value)
    if kind is int and isinstance(value, numbers.Integral) and not flag:
        if abs(int(value)) >= _WIDEST:
            raise LLPFError(f"{key} must lie between -2**63 and 2**63, got {shown(value)}")
        return int(value)
    if kind is float and isinstance(value, numbers.Real) and not flag:
        try:
            return float(value)
        except OverflowError:
            pass
    if kind is str and isinstance(value, str):
        return str(value)
    raise LLPFError(f"{key} must be {_WORDS[origin or kind]}, got {shown(value)}")


def _typed_group(value: Any, kind: type[Any], key: str) -> Any:
    names = typing.get_type_hints(kind)
    if isinstance(value, Mapping):
        for name in value:
            if name not in names:
                raise LLPFError(f"{key}: {unknown_name('setting', str(name), names)}")
        value = kind(**value)
    if not isinstance(value, kind):
        raise LLPFError(f"{key} must be {kind.__name__}(...) or a dict of its keys, got {shown(value)}")
    _take_fields(value, f"{key}.")
    return value


def _check_stages(settings: Settings) -> None:
    if settings.mode == "infinity":
        waits = settings.schedule == "data-flow" and settings.data_flow.ticks is None
        if waits or (settings.schedule == "stages" and any(s.start is None for s in settings.stages[1:])):
            what = "data_flow.ticks" if waits else "stages[...].start"
            raise LLPFError(f"mode infinity has no distance that gets smaller: give {what}, a number of ticks")
    if settings.schedule == "data-flow":
        if settings.data_flow.ticks is None and settings.data_flow.distance is None:
            raise LLPFError("data_flow needs ticks or distance: otherwise no second layer would ever move")
        return
    stages = settings.stages
    if not stages:
        raise LLPFError("stages must hold at least one stage")
    for i, stage in enumerate(stages):
        if not stage.layers:
            raise LLPFError(f"stages[{i}].layers is empty: nothing would move")
        if i and stage.start is None and stage.distance is None:
            raise LLPFError(f"stages[{i}] needs start (a tick) or distance (a share): otherwise it never begins")
        if stage.distance is not None and not 0 < stage.distance < 1:
            raise LLPFError(f"stages[{i}].distance must lie between 0 and 1, got {stage.distance}")
    if stages[0].start not in (None, 0):
        raise LLPFError(f"stages[0].start is {stages[0].start}, but the first stage begins at tick 0")
    starts = [s.start for s in stages if s.start is not None]
    if starts != sorted(set(starts)):
        raise LLPFError("stages must be in order of start, each start once")


def _value(settings: Settings, key: str) -> float | None:
    value: object = settings
    for part in key.split("."):
        value = getattr(value, part)
    assert value is None or isinstance(value, (int, float))
    return value
