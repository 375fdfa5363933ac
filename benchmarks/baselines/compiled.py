"""The tick over a flat buffer of equal segments, ``[S, L]``, for ``torch.compile``: as good as it gets.

Our algebra (five moments, one affine map a segment), since the paper's chain of steps makes inductor go over the
values five times and was measured to take five times as long. Two functions, the reductions and the write: on both in
one torch 2.15's inductor fails (KeyError in its outer loop fusion).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Tick = Callable[[Tensor, Tensor, Tensor, Tensor], None]


def maps(p: Tensor, d: Tensor, variance: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a, b, c ``[S, 1]`` of project, move toward d, project (docs/algorithm.md)."""
    n = p.shape[1]
    mean_p, mean_delta = p.mean(1, keepdim=True), (d - p).mean(1, keepdim=True)
    x, y = p - mean_p, (d - p) - mean_delta
    m2_p, c, m2_delta = (value.sum(1, keepdim=True) for value in (x * x, x * y, y * y))
    s0 = torch.sqrt(variance * (n - 1) / m2_p)
    back = 1.0 - s0
    m2_delta = m2_delta + 2 * back * c + back * back * m2_p
    c = s0 * (c + back * m2_p)
    distance = torch.sqrt(m2_delta + n * mean_delta * mean_delta)
    t = torch.where(distance > 0, (step[0] + step[1] * distance) / distance, 0.0).clamp(max=1.0)
    s = torch.sqrt(variance * (n - 1) / (s0 * s0 * m2_p + 2 * t * c + t * t * m2_delta))
    share = s * (1.0 - t)
    return share * s0, s * t, share * back * mean_p + (1.0 - s) * (mean_p + t * mean_delta)


def write_(p: Tensor, d: Tensor, a: Tensor, b: Tensor, c: Tensor) -> None:
    p.copy_(a * p + b * d + c)


def tick_(compile_: Callable[..., Callable[..., object]] = torch.compile) -> Tick:
    """Project, move toward d, project; p, d ``[S, L]`` float32, variance ``[S, 1]``, step ``[2]``.

    The first call compiles, which takes ten seconds.
    """
    reduce, write = compile_(maps, dynamic=False), compile_(write_, dynamic=False)

    def call(p: Tensor, d: Tensor, variance: Tensor, step: Tensor) -> None:
        write(p, d, *reduce(p, d, variance, step))  # type: ignore[misc]

    return call
