"""Random values over one table, a pool of them, and each op's float64 result by plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llpf_fast.flat import SegmentTable
from llpf_fast.ops import SegmentFlag
from llpf_fast.ops.coefficients import coefficients_eager

from .sizes import TABLES

#: Rule of every timed tick: what the finder does after a correction, project (what training left), move, project.
RULE: dict[str, Any] = {"epsilon": 0.0, "combine_sum": True, "clamp": True, "project_first": True}
#: Largest accepted error of one stored value, relative to |a p| + |b d| + |c|: the roundings of the arithmetic (five of
#: float32 or float64), the last one of the storage.
ALLOWED = {torch.float64: 2.0**-44, torch.float32: 2.0**-21, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
#: The same for programs that go other ways round, relative to at least SPREAD. torch's float32 norm alone was measured
#: to be off by 4e-5 on 2.4 million values, 1e-4 on 4.2 million.
ALLOWED_OF_BASELINES = {torch.float64: 2.0**-40, torch.float32: 2.0**-12}
#: The same for moments, float64 sums in another order, relative to the size of what is summed.
ALLOWED_OF_MOMENTS = 1e-12
SPREAD = 0.05


@dataclass
class Values:
    """One member of the pool."""

    p: Tensor
    d: Tensor


class Problem:
    """One table and a pool of values on a device.

    Args:
        size: name of a table in ``TABLES``.
        p, d: storage.
        pool: members, each with different values.
        masked: every second segment is MASKED.
    """

    def __init__(
        self, size: str, p: torch.dtype, d: torch.dtype, device: torch.device, pool: int, *, masked: bool = False
    ) -> None:
        lengths = TABLES[size]()
        flags = [SegmentFlag.MASKED if masked and i % 2 else SegmentFlag.NONE for i in range(len(lengths))]
        self.table = SegmentTable.from_lengths(lengths, flags=flags).to(device)
        self.device, count = device, len(lengths)
        self.target = torch.full((count,), SPREAD**2, dtype=torch.float64, device=device)
        self.step = torch.tensor([0.0, 1e-3], dtype=torch.float64, device=device)
        self.scratch = self.table.scratch()
        random = torch.Generator(device).manual_seed(0)
        self.pool = [Values(self._random(p, random, 0.01), self._random(d, random, 0.0)) for _ in range(pool)]

    def _random(self, dtype: torch.dtype, random: torch.Generator, mean: float) -> Tensor:
        values = torch.empty(self.table.numel, dtype=torch.float32, device=self.device)
        values.normal_(mean, SPREAD, generator=random)
        end = 0
        for part in self.slices():
            values[end : part.start] = 0.0
            end = part.stop
        values[end:] = 0.0
        return values.to(dtype)

    @property
    def p(self) -> Tensor:
        return self.pool[0].p

    @property
    def d(self) -> Tensor:
        return self.pool[0].d

    def slices(self) -> Iterator[slice]:
        return (slice(row.offset, row.offset + row.length) for row in self.table.rows)

    def tensors(self, flat: Tensor) -> list[Tensor]:
        """Copies of the segments: the separate tensors that per-layer programs hold."""
        return [flat[part].clone() for part in self.slices()]

    def flat(self, tensors: list[Tensor]) -> Tensor:
        """A copy of separate segments in one buffer ``[N]``, 0 in padding."""
        out = torch.zeros_like(self.p)
        for part, values in zip(self.slices(), tensors, strict=True):
            out[part] = values
        return out

    def streams(self) -> list[tuple[Tensor, Tensor]]:
        """float32 tensors with as many bytes as p and d of each member: themselves where they are float32."""
        if self.p.dtype == self.d.dtype == torch.float32:
            return [(values.p, values.d) for values in self.pool]
        words = self.p.numel() * self.p.element_size() // 4
        return [
            (torch.full((words,), SPREAD, device=self.device), torch.full((words,), SPREAD, device=self.device))
            for _ in self.pool
        ]

    # -- float64 references, segment by segment, so that a billion parameters need no float64 copy of all

    def moments64(self, p: Tensor, d: Tensor | None) -> Tensor:
        """float64 ``[S, 5]`` by two passes over each segment."""
        rows = []
        for part, row in zip(self.slices(), self.table.rows, strict=True):
            if row.flags & SegmentFlag.MASKED:
                rows.append(torch.zeros(5, dtype=torch.float64, device=self.device))
                continue
            x = p[part].double()
            y = torch.zeros_like(x) if d is None else d[part].double() - x
            mean_x, mean_y = x.mean(), y.mean()
            # Not in place: x is p itself where that is float64.
            x, y = x - mean_x, y - mean_y
            rows.append(torch.stack([mean_x, mean_y, x.dot(x), x.dot(y), y.dot(y)]))
        return torch.stack(rows)

    def moments_error(self, got: Tensor) -> float:
        """Largest error of any moment of the first member, relative to the size of what is summed."""
        want = self.moments64(self.p, self.d)
        mean_p, mean_delta, m2_p, _, m2_delta = want.unbind(1)
        n = self.table.segments[:, 1]
        size = [mean_p.abs() + (m2_p / n).sqrt(), mean_delta.abs() + (m2_delta / n).sqrt()]
        size += [m2_p, (m2_p * m2_delta).sqrt(), m2_delta]
        return float(((got - want).abs() / torch.stack(size, 1).clamp(min=1e-300)).max())

    def maps64(self, p: Tensor, d: Tensor | None, destination: int = 0) -> Tensor:
        """float64 ``[S, 5]``: the maps of the tick, by the eager coefficients."""
        arguments = (self.moments64(p, d), self.table.segments, self.target, self.step, None, None)
        return coefficients_eager(*arguments, destination=destination, **RULE)

    def error(
        self,
        got: list[Tensor],
        p: Tensor,
        d: Tensor | None,
        maps: Tensor,
        columns: tuple[int, ...],
        least: float | None = None,
    ) -> float:
        """Largest |got - (a p + b d + c)| of any element, relative to |a p| + |b d| + |c|; NaN where one is NaN.

        Args:
            got: one tensor a segment.
            p, d: flat values before the call.
            maps: ``[S, 5]``.
            columns: which columns are a, b, c (a waypoint's are a0 and c0, without b).
            least: what errors of values near 0 are relative to. When missing, a thousandth of the spread; in float64
                the spread itself: there c is as exact as a mean of sums in another order, 10^-15 of the spread.
        """
        if least is None:
            least = SPREAD if self.p.dtype == torch.float64 else SPREAD / 1024
        worst = torch.zeros((), dtype=torch.float64, device=self.device)
        for s, part in enumerate(self.slices()):
            a, c = maps[s, columns[0]], maps[s, columns[-1]]
            ap = p[part].double() * a
            size, want = ap.abs() + c.abs(), ap + c
            if d is not None and len(columns) == 3:
                bd = d[part].double() * maps[s, columns[1]]
                size += bd.abs()
                want += bd
            worst = torch.maximum(worst, ((got[s].double() - want).abs() / size.clamp(min=least)).max())
        return float(worst)

    def untouched(self, got: Tensor, before: Tensor) -> bool:
        """Whether padding and MASKED segments keep every value."""
        end = 0
        for part, row in zip(self.slices(), self.table.rows, strict=True):
            if got[end : part.start].any():
                return False
            if row.flags & SegmentFlag.MASKED and not torch.equal(got[part], before[part]):
                return False
            end = part.stop
        return not got[end:].any()
