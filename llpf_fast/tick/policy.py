"""Which segments a tick moves, holds, compensates and projects: flags from the rule, the layer kinds and the stage."""

from __future__ import annotations

from collections.abc import Sequence

from ..flat import FlatParameters, LayerKind
from ..ops import SegmentFlag
from .patterns import match_layers
from .rule import NormRule, Rule

_ONLY_FROM_MODULE = SegmentFlag.FROZEN
_AWAY = {
    NormRule.COMPENSATE: SegmentFlag.COMPENSATE,
    NormRule.COMPENSATE_TWICE: SegmentFlag.COMPENSATE | SegmentFlag.TWICE,
}


def treatments(rule: Rule, flat: FlatParameters) -> list[NormRule]:
    """What the rule does with every segment whenever its stage is active.

    Raises:
        LLPFError: a pattern of the rule matches no layer.
    """
    names = flat.table.names
    chosen = [_by_kind(rule, flat, i) for i in range(len(names))]
    for how, patterns in (
        (NormRule.KEEP, rule.keep),
        (NormRule.COMPENSATE, rule.compensate),
        (NormRule.COMPENSATE_TWICE, rule.compensate_twice),
    ):
        hits = match_layers(names, patterns, f"layers.{how.value.replace('-', '_')} pattern")
        chosen = [how if hit else old for old, hit in zip(chosen, hits, strict=True)]
    return chosen


def _by_kind(rule: Rule, flat: FlatParameters, i: int) -> NormRule:
    kind = flat.kinds[i]
    if kind is LayerKind.NORM:
        return rule.layer_norm if flat.is_layer_norm[i] else rule.normalization
    if rule.values_only and kind in (LayerKind.QUERY, LayerKind.KEY):
        return NormRule.MOVE if flat.is_bias[i] and not rule.hold_attention_biases else NormRule.KEEP
    return NormRule.MOVE


def flags(
    rule: Rule,
    flat: FlatParameters,
    treatment: Sequence[NormRule],
    active: Sequence[bool],
    no_sphere: Sequence[bool],
) -> list[SegmentFlag]:
    """Flags of one stage (reading of LLPF in notes/algorithm-facts, A.4).

    Args:
        treatment: of :func:`treatments`.
        active: which segments the stage moves.
        no_sphere: segments that there is no sphere to return to: their start has no variance.
    """
    out = []
    for i, row in enumerate(flat.table.rows):
        flag = row.flags & _ONLY_FROM_MODULE
        free = not rule.project or no_sphere[i]
        free |= flat.kinds[i] is LayerKind.NORM and not rule.rescale_normalization
        if not active[i] or treatment[i] is NormRule.KEEP:
            flag |= SegmentFlag.HOLD if rule.rescale_skipped and not free else SegmentFlag.MASKED
        else:
            flag |= _AWAY.get(treatment[i], SegmentFlag.NONE)
            if free:
                flag |= SegmentFlag.FREE
        out.append(flag)
    return out
