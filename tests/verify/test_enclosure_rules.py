"""Every rule of enclosure against random points inside: chords, radii and corners, evaluated in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import llpf_fast.verify.enclosure.loss_enclosure  # noqa: F401  (all rules)
from llpf_fast.verify.enclosure.form import AffineForm
from llpf_fast.verify.enclosure.tensor import EnclosedTensor, network_run

DTYPES = [torch.float32, torch.float64]


class Moving:
    """An argument that moves from ``left`` to ``right``, within ``radius`` of the chord; ``batched``: row by sample."""

    def __init__(self, left: Tensor, right: Tensor, radius: Tensor | None = None, *, batched: bool = True) -> None:
        self.left, self.right, self.radius, self.batched = left, right, radius, batched

    def enclosed(self, dtype: torch.dtype) -> EnclosedTensor:
        left, right = self.left.to(dtype), self.right.to(dtype)
        if torch.equal(left, right):
            right = left
        radius = None if self.radius is None else self.radius.to(dtype)
        return EnclosedTensor(AffineForm(left, right, radius), batched=self.batched)

    def at(self, t: float, dtype: torch.dtype, generator: torch.Generator, corner: bool) -> Tensor:
        """A point inside, float64."""
        form = self.enclosed(dtype).form
        value = chord(form, t)
        if form.radius is not None:
            share = torch.rand(value.shape, generator=generator, dtype=torch.float64) * 2 - 1
            value = value + form.radius.double() * (share.sign() if corner else share)
        return value


def chord(form: AffineForm, t: float) -> Tensor:
    left, right = form.left.double(), form.right.double()
    return (1 - t) / 2 * left + (1 + t) / 2 * right


def random(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64) * scale


def moving(*shape: int, width: float = 0.3, radius: float = 0.05, seed: int = 0, **options: Any) -> Moving:
    """A random piece with random radii."""
    left = random(*shape, seed=seed)
    spread = random(*shape, seed=seed + 1).abs() * radius if radius else None
    return Moving(left, left + random(*shape, scale=width, seed=seed + 2), spread, **options)


def excess(
    function: Callable[..., Any], arguments: Sequence[Any], dtype: torch.dtype, *, points: int = 24, seed: int = 0
) -> tuple[float, int]:
    """How far a point lies outside at most, in units of the radius beside it, and how many numbers were compared."""
    generator = torch.Generator().manual_seed(seed)
    rows = next(len(argument.left) for argument in arguments if isinstance(argument, Moving) and argument.batched)
    with torch.no_grad(), network_run(rows):
        given = [argument.enclosed(dtype) if isinstance(argument, Moving) else argument for argument in arguments]
        outputs = listed(function(*given))
    worst, compared = -1.0, 0
    for i in range(points):
        t = [-1.0, 1.0][i] if i < 2 else torch.rand((), generator=generator).item() * 2 - 1
        values = [
            argument.at(t, dtype, generator, i % 2 == 0) if isinstance(argument, Moving) else wide(argument)
            for argument in arguments
        ]
        for output, value in zip(outputs, listed(function(*values)), strict=True):
            form = output.form.settled()
            assert form.shape == value.shape
            centre, radius = chord(form, t), form.full_radius().double()
            # The reference rounds, too.
            slack = 1e-12 * (value.abs() + radius + 1e-12) if dtype == torch.float64 else 1e-30
            outside = ((value - centre).abs() - slack) / radius.clamp_min(1e-300)
            worst = max(
                worst, outside.nan_to_num(nan=-1.0 if not form.left.isfinite().all() else torch.inf).max().item()
            )
            compared += value.numel()
    return worst, compared


def listed(value: Any) -> Any:
    return [value] if isinstance(value, Tensor) else value


def wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


BATCH_NORM = lambda x, mean, var, w, b: F.batch_norm(x, mean, var, w, b, False, 0.1, 1e-5)


def channels(*, offset: float = 0.0, width: float = 0.3, seed: int = 0) -> Moving:
    return Moving(random(6, seed=seed).abs() + offset, random(6, seed=seed + 3).abs() * width + offset, batched=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "arguments",
    [
        (moving(8, 6, 9, 9), channels(), channels(offset=0.3), channels(seed=1), channels(seed=2)),
        (moving(8, 6, width=0), channels(offset=5), channels(offset=1e-3), channels(seed=1), None),
        (moving(8, 6, 40, radius=0), channels(), channels(offset=1e-6), None, None),
    ],
)
def test_batch_norm_encloses(arguments: Sequence[Any], dtype: torch.dtype) -> None:
    worst, _ = excess(BATCH_NORM, arguments, dtype)
    assert worst <= 1
