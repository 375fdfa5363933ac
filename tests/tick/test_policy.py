"""Which segments move, stay, compensate and are projected."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llpf_fast import LLPFError, ops
from llpf_fast.flat import FlatParameters, SegmentTable
from llpf_fast.ops import Destination, SegmentFlag
from llpf_fast.tick import GroupStatistics, LayerTreatment, Route, Rule, match_layers

NONE, MASKED, HOLD, FREE = SegmentFlag.NONE, SegmentFlag.MASKED, SegmentFlag.HOLD, SegmentFlag.FREE
AWAY, TWICE, FROZEN = SegmentFlag.COMPENSATE, SegmentFlag.TWICE, SegmentFlag.FROZEN


def test_patterns_choose_names() -> None:
    names = ["conv1.weight", "conv1.bias", "fc.weight", "attn.qkv.weight[query]"]
    assert match_layers(names, ["conv1.*"]) == [True, True, False, False]
    assert match_layers(names, ["*.bias", "fc.*"]) == [False, True, True, False]
    assert match_layers(names, ["re:(conv1|fc)[.]weight"]) == [True, False, True, False]
    assert match_layers(names, ["attn.qkv.weight"]) == [False, False, False, True]


def test_a_pattern_without_a_match_is_named() -> None:
    with pytest.raises(LLPFError, match=r"'layer9\.\*' matches no layer"):
        match_layers(["conv1.weight"], ["*", "layer9.*"])


def test_a_regular_expression_that_is_none_is_named() -> None:
    with pytest.raises(LLPFError, match=r"'re:\(' is no regular expression"):
        match_layers(["conv1.weight"], ["re:("])


def test_variance_is_torchs_per_segment_and_pooled_per_group() -> None:
    torch.manual_seed(0)
    table = SegmentTable.from_lengths([100, 1, 40, 60], variance_groups=[0, 1, 2, 2])
    p = torch.randn(table.numel) + 3
    p[table.rows[3].offset :] += 2
    moments = ops.moments(p, None, table.segments, table.chunks, table.scratch())
    parts = [p[r.offset : r.offset + r.length].double() for r in table.rows]
    pooled = torch.cat(parts[2:]).var()
    expected = torch.stack([parts[0].var(), torch.tensor(0.0).double(), pooled, pooled])
    torch.testing.assert_close(GroupStatistics(table).variance(moments), expected, rtol=1e-12, atol=0)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)
        self.bn = nn.BatchNorm1d(3)
        self.ln = nn.LayerNorm(3)
        self.b = nn.Linear(3, 2)
        nn.init.zeros_(self.b.bias)


def flags(rule: Rule, without: str = "") -> dict[str, SegmentFlag]:
    torch.manual_seed(0)
    module = Mixed()
    module.a.weight.requires_grad_(False)
    flat = FlatParameters(module, cut_attention=rule.values_only)
    goal = torch.randn_like(flat.data)
    route = Route(flat, rule, goal if rule.destination == 0 else None, fixed=0.0, relative=0.1)
    route.enter([not (without and name.startswith(without)) for name in flat.table.names])
    return {row.name: row.flags for row in route.table.rows}


def test_m2m_projects_all_but_norm_layers_and_layers_without_variance() -> None:
    got = flags(Rule(), without="b.")
    assert got["a.weight"] == MASKED | FROZEN
    assert flags(Rule(move_frozen=True))["a.weight"] == FROZEN
    assert got["a.bias"] == NONE
    assert got["bn.weight"] == got["bn.bias"] == got["ln.weight"] == FREE
    assert got["b.weight"] == got["b.bias"] == MASKED
    assert flags(Rule())["b.bias"] == FREE


def test_the_authors_rescale_norm_layers_and_what_they_skip() -> None:
    rule = Rule(epsilon=1e-4, rescale_normalization=True, rescale_skipped=True)
    got = flags(rule, without="b.")
    assert got["bn.weight"] == got["ln.bias"] == NONE
    assert got["b.weight"] == HOLD
    assert flags(rule, without="ln.")["ln.weight"] == HOLD


def test_without_projection_a_skipped_layer_costs_nothing() -> None:
    got = flags(Rule(project=False, rescale_skipped=True, normalization=LayerTreatment.KEEP), without="b.")
    assert got["bn.weight"] == got["b.weight"] == MASKED
    assert got["a.bias"] == FREE


def test_norm_rules_by_type_and_by_name() -> None:
    rule = Rule(project=False, normalization=LayerTreatment.KEEP, layer_norm=LayerTreatment.COMPENSATE)
    got = flags(rule)
    assert got["bn.weight"] == MASKED
    assert got["ln.weight"] == AWAY | FREE
    named = flags(Rule(project=False, keep=("a.*",), compensate=("bn.*",), compensate_twice=("re:ln.*",)))
    assert named["a.bias"] == MASKED
    assert named["bn.weight"] == AWAY | FREE
    assert named["ln.bias"] == AWAY | TWICE | FREE


def test_a_rule_whose_pattern_matches_nothing_is_named() -> None:
    with pytest.raises(LLPFError, match=r"layers\.compensate_twice pattern 'nope' matches no layer"):
        flags(Rule(compensate_twice=("nope",)))


def test_values_only_holds_queries_and_keys() -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2)
    nn.init.normal_(module.in_proj_bias)
    for hold, bias in ((False, NONE), (True, MASKED)):
        flat = FlatParameters(module, cut_attention=True)
        rule = Rule(values_only=True, hold_attention_biases=hold)
        route = Route(flat, rule, torch.randn_like(flat.data), fixed=0.0, relative=0.1)
        got = {row.name: row.flags for row in route.table.rows}
        assert got["in_proj_weight[query]"] == got["in_proj_weight[key]"] == MASKED
        assert got["in_proj_weight[value]"] == NONE
        assert got["in_proj_bias[query]"] == bias
        assert got["in_proj_bias[value]"] == NONE


def test_a_layer_without_a_direction_to_its_sphere_is_named() -> None:
    flat = FlatParameters(Mixed())
    radius = torch.ones(len(flat.table), dtype=torch.float64)
    sphere = Rule(destination=Destination.VARIANCE_SPHERE, project=False, keep=("bn.*", "ln.*"))
    with pytest.raises(LLPFError, match=r"layer b\.bias of the start has variance 0"):
        Route(flat, sphere, None, radius, fixed=0.0, relative=0.1)
    left_out = Rule(destination=Destination.VARIANCE_SPHERE, project=False, keep=("bn.*", "ln.*", "b.bias"))
    Route(flat, left_out, None, radius, fixed=0.0, relative=0.1)
