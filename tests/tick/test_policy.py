"""Which segments move and which are projected."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llpf_fast import LLPFError, ops
from llpf_fast.flat import FlatParameters, SegmentTable
from llpf_fast.ops import SegmentFlag
from llpf_fast.tick import m2m_flags, match_layers, variance_of


def test_patterns_choose_names() -> None:
    names = ["conv1.weight", "conv1.bias", "fc.weight"]
    assert match_layers(names, ["conv1.*"]) == [True, True, False]
    assert match_layers(names, ["*.bias", "fc.*"]) == [False, True, True]


def test_a_pattern_without_a_match_is_named() -> None:
    with pytest.raises(LLPFError, match=r"'layer9\.\*' matches no layer"):
        match_layers(["conv1.weight"], ["*", "layer9.*"])


def test_variance_is_torchs_per_segment_and_pooled_per_group() -> None:
    torch.manual_seed(0)
    table = SegmentTable.from_lengths([100, 1, 40, 60], variance_groups=[0, 1, 2, 2])
    p = torch.randn(table.numel) + 3
    p[table.rows[3].offset :] += 2
    moments = ops.moments(p, None, table.segments, table.chunks, table.scratch())
    parts = [p[r.offset : r.offset + r.length].double() for r in table.rows]
    pooled = torch.cat(parts[2:]).var()
    expected = torch.stack([parts[0].var(), torch.tensor(0.0).double(), pooled, pooled])
    torch.testing.assert_close(variance_of(moments, table.segments), expected, rtol=1e-12, atol=0)


def test_norm_layers_and_segments_without_variance_move_freely() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    module[0].weight.requires_grad_(False)
    flat = FlatParameters(module)
    table = flat.table
    moments = ops.moments(flat.data, None, table.segments, table.chunks, table.scratch())
    variance = variance_of(moments, table.segments)
    active = [not name.startswith("2.") for name in table.names]
    flags = m2m_flags(flat.kinds, [r.flags for r in table.rows], variance, active)
    got = dict(zip(table.names, flags, strict=True))
    assert got["0.weight"] == SegmentFlag.FROZEN
    assert got["0.bias"] == SegmentFlag.NONE
    assert got["1.weight"] == got["1.bias"] == SegmentFlag.FREE
    assert got["2.weight"] == SegmentFlag.MASKED
    assert got["2.bias"] == SegmentFlag.MASKED | SegmentFlag.FREE
