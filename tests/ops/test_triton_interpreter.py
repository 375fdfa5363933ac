"""The Triton kernels against their eager specification, on CPU tensors in Triton's interpreter.

The interpreter must be chosen before triton is imported, so the tests run in a separate process: collected without
``TRITON_INTERPRET=1`` this file holds one test that starts it.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

if os.environ.get("TRITON_INTERPRET") != "1":

    def test_kernels_agree_with_eager_in_the_interpreter() -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", __file__],
            cwd=Path(__file__).parents[2],
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
        assert " passed" in run.stdout

else:
    from llpf_fast.flat import SegmentTable
    from llpf_fast.kernels import KERNELS
    from llpf_fast.kernels.moments import launch_combine
    from llpf_fast.ops import Destination, SegmentFlag, gate_state
    from llpf_fast.ops.affine import affine_eager
    from llpf_fast.ops.coefficients import coefficients_eager
    from llpf_fast.ops.counter_randint import counter_randint_eager
    from llpf_fast.ops.loss_gate import loss_gate_eager
    from llpf_fast.ops.moments import moments_eager
    from llpf_fast.ops.sgd import sgd_eager
    from llpf_fast.ops.tick import tick_eager

    torch.set_num_threads(1)
    pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

    NAN = float("nan")
    BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    # Every length at which a tile, a vector or the default chunk begins or ends. A program takes about 20 ms here, so
    # only one test of an op walks them all.
    LENGTHS = (1, 2, 15, 16, 17, 129, 511, 512, 513, 2047, 2048, 2049, 4095, 4096, 4097)
    FEW = (1, 2, 17, 513, 2048, 4097)
    MASKED, HOLD, FREE, FROZEN = SegmentFlag.MASKED, SegmentFlag.HOLD, SegmentFlag.FREE, SegmentFlag.FROZEN
    COMPENSATE = SegmentFlag.COMPENSATE
    FLAGS = (
        SegmentFlag.NONE,
        SegmentFlag.NONE,
        MASKED,
        HOLD,
        COMPENSATE,
        COMPENSATE | SegmentFlag.TWICE,
        FREE,
        FROZEN,
        MASKED | FROZEN,
        HOLD | FREE,
    )

    def runs(count: int, longest: int, draw: random.Random) -> list[int]:
        """Labels of contiguous groups of random sizes, in no order."""
        labels: list[int] = []
        while len(labels) < count:
            labels += [1000 - 7 * len(labels)] * draw.randint(1, longest)
        return labels[:count]

    def random_table(seed: int, lengths: tuple[int, ...] = LENGTHS, longest: int = 3, **options: int) -> SegmentTable:
        draw = random.Random(seed)
        shuffled = draw.sample(lengths, len(lengths))
        return SegmentTable.from_lengths(
            shuffled,
            flags=[draw.choice(FLAGS) for _ in lengths],
            distance_groups=runs(len(lengths), longest, draw),
            variance_groups=runs(len(lengths), longest, draw),
            **options,
        )

    def buffer(table: SegmentTable, dtype: torch.dtype, paths: int | None, seed: int, shift: float = 0.3) -> Tensor:
        """Random values in the segments and NaN in the padding."""
        shape = (table.numel,) if paths is None else (paths, table.numel)
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.7 + shift
        values = values.to(dtype)
        inside = torch.zeros(table.numel, dtype=torch.bool)
        for row in table.rows:
            inside[row.offset : row.offset + row.length] = True
        return torch.where(inside, values, NAN)

    def poisoned(table: SegmentTable, paths: int | None) -> Tensor:
        return table.scratch(paths or 1).fill_(NAN)

    def bits(values: Tensor) -> Tensor:
        return values.view(BITS[values.element_size()])

    def covered(table: SegmentTable, unwanted: SegmentFlag) -> Tensor:
        """Elements of the segments without the flag."""
        mask = torch.zeros(table.numel, dtype=torch.bool)
        for row in table.rows:
            if not row.flags & unwanted:
                mask[row.offset : row.offset + row.length] = True
        return mask

    def assert_as_good(got: Tensor, eager: Tensor, exact: Tensor, scale: Tensor, where: Tensor) -> None:
        """At most twice eager's error plus one unit in the last place of the terms.

        Two units where bfloat16 truncates (as the interpreter does) and where ``exact`` is itself rounded (float64).
        """
        units = {torch.bfloat16: 2 * 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-23, torch.float64: 2.0**-51}
        error, allowed = (got.double() - exact).abs(), 2 * (eager.double() - exact).abs() + units[got.dtype] * scale
        # Below the normal numbers of float16 a unit is absolute.
        allowed = allowed + (2.0**-24 if got.dtype == torch.float16 else 0.0)
        worst = (error - allowed)[..., where]
        assert not worst.isnan().any()
        assert worst.max() <= 0, worst.max()

    def rule(table: SegmentTable, paths: int | None, destination: Destination, seed: int) -> dict[str, Tensor | None]:
        generator = torch.Generator().manual_seed(seed)
        count, k = len(table), paths or 1
        label = torch.unique_consecutive(table.segments[:, 3], return_inverse=True)[1]
        target = (torch.rand(k, count, generator=generator, dtype=torch.float64) + 0.2)[:, label]
        radius = (torch.rand(count, generator=generator, dtype=torch.float64) + 0.5)[label]
        sphere = destination in (Destination.VARIANCE_SPHERE, Destination.NORM_SPHERE)
        step = torch.rand(k, 2, generator=generator, dtype=torch.float64) * 0.3
        return {
            "target_variance": target[0] if paths is None else target,
            "step": step[0] if paths is None else step,
            "radius": radius if sphere else None,
        }

    def assert_moments(got: Tensor, want: Tensor, table: SegmentTable) -> None:
        """Both are float64: equal but for the order of the sums and the rounding of the means that sums are about."""
        n, spread = table.segments[:, 1].double(), want[..., [2, 4]].clamp(min=0).sqrt()
        p, delta = want[..., 0].abs(), want[..., 1].abs()
        rms_p, rms_delta = (spread / n[:, None].sqrt()).unbind(-1)
        scale = torch.stack([p + rms_p, delta + rms_delta, n * rms_p**2, n * rms_p * rms_delta, n * rms_delta**2], -1)
        centre = torch.stack([0 * p, 0 * p, p * rms_p, p * rms_delta + delta * rms_p, delta * rms_delta], -1)
        allowed = 1e-13 * scale + 2.0**-51 * n[:, None] * centre
        assert ((got - want).abs() <= allowed).all(), ((got - want).abs() / allowed).nan_to_num().max()
        assert (got[..., [2, 4]] >= 0).all()

    @pytest.mark.parametrize(
        ("p_dtype", "d_dtype"),
        [
            (torch.float32, torch.float32),
            (torch.float32, torch.bfloat16),
            (torch.float32, torch.float16),
            (torch.float32, None),
            (torch.float64, torch.float64),
            (torch.bfloat16, torch.bfloat16),
            (torch.float16, torch.float16),
        ],
    )
    def test_moments(p_dtype: torch.dtype, d_dtype: torch.dtype | None) -> None:
        table = random_table(1, LENGTHS if p_dtype == d_dtype == torch.float32 else FEW)
        p = buffer(table, p_dtype, 2, 1)
        d = None if d_dtype is None else buffer(table, d_dtype, None, 2)
        got = KERNELS["moments"](p, d, table.segments, table.chunks, poisoned(table, 2))
        want = moments_eager(p, d, table.segments, table.chunks, poisoned(table, 2))
        assert_moments(got, want, table)
        again = KERNELS["moments"](p[1], d, table.segments, table.chunks, poisoned(table, None))
        assert torch.equal(again, got[1])

    @pytest.mark.parametrize(
        "options", [{"alignment": 1}, {"chunk": 1000}, {"chunk": 9000}, {"chunk": 48, "alignment": 4}]
    )
    def test_moments_of_awkward_tables(options: dict[str, int]) -> None:
        lengths = LENGTHS if options.get("chunk", 4096) > 48 else LENGTHS[:8]
        table = random_table(2, lengths, **options)
        p, d = buffer(table, torch.float32, 2, 3), buffer(table, torch.float32, 2, 4)
        got = KERNELS["moments"](p, d, table.segments, table.chunks, poisoned(table, 2))
        assert_moments(got, moments_eager(p, d, table.segments, table.chunks, poisoned(table, 2)), table)
        alone = KERNELS["moments"](p[1].clone(), d[1].clone(), table.segments, table.chunks, poisoned(table, None))
        assert torch.equal(alone, got[1])

    def test_combining_many_chunks() -> None:
        # 1,200 chunks: more than a step of the combining program and of its search, which here narrows to three chunks.
        table = SegmentTable.from_lengths([2, 1200, 3, 2], chunk=1, alignment=1)
        p, d = buffer(table, torch.float64, None, 5), buffer(table, torch.float64, None, 6)
        partial = torch.zeros(5, table.chunks.shape[0], dtype=torch.float64)
        partial[0], partial[1] = p, d - p
        out = torch.full((4, 5), NAN, dtype=torch.float64)
        launch_combine(p, table.segments, table.chunks, partial, out)
        assert_moments(out, moments_eager(p, d, table.segments, table.chunks, poisoned(table, None)), table)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_moments_do_not_cancel(dtype: torch.dtype) -> None:
        table = SegmentTable.from_lengths([6000, 300, 5000])
        p = buffer(table, dtype, None, 7)
        p[6000:6300] = 0.1  # constant: no rounding may become variance
        p[6304:] = p[6304:] * 1e-6 + 1.0
        d = p + 1e-6 * buffer(table, dtype, None, 8)
        d[:6000] = p[:6000]
        got = KERNELS["moments"](p, d, table.segments, table.chunks, poisoned(table, None))
        assert_moments(got, moments_eager(p, d, table.segments, table.chunks, poisoned(table, None)), table)
        assert got[1, 2] == 0
        assert (got[0, [1, 3, 4]] == 0).all()

    COMBINATIONS = list(itertools.product(Destination, [(True, True), (False, False)], [False, True]))

    @pytest.mark.parametrize(("destination", "switches", "project_first"), COMBINATIONS)
    def test_coefficients(destination: Destination, switches: tuple[bool, bool], project_first: bool) -> None:
        paths = 3 if destination in (Destination.POINT, Destination.NORM_SPHERE) else None
        table = random_table(int(destination) + 10, LENGTHS * 5, longest=12)
        count = len(table)
        generator = torch.Generator().manual_seed(11)
        moments = torch.rand(paths or 1, count, 5, generator=generator, dtype=torch.float64) + 0.1
        moments[..., [2, 4]] *= table.segments[:, 1, None]
        moments[..., 3] *= 0.5 * table.segments[:, 1]
        single = table.segments[:, 1] == 1
        moments[:, single, 2:] = 0
        moments[:, 5, 2:] = 0  # a constant tensor
        moments[:, (table.segments[:, 4] & MASKED) != 0] = 0
        if paths is None:
            moments = moments[0]
        active = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64) if paths else None
        options = {
            "destination": int(destination),
            "epsilon": 1e-4 if switches[0] else 0.0,
            "combine_sum": switches[0],
            "clamp": switches[1],
            "project_first": project_first,
        }
        arguments = rule(table, paths, destination, 12)
        call = (moments, table.segments, arguments["target_variance"], arguments["step"], active, arguments["radius"])
        got = KERNELS["coefficients"](*call, **options)
        want = coefficients_eager(*call, **options)
        assert got.shape == want.shape
        assert got.is_contiguous()
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-14)

    def test_coefficients_of_a_group_longer_than_a_program() -> None:
        # 150 segments share a distance, variance groups lie across the edges of the tiles of 64.
        count = 150
        labels = [i // 70 for i in range(count)]
        table = SegmentTable.from_lengths([3] * count, distance_groups=[9] * count, variance_groups=labels, chunk=64)
        moments = torch.rand(count, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
        arguments = rule(table, None, Destination.POINT, 2)
        call = (moments, table.segments, arguments["target_variance"], arguments["step"], None, None)
        options = {"destination": 0, "epsilon": 0.0, "combine_sum": True, "clamp": True, "project_first": True}
        got = KERNELS["coefficients"](*call, **options)
        torch.testing.assert_close(got, coefficients_eager(*call, **options), rtol=1e-13, atol=1e-14)

    @pytest.mark.parametrize("step", [(0.0, 0.0), (1e9, 0.0), (0.0, 2.0)])
    @pytest.mark.parametrize("clamp", [True, False])
    def test_coefficients_at_the_edges(step: tuple[float, float], clamp: bool) -> None:
        table = random_table(3)
        moments = torch.zeros(len(table), 5, dtype=torch.float64)
        moments[::2, 2] = 1.0
        moments[::2, 1] = 0.5
        moments[1::4, 0] = NAN
        moments[(table.segments[:, 4] & MASKED) != 0] = 0
        arguments = rule(table, None, Destination.POINT, 2)
        length = torch.tensor(step, dtype=torch.float64)
        call = (moments, table.segments, arguments["target_variance"], length, None, None)
        options = {"destination": 0, "epsilon": 0.0, "combine_sum": False, "clamp": clamp, "project_first": True}
        got = KERNELS["coefficients"](*call, **options)
        want = coefficients_eager(*call, **options)
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-14, equal_nan=True)

    def scale_of(maps: Tensor, p: Tensor, d: Tensor | None, table: SegmentTable) -> Tensor:
        """|a p| + |b d| + |c| of every element."""
        maps, rows = maps.reshape(-1, len(table), 5), p.double().reshape(-1, table.numel)
        out = torch.zeros_like(rows)
        for s, row in enumerate(table.rows):
            part = slice(row.offset, row.offset + row.length)
            out[:, part] = maps[:, s, 0:1].abs() * rows[:, part].abs() + maps[:, s, 2:3].abs()
            if d is not None:
                out[:, part] += maps[:, s, 1:2].abs() * d.double()[..., part].abs()
        return out.reshape(p.shape)

    def random_maps(table: SegmentTable, paths: int | None) -> Tensor:
        maps = torch.rand(paths or 1, len(table), 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        maps[:, ::3, 1] = 0.0
        maps[:, 1::4, :3] = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        return maps[0] if paths is None else maps

    @pytest.mark.parametrize(
        ("p_dtype", "d_dtype", "paths"),
        [
            (torch.float32, torch.float32, None),
            (torch.float32, torch.float32, 2),
            (torch.float32, torch.bfloat16, 2),
            (torch.float32, None, None),
            (torch.float64, torch.float64, None),
            (torch.bfloat16, torch.bfloat16, None),
            (torch.float16, torch.float16, 2),
        ],
    )
    @pytest.mark.parametrize("options", [{}, {"alignment": 1, "chunk": 1000}])
    def test_affine(
        p_dtype: torch.dtype, d_dtype: torch.dtype | None, paths: int | None, options: dict[str, int]
    ) -> None:
        table = random_table(5, LENGTHS if p_dtype == d_dtype == torch.float32 and paths is None else FEW, **options)
        p = buffer(table, p_dtype, paths, 5)
        d = None if d_dtype is None else buffer(table, d_dtype, None, 6)
        maps = random_maps(table, paths)
        got, eager, exact = p.clone(), p.clone(), p.double()
        KERNELS["affine_"](got, d, maps, table.segments, table.chunks)
        affine_eager(eager, d, maps, table.segments, table.chunks)
        affine_eager(exact, None if d is None else d.double(), maps, table.segments, table.chunks)
        changed = covered(table, MASKED)
        assert_as_good(got, eager, exact, scale_of(maps, p, d, table), changed)
        assert torch.equal(bits(got)[..., ~changed], bits(p)[..., ~changed])

    def test_affine_identity_keeps_every_bit_and_b_zero_reads_no_d() -> None:
        table = SegmentTable.from_lengths([5000, 40])
        p = buffer(table, torch.float32, None, 1)
        p[:3] = torch.tensor([-0.0, float("inf"), NAN])
        d = torch.full_like(p, NAN)
        got = p.clone()
        maps = torch.tensor([[1.0, 0, 0, 7, 7], [0.5, 0, 1, 7, 7]], dtype=torch.float64)
        KERNELS["affine_"](got, d, maps, table.segments, table.chunks)
        assert torch.equal(bits(got[:5008]), bits(p[:5008]))
        torch.testing.assert_close(got[5008:5048], 0.5 * p[5008:5048] + 1)

    def test_affine_may_have_p_as_destination() -> None:
        table = SegmentTable.from_lengths([5000, 40])
        p = buffer(table, torch.float32, None, 1)
        got = p.clone()
        maps = torch.tensor([[0.25, 0.5, 0, 1, 0]] * 2, dtype=torch.float64)
        KERNELS["affine_"](got, got, maps, table.segments, table.chunks)
        torch.testing.assert_close(got, 0.75 * p, equal_nan=True)

    TICKS = [
        (torch.float32, torch.float32, None, Destination.POINT, {}, False),
        (torch.float32, torch.float32, 3, Destination.POINT, {}, True),
        (torch.float32, torch.bfloat16, 3, Destination.POINT, {"alignment": 1, "chunk": 900}, False),
        (torch.float64, torch.float64, None, Destination.POINT, {"alignment": 1}, True),
        (torch.bfloat16, torch.bfloat16, None, Destination.POINT, {}, False),
        (torch.float16, torch.float16, None, Destination.POINT, {}, False),
        *[(torch.float32, None, 3, kind, {}, kind == Destination.MEAN) for kind in Destination if kind],
    ]

    @pytest.mark.parametrize(("p_dtype", "d_dtype", "paths", "destination", "layout", "with_moments"), TICKS)
    def test_tick(
        p_dtype: torch.dtype,
        d_dtype: torch.dtype | None,
        paths: int | None,
        destination: Destination,
        layout: dict[str, int],
        with_moments: bool,
    ) -> None:
        table = random_table(20 + int(destination), FEW, longest=4, **layout)
        p = buffer(table, p_dtype, paths, 5)
        d = None if d_dtype is None else buffer(table, d_dtype, None, 6)
        active = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64) if paths else None
        arguments = rule(table, paths, destination, 3)
        options = {
            "destination": int(destination),
            "epsilon": 1e-4,
            "combine_sum": True,
            "clamp": True,
            "project_first": True,
        }
        target, length, radius = arguments["target_variance"], arguments["step"], arguments["radius"]
        assert target is not None
        assert length is not None
        tail = (table.segments, table.chunks, target, length, active, radius)
        moments = moments_eager(p, d, table.segments, table.chunks, poisoned(table, paths))
        maps = coefficients_eager(moments, table.segments, *tail[2:], **options)

        def run(tick, values: Tensor, toward: Tensor | None) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
            values = values.clone()
            waypoint = torch.full_like(values, NAN)
            known = moments if with_moments else None
            tick(values, toward, *tail, known, waypoint, poisoned(table, paths), **options)
            return values, waypoint

        got, recorded = run(KERNELS["tick_"], p, d)
        eager, eager_recorded = run(tick_eager, p, d)
        exact, exact_recorded = run(tick_eager, p.double(), None if d is None else d.double())
        changed, everywhere = covered(table, MASKED), covered(table, SegmentFlag.NONE)
        assert_as_good(got, eager, exact, scale_of(maps, p, d, table), changed)
        assert torch.equal(bits(got)[..., ~changed], bits(p)[..., ~changed])
        projection = torch.stack([maps[..., 3], maps[..., 0] * 0, maps[..., 4], maps[..., 0], maps[..., 0]], -1)
        open_rows = slice(None) if active is None else active != 0
        assert_as_good(
            recorded[open_rows],
            eager_recorded[open_rows],
            exact_recorded[open_rows],
            scale_of(projection, p, None, table)[open_rows],
            everywhere,
        )
        assert recorded[..., ~everywhere].isnan().all()
        masked = everywhere & ~changed
        assert torch.equal(bits(recorded[open_rows])[..., masked], bits(p[open_rows])[..., masked])
        if active is not None:
            assert torch.equal(bits(got[1]), bits(p[1]))
            assert recorded[1].isnan().all()
            row = p[2].clone()
            rest = (table.segments, table.chunks, target[2].clone(), length[2].clone(), None, radius)
            known = moments[2].clone() if with_moments else None
            KERNELS["tick_"](row, d, *rest, known, None, poisoned(table, None), **options)
            assert torch.equal(bits(row), bits(got[2]))

    def test_tick_with_segments_of_no_elements() -> None:
        # Fewer partial sums than segments, in a group that takes two tiles of the coefficient kernel.
        table = SegmentTable.from_lengths([20] * 70, variance_groups=[0] * 70)
        segments = table.segments.clone()
        segments[[i for i in range(70) if i not in (10, 69)], 1] = 0
        p, d = buffer(table, torch.float32, None, 1), buffer(table, torch.float32, None, 2)
        arguments = rule(table, None, Destination.POINT, 3)
        chunks = table.chunks[[10, 69]].clone()
        options = {"destination": 0, "epsilon": 0.0, "combine_sum": True, "clamp": True, "project_first": True}
        results = []
        for tick in (KERNELS["tick_"], tick_eager):
            values = p.clone()
            tick(
                values, d, segments, chunks, arguments["target_variance"], arguments["step"], None, None, None,
                None, poisoned(table, None), **options,
            )  # fmt: skip
            results.append(values)
        torch.testing.assert_close(*results, equal_nan=True)
        untouched = slice(table.rows[11].offset, table.rows[69].offset)
        assert torch.equal(bits(results[0][untouched]), bits(p[untouched]))

    @pytest.mark.parametrize(
        ("dtype", "momentum", "nesterov", "decay", "layout"),
        [
            (torch.float32, 0.0, False, 0.0, {}),
            (torch.float32, 0.9, True, 0.0, {"alignment": 1, "chunk": 900}),
            (torch.float64, 0.9, False, 1e-2, {}),
            (torch.bfloat16, 0.9, False, 1e-2, {}),
            (torch.float16, 0.9, True, 1e-2, {}),
        ],
    )
    def test_sgd(dtype: torch.dtype, momentum: float, nesterov: bool, decay: float, layout: dict[str, int]) -> None:
        table = random_table(30, FEW, **layout)
        p, g = (buffer(table, dtype, 3, seed) for seed in (1, 2))
        memory = buffer(table, dtype, 3, 4) if momentum else None
        active = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
        lr = torch.rand(3, len(table), generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 0.1
        options = {"momentum": momentum, "weight_decay": decay, "nesterov": nesterov}

        def run(sgd, kind: torch.dtype) -> tuple[Tensor, Tensor | None]:  # type: ignore[no-untyped-def]
            values, gradient = p.to(kind, copy=True), g.to(kind)
            moving = None if memory is None else memory.to(kind, copy=True)
            sgd(values, gradient, moving, lr, table.segments, table.chunks, active, **options)
            return values, moving

        got, got_memory = run(KERNELS["sgd_"], dtype)
        eager, eager_memory = run(sgd_eager, dtype)
        exact, exact_memory = run(sgd_eager, torch.float64)
        changed = covered(table, FROZEN)
        scale = p.double().abs() + g.double().abs() + (0 if memory is None else memory.double().abs())
        assert_as_good(got, eager, exact, scale, changed)
        assert torch.equal(bits(got)[..., ~changed], bits(p)[..., ~changed])
        assert torch.equal(bits(got[1]), bits(p[1]))
        if memory is not None:
            assert got_memory is not None
            assert eager_memory is not None
            assert exact_memory is not None
            assert_as_good(got_memory, eager_memory, exact_memory, scale, changed)
            assert torch.equal(bits(got_memory)[..., ~changed], bits(memory)[..., ~changed])
            assert torch.equal(bits(got_memory[1]), bits(memory[1]))

    @pytest.mark.parametrize("shape", [(), (1,), (-1,), (2, 1), (2, -1)])
    def test_sgd_learning_rates(shape: tuple[int, ...]) -> None:
        table = SegmentTable.from_lengths([40, 1, 3])
        lr = torch.rand([len(table) if n < 0 else n for n in shape], dtype=torch.float64)
        p, g = buffer(table, torch.float32, 2, 1), buffer(table, torch.float32, 2, 2)
        results = []
        for sgd in (KERNELS["sgd_"], sgd_eager):
            values = p.clone()
            sgd(
                values, g, None, lr, table.segments, table.chunks, None,
                momentum=0.0, weight_decay=0.0, nesterov=False,
            )  # fmt: skip
            results.append(values)
        torch.testing.assert_close(*results, equal_nan=True)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
    @pytest.mark.parametrize(("paths", "window"), [(None, 1), (3, 4)])
    def test_loss_gate(dtype: torch.dtype, paths: int | None, window: int) -> None:
        generator = torch.Generator().manual_seed(1)
        ours, theirs = gate_state(window, paths), gate_state(window, paths)
        options = {"threshold": 0.45, "window": window, "max_steps": window + 6}
        closed = 0
        for i in range(window + 9):
            loss = torch.rand(paths or 1, generator=generator).to(dtype)
            loss[0] = NAN if i == 1 else loss[0]
            loss = loss if paths else loss[0]
            KERNELS["loss_gate_"](ours, loss, **options)
            loss_gate_eager(theirs, loss, **options)
            assert torch.equal(bits(ours), bits(theirs))
            closed += int((ours.reshape(paths or 1, -1)[:, 0] == 0).sum())
        assert closed > 0

    @pytest.mark.parametrize("steps", [NAN, -1.0, 0.5, 1e300, float("inf")])
    def test_a_damaged_gate_writes_nothing_beside_its_state(steps: float, monkeypatch: pytest.MonkeyPatch) -> None:
        """On a GPU the state is not checked before: the kernel itself must not use such a number as an index."""
        monkeypatch.setattr("llpf_fast.kernels.loss_gate.inspect_loss_gate", lambda *_: None)
        monkeypatch.setattr("llpf_fast.kernels.counter_randint.inspect_counter_randint", lambda *_: None)
        memory = torch.full((64,), 7.0, dtype=torch.float64)
        state = memory[29:36].copy_(gate_state(3))
        state[2] = steps
        want = memory.clone()
        want[29], want[32] = 0.0, NAN
        KERNELS["loss_gate_"](state, torch.tensor(0.5), threshold=0.1, window=3, max_steps=9)
        assert torch.equal(memory.isnan(), want.isnan())
        assert torch.equal(memory.nan_to_num(3.0), want.nan_to_num(3.0))
        drawn, again = torch.zeros(1, 300, dtype=torch.int64), torch.zeros(1, 300, dtype=torch.int64)
        KERNELS["counter_randint_"](drawn, torch.tensor(5), torch.tensor(9), state, bounds=[1000])
        KERNELS["counter_randint_"](again, torch.tensor(5), torch.tensor(9), None, bounds=[1000])
        assert torch.equal(drawn, again)

    @pytest.mark.parametrize(("paths", "bounds"), [(None, [10_000]), (3, [50_000, 1 << 20, 5, 5]), (2, [1 << 31, 2])])
    @pytest.mark.parametrize("columns", [1, 300])
    def test_counter_randint(paths: int | None, bounds: list[int], columns: int) -> None:
        shape = (len(bounds), columns) if paths is None else (paths, len(bounds), columns)
        ours, theirs = torch.zeros(shape, dtype=torch.int64), torch.ones(shape, dtype=torch.int64)
        key = torch.tensor(0xFEDCBA98) if paths is None else torch.arange(paths) * 0x3FFFFFFF
        first = torch.full_like(key, (5 << 32) + 3)
        state = gate_state(2, paths)
        state[..., 2] = 7.0
        for given in (None, state):
            KERNELS["counter_randint_"](ours, key, first, given, bounds=bounds)
            counter_randint_eager(theirs, key, first, given, bounds=bounds)
            assert torch.equal(ours, theirs)

    def test_empty_tables() -> None:
        table = SegmentTable((), 16)
        p = torch.full((16,), NAN)
        assert KERNELS["moments"](p, p, table.segments, table.chunks, table.scratch()).shape == (0, 5)
        KERNELS["affine_"](p, p, torch.empty(0, 5, dtype=torch.float64), table.segments, table.chunks)
        assert p.isnan().all()

    def test_arguments_are_checked() -> None:
        table = SegmentTable.from_lengths([40])
        p = torch.zeros(table.numel)
        with pytest.raises(ValueError, match="d must be"):
            KERNELS["moments"](p, torch.zeros(3), table.segments, table.chunks, table.scratch())
        both, maps = torch.zeros(2 * table.numel), torch.zeros(1, 5, dtype=torch.float64)
        with pytest.raises(ValueError, match="overlap"):
            KERNELS["affine_"](both[: table.numel], both[8 : 8 + table.numel], maps, table.segments, table.chunks)
