"""``Rule``: every switch of one tick, resolved. Papers and programs differ in these and in nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from ..modes import MODES, Destination
from ..settings import Settings


class LayerTreatment(Enum):
    """What a tick does with the affine parameters of a normalization layer. Training goes on in every case."""

    MOVE = "move"
    #: Left out: neither moved nor projected, and never read by a tick.
    KEEP = "keep"
    #: Moved away from the destination by the same fraction.
    COMPENSATE = "compensate"
    COMPENSATE_TWICE = "compensate-twice"


@dataclass(frozen=True)
class Rule:
    """How a tick moves and projects. The defaults are the LLPF paper's M2M (arXiv 2505.02604).

    Attributes:
        destination: where to.
        project: rescale every layer onto its variance sphere after the move (M2M; toward the origin there is none).
        combine_sum: step length fixed + relative * distance (paper), or the larger of both (authors' code).
        clamp: never step past the destination (ours; the authors' code may).
        epsilon: inside the variance ratio; 0 in the paper, 1e-4 in the authors' code.
        normalization: for normalization layers of every type but LayerNorm.
        layer_norm: for LayerNorm, which the authors' code treats apart.
        rescale_normalization: project normalization layers too, where they move.
        rescale_skipped: layers outside the stage, or kept by name, are still projected (DFL_torch; LLR2 does not).
        keep, compensate, compensate_twice: layers by name (patterns), whatever their kind; the last match wins.
        values_only: query and key projections of attention stay, only values move. Weights alone, unless
            ``hold_attention_biases``.
        move_frozen: parameters that do not train (``requires_grad=False``) move and are projected like any other.
            Otherwise they are MASKED, whatever else holds for them.
        lr_rule: learning rate of a layer's correction times Var_now / Var_start ("var") or its root ("std").
        lr_weights_only: ``lr_rule`` holds for tensors with "weight" in their name only (authors' code).
    """

    destination: Destination = Destination.POINT
    project: bool = True
    combine_sum: bool = True
    clamp: bool = True
    epsilon: float = 0.0
    normalization: LayerTreatment = LayerTreatment.MOVE
    layer_norm: LayerTreatment = LayerTreatment.MOVE
    rescale_normalization: bool = False
    rescale_skipped: bool = False
    keep: tuple[str, ...] = ()
    compensate: tuple[str, ...] = ()
    compensate_twice: tuple[str, ...] = ()
    values_only: bool = False
    hold_attention_biases: bool = False
    move_frozen: bool = False
    lr_rule: Literal["none", "std", "var"] = "none"
    lr_weights_only: bool = False

    @classmethod
    def from_settings(cls, settings: Settings) -> Rule:
        """The rule that ``settings`` ask for. The two dialects differ in these switches and in nothing else."""
        authors = settings.dialect == "authors"
        step, layers, correction = settings.step, settings.layers, settings.correction
        mode = MODES[settings.mode]
        norm, layer_norm = (mode.authors, mode.authors_layer_norm) if authors else (mode.paper, mode.paper)
        return cls(
            destination=mode.destination,
            project=mode.projects,
            combine_sum=(step.combine or ("max" if authors else "sum")) == "sum",
            clamp=not authors if step.clamp is None else step.clamp,
            epsilon=(1e-4 if authors else 0.0) if step.epsilon is None else step.epsilon,
            normalization=LayerTreatment(layers.normalization or norm),
            layer_norm=LayerTreatment(layers.normalization or layer_norm),
            rescale_normalization=authors if layers.rescale_normalization is None else layers.rescale_normalization,
            rescale_skipped=authors if layers.rescale_skipped is None else layers.rescale_skipped,
            keep=tuple(layers.keep),
            compensate=tuple(layers.compensate),
            compensate_twice=tuple(layers.compensate_twice),
            values_only=layers.attention == "values",
            hold_attention_biases=layers.attention_biases,
            move_frozen=layers.move_frozen,
            lr_rule=correction.lr_rule or mode.lr_rule,
            lr_weights_only=(correction.lr_rule_layers or ("weights" if authors else "all")) == "weights",
        )
