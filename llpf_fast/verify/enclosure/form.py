"""``AffineForm``: an enclosure of values that move with one variable, and its arithmetic with outward rounding."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...errors import LLPFError
from ...ops import relu_pool_bounds
from ...ops.relu_pool_bounds import LEAST_SLOPE


class NotEnclosedError(LLPFError):
    """An operation or a loss has no rule of enclosure; the message names it."""


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of one rounding to nearest: 2^-24 for float32, 2^-53 for float64."""
    return torch.finfo(dtype).eps / 2


@functools.lru_cache(maxsize=1024)
def gamma(count: int, dtype: torch.dtype) -> float:
    """Largest relative error of a sum of ``count`` terms in any order: n u / (1 - n u) (Higham 2002, lemma 3.1)."""
    error = count * unit_roundoff(dtype)
    if error >= 0.1:
        raise NotEnclosedError(f"a sum of {count:,} terms in {dtype} has no useful bound of its rounding")
    return error / (1 - error)


#: The largest radii of sums and products so far. Their rounding is part of each radius, so radii below _LARGEST show
#: that no partial sum overflowed (an overflow in the middle could have the wrong sign).
_largest: ContextVar[list[Tensor] | None] = ContextVar("largest_radii", default=None)
#: float64's limit keeps values in float32's range too: a network of float32 would overflow where they leave it.
_LARGEST = {torch.float32: 1e28, torch.float64: 1e21}


@contextlib.contextmanager
def overflow_check() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether no sum or product inside overflowed so far; it waits for a GPU."""
    largest: list[Tensor] = []
    token = _largest.set(largest)

    def passed() -> bool:
        return all(bool(value < _LARGEST[value.dtype]) for value in largest)

    try:
        yield passed
    finally:
        _largest.reset(token)


@dataclass
class AffineForm:
    """Tensors v(t), -1 <= t <= 1, that lie near the chord from ``left`` (t = -1) to ``right`` (t = 1).

        |v(t) - ((1 - t) left + (1 + t) right) / 2|  <=  radius + rounding u max(|left|, |right|)

    for every real t and every element, where u is the dtype's unit roundoff and the three tensors are read as exact
    numbers. An affine form (Stolfi and de Figueiredo 1997) of one shared variable, whose own noise symbols are boxed.

    Attributes:
        left, right: of one shape and dtype (float32 or float64). The same object where nothing moves.
        radius: >= 0, of a shape that broadcasts to it; None for 0.
        rounding: number of roundings of ``left`` and ``right`` that the radius does not contain yet.
        magnitude: at least max(|left|, |right|); computed when missing.
    """

    left: Tensor
    right: Tensor
    radius: Tensor | None = None
    rounding: float = 0.0
    _magnitude: Tensor | None = field(default=None, repr=False)

    @property
    def still(self) -> bool:
        """Whether the chord is one point."""
        return self.left is self.right

    @property
    def dtype(self) -> torch.dtype:
        return self.left.dtype

    @property
    def shape(self) -> torch.Size:
        return self.left.shape

    @property
    def magnitude(self) -> Tensor:
        if self._magnitude is None:
            size = self.left.abs()
            self._magnitude = size if self.still else torch.maximum(size, self.right.abs())
        return self._magnitude

    @functools.cached_property
    def half_change(self) -> Tensor:
        """(right - left) / 2; of a weight it is used for every batch of a piece."""
        return (self.right - self.left).mul_(0.5)

    def settled(self) -> AffineForm:
        """The same form with all rounding inside its radius, and ``rounding`` 0."""
        if not self.rounding:
            return self
        return AffineForm(self.left, self.right, self.full_radius(), 0.0, self._magnitude)

    def full_radius(self) -> Tensor:
        """Radius with the pending rounding."""
        u, tiny = unit_roundoff(self.dtype), torch.finfo(self.dtype).tiny
        if not self.rounding:
            return torch.zeros_like(self.left) if self.radius is None else self.radius
        error = self.magnitude * (self.rounding * u * (1 + 4 * u))
        # Subnormal results round by up to the smallest normal number where the processor flushes them to zero.
        return error.add_(4 * tiny) if self.radius is None else error.add_(self.radius * (1 + 4 * u)).add_(4 * tiny)

    def map(
        self, function: Callable[[Tensor], Tensor], *, radius: Callable[[Tensor], Tensor] | None = None
    ) -> AffineForm:
        """The form of ``function``, which moves or copies elements (or sets constants, in ``left`` and ``right``)."""
        left = function(self.left)
        right = left if self.still else function(self.right)
        spread = None if self.radius is None else (radius or function)(self.radius.expand(self.shape))
        return AffineForm(left, right, spread, self.rounding)

    def to(self, dtype: torch.dtype) -> AffineForm:
        """The form in another dtype; to a narrower one it rounds outward."""
        if dtype == self.dtype:
            return self
        form = self.settled()
        left = form.left.to(dtype)
        right = left if form.still else form.right.to(dtype)
        u = unit_roundoff(dtype)
        radius = None if form.radius is None else form.radius.to(dtype).mul(1 + 4 * u).add_(4 * torch.finfo(dtype).tiny)
        return AffineForm(left, right, radius, 0.0 if dtype == torch.float64 else 2.0)


def exact(value: Tensor) -> AffineForm:
    """The form of constants."""
    return AffineForm(value, value)


#: (x, w, bias or None) -> a tensor that is linear in x and in w.
Bilinear = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def bilinear(
    function: Bilinear,
    x: AffineForm,
    w: AffineForm,
    terms: int,
    bias: AffineForm | None = None,
    *,
    batched: bool = False,
) -> AffineForm:
    """The form of ``function(x, w, bias)``, which sums ``terms`` products of x and w, and the bias, an element.

    The product of two chords is a parabola: the chord of its values at both ends minus (1 - t^2) Q with
    Q = function((x_r - x_l) / 2, (w_r - w_l) / 2). As 0 <= 1 - t^2 <= 1, it lies within |Q| / 2 of the chord minus
    Q / 2. With m = max(|left|, |right|), radii e, and n = ``terms``, what else can differ is at most

        f(e_x, m_w) + f(m_x + e_x, e_w) + gamma_(n+8) f(m_x + |x_r - x_l| / 2, m_w) + the bias's radius and rounding,

    for the ends are computed with errors of at most gamma_(n+1) f(m_x, m_w), whatever the order of the sums, and Q with
    gamma_(n+3) f(|x_r - x_l| / 2, m_w).

    Args:
        batched: the first dimension of x is that of samples, which ``function`` does not mix.
    """
    dtype = x.dtype
    u, tiny = unit_roundoff(dtype), torch.finfo(dtype).tiny
    relative, outward = gamma(terms + 8, dtype), 1 + 4 * gamma(terms + 8, dtype)
    left = right = function(x.left, w.left, None if bias is None else bias.left)
    if not (x.still and w.still and (bias is None or bias.still)):
        right = function(x.right, w.right, None if bias is None else bias.right)
    half_q = quarter_x = None
    if not (x.still or w.still):
        quarter_x = (x.right - x.left).mul_(0.25)
        half_q = function(quarter_x, w.half_change, None)
        left, right = left.sub_(half_q), right.sub_(half_q)
    # All that multiplies m_w: the radius of x, and the rounding, which is relative to m_x m_w. Inflated by what the
    # sum of these themselves may lose: operands are smaller than results.
    share = (relative + (x.rounding + w.rounding) * u * (1 + 8 * u)) * outward
    if x.still and x.radius is None:
        # An exact operand, mostly the data: the largest of the batch bounds the rounding of each, at the cost of one.
        reach = x.magnitude.amax(0, keepdim=True) if batched and len(x.left) > 1 else x.magnitude
        inflated = reach * share
    else:
        inflated = x.magnitude * share
        if x.radius is not None:
            inflated = inflated.add_(x.radius, alpha=(1 + (w.rounding + 8) * u) * outward)
        if quarter_x is not None:
            inflated = inflated.add_(quarter_x.abs_(), alpha=2 * relative * outward)
        # Subnormal values may have been flushed to zero.
        inflated = inflated.add_(8 * tiny * outward)
    extra, flushed = None, 16 * (terms + 8) * tiny
    if bias is not None:
        extra = bias.magnitude * ((relative + bias.rounding * u * (1 + 8 * u)) * outward)
        if bias.radius is not None:
            extra = extra.add(bias.radius, alpha=(1 + 8 * u) * outward)
        extra, flushed = extra.add_(2 * flushed), 0.0
    radius = function(inflated, w.magnitude, extra)
    if w.radius is not None:
        whole = x.magnitude * ((1 + 8 * u) * outward)
        if x.radius is not None:
            whole = whole.add_(x.radius, alpha=(1 + 8 * u) * outward)
        radius = function(whole, w.radius, None).add_(radius)
    if half_q is not None:
        radius = radius.add_(half_q.abs_(), alpha=1 + 8 * u)
    if flushed:
        radius = radius.add_(flushed)
    note_largest(radius)
    return AffineForm(left, right, radius)


def note_largest(radius: Tensor) -> None:
    largest = _largest.get()
    if largest is not None and radius.numel():
        largest.append(radius.amax())


def add(x: AffineForm, y: AffineForm, scale: float = 1.0) -> AffineForm:
    """The form of x + scale y; ``scale`` is 1 or -1."""
    still = x.still and y.still
    left = torch.add(x.left, y.left, alpha=scale)
    right = left if still else torch.add(x.right, y.right, alpha=scale)
    parts = [form.full_radius() for form in (x, y) if form.radius is not None or form.rounding]
    radius = functools.reduce(torch.add, parts) * (1 + 4 * unit_roundoff(x.dtype)) if parts else None
    return AffineForm(left, right, radius, 2.0)


def scaled(x: AffineForm, factor: float) -> AffineForm:
    """The form of ``factor`` x, for a factor that is read as an exact float64 number."""
    if not math.isfinite(factor):
        raise NotEnclosedError(f"multiplication by {factor}")
    exactly = bool(torch.tensor(factor, dtype=x.dtype).double() == factor)
    left = x.left * factor
    right = left if x.still else x.right * factor
    u, tiny = unit_roundoff(x.dtype), torch.finfo(x.dtype).tiny
    radius = None if x.radius is None else (x.radius * abs(factor)).mul_(1 + 8 * u).add_(4 * tiny)
    return AffineForm(left, right, radius, (x.rounding * (1 + 8 * u)) + (2.0 if exactly else 4.0))


def summed(x: AffineForm, function: Callable[[Tensor], Tensor], terms: int, factor: float = 1.0) -> AffineForm:
    """The form of ``factor`` times a sum of ``terms`` elements each; ``function`` includes the factor."""
    u, tiny = unit_roundoff(x.dtype), torch.finfo(x.dtype).tiny
    left = function(x.left)
    right = left if x.still else function(x.right)
    relative = gamma(terms + 8, x.dtype) + x.rounding * u * (1 + 8 * u)
    spread = x.magnitude * relative
    if x.radius is not None:
        spread = spread + x.radius * (1 + 8 * u)
    radius = function(spread + 8 * tiny) * (1 + 4 * gamma(terms + 8, x.dtype)) + 8 * tiny * max(1.0, abs(factor))
    note_largest(radius)
    return AffineForm(left, right, radius)


def check_slope(slope: float) -> None:
    """NotEnclosedError where :func:`leaky_relu` does not take the slope."""
    if not (slope == 0 or LEAST_SLOPE <= slope <= 1):
        raise NotEnclosedError(f"leaky_relu with the slope {slope:g}, which is neither 0 nor between 2^-100 and 1")


def leaky_relu(
    x: AffineForm,
    slope: float = 0.0,
    kernel: Sequence[int] = (1, 1),
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    *,
    ceil_mode: bool = False,
) -> AffineForm:
    """The form of max(x, slope x), 0 <= slope <= 1, and of its max pooling, in either order.

    :func:`llpf_fast.ops.relu_pool_bounds`. Units that are surely off are exact where slope is 0.
    """
    check_slope(slope)
    window = tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), ceil_mode
    if x.radius is None and x.still and not x.rounding:
        value = x.left if slope == 1 else torch.nn.functional.leaky_relu(x.left, slope)
        if math.prod((*kernel, *stride)) > 1:
            value = torch.nn.functional.max_pool2d(value, *window)
        return AffineForm(value, value, None, 2.0 if 0 < slope < 1 else 0.0)
    left, right, radius = x.left.contiguous(), x.right.contiguous(), x.full_radius()
    if radius.shape != (1, *left.shape[1:]):
        radius = radius.expand(left.shape)
        radius = radius[:1] if radius.dim() and radius.stride(0) == 0 else radius  # one for all samples
    left, right, radius = relu_pool_bounds(left, right, radius.contiguous(), slope, *window)
    return AffineForm(left, left if x.still else right, radius)


def maximum(x: AffineForm, y: AffineForm) -> AffineForm:
    """The form of max(x, y): the pooling of pairs."""
    shape = torch.broadcast_shapes(x.shape, y.shape)

    def pairs(of: Callable[[AffineForm], Tensor]) -> Tensor:
        return torch.stack([of(form).expand(shape).flatten() for form in (x, y)])[None, None]

    left = pairs(lambda form: form.left)
    right = left if x.still and y.still else pairs(lambda form: form.right)
    pooled = leaky_relu(AffineForm(left, right, pairs(AffineForm.full_radius)), 1.0, (2, 1))
    return pooled.map(lambda value: value.reshape(shape))


def negative(x: AffineForm) -> AffineForm:
    """The form of -x."""
    left = -x.left
    return AffineForm(left, left if x.still else -x.right, x.radius, x.rounding)
