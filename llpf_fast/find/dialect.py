"""From settings with switches left null to one resolved rule: what the paper does and what the authors' programs do."""

from __future__ import annotations

from ..ops import Destination
from ..tick import NormRule, Rule
from .settings import Mode, Settings

_DESTINATIONS: dict[str, Destination] = {
    "m2m": Destination.POINT,
    "m2o": Destination.ORIGIN,
    "m2o-o": Destination.ORIGIN,
    "infinity": Destination.INFINITY,
    "mean": Destination.MEAN,
    "variance-sphere": Destination.VARIANCE_SPHERE,
    "norm-sphere": Destination.NORM_SPHERE,
}
#: Modes in which a layer's size changes on purpose: no projection, and learning rates that follow the size.
_RESIZING = ("m2o", "m2o-o", "infinity", "mean")


def resolve(settings: Settings) -> Rule:
    """The rule of one tick. The two dialects differ in these switches and in nothing else."""
    authors = settings.dialect == "authors"
    step, layers, correction = settings.step, settings.layers, settings.correction
    norm, layer_norm = _normalization(settings.mode, layers.normalization, authors)
    lr_rule = correction.lr_rule or ("var" if settings.mode in _RESIZING else "none")
    return Rule(
        destination=_DESTINATIONS[settings.mode],
        project=settings.mode == "m2m",
        combine_sum=(step.combine or ("max" if authors else "sum")) == "sum",
        clamp=not authors if step.clamp is None else step.clamp,
        epsilon=(1e-4 if authors else 0.0) if step.epsilon is None else step.epsilon,
        normalization=norm,
        layer_norm=layer_norm,
        rescale_normalization=authors if layers.rescale_normalization is None else layers.rescale_normalization,
        rescale_skipped=authors if layers.rescale_skipped is None else layers.rescale_skipped,
        keep=tuple(layers.keep),
        compensate=tuple(layers.compensate),
        compensate_twice=tuple(layers.compensate_twice),
        values_only=layers.attention == "values",
        hold_attention_biases=layers.attention_biases,
        move_frozen=layers.move_frozen,
        lr_rule=lr_rule,
        lr_weights_only=(correction.lr_rule_layers or ("weights" if authors else "all")) == "weights",
    )


def _normalization(mode: Mode, chosen: str | None, authors: bool) -> tuple[NormRule, NormRule]:
    """Rules for normalization layers in general and for LayerNorm."""
    if chosen is not None:
        return NormRule(chosen), NormRule(chosen)
    if mode == "m2o-o":
        return NormRule.KEEP, NormRule.KEEP
    if mode in _RESIZING and authors:
        return NormRule.KEEP, NormRule.COMPENSATE
    if mode in ("infinity", "mean"):
        return NormRule.KEEP, NormRule.KEEP
    return NormRule.MOVE, NormRule.MOVE


def leads_to_model(settings: Settings) -> bool:
    """Whether the mode needs a second model as the end of the path."""
    return settings.mode == "m2m"


def can_arrive(settings: Settings) -> bool:
    """Whether the mode has an end that a network of low loss can reach: origin, mean and infinity are none."""
    return settings.mode not in _RESIZING
