"""Random tables and values for the ops."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from llpf_fast.flat.table import Segment, SegmentTable
from llpf_fast.ops import Destination, SegmentFlag

from . import oracle
from .comparison import exact, poison
from .oracle import Layer, Rule, Ticked

#: Storage of p and of d, as the ops accept them.
PAIRS = (
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
)
LENGTHS = (1, 2, 3, 15, 16, 17, 33, 63, 64, 65, 129)
CHUNKS = (16, 64, 4096)


@dataclass(frozen=True)
class Case:
    """A table with values: what the ops take, and what the oracle takes."""

    table: SegmentTable
    p: Tensor
    d: Tensor | None
    target: Tensor
    step: Tensor
    rule: Rule
    active: Tensor | None = None
    radius: Tensor | None = None
    seed: int = 0
    layers: list[Layer] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", oracle.layers_of(self.table.segments.tolist()))

    @property
    def paths(self) -> int:
        return 1 if self.p.dim() == 1 else self.p.shape[0]

    @property
    def far(self) -> Tensor | None:
        """The destination as ``tick_`` takes it."""
        return self.d if self.rule.destination == oracle.POINT else None

    @property
    def options(self) -> dict[str, Any]:
        return vars(self.rule)

    def is_open(self, row: int) -> bool:
        return self.active is None or bool(self.active.reshape(self.paths, -1)[row, 0] != 0)

    def row(self, k: int) -> Case:
        """The k-th path alone, ``[N]``."""
        pick = lambda value, dims: None if value is None else value[k].clone() if value.dim() == dims else value
        return replace(
            self,
            p=self.p[k].clone(),
            d=pick(self.d, 2),
            target=pick(self.target, 2),
            step=pick(self.step, 2),
            active=None if self.active is None else self.active.reshape(self.paths, -1)[k].clone(),
        )

    def clone(self) -> Case:
        return replace(self, p=self.p.clone(), d=None if self.d is None else self.d.clone())

    def scratch(self) -> Tensor:
        return self.table.scratch(self.paths).fill_(torch.nan)

    def run(self, op: Any, waypoint: Tensor | None = None, moments_in: Tensor | None = None) -> Tensor:
        """The updated values of ``tick_`` (the public function, or an eager kernel of the same arguments)."""
        x = self.p.clone()
        table = (self.table.segments, self.table.chunks)
        rest = (self.target, self.step, self.active, self.radius, moments_in, waypoint, self.scratch())
        op(x, self.far, *table, *rest, **self.options)
        return x

    def expected(self) -> list[Ticked]:
        """The oracle's answer, one a path; a closed path is left to the caller."""
        p, d = exact(self.p).reshape(self.paths, -1), None if self.far is None else exact(self.far)
        target, step = (exact(v).reshape(-1, v.shape[-1]) for v in (self.target, self.step))
        radius = None if self.radius is None else exact(self.radius)
        pick = lambda value, k: value[k % value.shape[0]]
        return [
            oracle.tick(
                p[k],
                None if d is None else pick(d.reshape(-1, p.shape[1]), k),
                self.layers,
                pick(target, k),
                pick(step, k),
                radius,
                self.rule,
            )
            for k in range(self.paths)
        ]

    def covered(self) -> Tensor:
        """Boolean ``[N]``: not padding."""
        inside = torch.zeros(self.table.numel, dtype=torch.bool)
        for row in self.table.rows:
            inside[row.offset : row.offset + row.length] = True
        return inside


def splits(draw: st.DrawFn, count: int) -> list[int]:
    """Labels of a random partition into runs of neighbours."""
    labels = [0]
    for _ in range(count - 1):
        labels.append(labels[-1] + draw(st.integers(0, 1)))
    return labels


@st.composite
def tables(draw: st.DrawFn) -> SegmentTable:
    """Up to seven segments in random groups, flags, padding, order and chunk size."""
    lengths = draw(st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=7))
    count = len(lengths)
    distance, variance = splits(draw, count), splits(draw, count)
    pad, gap = draw(st.sampled_from([1, 16])), draw(st.sampled_from([0, 0, 5]))
    order = list(range(count))
    if draw(st.booleans()):
        order.reverse()
    offsets, at = {}, gap
    for i in order:
        offsets[i] = at
        at = -(-(at + lengths[i]) // pad) * pad + gap
    motion = (0, 0, 0, 0, oracle.HOLD, oracle.COMPENSATE, oracle.COMPENSATE | oracle.TWICE, oracle.MASKED)
    free = [draw(st.sampled_from([0, 0, 0, oracle.FREE])) for _ in range(variance[-1] + 1)]
    flags = [
        draw(st.sampled_from(motion)) | free[variance[i]] | draw(st.sampled_from([0, 0, oracle.FROZEN]))
        for i in range(count)
    ]
    rows = tuple(
        Segment(f"s{i}", offsets[i], lengths[i], distance[i], variance[i], SegmentFlag(flags[i])) for i in range(count)
    )
    return SegmentTable(rows, at, draw(st.sampled_from(CHUNKS)))


def values(table: SegmentTable, kinds: list[str], paths: int | None, dtype: torch.dtype, seed: int) -> Tensor:
    """Values whose padding is poisoned; one kind a segment."""
    generator = torch.Generator().manual_seed(seed)
    shape = (table.numel,) if paths is None else (paths, table.numel)
    out = torch.full(shape, torch.nan, dtype=torch.float64)
    for row, kind in zip(table.rows, kinds, strict=True):
        part = out[..., row.offset : row.offset + row.length]
        noise = torch.randn(part.shape, dtype=torch.float64, generator=generator)
        if kind == "constant":
            noise = torch.zeros_like(noise) + 0.3
        elif kind == "far mean":
            noise = noise + (1e6 if dtype in (torch.float32, torch.float64) else 16.0)
        elif kind == "spread":
            noise = noise * torch.exp2(torch.randint(-6, 6, part.shape, generator=generator).double())
        part.copy_(noise * 10.0 ** float(torch.randint(-3, 2, (), generator=generator)))
    out = out.to(dtype)
    poison(out, out.reshape(-1, table.numel)[0].isnan())
    return out


def destination_values(table: SegmentTable, p: Tensor, kinds: list[str], dtype: torch.dtype, seed: int) -> Tensor:
    """A destination for p: unrelated to it, equal, within 1e-6, or opposite, segment by segment."""
    generator = torch.Generator().manual_seed(seed + 1)
    out = values(table, ["normal" if k == "unrelated" else k for k in kinds], None, torch.float64, seed + 2)
    out = out.expand(p.shape).clone()
    for row, kind in zip(table.rows, kinds, strict=True):
        part = slice(row.offset, row.offset + row.length)
        here = p[..., part].double()
        if kind == "near":
            noise = torch.rand(here.shape, dtype=torch.float64, generator=generator) * 2 - 1
            out[..., part] = here * (1 + 1e-6 * noise)
        elif kind in ("equal", "opposite"):
            out[..., part] = here if kind == "equal" else -here
    largest = torch.finfo(dtype).max / 8
    out = out.clamp(-largest, largest).to(dtype)
    poison(out, out.reshape(-1, table.numel)[0].isnan())
    return out


def group_variances(table: SegmentTable, p: Tensor) -> Tensor:
    """float64 ``[..., S]``: the unbiased variance of each variance group (1 where it has none)."""
    layers = oracle.layers_of(table.segments.tolist())
    out = torch.ones(*p.shape[:-1], len(layers), dtype=torch.float64)
    for k, row in enumerate(exact(p).reshape(-1, p.shape[-1])):
        for members in oracle.groups(layers, lambda layer: layer.variance_group):
            joined = np.concatenate([layers[i].of(row) for i in members])
            square = oracle.centred_square(joined)
            if len(joined) > 1 and square > 0:
                out.reshape(-1, len(layers))[k, members] = float(square / (len(joined) - 1))
    return out


@st.composite
def cases(
    draw: st.DrawFn,
    pairs: tuple[tuple[torch.dtype, torch.dtype], ...] = PAIRS,
    destinations: tuple[int, ...] = (0, 0, 0, *range(1, 6)),
) -> Case:
    """A random table with values, targets, steps and options; padding is poisoned."""
    table = draw(tables())
    p_type, d_type = draw(st.sampled_from(pairs))
    paths = draw(st.sampled_from([None, None, 1, 2, 3]))
    seed = draw(st.integers(0, 2**32 - 1))
    count = len(table)
    each = lambda kinds: draw(st.lists(st.sampled_from(kinds), min_size=count, max_size=count))
    sizes = each(["normal"] * 4 + ["constant", "far mean", "spread"])
    p = values(table, sizes, paths, p_type, seed)
    goals = each(["unrelated"] * 4 + ["equal", "near", "opposite", "constant"])
    shared = p if paths is None or draw(st.booleans()) else p[0]
    d = destination_values(table, shared, goals, d_type, seed)

    labels = table.segments[:, 3]
    measured = group_variances(table, p if paths is None or draw(st.booleans()) else p[0])
    factors = torch.tensor([draw(st.sampled_from([1.0, 1.0, 0.25, 0.9, 1.7, 0.0])) for _ in range(count)])
    target = measured * factors[labels].double()
    step_shape = (2,) if paths is None or draw(st.booleans()) else (paths, 2)
    step = torch.zeros(step_shape, dtype=torch.float64)
    for entry in step.reshape(-1, 2):
        entry[0] = draw(st.sampled_from([0.0, 1e-3, 0.1, 3.0]))
        entry[1] = draw(st.sampled_from([0.0, 1e-3, 0.3, 1.0, 1.5]))
    active = None
    if draw(st.integers(0, 3)) == 0:
        width = draw(st.sampled_from([1, 2]))
        active = torch.tensor([draw(st.sampled_from([0.0, 1.0])) for _ in range((paths or 1) * width)]).double()
        active = active.reshape(paths or 1, width)
    kind = draw(st.sampled_from(destinations))
    radius = None
    if kind in (Destination.VARIANCE_SPHERE, Destination.NORM_SPHERE):
        radius = torch.tensor([0.37, 2.3, 0.0, 11.0])[(labels + seed) % 4].double()
    rule = Rule(
        destination=kind,
        epsilon=draw(st.sampled_from([0.0, 0.0, 1e-4])),
        combine_sum=draw(st.booleans()),
        clamp=draw(st.booleans()),
        project_first=draw(st.booleans()),
    )
    return Case(table, p, d, target, step, rule, active, radius, seed)
