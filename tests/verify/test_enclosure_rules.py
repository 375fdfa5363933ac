"""Every rule of enclosure against random points inside: chords, radii and corners, evaluated in float64."""

from __future__ import annotations

import functools
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

    def form(self, dtype: torch.dtype) -> AffineForm:
        left, right = self.left.to(dtype), self.right.to(dtype)
        radius = None if self.radius is None else self.radius.to(dtype)
        return AffineForm(left, left if torch.equal(left, right) else right, radius)

    def at(self, t: float, dtype: torch.dtype, generator: torch.Generator, corner: str) -> Tensor:
        """A point inside, float64."""
        inside = self.form(dtype)
        value = chord(inside, t)
        if inside.radius is None:
            return value
        share = torch.rand(value.shape, generator=generator, dtype=torch.float64) * 2 - 1
        sides = {
            "inside": share,
            "random": share.sign(),
            "above": torch.ones_like(share),
            "below": -torch.ones_like(share),
        }
        return value + inside.radius.double() * sides[corner]


def chord(values: AffineForm, t: float) -> Tensor:
    left, right = values.left.double(), values.right.double()
    return right if t == 1 else left + (right - left) * ((1 + t) / 2)


def random(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64) * scale


def moving(
    *shape: int, width: float = 0.3, radius: float = 0.05, scale: float = 1.0, seed: int = 0, **options: Any
) -> Moving:
    """A random piece with random radii."""
    left = random(*shape, scale=scale, seed=seed)
    spread = random(*shape, seed=seed + 1).abs() * radius if radius else None
    return Moving(left, left + random(*shape, scale=width, seed=seed + 2), spread, **options)


weights = functools.partial(moving, batched=False, radius=0.02, seed=10)


def excess(
    function: Callable[..., Any], arguments: Sequence[Any], dtype: torch.dtype, *, points: int = 24, seed: int = 0
) -> tuple[float, int]:
    """How far a point lies outside at most, in units of the radius beside it, and how many numbers were compared."""
    generator = torch.Generator().manual_seed(seed)
    rows = next(len(argument.left) for argument in arguments if isinstance(argument, Moving) and argument.batched)
    with torch.no_grad(), network_run(rows):
        given = [
            EnclosedTensor(argument.form(dtype), batched=argument.batched) if isinstance(argument, Moving) else argument
            for argument in arguments
        ]
        outputs = [output.form.settled() for output in listed(function(*given))]
    worst, compared = -1.0, 0
    for i in range(points):
        t = [-1.0, 1.0, 0.0][i] if i < 3 else torch.rand((), generator=generator).item() * 2 - 1
        corner = ["random", "above", "random", "below", "inside", "random"][i % 6]
        values = [
            argument.at(t, dtype, generator, corner) if isinstance(argument, Moving) else wide(argument)
            for argument in arguments
        ]
        for output, value in zip(outputs, listed(function(*values)), strict=True):
            assert output.shape == value.shape
            centre, radius = chord(output, t), output.full_radius().double()
            # The reference rounds, too.
            slack = 1e-12 * (value.abs() + radius + centre.abs())
            ratio = ((value - centre).abs() - slack) / radius.clamp_min(1e-300)
            # An output without a bound says nothing.
            ratio = torch.where(centre.isfinite() & radius.isfinite(), ratio.nan_to_num(nan=torch.inf), -1.0)
            worst, compared = max(worst, ratio.max().item()), compared + value.numel()
    return worst, compared


def listed(value: Any) -> Any:
    return [value] if isinstance(value, Tensor) else value


def wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


# Functions of one variable, on rows of different kinds


def everywhere(columns: int = 2500) -> Moving:
    rows = [
        moving(columns, scale=2, seed=1),
        moving(columns, scale=5, width=3, radius=1, seed=2),
        moving(columns, scale=2, width=1e-3, radius=1e-5, seed=3),
        moving(columns, scale=3, width=0, radius=0, seed=4),
        moving(columns, scale=1e-41, width=1e-41, radius=1e-42, seed=5),
        moving(columns, scale=1e12, width=1e12, radius=1e8, seed=6),
        moving(columns, scale=0, width=0, radius=0.1, seed=7),
        moving(columns, scale=0, width=0, radius=0, seed=7),
    ]
    crossing = random(columns, seed=8)
    rows.append(Moving(crossing, -crossing))
    zero = torch.zeros(columns, dtype=torch.float64)
    radii = [zero if row.radius is None else row.radius for row in rows]
    return Moving(torch.stack([row.left for row in rows]), torch.stack([row.right for row in rows]), torch.stack(radii))


def positive(columns: int = 2500, seed: int = 0) -> Moving:
    """Rows above 0, the radius at most half of the value."""
    left = random(8, columns, seed=seed).exp()
    widths = torch.tensor([0.3, 2.0, 1e-3, 0, 0.3, 0.3, 1, 0], dtype=torch.float64).unsqueeze(1)
    scales = torch.tensor([1, 1, 1, 1, 1e-9, 1e10, 1, 1], dtype=torch.float64).unsqueeze(1)
    right = left * (random(8, columns, seed=seed + 1) * widths).exp()
    shares = torch.tensor([0.1, 0.3, 1e-5, 0, 0.1, 0.1, 0.5, 0.2], dtype=torch.float64).unsqueeze(1)
    return Moving(left * scales, right * scales, torch.minimum(left, right) * shares * scales)


def either_sign() -> Moving:
    above, below = positive(), positive(seed=5)
    return Moving(
        torch.cat([above.left, -below.left]),
        torch.cat([above.right, -below.right]),
        torch.cat([above.radius, below.radius]),
    )


ONE_VARIABLE: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "leaky_relu with slope 0.5": lambda x: F.leaky_relu(x, 0.5),
    "abs": torch.abs,
    "neg": lambda x: -x,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "softplus with beta 2": lambda x: F.softplus(x, 2.0, 5.0),
    "logsigmoid": F.logsigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "mish": F.mish,
    "sin": torch.sin,
    "cos": torch.cos,
    "elu": F.elu,
    "elu with alpha 0.5": lambda x: F.elu(x, 0.5),
    "celu": lambda x: F.celu(x, 0.7),
    "selu": F.selu,
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "clamp": lambda x: x.clamp(-0.3, 1.7),
    "clamp_min": lambda x: x.clamp_min(0.2),
    "clamp_max": lambda x: x.clamp_max(0.2),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "rrelu": lambda x: F.rrelu(x, training=False),
    "exp": torch.exp,
    "square": torch.square,
    "cube": lambda x: x**3,
    "glu": lambda x: F.glu(x, 1),
    "times a number": lambda x: x * 0.3,
    "over a number": lambda x: x / 0.3,
    "number minus x": lambda x: 0.3 - x,
}
POSITIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "log": torch.log,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "pow": lambda x: x**-0.5,
}
#: Rules whose radius the random points do not nearly reach, and why.
LOOSE = {
    "hardswish": "a product of two values that depend on each other",
    "neg": "exact",
}


def check(function: Callable[..., Any], arguments: Sequence[Any], dtype: torch.dtype, *, least: float = 0.5) -> None:
    """No point outside; the furthest one reaches ``least`` of the radius, so that a radius of that share would fail."""
    worst, compared = excess(function, arguments, dtype, points=24)
    assert worst <= 1, f"{worst:g} times the radius"
    assert worst >= least, f"only {worst:g} of the radius"
    assert compared > 20_000


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ONE_VARIABLE)
def test_functions_of_one_variable(name: str, dtype: torch.dtype) -> None:
    check(ONE_VARIABLE[name], [everywhere()], dtype, least=0.0 if name in LOOSE else 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", POSITIVE)
def test_functions_of_positive_values(name: str, dtype: torch.dtype) -> None:
    check(POSITIVE[name], [positive()], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "function",
    [torch.reciprocal, lambda x: 2.5 / x, lambda x: x / x.abs()[:, :1], lambda x: torch.ones(1, dtype=x.dtype) / x],
)
def test_division(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    check(function, [either_sign()], dtype)


# Layers. Few products a sum, so that random corners come near the worst

LAYERS: list[tuple[str, Callable[..., Any], list[Any]]] = [
    ("linear", F.linear, [moving(400, 3), weights(30, 3), weights(30)]),
    ("linear without bias", F.linear, [moving(400, 7, 2), weights(30, 2)]),
    ("linear on data", F.linear, [moving(400, 3, width=0, radius=0), weights(30, 3), weights(30)]),
    ("linear, rounding", F.linear, [moving(400, 3, width=0, radius=0), weights(30, 3, width=0, radius=0)]),
    ("conv1d", F.conv1d, [moving(9, 2, 50), weights(12, 2, 2), weights(12)]),
    (
        "conv1d, options",
        lambda x, w, b: F.conv1d(x, w, b, 2, 3, 2, 2),
        [moving(9, 4, 90), weights(12, 2, 2), weights(12)],
    ),
    ("conv2d", F.conv2d, [moving(5, 1, 20, 20), weights(6, 1, 2, 2), weights(6)]),
    (
        "conv2d, options",
        lambda x, w: F.conv2d(x, w, None, (1, 2), (2, 1), (2, 1), 3),
        [moving(5, 3, 20, 30), weights(6, 1, 2, 2)],
    ),
    ("conv2d, same", lambda x, w: F.conv2d(x, w, padding="same"), [moving(5, 2, 20, 20), weights(6, 2, 1, 2)]),
    (
        "conv3d",
        lambda x, w, b: F.conv3d(x, w, b, padding=1),
        [moving(3, 1, 8, 9, 9), weights(3, 1, 1, 2, 2), weights(3)],
    ),
    ("conv_transpose1d", lambda x, w: F.conv_transpose1d(x, w, None, 2, 1, 1), [moving(9, 2, 90), weights(2, 12, 3)]),
    (
        "conv_transpose2d",
        lambda x, w, b: F.conv_transpose2d(x, w, b, stride=2, groups=2),
        [moving(5, 2, 12, 12), weights(2, 3, 3, 2), weights(6)],
    ),
    ("conv_transpose3d", F.conv_transpose3d, [moving(3, 1, 8, 9, 9), weights(1, 3, 1, 2, 2)]),
    ("matmul", torch.matmul, [moving(20, 9, 12, 3), moving(20, 9, 3, 8, seed=3)]),
    ("matmul by weights", lambda x, w: x @ w, [moving(20, 12, 3), weights(3, 8)]),
    ("bmm", torch.bmm, [moving(40, 9, 3), moving(40, 3, 8, seed=3)]),
    (
        "einsum",
        lambda x, y: torch.einsum("b h i d, b h j d -> b h i j", x, y),
        [moving(20, 3, 8, 3), moving(20, 3, 9, 3, seed=3)],
    ),
    ("einsum with weights", lambda x, w: torch.einsum("bnd,de->ben", x, w), [moving(40, 8, 3), weights(3, 6)]),
    ("mul", torch.mul, [moving(50, 60), moving(50, 60, seed=3)]),
    ("mul by weights", torch.mul, [moving(50, 60), weights(60)]),
    ("mul by data", torch.mul, [moving(50, 60), random(60)]),
    ("div by data", torch.div, [moving(50, 60), random(60)]),
    ("add", torch.add, [moving(50, 60), moving(50, 60, seed=3)]),
    ("add with alpha", lambda x, y: torch.add(x, y, alpha=0.3), [moving(50, 60), weights(60)]),
    ("add, rounding", torch.add, [moving(50, 60, width=0, radius=0), weights(60, width=0, radius=0)]),
    ("sub", lambda x, y: x - y, [moving(50, 60), moving(50, 60, seed=3)]),
    ("sub with alpha", lambda x, y: torch.sub(x, y, alpha=0.3), [moving(50, 60), weights(60)]),
    ("rsub", lambda x, y: torch.rsub(x, y), [moving(50, 60), random(60)]),
    ("sum", lambda x: x.sum(1), [moving(400, 3, 9)]),
    ("mean", lambda x: x.mean((2, 3), keepdim=True), [moving(100, 20, 2, 1)]),
    ("mean, rounding", lambda x: x.mean((2, 3)), [moving(100, 20, 2, 1, width=0, radius=0)]),
    ("avg_pool1d", lambda x: F.avg_pool1d(x, 3, 2, 1), [moving(9, 8, 50)]),
    (
        "avg_pool2d",
        lambda x: F.avg_pool2d(x, (2, 1), ceil_mode=True, count_include_pad=False, padding=(1, 0)),
        [moving(9, 2, 19, 19)],
    ),
    ("avg_pool3d", lambda x: F.avg_pool3d(x, (1, 2, 1), 1), [moving(3, 2, 7, 9, 9)]),
    ("adaptive_avg_pool1d", lambda x: F.adaptive_avg_pool1d(x, 5), [moving(90, 9, 14)]),
    ("adaptive_avg_pool2d", lambda x: F.adaptive_avg_pool2d(x, (3, 5)), [moving(30, 9, 4, 9)]),
    ("adaptive_avg_pool3d", lambda x: F.adaptive_avg_pool3d(x, (2, 1, 5)), [moving(30, 9, 4, 2, 9)]),
    ("max_pool1d", lambda x: F.max_pool1d(x, 3, 2, 1), [moving(9, 8, 50)]),
    ("max_pool1d, dilation", lambda x: F.max_pool1d(x, 2, 1, 0, 3), [moving(9, 8, 50)]),
    ("max_pool2d", lambda x: F.max_pool2d(x, 2), [moving(9, 3, 20, 20)]),
    (
        "max_pool2d, options",
        lambda x: F.max_pool2d(x, (3, 2), (2, 1), (1, 1), (1, 2), ceil_mode=True),
        [moving(9, 3, 18, 17)],
    ),
    ("max_pool2d, narrow", lambda x: F.max_pool2d(x, 3, 1, 1), [moving(9, 3, 20, 20, width=1e-4, radius=1e-5)]),
    ("max_pool2d of ties", lambda x: F.max_pool2d(x, 2), [moving(9, 3, 20, 20, scale=0, width=0.1, radius=0)]),
    ("max_pool2d of relu", lambda x: F.max_pool2d(F.relu(x), 2), [moving(9, 3, 20, 20, width=1)]),
    ("max_pool2d of leaky relu", lambda x: F.max_pool2d(F.leaky_relu(x, 0.1), 2), [moving(9, 3, 20, 20, width=1)]),
    ("max_pool3d", lambda x: F.max_pool3d(x, (1, 2, 2), (1, 2, 1), (0, 1, 0)), [moving(3, 2, 7, 9, 9)]),
    ("max_pool3d, dilation", lambda x: F.max_pool3d(x, 2, 1, 0, (2, 1, 2), True), [moving(3, 2, 7, 9, 9)]),
    ("maximum", torch.maximum, [moving(50, 60), moving(50, 60, seed=3)]),
    ("maximum with data", torch.maximum, [moving(50, 60), random(60)]),
    ("minimum", torch.minimum, [moving(50, 60), moving(50, 60, seed=3)]),
    ("prelu", F.prelu, [moving(50, 6, 9), Moving(random(6).abs(), random(6, seed=1).abs(), batched=False)]),
    ("softmax", lambda x: x.softmax(-1), [moving(60, 9, 3, scale=2, radius=0.02)]),
    ("softmax, wide", lambda x: F.softmax(x, 1), [moving(60, 9, 3, scale=5, width=5, radius=1)]),
    ("softmax, narrow", lambda x: F.softmax(x, 1), [moving(60, 9, 3, scale=5, width=1e-3, radius=0)]),
    ("softmax, sharp", lambda x: F.softmax(x, 1), [moving(60, 9, 3, scale=300, width=1, radius=0.1)]),
    ("softmax, rounding", lambda x: F.softmax(x, 1), [moving(60, 9, 3, scale=10, width=0, radius=0)]),
    ("log_softmax", lambda x: x.log_softmax(-1), [moving(60, 9, 3, scale=2, radius=0.02)]),
    ("log_softmax, wide", lambda x: F.log_softmax(x, 1), [moving(60, 9, 3, scale=5, width=5, radius=1)]),
    ("log_softmax, narrow", lambda x: F.log_softmax(x, 1), [moving(60, 9, 3, scale=5, width=1e-3, radius=0)]),
    ("log_softmax, rounding", lambda x: F.log_softmax(x, 1), [moving(60, 9, 3, scale=100, width=0, radius=0)]),
]
#: (rule, least share of the radius that a random point reaches)
SHARES = {
    "linear, rounding": 0.02,
    "add, rounding": 0.1,
    "mean, rounding": 0.02,
    "softmax, rounding": 0.005,
    "softmax, narrow": 0.01,
    "log_softmax, narrow": 0.01,
    "max_pool2d of ties": -1.0,
    "log_softmax, rounding": 0.005,
    "softmax, wide": 0.05,
    "softmax, sharp": 0.02,
    "log_softmax, wide": 0.3,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "function", "arguments"), LAYERS, ids=[case[0] for case in LAYERS])
def test_layers(name: str, function: Callable[..., Any], arguments: list[Any], dtype: torch.dtype) -> None:
    least = SHARES.get(name, 0.5)
    check(function, arguments, dtype, least=-1.0 if "rounding" in name and dtype == torch.float64 else least)
