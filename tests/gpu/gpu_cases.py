"""Tables and values for the checks on a GPU: odd lengths, poisoned padding, every flag, several paths."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llpf_fast.flat.table import SegmentTable
from llpf_fast.ops import SegmentFlag, gate_state

FLAGS = (
    SegmentFlag.NONE,
    SegmentFlag.NONE,
    SegmentFlag.MASKED,
    SegmentFlag.HOLD,
    SegmentFlag.COMPENSATE,
    SegmentFlag.COMPENSATE | SegmentFlag.TWICE,
    SegmentFlag.FREE,
    SegmentFlag.FROZEN,
)
ODD = (1, 2, 15, 16, 17, 127, 1025, 4095, 4096, 4097, 12289, 3, 300)

#: Storage of p and d, as the ops accept them.
PAIRS = (
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
)


@dataclass(frozen=True)
class Case:
    """One table with values: p ``[N]`` or ``[paths, N]``, d, gradient, target variances and radii."""

    name: str
    table: SegmentTable
    paths: int | None = None
    dtype: torch.dtype = torch.float32
    d_dtype: torch.dtype = torch.float32
    #: What it is about (the tree of chunks, the groups' maps) is float64 whatever is stored.
    float64_only: bool = False

    def shape(self) -> tuple[int, ...]:
        return (self.table.numel,) if self.paths is None else (self.paths, self.table.numel)

    def with_dtypes(self, p: torch.dtype, d: torch.dtype) -> Case:
        return replace(self, dtype=p, d_dtype=d)

    def on(self, device: torch.device | str) -> Case:
        return replace(self, table=self.table.to(device))

    def __str__(self) -> str:
        p, d = (short(t) for t in (self.dtype, self.d_dtype))
        return f"{self.name}, p {p}, d {d}, {'one path' if self.paths is None else f'{self.paths} paths'}"


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def named(pair: tuple[torch.dtype, torch.dtype]) -> str:
    """What p and d are stored in, in one word where it is the same."""
    return "/".join(dict.fromkeys(short(dtype) for dtype in pair))


def cases() -> list[Case]:
    """Small tables that between them reach every branch of the kernels' walks."""
    count = len(ODD)
    flags = [FLAGS[i % len(FLAGS)] for i in range(count)]
    pairs = [i // 2 for i in range(count)]
    triples = [i // 3 for i in range(count)]
    aligned = SegmentTable.from_lengths(ODD, flags=flags, distance_groups=pairs, variance_groups=triples)
    # Starts and row lengths that no vector load may touch.
    unaligned = SegmentTable.from_lengths(ODD, flags=flags, distance_groups=pairs, alignment=1)
    # 601 chunks in one segment: more than two tiles of the combining tree, in one group with a segment of one chunk.
    deep = SegmentTable.from_lengths(
        (64 * 600 + 5, 7, 64), chunk=64, distance_groups=(0, 0, 1), variance_groups=(0, 1, 1)
    )
    together = SegmentTable.from_lengths((5000, 40, 9000, 1), distance_groups=(0,) * 4, variance_groups=(0,) * 4)
    return [
        Case("padded", aligned),
        Case("padded", aligned, paths=3),
        Case("unaligned", unaligned),
        Case("unaligned", unaligned, paths=2),
        Case("deep tree", deep, float64_only=True),
        Case("one group", together, paths=2, float64_only=True),
    ]


def generator(case: Case, salt: int = 0) -> torch.Generator:
    seed = sum(ord(c) * (i + 1) for i, c in enumerate(str(case))) + 1009 * salt
    return torch.Generator().manual_seed(seed)


def values(case: Case, dtype: torch.dtype, salt: int, *, poison: SegmentFlag = SegmentFlag.NONE) -> Tensor:
    """Random values on the case's device; NaN in the padding and in every segment with a flag of ``poison``.

    Every segment has its own mean and deviation, up to a mean of fifty deviations.
    """
    rng = generator(case, salt)
    out = torch.full(case.shape(), math.nan, dtype=torch.float64)
    for i, row in enumerate(case.table.rows):
        if row.flags & poison:
            continue
        part = torch.randn((*case.shape()[:-1], row.length), generator=rng, dtype=torch.float64)
        out[..., row.offset : row.offset + row.length] = 0.05 * (1 + i % 4) * (part + (0.0, 1.0, -3.0, 50.0)[i % 4])
    return out.to(dtype).to(case.table.device)


def destination(case: Case, p: Tensor, salt: int = 1) -> Tensor:
    """d close to p in some segments (a tenth of a percent) and far from it in the others."""
    rng = generator(case, salt)
    d = values(case, torch.float64, salt).cpu()
    near = p.double().cpu() * (1 + 1e-3 * torch.randn(p.shape, generator=rng, dtype=torch.float64))
    for i, row in enumerate(case.table.rows):
        if i % 3 == 0 and not row.flags & SegmentFlag.MASKED:
            part = slice(row.offset, row.offset + row.length)
            d[..., part] = near[..., part]
    return d.to(case.d_dtype).to(case.table.device)


def per_variance_group(case: Case, salt: int, paths: int | None) -> Tensor:
    """Positive float64 ``[S]`` or ``[paths, S]``, equal for the members of a variance group."""
    labels = torch.tensor([row.variance_group for row in case.table.rows])
    shape = (int(labels.max()) + 1,) if paths is None else (paths, int(labels.max()) + 1)
    drawn = 0.01 + torch.rand(shape, generator=generator(case, salt), dtype=torch.float64)
    return drawn[..., labels].contiguous().to(case.table.device)


def per_element(case: Case, values: Tensor) -> Tensor:
    """``[..., N]`` of one value a segment, ``[..., S]``; 0 for what never changes: padding and FROZEN segments."""
    out = torch.zeros((*values.shape[:-1], case.table.numel), dtype=values.dtype)
    for i, row in enumerate(case.table.rows):
        if not row.flags & SegmentFlag.FROZEN:
            out[..., row.offset : row.offset + row.length] = values[..., i : i + 1]
    return out


def poisoned_scratch(case: Case) -> Tensor:
    return case.table.scratch(case.paths or 1).fill_(math.nan)


def gates(case: Case) -> list[Tensor | None]:
    """No gate; all open; the last path closed."""
    k = case.paths or 1
    is_open = gate_state(3, k, case.table.device)
    closed = is_open.clone()
    closed[-1, 0] = 0.0
    return [None, is_open, closed]
