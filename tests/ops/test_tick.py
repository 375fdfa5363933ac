"""tick_: one reduction and one write must equal project, move, project done one after another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from torch import Tensor

from llpf_fast import ops
from llpf_fast.flat.table import CHUNK, SegmentTable
from llpf_fast.ops import Destination, SegmentFlag
from llpf_fast.ops.tick import tick_eager

from . import oracle
from .comparison import (
    assert_within,
    compute_type,
    eager_bound,
    map_bound,
    poison,
    same_bits,
    unit,
    worst_error,
)
from .examples import F64, TABLE, Arguments, N, narrow, options, rule, table
from .oracle import Rule, Ticked
from .strategies import Case, cases, group_variances

SIZES = (1, 2, 15, 16, 17, 129, CHUNK - 1, CHUNK, CHUNK + 1)


def examples() -> list[Arguments]:
    full = {
        "p": torch.randn(N),
        "d": torch.randn(N),
        **table(),
        **rule(),
        "moments_in": None,
        "waypoint": torch.randn(N),
    }
    full |= {"scratch": TABLE.scratch(), **options()}
    to_origin = {"d": None, "destination": 1, "active": None, "waypoint": None}
    paths = {"p": narrow(3), "d": narrow(3), "waypoint": narrow(3), "scratch": TABLE.scratch(3)}
    return [full, full | to_origin, full | paths | {"active": torch.ones(3, dtype=F64)}]


def decided(case: Case, expected: list[Ticked]) -> bool:
    """Not on the edge of the degenerate rule, not beyond what float64 moments can resolve, and representable."""
    limit = torch.finfo(case.p.dtype).max / 4
    inside = case.covered().numpy()
    return all(
        path.condition < 2**22
        and all(not 2**-44 < share < 2**-36 for share in path.variance_share)
        and bool((abs(path.x[inside]) < limit).all() and (abs(path.waypoint[inside]) < limit).all())
        for path in expected
    )


def poisoned_like(p: Tensor) -> Tensor:
    out = torch.empty_like(p)
    poison(out, torch.ones(p.shape[-1], dtype=torch.bool))
    return out


def assert_tick(case: Case, backend: str, expected: list[Ticked] | None = None) -> None:
    """Run the tick and hold every element of its result and its waypoint to the bound.

    Eager, and float64 storage, to the bound that the arithmetic implies; the others to twice the worst error of eager
    float32 (in units in the last place of |a p| + |b d| + |c|, over this very case) plus one such unit of the storage.
    """
    expected = expected or case.expected()
    waypoint = poisoned_like(case.p)
    x = case.run(ops.tick_, waypoint)
    inside, masked = case.covered(), torch.zeros(case.table.numel, dtype=torch.bool)
    for layer in case.layers:
        masked[layer.offset : layer.offset + layer.length] |= layer.has(oracle.MASKED)

    precise = compute_type(case.p.dtype)
    reference = replace(case, p=case.p.to(precise), d=case.d if case.p.dtype == precise else as_type(case.d, precise))
    reference_waypoint = poisoned_like(reference.p)
    reference_x = reference.run(tick_eager, reference_waypoint)

    shape = (case.paths, -1)
    before, x, waypoint = case.p.reshape(shape), x.reshape(shape), waypoint.reshape(shape)
    at = (inside & ~masked).numpy()
    for k, path in enumerate(expected):
        if not case.is_open(k):
            assert same_bits(x[k], before[k])
            assert same_bits(waypoint[k], poisoned_like(waypoint[k]))
            continue
        assert same_bits(x[k, ~inside], before[k, ~inside])
        assert same_bits(waypoint[k, ~inside], poisoned_like(waypoint[k, ~inside]))
        assert same_bits(x[k, masked], before[k, masked])
        assert same_bits(waypoint[k, masked], before[k, masked])
        for got, eager, want, size in (
            (x[k], reference_x.reshape(shape)[k], path.x, path.size),
            (waypoint[k], reference_waypoint.reshape(shape)[k], path.waypoint, path.waypoint_size),
        ):
            if backend == "eager" or precise == torch.float64:
                bound = eager_bound(size[at], case.p.dtype) + map_bound(size[at], path.reach[at], path.condition)
            else:
                eager_error = worst_error(eager[at], want[at], size[at], precise)
                bound = 2 * eager_error * unit(size[at], precise) + unit(size[at], case.p.dtype)
            assert_within(got[at], want[at], bound)


def as_type(value: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if value is None else value.to(dtype)


@given(case=cases())
def test_equals_project_move_project(case: Case, backend: str) -> None:
    expected = case.expected()
    assume(decided(case, expected))
    assert_tick(case, backend, expected)


@given(case=cases())
def test_repeats_bitwise_and_row_by_row(case: Case, backend: str) -> None:
    waypoint = poisoned_like(case.p)
    x = case.run(ops.tick_, waypoint)
    again = poisoned_like(case.p)
    assert same_bits(case.run(ops.tick_, again), x)
    assert same_bits(again, waypoint)
    assert same_bits(case.run(ops.tick_), x)
    if case.p.dim() == 2:
        for k in range(case.paths):
            alone = case.row(k)
            own_waypoint = poisoned_like(alone.p)
            assert same_bits(alone.run(ops.tick_, own_waypoint), x[k])
            assert same_bits(own_waypoint, waypoint[k])


@given(case=cases())
def test_equals_its_three_parts(case: Case, backend: str) -> None:
    """moments, coefficients and affine_ in a row give the bits of tick_; so do moments handed in."""
    table = (case.table.segments, case.table.chunks)
    x = case.run(ops.tick_)
    measured = ops.moments(case.p, case.far, *table, case.scratch())
    assert same_bits(case.run(ops.tick_, moments_in=measured), x)
    maps = ops.coefficients(measured, table[0], case.target, case.step, case.active, case.radius, **case.options)
    parts = case.p.clone()
    ops.affine_(parts, case.far, maps, *table)
    assert same_bits(parts, x)


def simple(lengths: list[int], *, rule: Rule | None = None, seed: int = 0, **table: object) -> Case:
    """Normal values, d unrelated, target variance that of p."""
    made = SegmentTable.from_lengths(lengths, **table)
    generator = torch.Generator().manual_seed(seed)
    p, d = (torch.randn(made.numel, generator=generator) for _ in range(2))
    step = torch.tensor([1e-3, 0.2], dtype=torch.float64)
    return Case(made, p, d, group_variances(made, p), step, rule or Rule(project_first=True))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", ["normal", "near d", "equal to d", "far mean", "zero variance", "zero variance of d"])
def test_sizes(n: int, kind: str, backend: str) -> None:
    case = simple([n, 7, n], seed=n)
    p, d = case.p, case.d
    assert d is not None
    if kind == "near d":
        d = p * (1 + 1e-6 * d)
    elif kind == "equal to d":
        d = p.clone()
    elif kind == "far mean":
        p = 1e3 + 1e-3 * p
    elif kind == "zero variance":
        p = torch.full_like(p, 0.1)
    else:
        d = torch.full_like(d, 0.1)
    for step in ([1e-3, 0.2], [0.0, 1.0], [1e9, 0.0]):
        given_step = torch.tensor(step, dtype=torch.float64)
        assert_tick(replace(case, p=p, d=d, step=given_step, target=1.3 * group_variances(case.table, p)), backend)


@pytest.mark.parametrize("destination", list(Destination))
def test_distance_and_variance_groups(destination: Destination, backend: str) -> None:
    """Weight joined with bias, a tensor cut into row ranges, and both crossing each other."""
    rule = Rule(destination=destination, project_first=True)
    case = simple(
        [300, 10, 40, 40, 41, 5, 1, 1],
        rule=rule,
        distance_groups=[0, 0, 1, 1, 2, 2, 3, 3],
        variance_groups=[0, 1, 2, 2, 2, 3, 4, 4],
        chunk=64,
    )
    sphere = destination in (Destination.VARIANCE_SPHERE, Destination.NORM_SPHERE)
    radius = torch.tensor([2.0, 3.0, 0.5, 0.5, 0.5, 7.0, 1.5, 1.5], dtype=torch.float64) if sphere else None
    assert_tick(replace(case, radius=radius), backend)


@pytest.mark.many_elements
def test_thousands_of_one_element_segments(backend: str) -> None:
    case = simple([1] * 3000)
    assert_tick(case, backend)
    flags = [SegmentFlag.NONE if i % 3 else SegmentFlag.MASKED for i in range(3000)]
    assert_tick(replace(case, table=case.table.with_flags(flags)), backend)


def test_all_masked(backend: str) -> None:
    case = simple([5, 4097], flags=[SegmentFlag.MASKED] * 2)
    poison(case.p, torch.ones(case.table.numel, dtype=torch.bool))
    waypoint = torch.zeros_like(case.p)
    assert same_bits(case.run(ops.tick_, waypoint), case.p)
    inside = case.covered()
    assert same_bits(waypoint[inside], case.p[inside])
    assert not waypoint[~inside].any()


def test_masked_segments_are_not_read(backend: str) -> None:
    """NaN in a masked segment, in p or d, reaches nothing, not even its groups."""
    flags = [SegmentFlag.NONE, SegmentFlag.MASKED, SegmentFlag.NONE]
    case = simple([40, 30, 20], flags=flags, distance_groups=[0, 0, 0], variance_groups=[0, 0, 0])
    alone = simple([40, 30, 20], flags=flags, distance_groups=[0, 0, 0], variance_groups=[0, 0, 0])
    masked = torch.zeros(case.table.numel, dtype=torch.bool)
    masked[case.table.rows[1].offset : case.table.rows[1].offset + 30] = True
    assert case.d is not None
    poison(case.p, masked)
    poison(case.d, masked)
    waypoint = poisoned_like(case.p)
    x = case.run(ops.tick_, waypoint)
    assert same_bits(x[~masked], alone.run(ops.tick_)[~masked])
    assert same_bits(x[masked], case.p[masked])
    assert same_bits(waypoint[masked], case.p[masked])


def test_identity_keeps_every_bit(backend: str) -> None:
    """One-element and FREE segments that do not move: the sign of zero survives, in p and in the waypoint."""
    case = simple([1, 3, 20], flags=[SegmentFlag.HOLD, SegmentFlag.HOLD | SegmentFlag.FREE, SegmentFlag.NONE])
    case.p[0] = -0.0
    case.p[16:19] = torch.tensor([-0.0, 1e-42, 3.0])
    waypoint = poisoned_like(case.p)
    x = case.run(ops.tick_, waypoint)
    for at in (slice(0, 1), slice(16, 19)):
        assert same_bits(x[at], case.p[at])
        assert same_bits(waypoint[at], case.p[at])


def test_closed_paths_are_not_read(backend: str) -> None:
    case = simple([40, 4097])
    p = torch.stack([case.p, torch.full_like(case.p, torch.nan), case.p])
    active = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    many = replace(case, p=p, target=case.target.expand(3, -1).clone(), active=active)
    waypoint = poisoned_like(p)
    x = many.run(ops.tick_, waypoint)
    record = poisoned_like(case.p)
    alone = case.run(ops.tick_, record)
    for k in (0, 2):
        assert same_bits(x[k], alone)
        assert same_bits(waypoint[k], record)
    assert same_bits(x[1], p[1])
    assert same_bits(waypoint[1], poisoned_like(p[1]))


def test_destination_may_be_p_itself(backend: str) -> None:
    """d = p reads before it writes: the move is nothing, the projections remain."""
    case = simple([40, 4097])
    case.target.mul_(1.7)
    inside = case.covered()
    case.p[~inside] = 0.0
    x = case.p.clone()
    table = (case.table.segments, case.table.chunks)
    rest = (case.target, case.step, None, None, None, None, case.scratch())
    ops.tick_(x, x, *table, *rest, **case.options)
    apart = replace(case, d=case.p.clone())
    assert same_bits(x, apart.run(ops.tick_))


def test_repeated_steps_arrive(backend: str) -> None:
    """Steps shorter than the way, then the rest of it: a clamped last step lands on d exactly where s = 1."""
    flags = [SegmentFlag.FREE, SegmentFlag.FREE]
    case = simple([100, 5], rule=Rule(), flags=flags)
    far = 10 * torch.ones_like(case.step)
    assert case.d is not None
    inside = case.covered()
    assert same_bits(replace(case, step=far).run(ops.tick_)[inside], case.d[inside])


def test_scratch_is_optional(backend: str) -> None:
    case = simple([40, 4097])
    x = case.p.clone()
    ops.tick_(x, case.d, case.table.segments, case.table.chunks, case.target, case.step, project_first=True)
    assert same_bits(x, case.run(ops.tick_))


@pytest.mark.usefixtures("poisoned_everywhere")
def test_uninitialised_memory_never_leaks(backend: str) -> None:
    case = simple([3, 70, 4097], flags=[SegmentFlag.NONE, SegmentFlag.MASKED, SegmentFlag.NONE])
    waypoint = torch.zeros_like(case.p)
    assert bool(case.run(ops.tick_, waypoint).isfinite().all())
    assert bool(waypoint.isfinite().all())


@pytest.mark.many_elements
@pytest.mark.parametrize("paths", [None, 3])
def test_any_number_of_threads(paths: int | None, backend: str) -> None:
    """Large enough that a threaded implementation splits it, in one path and over paths."""
    case = simple([600_003, 1, 17, 4097, 100_000])
    if paths is not None:
        p = torch.stack([case.p + k for k in range(paths)])
        case = replace(case, p=p)
    waypoint, other = (poisoned_like(case.p) for _ in range(2))
    one = case.run(ops.tick_, waypoint)
    torch.set_num_threads(2)
    for _ in range(2):
        assert same_bits(case.run(ops.tick_, other), one)
        assert same_bits(other, waypoint)


@pytest.mark.many_elements
def test_groups_larger_than_the_cache(backend: str) -> None:
    """Groups that cross each other and span what an implementation would walk in one go; two threads and two paths."""
    case = simple(
        [70_000, 3, 80_000, 60_000, 5, 300_000, 1_000],
        distance_groups=[0, 0, 1, 1, 2, 3, 4],
        variance_groups=[0, 1, 1, 2, 2, 3, 4],
    )
    measured = group_variances(case.table, case.p)
    assert_tick(replace(case, target=0.9 * measured), backend)
    many = replace(case, p=torch.stack([case.p, 2 * case.p]))
    x, waypoint = case.run(ops.tick_, record := poisoned_like(case.p)), poisoned_like(many.p)
    torch.set_num_threads(2)
    assert same_bits(many.run(ops.tick_, waypoint)[0], x)
    assert same_bits(waypoint[0], record)
    table = (case.table.segments, case.table.chunks)
    measured = ops.moments(case.p, case.d, *table, case.scratch())
    maps = ops.coefficients(measured, table[0], case.target, case.step, **case.options)
    parts = case.p.clone()
    ops.affine_(parts, case.d, maps, *table)
    assert same_bits(parts, x)


@pytest.mark.many_elements
def test_eleven_million(backend: str) -> None:
    """One segment of ResNet18's size beside small ones, against plain float64 tensor operations.

    Eager is such operations itself: a million elements in 245 chunks of it.
    """
    case = simple([1_000_000 if backend == "eager" else 11_000_000, 1, 129], rule=Rule(project_first=True))
    assert case.d is not None
    waypoint = poisoned_like(case.p)
    x = case.run(ops.tick_, waypoint)
    torch.set_num_threads(2)
    assert same_bits(case.run(ops.tick_), x)
    fixed, relative = case.step.tolist()
    for i, row in enumerate(case.table.rows):
        part = slice(row.offset, row.offset + row.length)
        q, d = case.p[part].double(), case.d[part].double()

        def project(w: Tensor, v: float) -> tuple[Tensor, float]:
            s = (v / w.var().item()) ** 0.5 if len(w) > 1 else 1.0
            return w.mean() + s * (w - w.mean()), s

        start, s0 = project(q, case.target[i].item())
        distance = (d - start).norm().item()
        t = min(1.0, (fixed + relative * distance) / distance)
        end, s = project(start + t * (d - start), case.target[i].item())
        a, b = s * (1 - t) * s0, s * t
        c = (end - a * q - b * d).mean().abs()
        size = (a * q).abs() + (b * d).abs() + c
        for got, want, scale in ((x[part], end, size), (waypoint[part], start, (s0 * q).abs())):
            # Five roundings of float32 each; the means, which c holds, are below 1e-3 here.
            assert bool(((got.double() - want).abs() <= 5 * 2.0**-24 * (scale + 1e-3)).all())


# ---- groups of small segments, and values at the limits of their type


def group_of(values: list[float], dtype: torch.dtype, **flags: object) -> Case:
    """One variance group of one-element segments, one distance group each, target variance 0.3."""
    table = SegmentTable.from_lengths([1] * len(values), variance_groups=[0] * len(values), alignment=1, **flags)
    p = torch.tensor(values, dtype=torch.float64).to(dtype)
    target = torch.full((len(values),), 0.3, dtype=torch.float64)
    whole = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return Case(table, p, None, target, whole, Rule(destination=Destination.MEAN, project_first=True))


def scattered(count: int, seed: int, centre: float = 0.0) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    return (centre + 0.5 * torch.randn(count, generator=generator, dtype=torch.float64)).tolist()


@pytest.mark.parametrize("count", [2, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["mean", "a sphere of no variance", "a point", "a HOLD one", "a compensating one"])
def test_scalars_of_one_group_that_meet(kind: str, dtype: torch.dtype, count: int, backend: str) -> None:
    """What is left of their variance is the rounding of their means: it is not scaled up to the target."""
    for seed in range(40):
        case = group_of(scattered(count, seed, centre=[0.0, 3.0][seed % 2]), dtype)
        start = case.expected()[0].waypoint
        want = float(start.mean())
        if kind == "a sphere of no variance":
            rule = replace(case.rule, destination=Destination.VARIANCE_SPHERE)
            case = replace(case, rule=rule, radius=torch.zeros(count, dtype=torch.float64))
        elif kind == "a point":
            want = 0.75
            case = replace(
                case, rule=replace(case.rule, destination=Destination.POINT), d=torch.full_like(case.p, want)
            )
        elif kind == "a HOLD one":
            # The first stays; the others go where it is.
            want = float(start[0])
            far = torch.full_like(case.p, 9.0)
            if float(far[1:].fill_(want)[-1]) != want:
                continue
            flags = [SegmentFlag.HOLD] + [SegmentFlag.NONE] * (count - 1)
            rule = replace(case.rule, destination=Destination.POINT)
            case = replace(case, table=case.table.with_flags(flags), rule=rule, d=far)
        elif kind == "a compensating one":
            # Half of the way each, the last one backward from beyond.
            flags = [SegmentFlag.NONE] * (count - 1) + [SegmentFlag.COMPENSATE]
            want = 0.5
            p = torch.tensor([0.25] * (count - 1) + [0.75], dtype=dtype)
            d = torch.tensor([0.75] * (count - 1) + [1.25], dtype=dtype)
            d[-1] = 1.25
            rule = Rule(destination=Destination.POINT)
            step = torch.tensor([0.0, 0.5], dtype=torch.float64)
            case = replace(case, table=case.table.with_flags(flags), p=p, d=d, rule=rule, step=step)
        x = case.run(ops.tick_)
        spacing = float(torch.finfo(dtype).eps) * max(1.0, abs(want))
        assert bool(((x.double() - want).abs() <= 4 * spacing).all()), (seed, x.tolist(), want)


def test_scalars_far_from_zero_that_meet(backend: str) -> None:
    """float64 means of a million, and deviations of a billionth: the differences of such means are rounded."""
    for centre, spread in ((1e6, 1e-4), (1.0, 1e-10), (-3e3, 1.0)):
        case = group_of([centre, centre + spread, centre - 2 * spread], torch.float64)
        case = replace(case, rule=replace(case.rule, project_first=False))
        x = case.run(ops.tick_)
        want = float(case.p.mean())
        assert bool(((x - want).abs() <= 1e-15 * abs(centre) + 1e-6 * spread).all()), (x.tolist(), want)


@pytest.mark.parametrize("destination", list(Destination))
def test_the_variance_between_segments_counts(destination: Destination, backend: str) -> None:
    """Segments that have no variance, part of the way: the group's is what the oracle says."""
    sphere = destination in (Destination.VARIANCE_SPHERE, Destination.NORM_SPHERE)
    radius = torch.full((6,), 0.7, dtype=torch.float64) if sphere else None
    for seed, step in enumerate(([0.0, 0.3], [0.0, 1.0 - 2.0**-12], [1e-3, 0.9])):
        case = group_of(scattered(6, seed, centre=1.0), torch.float64)
        rule = replace(case.rule, destination=destination)
        d = torch.tensor(scattered(6, seed + 50, centre=-1.0), dtype=torch.float64)
        flags = [SegmentFlag.NONE, SegmentFlag.HOLD, SegmentFlag.COMPENSATE, *[SegmentFlag.NONE] * 3]
        table = case.table.with_flags(flags if seed == 0 else [SegmentFlag.NONE] * 6)
        given_step = torch.tensor(step, dtype=torch.float64)
        assert_tick(replace(case, table=table, rule=rule, d=d, step=given_step, radius=radius), backend)


SMALL = {torch.float32: 1e-40, torch.bfloat16: 2e-39, torch.float16: 3e-6, torch.float64: 1e-120}


@pytest.mark.parametrize("paths", [None, 3])
@pytest.mark.parametrize("dtype", list(SMALL))
@pytest.mark.parametrize("destination", list(Destination))
def test_subnormal_values(destination: Destination, dtype: torch.dtype, paths: int | None, backend: str) -> None:
    """Finite values so small that float32 cannot hold the factor which brings them to a variance of 1."""
    if backend == "triton" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter misreads subnormal bfloat16")
    case = simple([40, 3, 4097], rule=Rule(destination=destination, project_first=True))
    assert case.d is not None
    p = (case.p.double() * SMALL[dtype]).to(dtype)
    p[: case.table.rows[0].length] = case.p[: case.table.rows[0].length].to(dtype)
    sphere = destination in (Destination.VARIANCE_SPHERE, Destination.NORM_SPHERE)
    radius = torch.full((3,), 0.7, dtype=torch.float64) if sphere else None
    target = torch.ones(3, dtype=torch.float64)
    case = replace(case, p=p, d=case.d.to(dtype), radius=radius, target=target)
    if paths is not None:
        usual = case.d if case.d is not None else p
        case = replace(case, p=torch.stack([p, usual, p]))
        waypoint = poisoned_like(case.p)
        x = case.run(ops.tick_, waypoint)
        for k in range(paths):
            record = poisoned_like(p)
            assert same_bits(case.row(k).run(ops.tick_, record), x[k])
            assert same_bits(record, waypoint[k])
        assert same_bits(case.run(ops.tick_), x)
        return
    assert_tick(case, backend)
    inside = case.covered()
    x = case.run(ops.tick_)
    for row in case.table.rows:
        got = x[row.offset : row.offset + row.length].double()
        assert float(got.var()) == pytest.approx(1.0, rel=0.02), row.name
    assert bool(x[inside].isfinite().all())


@pytest.mark.parametrize("size", [1e-140, 1e-146, 1e-152, 1e-158, 1e-161, 1e-170, 1e-300, 5e-324])
@pytest.mark.parametrize("destination", list(Destination))
def test_squares_that_float64_cannot_hold(destination: Destination, size: float, backend: str) -> None:
    """A variance is either right or counts as none: nothing is scaled by a number that has lost its digits."""
    case = simple([40, 3], rule=Rule(destination=destination, project_first=True))
    assert case.d is not None
    sphere = destination in (Destination.VARIANCE_SPHERE, Destination.NORM_SPHERE)
    radius = torch.full((2,), 0.7, dtype=torch.float64) if sphere else None
    d = case.d.double() * size
    for clamp in (True, False):
        rule = replace(case.rule, clamp=clamp)
        step = torch.tensor([0.25 * size, 0.25], dtype=torch.float64)
        target = torch.ones(2, dtype=torch.float64)
        given_case = replace(case, p=case.p.double() * size, d=d, radius=radius, target=target, rule=rule, step=step)
        waypoint = poisoned_like(given_case.p)
        x = given_case.run(ops.tick_, waypoint)
        expected = given_case.expected()[0]
        for got, want in ((x, expected.x), (waypoint, expected.waypoint)):
            inside = given_case.covered()
            torch.testing.assert_close(
                got[inside], torch.from_numpy(want.astype("float64"))[inside], rtol=1e-9, atol=1e-9 * size
            )
