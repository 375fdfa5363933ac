"""coefficients: the map of one tick, against the map that project, move, project amount to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from torch import Tensor

from llpf_fast import ops
from llpf_fast.flat.table import SegmentTable
from llpf_fast.ops import Destination, SegmentFlag

from . import oracle
from .comparison import exact, map_bound, same_bits
from .examples import TABLE, Arguments, S, options, rule
from .oracle import Real
from .strategies import Case, cases

pytestmark = pytest.mark.usefixtures("backend")

IDENTITY = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
F64 = ((torch.float64, torch.float64), (torch.float32, torch.float32))


def examples() -> list[Arguments]:
    moments = torch.rand(S, 5, dtype=torch.float64)
    full = {"moments": moments, "segments": TABLE.segments.clone(), **rule(), **options()}
    to_norm = {"active": None, "destination": 5, "radius": torch.ones(S, dtype=torch.float64)}
    paths = {"moments": moments.repeat(3, 1, 1), "active": torch.ones(3, dtype=torch.float64)}
    return [full, full | to_norm, full | paths]


def exact_moments(case: Case) -> Tensor:
    """float64 ``[K?, S, 5]`` from the oracle, so that only ``coefficients`` is on trial."""
    p = exact(case.p).reshape(case.paths, -1)
    d = None if case.far is None else exact(case.far).reshape(-1, p.shape[1])
    per_path = [oracle.moments(p[k], None if d is None else d[k % len(d)], case.layers) for k in range(case.paths)]
    out = torch.from_numpy(np.stack(per_path).astype(np.float64))
    return out if case.p.dim() == 2 else out[0]


def run(case: Case, moments: Tensor) -> Tensor:
    return ops.coefficients(
        moments, case.table.segments, case.target, case.step, case.active, case.radius, **case.options
    )


@given(case=cases(pairs=F64))
def test_equals_the_oracle(case: Case) -> None:
    expected = case.expected()
    assume(all(path.condition < 2**22 for path in expected))
    assume(all(not 2**-44 < share < 2**-36 for path in expected for share in path.variance_share))
    p = exact(case.p).reshape(case.paths, -1)
    d = None if case.far is None else exact(case.far).reshape(-1, p.shape[1])
    got = run(case, exact_moments(case))
    assert got.dtype == torch.float64
    assert got.shape == (*case.p.shape[:-1], len(case.layers), 5)
    for k, (row, path) in enumerate(zip(got.reshape(case.paths, -1, 5), expected, strict=True)):
        if not case.is_open(k):
            assert same_bits(row, IDENTITY.expand(row.shape))
            continue
        for i, layer in enumerate(case.layers):
            if layer.has(oracle.MASKED):
                assert same_bits(row[i], IDENTITY)
                continue
            # Each column acts on a value of the layer: a on p, b on d, c on 1. Their errors are measured there.
            top = abs(layer.of(p[k])).max()
            far = top if d is None else abs(layer.of(d[k % len(d)])).max()
            reach = [top, far, Real(1), top, Real(1)]
            size = max(layer.of(path.size).max(), layer.of(path.waypoint_size).max())
            bound = map_bound(size, layer.of(path.reach).max(), path.condition)
            error = abs(exact(row[i]) - path.maps[i]) * reach
            assert (error <= bound).all(), (i, row[i].tolist(), path.maps[i])


@given(case=cases(pairs=F64))
def test_repeats_bitwise_and_row_by_row(case: Case) -> None:
    moments = exact_moments(case)
    got = run(case, moments)
    assert same_bits(got, run(case, moments))
    if case.p.dim() == 2:
        for k in range(case.paths):
            assert same_bits(got[k], run(case.row(k), moments[k].clone()))


@given(case=cases(pairs=F64))
def test_b_is_zero_unless_there_is_a_point(case: Case) -> None:
    if case.rule.destination != Destination.POINT:
        assert not run(case, exact_moments(case))[..., 1].any()


def table_of(flags: list[SegmentFlag], n: int = 10) -> SegmentTable:
    return SegmentTable.from_lengths([n] * len(flags), flags=flags)


def unit_moments(count: int, n: int = 10) -> Tensor:
    """p with mean 1 and variance 1, d = p + 2: so the distance is 2 sqrt(n) and the variance never changes."""
    row = torch.tensor([1.0, 2.0, n - 1.0, 0.0, 0.0], dtype=torch.float64)
    return row.expand(count, 5).clone()


def simple(flags: list[SegmentFlag], step: list[float], **options: object) -> Tensor:
    table = table_of(flags)
    one = torch.ones(len(flags), dtype=torch.float64)
    return ops.coefficients(
        unit_moments(len(flags)), table.segments, one, torch.tensor(step, dtype=torch.float64), **options
    )


@pytest.mark.parametrize(
    ("flag", "share"),
    [
        (SegmentFlag.NONE, 0.25),
        (SegmentFlag.HOLD, 0.0),
        (SegmentFlag.COMPENSATE, -0.25),
        (SegmentFlag.COMPENSATE | SegmentFlag.TWICE, -0.5),
        (SegmentFlag.TWICE, 0.25),
        (SegmentFlag.FREE, 0.25),
        (SegmentFlag.FROZEN, 0.25),
        (SegmentFlag.MASKED, 0.0),
    ],
)
def test_flags(flag: SegmentFlag, share: float) -> None:
    assert simple([flag], [0.0, 0.25])[0].tolist() == pytest.approx([1 - share, share, 0, 1, 0], abs=1e-15)


@pytest.mark.parametrize(
    ("destination", "radius", "want"),
    [
        (Destination.POINT, None, [0.75, 0.25, 0.0]),
        (Destination.ORIGIN, None, [0.75, 0.0, 0.0]),
        (Destination.INFINITY, None, [1.25, 0.0, 0.0]),
        (Destination.MEAN, None, [0.75, 0.0, 0.25]),
        (Destination.VARIANCE_SPHERE, 4.0, [1.25, 0.0, -0.25]),
        (Destination.NORM_SPHERE, 2 * 19**0.5, [1.25, 0.0, 0.0]),
    ],
)
def test_a_quarter_of_the_way_to_each_destination(
    destination: Destination, radius: float | None, want: list[float]
) -> None:
    """Mean 1, variance 1, ten elements: the norm is sqrt(19), twice the deviation is the variance sphere of 4."""
    sphere = None if radius is None else torch.tensor([radius], dtype=torch.float64)
    got = simple([SegmentFlag.FREE], [0.0, 0.25], destination=destination, radius=sphere)
    assert got[0].tolist() == pytest.approx([*want, 1.0, 0.0], abs=1e-15)


def test_step_rules() -> None:
    """The paper adds the fixed and the relative part, the authors' code takes the larger and oversteps."""
    distance = 2 * 10**0.5
    b = lambda step, **options: simple([SegmentFlag.NONE], step, **options)[0, 1].item()
    assert b([distance / 8, 0.25]) == pytest.approx(0.375)
    assert b([distance / 8, 0.25], combine_sum=False) == pytest.approx(0.25)
    assert b([distance / 2, 0.25], combine_sum=False) == pytest.approx(0.5)
    assert b([distance, 0.25]) == 1.0
    assert b([distance, 0.25], clamp=False) == pytest.approx(1.25)


def test_a_held_segment_does_not_count_in_its_group() -> None:
    table = SegmentTable.from_lengths([10, 10], flags=[SegmentFlag.NONE, SegmentFlag.HOLD], distance_groups=[0, 0])
    one, step = torch.ones(2, dtype=torch.float64), torch.tensor([10**0.5, 0.0], dtype=torch.float64)
    got = ops.coefficients(unit_moments(2), table.segments, one, step)
    assert got[:, 1].tolist() == pytest.approx([0.5, 0.0])


def test_epsilon_matches_the_authors_code() -> None:
    """s = sqrt((v + epsilon) / (var + epsilon)) with v = 3e-4, var = 1: 1e-4 more in both."""
    table = table_of([SegmentFlag.HOLD])
    target, step = torch.tensor([3e-4], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    got = ops.coefficients(unit_moments(1), table.segments, target, step, epsilon=1e-4)
    assert got[0, 0].item() == pytest.approx((4e-4 / 1.0001) ** 0.5, rel=1e-14)


def test_degenerate_rule() -> None:
    """A variance that the move leaves below 2^-40 of its terms is rounding noise and is not scaled up."""
    table = table_of([SegmentFlag.NONE])
    one, step = torch.ones(1, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    for left, scaled in ((2.0**-39, True), (2.0**-42, False), (0.0, False)):
        # delta = -p up to a part that survives: M2_p = 1, C = -1, M2_delta = 1 + left; the terms sum to 2.
        moments = torch.tensor([[0.0, 0.0, 1.0, -1.0, 1.0 + 2 * left]], dtype=torch.float64)
        b = ops.coefficients(moments, table.segments, one, step)[0, 1].item()
        assert (b != 1.0) == scaled, (left, b)
    nothing = torch.zeros(1, 5, dtype=torch.float64)
    for destination in (Destination.POINT, Destination.ORIGIN, Destination.MEAN):
        got = ops.coefficients(nothing, table.segments, one, step, destination=destination, project_first=True)
        assert same_bits(got[0], IDENTITY)


def test_no_segments() -> None:
    table = SegmentTable((), 16)
    nothing, step = torch.zeros(0, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    assert ops.coefficients(torch.zeros(0, 5).double(), table.segments, nothing, step).shape == (0, 5)
    assert ops.coefficients(torch.zeros(3, 0, 5).double(), table.segments, nothing, step).shape == (3, 0, 5)


@given(case=cases(pairs=F64))
def test_gate_of_ones_changes_nothing(case: Case) -> None:
    moments = exact_moments(case)
    opened = replace(case, active=torch.ones(case.paths, dtype=torch.float64))
    assert same_bits(run(opened, moments), run(replace(case, active=None), moments))
