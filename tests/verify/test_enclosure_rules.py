"""Every rule of enclosure against random points inside: chords, radii and corners, evaluated in float64."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llpf_fast.path.polyline import Polyline, Position
from llpf_fast.verify.enclosure import (
    attention_rules,
    form,
    normalization_rules,
    piecewise_rules,
    rules,
    smooth_rules,
)
from llpf_fast.verify.enclosure.form import AffineForm, NotEnclosedError, unit_roundoff
from llpf_fast.verify.enclosure.loss_enclosure import LossEnclosure
from llpf_fast.verify.enclosure.tensor import EnclosedTensor, SampleNumbers, network_run
from llpf_fast.verify.evaluator import Evaluator

DTYPES = [torch.float32, torch.float64]
#: Numbers compared in each test: a million for a rule in both dtypes.
NUMBERS = 500_000


class Moving:
    """An argument that moves from ``left`` to ``right``, within ``radius`` and ``rounding`` of the chord.

    ``batched``: with one row a sample.
    """

    def __init__(
        self, left: Tensor, right: Tensor, radius: Tensor | None = None, *, batched: bool = True, rounding: float = 0.0
    ) -> None:
        self.left, self.right, self.radius, self.batched, self.rounding = left, right, radius, batched, rounding

    def form(self, dtype: torch.dtype) -> AffineForm:
        left, right = self.left.to(dtype), self.right.to(dtype)
        radius = None if self.radius is None else self.radius.to(dtype)
        return AffineForm(left, left if torch.equal(left, right) else right, radius, self.rounding)

    def at(self, t: float, dtype: torch.dtype, generator: torch.Generator, corner: str) -> Tensor:
        """A point inside, float64."""
        inside = self.form(dtype)
        value = chord(inside, t)
        if inside.radius is None and not self.rounding:
            return value
        share = torch.rand(value.shape, generator=generator, dtype=torch.float64) * 2 - 1
        sides = {
            "inside": share,
            "random": share.sign(),
            "above": torch.ones_like(share),
            "below": -torch.ones_like(share),
        }
        error = inside.magnitude.double() * (self.rounding * unit_roundoff(dtype))
        if inside.radius is not None:
            error = error + inside.radius.double()
        return value + error * sides[corner]


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
    right = left + random(*shape, scale=width, seed=seed + 2) if width else left
    spread = random(*shape, seed=seed + 1).abs() * radius if radius else None
    return Moving(left, right, spread, **options)


weights = functools.partial(moving, batched=False, radius=0.02, seed=10, rounding=100)


def excess(
    function: Callable[..., Any], arguments: Sequence[Any], dtype: torch.dtype, *, numbers: int = NUMBERS, seed: int = 0
) -> float:
    """How far a point lies from the chord at most, in units of the radius beside it, among so many ``numbers``."""
    generator = torch.Generator().manual_seed(seed)
    rows = next(len(argument.left) for argument in arguments if isinstance(argument, Moving) and argument.batched)
    with torch.no_grad(), network_run(rows):
        given = [
            EnclosedTensor(argument.form(dtype), batched=argument.batched) if isinstance(argument, Moving) else argument
            for argument in arguments
        ]
        outputs = [output.form.settled() for output in listed(function(*given))]
    worst, compared, i = -1.0, 0, -1
    while compared < numbers or i < 12:
        i += 1
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
    return worst


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


def check(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    dtype: torch.dtype,
    *,
    least: float = 0.5,
    numbers: int = NUMBERS,
) -> None:
    """No point outside; the furthest one reaches ``least`` of the radius, so that a radius of that share would fail."""
    worst = excess(function, arguments, dtype, numbers=numbers)
    assert worst <= 1, f"{worst:g} times the radius"
    assert worst >= least, f"only {worst:g} of the radius"


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

MASK = torch.full((5, 5), -math.inf).triu(1).index_put((torch.tensor([3]), torch.tensor([1])), torch.tensor(-math.inf))
attention = F.scaled_dot_product_attention


def batch_norm(x: Tensor, mean: Tensor, variance: Tensor, weight: Any, bias: Any) -> Tensor:
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.1, 1e-5)


def layer_norm(x: Tensor, weight: Tensor, bias: Any) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias)


def channels(*, offset: float = 0.0, width: float = 0.3, seed: int = 0) -> Moving:
    return Moving(random(6, seed=seed).abs() + offset, random(6, seed=seed + 3).abs() * width + offset, batched=False)


def multi_head(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As nn.MultiheadAttention with batch_first, but for the projections, which move."""
    y = x.transpose(0, 1)
    out = random(4, 4, seed=3).to(x.dtype)
    return F.multi_head_attention_forward(
        y, y, y, 4, 2, weight, bias, None, None, False, 0.0, out, None, False, attn_mask=MASK.to(x.dtype)
    )[0].transpose(0, 1)


LAYERS: list[tuple[str, Callable[..., Any], list[Any]]] = [
    ("linear", F.linear, [moving(400, 3), weights(30, 3), weights(30)]),
    ("linear without bias", F.linear, [moving(400, 7, 2), weights(30, 2)]),
    ("linear on data", F.linear, [moving(400, 3, width=0, radius=0), weights(30, 3), weights(30)]),
    ("linear, rounding", F.linear, [moving(400, 3, width=0, radius=0), weights(30, 3, width=0, radius=0)]),
    ("linear of data, rounding", F.linear, [moving(400, 3, width=0, radius=0), random(30, 3).mul(64).round() / 64]),
    ("conv2d, rounding", F.conv2d, [moving(5, 1, 9, 9, width=0, radius=0), weights(6, 1, 1, 2, width=0, radius=0)]),
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
    (
        "batch_norm",
        batch_norm,
        [moving(8, 6, 9, 9), channels(), channels(offset=0.3), channels(seed=1), channels(seed=2)],
    ),
    (
        "batch_norm, tiny variance",
        batch_norm,
        [moving(80, 6, width=0), channels(offset=5), channels(offset=1e-3), channels(seed=1), None],
    ),
    (
        "batch_norm without weight",
        batch_norm,
        [moving(8, 6, 40, radius=0), channels(), channels(offset=1e-6), None, None],
    ),
    (
        "batch_norm, rounding",
        lambda x, mean, var: F.batch_norm(x, mean, var),
        [moving(8, 6, 40, width=0, radius=0), random(6), random(6).abs()],
    ),
    ("layer_norm", layer_norm, [moving(400, 7, 3, width=0.1, radius=0.01), weights(3), weights(3)]),
    (
        "layer_norm, of a variance near 0",
        layer_norm,
        [moving(400, 7, 3, width=1, radius=1), weights(3), weights(3)],
    ),
    ("layer_norm of two dimensions", layer_norm, [moving(400, 2, 3, radius=0.01), weights(2, 3), None]),
    ("layer_norm, rounding", layer_norm, [moving(400, 3, width=0, radius=0), weights(3, width=0, radius=0), None]),
    ("rms_norm", lambda x, w: F.rms_norm(x, (3,), w, 1e-6), [moving(400, 7, 3, width=0.1, radius=0.01), weights(3)]),
    (
        "group_norm",
        lambda x, w, b: F.group_norm(x, 2, w, b),
        [moving(100, 4, 3, 5, radius=0.01), weights(4), weights(4)],
    ),
    ("instance_norm", lambda x: F.instance_norm(x), [moving(100, 4, 3, 5, radius=0.01)]),
    (
        "instance_norm with statistics",
        lambda x, m, v: F.instance_norm(x, m, v, use_input_stats=False),
        [moving(8, 6, 40), channels(), channels(offset=0.3)],
    ),
    (
        "attention",
        attention,
        [moving(40, 2, 5, 3, radius=0.01), moving(40, 2, 6, 3, seed=3), moving(40, 2, 6, 4, seed=5)],
    ),
    (
        "attention, causal",
        lambda q, k, v: attention(q, k, v, is_causal=True),
        [moving(40, 2, 5, 3, radius=0.01), moving(40, 2, 5, 3, seed=3), moving(40, 2, 5, 4, seed=5)],
    ),
    (
        "attention with a mask of infinities",
        lambda q, k, v: attention(q, k, v, MASK.to(v.dtype), scale=0.3),
        [moving(40, 2, 5, 3, radius=0.01), moving(40, 2, 5, 3, seed=3), moving(40, 2, 5, 4, seed=5)],
    ),
    (
        "attention with a mask of truth values",
        lambda q, k, v: attention(q, k, v, MASK == 0),
        [moving(40, 2, 5, 3, radius=0.01), moving(40, 2, 5, 3, seed=3), moving(40, 2, 5, 4, seed=5)],
    ),
    ("softmax of masked values", lambda x: x.masked_fill(MASK < 0, -math.inf).softmax(-1), [moving(100, 5, 5)]),
    ("MultiheadAttention", multi_head, [moving(40, 5, 4, width=0.1, radius=0.01), weights(12, 4), weights(12)]),
    ("softmax", lambda x: x.softmax(-1), [moving(60, 9, 3, scale=2, radius=0.02)]),
    ("softmax, wide", lambda x: F.softmax(x, 1), [moving(60, 9, 3, scale=5, width=5, radius=1)]),
    ("softmax, narrow", lambda x: F.softmax(x, 1), [moving(60, 9, 3, width=0.1, radius=0)]),
    ("softmax, sharp", lambda x: F.softmax(x, 1), [moving(60, 9, 3, scale=300, width=1, radius=0.1)]),
    ("softmax, vanishing shares", lambda x: F.softmax(x, 1), [moving(60, 9, 3, scale=60, width=60, radius=0)]),
    ("softmax, large values", lambda x: F.softmax(x + 1e6, 1), [moving(60, 9, 3, radius=0)]),
    ("softmax, large radii", lambda x: F.softmax(x, 1), [moving(60, 9, 3, scale=5, width=5, radius=200)]),
    ("softmax, -1e9 added", lambda x: F.softmax(x + MASK.clamp_min(-1e9), 1), [moving(60, 5, 5, radius=0.1)]),
    ("softmax, -1e9 filled in", lambda x: F.softmax(x.masked_fill(MASK < 0, -1e9), 1), [moving(60, 5, 5)]),
    ("log_softmax, -1e9 added", lambda x: F.log_softmax(x + MASK.clamp_min(-1e9), 1), [moving(60, 5, 5, radius=0.1)]),
    ("softmax, rounding", lambda x: F.softmax(x, 1), [moving(60, 9, 3, scale=10, width=0, radius=0)]),
    ("log_softmax", lambda x: x.log_softmax(-1), [moving(60, 9, 3, scale=2, radius=0.02)]),
    ("log_softmax, wide", lambda x: F.log_softmax(x, 1), [moving(60, 9, 3, scale=5, width=5, radius=1)]),
    ("log_softmax, narrow", lambda x: F.log_softmax(x, 1), [moving(60, 9, 3, width=0.1, radius=0)]),
    ("log_softmax, rounding", lambda x: F.log_softmax(x, 1), [moving(60, 9, 3, scale=100, width=0, radius=0)]),
]
#: (rule, least share of the radius that a random point reaches)
SHARES = {
    "linear, rounding": 0.02,
    "add, rounding": 0.1,
    "mean, rounding": 0.02,
    "softmax, rounding": 0.005,
    "batch_norm, rounding": 0.02,
    "layer_norm": 0.2,
    "layer_norm of two dimensions": 0.1,
    "layer_norm, rounding": 0.005,
    "rms_norm": 0.1,
    "group_norm": 0.05,
    "instance_norm": 0.05,
    "attention": 0.1,
    "attention, causal": 0.1,
    "attention with a mask of infinities": 0.1,
    "attention with a mask of truth values": 0.1,
    "softmax of masked values": 0.1,
    "MultiheadAttention": 0.05,
    "linear of data, rounding": 0.05,
    "max_pool2d of ties": -1.0,
    "log_softmax, rounding": 0.005,
    "softmax, wide": 0.05,
    "softmax, sharp": 0.02,
    "softmax, large values": 0.0,
    "softmax, vanishing shares": 0.02,
    "log_softmax, -1e9 added": 0.0,
    "log_softmax, wide": 0.3,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "function", "arguments"), LAYERS, ids=[case[0] for case in LAYERS])
def test_layers(name: str, function: Callable[..., Any], arguments: list[Any], dtype: torch.dtype) -> None:
    least = SHARES.get(name, 0.5)
    check(function, arguments, dtype, least=-1.0 if "rounding" in name and dtype == torch.float64 else least)


# Functions that move elements: the result is exact, so a wrong element is far outside

MOVING: dict[str, Callable[[Tensor], Any]] = {
    "view": lambda x: x.view(8, 6, -1),
    "reshape": lambda x: x.reshape(8, -1),
    "flatten": lambda x: x.flatten(1, 2),
    "unflatten": lambda x: x.unflatten(1, (3, 2)),
    "transpose": lambda x: x.transpose(1, -1),
    "permute": lambda x: x.permute(0, 3, 1, 2),
    "samples moved and back": lambda x: x.permute(2, 0, 3, 1).unbind(0),
    "samples transposed twice": lambda x: x.transpose(0, 1).transpose(1, 0),
    "samples moved and selected": lambda x: x.permute(2, 0, 3, 1)[1],
    "mT": lambda x: x.mT,
    "squeeze": lambda x: x[:, :1].squeeze(1),
    "unsqueeze": lambda x: x.unsqueeze(-2),
    "expand": lambda x: x[:, :1].expand(-1, 4, -1, -1),
    "slices": lambda x: x[:, 1::2, :, :-1],
    "ellipsis": lambda x: x[..., 2],
    "select": lambda x: x.select(2, 3),
    "narrow": lambda x: x.narrow(1, 2, 3),
    "chunk": lambda x: x.chunk(3, 1),
    "split": lambda x: x.split([1, 5], 1),
    "cat": lambda x: torch.cat([x, -x, x * 2], 1),
    "stack": lambda x: torch.stack([x, x.flip(1)], 2),
    "cat with data": lambda x: torch.cat([x, torch.full((1, 6, 5, 4), 0.25, dtype=x.dtype).expand(8, -1, -1, -1)], 1),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
    "pad, reflect": lambda x: F.pad(x, (1, 2, 0, 1), "reflect"),
    "pad, replicate": lambda x: F.pad(x, (1, 2, 0, 1), "replicate"),
    "pad, circular": lambda x: F.pad(x, (1, 2, 0, 1), "circular"),
    "pad, negative": lambda x: F.pad(x, (-1, 0, 0, -1)),
    "shortcut of ResNet-20": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3)),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x[:, :4], 2),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x[:, :, :4], 2),
    "channel_shuffle": lambda x: F.channel_shuffle(x, 3),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2),
    "flip": lambda x: x.flip(1, 2),
    "clone": lambda x: x.clone(),
    "dropout in eval mode": lambda x: F.dropout(x, 0.5, False),
    "masked_fill": lambda x: x.masked_fill(torch.arange(4) < 2, 0.5),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MOVING)
def test_moved_elements(name: str, dtype: torch.dtype) -> None:
    check(MOVING[name], [moving(8, 6, 5, 4, radius=1e-6)], dtype, least=0.9)


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(dtype: torch.dtype) -> None:
    indices = torch.randint(30, (8, 7), generator=torch.Generator().manual_seed(0))
    table = weights(30, 5)

    def embed(_: Tensor, weight: Tensor) -> Tensor:
        return F.embedding(SampleNumbers(indices) if isinstance(weight, EnclosedTensor) else indices, weight)

    check(embed, [moving(8, 1), table], dtype)


# Constants and refusals


PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": lambda x: (1 + x.exp()).log(),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "gelu_tanh": lambda x: x * 0.5 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "silu": lambda x: x * torch.sigmoid(x),
    "mish": lambda x: x * torch.tanh((1 + x.exp()).log()),
}


@pytest.mark.parametrize("name", sorted(smooth_rules.BOUNDED))
def test_constants_bound_the_derivatives(name: str) -> None:
    """On a grid, by autograd; between two points an extreme adds step^2 / 8 times the second derivative at most."""
    step = 1e-3
    function = smooth_rules.BOUNDED[name]
    x = torch.arange(-15, 15, step, dtype=torch.float64, requires_grad=True)
    values = [PLAIN.get(name, function.function)(x)]
    for _ in range(5):
        values.append(torch.autograd.grad(values[-1].sum(), x, create_graph=True)[0])
    derivatives = [value.detach() for value in values[1:]]
    limits = (function.first, function.second, (-function.third, function.third))
    for derivative, second, (least, most) in zip(derivatives[:3], derivatives[2:], limits, strict=True):
        between = step**2 / 8 * second.abs().max().item() * 1.01
        # Bounds that a formula gives exactly need no margin.
        exact = [0.0, 0.25, 1.0, -1.0]
        assert derivative.min().item() - (0 if least in exact else between) >= least - 1e-11
        assert derivative.max().item() + (0 if most in exact else between) <= most + 1e-11
    for ours, derivative in zip(function.derivatives(x.detach()), derivatives, strict=False):
        torch.testing.assert_close(ours, derivative, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("part", ["left", "right", "radius"])
def test_what_is_unknown_stays_unknown(part: str, dtype: torch.dtype) -> None:
    """NaN in one element of an argument, as 1 / 0 leaves it: no output that depends on it has a bound."""
    functions = {
        **ONE_VARIABLE,
        **POSITIVE,
        "softmax": lambda x: x.softmax(1),
        "layer_norm": lambda x: F.layer_norm(x, (6,)),
    }
    functions |= {"sum": lambda x: x.sum(1, True), "linear": lambda x: F.linear(x, torch.ones(1, 6, dtype=x.dtype))}
    functions |= {
        "max_pool": lambda x: F.max_pool1d(x[:, None], 6),
        "maximum": lambda x: torch.maximum(x, torch.ones(1)),
    }
    for name, function in functions.items():
        values = {"left": 0.5, "right": 0.7, "radius": 0.01}
        parts = {name: torch.full((3, 6), value, dtype=dtype) for name, value in values.items()}
        parts[part][:, 1] = torch.nan
        with torch.no_grad(), network_run(3):
            output = function(EnclosedTensor(AffineForm(**parts), batched=True)).form.settled()
        sums = (output.left + output.right + output.full_radius()).flatten(1)
        assert not bool(sums[:, min(1, sums.shape[1] - 1)].isfinite().any()), name


def refused(call: Callable[[EnclosedTensor], Any], match: str) -> Any:
    return pytest.param(call, match, id=match[:60])


STORED: list[EnclosedTensor] = []


def in_place_on_a_view(x: EnclosedTensor) -> Any:
    y = x.clone() * 1
    z = y.view(6, -1)
    y.add_(1)
    return z


@pytest.mark.parametrize(
    ("call", "match"),
    [
        refused(in_place_on_a_view, "add_ writes in place to a tensor of which there are views"),
        refused(lambda x: torch.zeros(6, 4, 4, 2).add_(x), "writes values that move into a tensor that does not"),
        refused(lambda x: torch.add(x, x, out=torch.zeros(6, 4, 4, 2)), "with out="),
        refused(lambda x: STORED.append(x) if not STORED else STORED[0] * 2, "stored in an earlier call"),
        refused(lambda x: torch.add(x, other=STORED[0]), "stored in an earlier call"),
        refused(lambda x: x.sum(0), "sum along the dimension of the samples"),
        refused(lambda x: x.mean(), "mean along the dimension of the samples"),
        refused(lambda x: x.softmax(0), "softmax along the dimension of the samples"),
        refused(lambda x: F.layer_norm(x, x.shape), "layer_norm along the dimension of the samples"),
        refused(lambda x: F.rms_norm(x, x.shape[1:]), "rms_norm without eps"),
        refused(lambda x: F.batch_norm(x, None, None, training=True), "statistics of the batch"),
        refused(lambda x: F.instance_norm(x, torch.zeros(4), torch.ones(4)), "instance_norm in training mode"),
        refused(lambda x: x.flip(0), "flip along the dimension of the samples"),
        refused(lambda x: x.transpose(0, 1) * 2, "mul of a tensor whose samples are not its first dimension"),
        refused(lambda x: torch.cat([x.permute(1, 0, 2, 3)] * 2), "cat of a tensor whose samples are not"),
        refused(lambda x: x.permute(1, 0, 2, 3)[:, 0], "along the dimension of the samples"),
        refused(lambda x: x.unbind(0), "along the dimension of the samples"),
        refused(lambda x: torch.cat([x, x]), "cat along the dimension of the samples"),
        refused(lambda x: x[1:], "along the dimension of the samples"),
        refused(lambda x: x[torch.arange(6)], "indexing by lists or tensors"),
        refused(lambda x: x.view(4, -1), "mixes the samples of a batch"),
        refused(lambda x: x + torch.zeros(6, 1, 1, 1), "by a sample's position in the batch"),
        refused(lambda x: torch.einsum("bchw,dchw->bd", x, x), "mixes the samples"),
        refused(lambda x: torch.einsum("bcii,bcii->bc", x[..., :2, :], x[..., :2, :]), "diagonal"),
        refused(lambda x: x.flatten(1) @ x.flatten(1).mT, "matmul of a tensor whose samples"),
        refused(lambda x: F.linear(torch.zeros(6, 2), x[:, 0, 0]), "weights that depend on the samples"),
        refused(lambda x: nn.MultiheadAttention(4, 1).eval()(*[x[..., 0]] * 3), "batch_first"),
        refused(lambda x: x.sum((1, 2, 3)).item(), "item"),
        refused(lambda x: float(x[:, 0, 0, 0]), "__float__"),
        refused(lambda x: bool(x.sum((1, 2, 3))), "__bool__"),
        refused(lambda x: x.numpy(), "numpy"),
        refused(lambda x: x.tolist(), "tolist"),
        refused(lambda x: x > 0, "gt has no rule"),
        refused(lambda x: x.data, "data"),
        refused(lambda x: F.dropout(x), "dropout in training mode"),
        refused(lambda x: F.rrelu(x, training=True), "rrelu in training mode"),
        refused(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1), "attention with dropout"),
        refused(lambda x: torch.bernoulli(x), "bernoulli"),
        refused(lambda x: torch.randn_like(x), "randn_like"),
        refused(lambda x: x.uniform_(), "uniform_"),
        refused(lambda x: torch.cumsum(x, 1), "cumsum"),
        refused(lambda x: x.sort(1), "sort"),
        refused(lambda x: x**2.5, "exponent 2.5"),
        refused(lambda x: x.half(), "half"),
        refused(lambda x: x.to(torch.float64), "conversion to another dtype"),
        refused(lambda x: x.masked_fill(torch.ones(6, 1, 1, 1, dtype=torch.bool), 0.0), "position in the batch"),
        refused(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), "interpolate with mode=bilinear"),
    ],
)  # fmt: skip
def test_refusals(call: Callable[[EnclosedTensor], Any], match: str) -> None:
    values = AffineForm(torch.ones(6, 4, 4, 2), torch.zeros(6, 4, 4, 2))

    def run() -> None:
        for _ in range(2):
            with torch.no_grad(), network_run(6):
                call(EnclosedTensor(values, batched=True))

    with pytest.raises(NotEnclosedError, match=match):
        run()


# What each part of a bound is for: without it a point lies outside

CASES: dict[str, tuple[Callable[..., Any], list[Any]]] = {name: (function, values) for name, function, values in LAYERS}
CASES |= {name: (function, [everywhere()]) for name, function in ONE_VARIABLE.items()}
CASES |= {name: (function, [positive()]) for name, function in POSITIVE.items()}
Forms = Callable[..., AffineForm]


def without_parabola(bilinear: Forms) -> Forms:
    def broken(function: Any, x: AffineForm, w: AffineForm, terms: int, *args: Any, **kwargs: Any) -> AffineForm:
        made = bilinear(function, x, w, terms, *args, **kwargs)
        half_q = function((x.right - x.left) / 2, (w.right - w.left) / 2, None) / 2
        return AffineForm(made.left + half_q, made.right + half_q, made.full_radius() - half_q.abs())

    return broken


def without(of: int, *fields: str) -> Callable[[Forms], Forms]:
    """The function that takes its argument number ``of`` for exact: with no radius or no rounding."""

    def breaking(function: Forms) -> Forms:
        def broken(*args: Any, **kwargs: Any) -> AffineForm:
            given = args[of]
            if isinstance(given, AffineForm):
                radius, rounding = (None if name in fields else getattr(given, name) for name in ("radius", "rounding"))
                changed = AffineForm(given.left, given.right, radius, rounding or 0.0)
                args = (*args[:of], changed, *args[of + 1 :])
            return function(*args, **kwargs)

        return broken

    return breaking


def without_rounding(function: Forms) -> Forms:
    def broken(*args: Any, **kwargs: Any) -> AffineForm:
        made = function(*args, **kwargs)
        return AffineForm(made.left, made.right, made.radius, 0.0)

    return broken


def without_radius(function: Forms) -> Forms:
    return lambda x: AffineForm((made := function(x)).left, made.right)


def without_spread(function: Forms) -> Forms:
    return lambda form, rank: function(AffineForm(form.left, form.right), rank)


def of_a_straight_line(smooth: Forms) -> Forms:
    """The function of one variable with f'' = 0."""

    def broken(x: AffineForm, function: Any, ranges: Any, **kwargs: Any) -> AffineForm:
        def straight(*args: Tensor) -> tuple[Tensor, ...]:
            least, most, bottom, top = ranges(*args)
            return least, most, bottom * 0, top * 0

        return smooth(x, function, straight, **kwargs)

    return broken


def of_the_middle(smooth: Forms) -> Forms:
    """The function of one variable with the slope of the piece's middle alone."""

    def broken(x: AffineForm, function: Any, ranges: Any, **kwargs: Any) -> AffineForm:
        def local(low: Tensor, high: Tensor, reach: Tensor) -> tuple[Tensor, ...]:
            middle = (low + high) / 2
            return *ranges(middle, middle, reach * 0)[:2], *ranges(low, high, reach)[2:]

        return smooth(x, function, local, **kwargs)

    return broken


def zero(field: str) -> Callable[[Any], Any]:
    def breaking(shares: Any) -> Any:
        def broken(*args: Any) -> Any:
            made = shares(*args)
            setattr(made, field, getattr(made, field) * 0)
            return made

        return broken

    return breaking


def no_gamma(_: Any) -> Any:
    return lambda count, dtype: 0.0


BROKEN = [
    (rules, "bilinear", without_parabola, "conv2d"),
    (rules, "bilinear", without_parabola, "matmul"),
    (rules, "bilinear", without(1, "radius"), "linear"),
    (rules, "bilinear", without(2, "radius"), "linear"),
    (rules, "bilinear", without(4, "radius"), "linear"),
    (rules, "bilinear", without(2, "rounding"), "linear, rounding"),
    (rules, "bilinear", without(2, "rounding"), "conv2d, rounding"),
    (form, "gamma", no_gamma, "mean, rounding"),
    (form, "gamma", no_gamma, "linear of data, rounding"),
    (rules, "add", without_rounding, "add, rounding"),
    (rules, "add", without(0, "radius"), "add"),
    (rules, "summed", without(0, "radius"), "sum"),
    (rules, "scaled", without_rounding, "times a number"),
    (smooth_rules, "smooth", of_a_straight_line, "gelu"),
    (smooth_rules, "smooth", of_a_straight_line, "tanh"),
    (smooth_rules, "smooth", of_a_straight_line, "exp"),
    (smooth_rules, "smooth", of_a_straight_line, "log"),
    (smooth_rules, "smooth", of_a_straight_line, "rsqrt"),
    (smooth_rules, "smooth", of_the_middle, "silu"),
    (smooth_rules, "smooth", of_the_middle, "sqrt"),
    (smooth_rules, "smooth", without(0, "radius"), "sigmoid"),
    (piecewise_rules, "smooth", of_a_straight_line, "elu"),
    (piecewise_rules, "smooth", of_the_middle, "celu"),
    (normalization_rules, "inverse_root", without_radius, "batch_norm without weight"),
    (normalization_rules, "_channels", without_spread, "batch_norm"),
    (normalization_rules, "inverse_root", without_radius, "layer_norm"),
    (attention_rules, "_shares", zero("change"), "softmax"),
    (attention_rules, "_shares", zero("swing"), "softmax, narrow"),
    (attention_rules, "_shares", zero("variance"), "softmax, narrow"),
    (attention_rules, "_shares", zero("change"), "log_softmax"),
    (attention_rules, "_shares", zero("variance"), "log_softmax"),
    (attention_rules, "_shares", zero("rounding"), "softmax, rounding"),
    (attention_rules, "bilinear", without_parabola, "einsum"),
]


@pytest.mark.parametrize(("module", "name", "breaking", "case"), BROKEN)
def test_each_part_of_a_bound_is_needed(
    module: Any, name: str, breaking: Callable[[Any], Any], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, breaking(getattr(module, name)))
    assert excess(*CASES[case], torch.float32) > 1


# Whole networks


class Attending(nn.Module):
    """Patches, a class token, one encoder layer: what a vision transformer does with its samples' dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Linear(4, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, 0.1, "gelu", batch_first=True, norm_first=True)
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x.unflatten(1, (4, 4)))], 1)
        x = self.layer(x)
        q, k, v = self.qkv(x).reshape(len(x), 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x[:, 0])


def convolutional() -> nn.Module:
    first = (nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.SiLU())
    network = nn.Sequential(
        *first, nn.Conv2d(4, 4, 2), nn.GroupNorm(2, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 3)
    )
    network[2].running_mean.normal_()
    network[2].running_var.uniform_(0.5, 2)
    return network


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "attention": (Attending, F.cross_entropy),
    "convolutions": (convolutional, F.cross_entropy),
    "log-softmax": (lambda: nn.Sequential(nn.Linear(16, 9), nn.Tanh(), nn.Linear(9, 3), nn.LogSoftmax(1)), F.nll_loss),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(16, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 3)),
        nn.CrossEntropyLoss(label_smoothing=0.1),
    ),
}


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_losses_lie_below_their_bounds(name: str, precise: bool) -> None:
    build, loss = NETWORKS[name]
    torch.manual_seed(0)
    network, other = build().eval(), build().eval()
    samples = torch.randn(40, 16), torch.arange(40) % 3
    enclosure = LossEnclosure(Polyline([network.state_dict(), other.state_dict()]), Evaluator(network, loss, *samples))
    units = torch.arange(40)
    for width in (0.1, 1e-2, 1e-3):
        bounds = enclosure.bounds(0, 0.4, 0.4 + width, units, precise=precise)
        for share in torch.linspace(0, 1, 21).tolist():
            losses = enclosure.losses(Position(0, 0.4 + width * share), units)
            most = (bounds.start + (bounds.end - bounds.start) * share).nan_to_num(nan=torch.inf)
            assert bool((losses <= most + 1e-6).all())  # the losses are rounded to float32
    assert float((bounds.start - losses).max()) < 0.02


def test_a_network_too_deep_for_bounds_is_refused() -> None:
    """Boxes grow by about 4 in each layer, while the values keep their size."""
    torch.manual_seed(0)

    def deep() -> nn.Module:
        layers = [nn.Linear(16, 16) for _ in range(40)]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight)
        return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())], nn.Linear(16, 3))

    network = deep()
    other = {name: value * (1 + 0.1 * torch.randn_like(value)) for name, value in network.state_dict().items()}
    evaluator = Evaluator(network, F.cross_entropy, torch.randn(40, 16), torch.arange(40) % 3)
    with pytest.raises(NotEnclosedError, match="too deep for bounds"):
        LossEnclosure(Polyline([network.state_dict(), other]), evaluator)


@pytest.mark.parametrize("loss", [F.cross_entropy, F.nll_loss])
def test_losses_of_a_log_softmax_are_bounded_as_those_of_its_logits(loss: Any) -> None:
    torch.manual_seed(0)
    first, second = (nn.Sequential(nn.Linear(16, 9), nn.Tanh(), nn.Linear(9, 3)) for _ in range(2))
    line = Polyline([first.state_dict(), second.state_dict()])
    samples = torch.randn(40, 16), torch.arange(40) % 3
    networks = [(first, F.cross_entropy), (nn.Sequential(*first, nn.LogSoftmax(1)), loss)]
    plain, composed = (
        LossEnclosure(line, Evaluator(network, loss, *samples)).bounds(0, 0.2, 0.7, torch.arange(40))
        for network, loss in networks
    )
    torch.testing.assert_close(composed.start, plain.start, rtol=1e-12, atol=0)


@pytest.mark.parametrize("inplace", [False, True])
def test_relu_and_the_max_pooling_behind_it_are_one_pass(inplace: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    slopes, op = [], form.relu_pool_bounds

    def counted(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
        slopes.append(given[3])
        return op(*given)

    monkeypatch.setattr(form, "relu_pool_bounds", counted)
    with network_run(2):
        x = EnclosedTensor(AffineForm(-torch.rand(2, 3, 4, 4), -torch.rand(2, 3, 4, 4)), batched=True)
        pooled = nn.MaxPool2d(2)(nn.LeakyReLU(0.25, inplace)(x)).form
        assert slopes == [0.25]
        # In place, the input holds the ReLU too.
        assert bool((x.form.left < -0.5).any()) is not inplace
    assert pooled.shape == (2, 3, 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_more_points(case: str, dtype: torch.dtype) -> None:
    check(*CASES[case], dtype, least=-1, numbers=20_000_000)
