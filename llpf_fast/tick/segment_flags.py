"""Which segments a tick moves, leaves, compensates and projects: flags from rule, layer kinds and stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ..flat import FlatParameters, LayerKind, SegmentTable
from ..flat.layers import match_layers
from ..ops import SegmentFlag
from .rule import LayerTreatment, Rule

_AWAY = {
    LayerTreatment.COMPENSATE: SegmentFlag.COMPENSATE,
    LayerTreatment.COMPENSATE_TWICE: SegmentFlag.COMPENSATE | SegmentFlag.TWICE,
}


def treatments(rule: Rule, flat: FlatParameters) -> list[LayerTreatment]:
    """What the rule does with every segment while its stage is active: KEEP for frozen ones.

    Raises:
        LLPFError: a pattern of the rule matches no layer.
    """
    pairs = zip(chosen_treatments(rule, flat), frozen(rule, flat), strict=True)
    return [LayerTreatment.KEEP if is_frozen else how for how, is_frozen in pairs]


def frozen(rule: Rule, flat: FlatParameters) -> list[bool]:
    """Which segments no tick touches, because training could not lower the loss again."""
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

    With ``rescale_skipped`` (authors) a cut attention tensor has one sphere. Without it the pieces that stay are never
    read, so the pieces that move are a group of their own: with the variance of the whole tensor they would be scaled
    to a sphere that they never lay on.
    """
    table = flat.table
    if rule.rescale_skipped:
        return table
    unused = max((row.variance_group for row in table.rows), default=0) + 1
    rows = [
        replace(row, variance_group=row.variance_group + unused) if cut and how is LayerTreatment.KEEP else row
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
    """Flags of one stage, one a segment.

    Args:
        treatment: result of :func:`treatments`.
        active: which segments the stage moves.
        no_sphere: segments without a sphere to return to: their start has no variance.
    """
    result = []
    cut = _cut(flat)
    is_frozen = frozen(rule, flat)
    for i, row in enumerate(flat.table.rows):
        flag = row.flags & SegmentFlag.FROZEN
        if is_frozen[i]:
            result.append(flag | SegmentFlag.MASKED)
            continue
        free = not rule.project or no_sphere[i]
        free |= flat.kinds[i] is LayerKind.NORM and not rule.rescale_normalization
        if not active[i] or treatment[i] is LayerTreatment.KEEP:
            if not rule.rescale_skipped or (free and not (cut[i] and active[i])):
                flag |= SegmentFlag.MASKED
            else:
                # Mean and norm of a cut tensor are those of all its pieces (authors), so these are read.
                flag |= SegmentFlag.HOLD | (SegmentFlag.FREE if free else SegmentFlag.NONE)
        else:
            flag |= _AWAY.get(treatment[i], SegmentFlag.NONE)
            if free:
                flag |= SegmentFlag.FREE
        result.append(flag)
    return result
