"""Which segments a tick moves, holds, compensates and projects: flags from the rule, the layer kinds and the stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ..flat import FlatParameters, LayerKind, SegmentTable
from ..flat.layers import match_layers
from ..ops import SegmentFlag
from .rule import LayerTreatment, Rule

_ONLY_FROM_MODULE = SegmentFlag.FROZEN
_AWAY = {
    LayerTreatment.COMPENSATE: SegmentFlag.COMPENSATE,
    LayerTreatment.COMPENSATE_TWICE: SegmentFlag.COMPENSATE | SegmentFlag.TWICE,
}


def treatments(rule: Rule, flat: FlatParameters) -> list[LayerTreatment]:
    """What the rule does with every segment whenever its stage is active: frozen ones are kept.

    Raises:
        LLPFError: a pattern of the rule matches no layer.
    """
    pairs = zip(chosen_treatments(rule, flat), frozen(rule, flat), strict=True)
    return [LayerTreatment.KEEP if still else how for how, still in pairs]


def frozen(rule: Rule, flat: FlatParameters) -> list[bool]:
    """Which segments no tick touches, because they could never be trained back."""
    return [bool(row.flags & SegmentFlag.FROZEN) and not rule.move_frozen for row in flat.table.rows]


def chosen_treatments(rule: Rule, flat: FlatParameters) -> list[LayerTreatment]:
    """As :func:`treatments`, as if nothing were frozen."""
    names = flat.table.names
    chosen = [_by_kind(rule, flat, i) for i in range(len(names))]
    for how, patterns in (
        (LayerTreatment.KEEP, rule.keep),
        (LayerTreatment.COMPENSATE, rule.compensate),
        (LayerTreatment.COMPENSATE_TWICE, rule.compensate_twice),
    ):
        hits = match_layers(names, patterns, f"layers.{how.value.replace('-', '_')} pattern")
        chosen = [how if hit else old for old, hit in zip(chosen, hits, strict=True)]
    return chosen


def _by_kind(rule: Rule, flat: FlatParameters, i: int) -> LayerTreatment:
    kind = flat.kinds[i]
    if kind is LayerKind.NORM:
        return rule.layer_norm if flat.is_layer_norm[i] else rule.normalization
    if rule.values_only and kind in (LayerKind.QUERY, LayerKind.KEY):
        return LayerTreatment.MOVE if flat.is_bias[i] and not rule.hold_attention_biases else LayerTreatment.KEEP
    return LayerTreatment.MOVE


def sphere_table(rule: Rule, flat: FlatParameters) -> SegmentTable:
    """The table with the variance groups that the rule asks for.

    Rows of a cut attention tensor that stay are never read where skipped layers are left alone. The rows that move are
    then a layer of their own, with the variance they had themselves: compared with the whole tensor's they would be
    scaled to a sphere they never lay on. Where skipped layers are rescaled (authors) the tensor keeps its one sphere.
    """
    table = flat.table
    if rule.rescale_skipped:
        return table
    apart = max((row.variance_group for row in table.rows), default=0) + 1
    rows = [
        replace(row, variance_group=row.variance_group + apart) if cut and how is LayerTreatment.KEEP else row
        for row, how, cut in zip(table.rows, treatments(rule, flat), _cut(flat), strict=True)
    ]
    return replace(table, rows=tuple(rows))


def _cut(flat: FlatParameters) -> list[bool]:
    """Which segments are pieces of one tensor."""
    size = Counter(row.variance_group for row in flat.table.rows)
    return [size[row.variance_group] > 1 for row in flat.table.rows]


def flags(
    rule: Rule,
    flat: FlatParameters,
    treatment: Sequence[LayerTreatment],
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
    cut = _cut(flat)
    still = frozen(rule, flat)
    for i, row in enumerate(flat.table.rows):
        flag = row.flags & _ONLY_FROM_MODULE
        if still[i]:
            out.append(flag | SegmentFlag.MASKED)
            continue
        free = not rule.project or no_sphere[i]
        free |= flat.kinds[i] is LayerKind.NORM and not rule.rescale_normalization
        if not active[i] or treatment[i] is LayerTreatment.KEEP:
            if not rule.rescale_skipped or (free and not (cut[i] and active[i])):
                flag |= SegmentFlag.MASKED
            else:
                # The rest of a cut tensor is measured with these rows: the mean or norm of the authors' destinations.
                flag |= SegmentFlag.HOLD | (SegmentFlag.FREE if free else SegmentFlag.NONE)
        else:
            flag |= _AWAY.get(treatment[i], SegmentFlag.NONE)
            if free:
                flag |= SegmentFlag.FREE
        out.append(flag)
    return out
