"""Rules of enclosure of softmax, attention and sums of products by letters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .form import AffineForm, NotEnclosedError, bilinear, gamma, scaled, unit_roundoff
from .smooth_rules import over
from .tensor import RULES, EnclosedTensor, check_aligned, check_dims, dims_of, forms_of, result, rule


@dataclass(kw_only=True)
class LogSoftmaxForm(AffineForm):
    """A form that is the log-softmax of ``logits`` along dimension 1, from which losses have tighter bounds."""

    logits: AffineForm


@dataclass
class _Shares:
    """What softmax and log-softmax have in common: bounds along one dimension of the logits z, whose chord is Z.

    With d = (Z_r - Z_l) / 2 and p the softmax of Z(t), let a be the mean and V the variance of d under p(t). Then
    p_i' = p_i (d_i - a), p_i'' = p_i ((d_i - a)^2 - V), (log sum exp)'' = V and a' = V. With p, a, V of the middle, and
    R the range of d, p_j(t) <= p_j e^R, so that V(t) <= V^ = min(e^R V, R^2 / 4), and |d_i - a(t)| <= G_i =
    min(largest |d_i - d_j|, |d_i - a| + V^).

    Attributes:
        most: upper bounds of p_i on the chord, min(1, p_i e^(G_i)).
        swing, variance: G_i and V^; zero where nothing moves.
        change: |log p_i(z) - log p_i(Z)| is at most this, by the radii e of z. Its derivative is (1 - p_i) e_i at most,
            and p_j e_j more for each other j, with p_j <= most_j e^(2 max e) near the chord.
        rounding: relative error of a computed softmax; infinite where it is above a tenth.
        masked: where p is 0, or below e^-800 whatever the radii: z is -infinity, or far below the largest.
    """

    most: Tensor
    swing: Tensor
    variance: Tensor
    change: Tensor
    rounding: Tensor
    masked: Tensor


def _masked(z: AffineForm, radius: Tensor, dim: int) -> Tensor:
    u = unit_roundoff(z.dtype)
    highest, lowest = torch.maximum(z.left, z.right) + radius, torch.minimum(z.left, z.right) - radius
    top = lowest.amax(dim, keepdim=True)
    distance = 800 + (highest.abs() + top.abs()) * (8 * u)
    infinite = (z.left == -torch.inf) & (z.right == -torch.inf) & ~radius.isnan()
    return infinite | (highest < top - distance)


def _shares(z: AffineForm, dim: int) -> _Shares:
    u, tiny = unit_roundoff(z.dtype), torch.finfo(z.dtype).tiny
    sums = gamma(z.shape[dim] + 8, z.dtype)
    radius = torch.zeros_like(z.left) if z.radius is None else z.radius.expand(z.shape)
    masked = _masked(z, radius, dim)
    left, right, radius = (value.masked_fill(masked, 0.0) for value in (z.left, z.right, radius))
    # x - max x rounds by u of up to twice the largest |x|, and so does the middle.
    largest = torch.maximum(left.abs(), right.abs()).amax(dim, keepdim=True)
    rounding = largest.mul(4 * u).add_(64 * u + 4 * sums)
    rounding = rounding.masked_fill_(rounding > 0.1, torch.inf)
    # Shares below the smallest normal number may be 0.
    share = torch.softmax(((left + right) * 0.5).masked_fill_(masked, -torch.inf), dim).add_(2 * tiny)
    swing, variance, most = torch.zeros_like(share), torch.zeros_like(largest), share
    if not z.still:
        d = (right - left) * 0.5
        lowest = d.masked_fill(masked, torch.inf).amin(dim, keepdim=True)
        highest = d.masked_fill(masked, -torch.inf).amax(dim, keepdim=True)
        extent = (highest - lowest) * (1 + 8 * u)
        mean = (share * d).sum(dim, keepdim=True)
        deviation = (d - mean).abs_().masked_fill_(masked, 0.0)
        variance = (share * deviation.square()).sum(dim, keepdim=True).mul_((1 + 2 * rounding) * extent.exp())
        variance = torch.minimum(variance * (1 + 2 * sums), extent.square() * 0.25)
        slack = rounding * torch.maximum(highest.abs(), lowest.abs())
        swing = torch.minimum(torch.maximum(d - lowest, highest - d), deviation + variance + slack)
        swing = swing.mul_(1 + 8 * u).masked_fill_(masked, 0.0)
        most = share * swing.exp()
    most = (most * (1 + 2 * rounding)).clamp_max_(1.0)
    change = torch.zeros_like(share)
    if z.radius is not None:
        reach = radius.amax(dim, keepdim=True)
        near = most * (2 * reach).exp()
        total, weighted = near.sum(dim, keepdim=True), (near * radius).sum(dim, keepdim=True)
        # 1 - p_i is the sum of the others; subtracting rounds by the bound of the whole sum.
        others = (total * (1 + 4 * sums) - near).clamp_max_(1.0)
        change = others * radius + (weighted * (1 + 4 * sums) - near * radius)
        # Infinity minus infinity says nothing; what is unknown of z is so in the other.
        change = torch.minimum(change.nan_to_num_(nan=torch.inf), radius + reach).mul_(1 + 64 * u)
    return _Shares(most, swing, variance, change, rounding, masked)


def softmax_form(z: AffineForm, dim: int) -> AffineForm:
    """The form of the softmax of z along ``dim``; entries of z that are -infinity at both ends have the share 0.

    On the chord p lies between its own chord minus ``most`` G^2 / 2 and plus ``most`` V^ / 2, and in [0, most].
    """
    z = z.settled()
    u, tiny = unit_roundoff(z.dtype), torch.finfo(z.dtype).tiny
    shares = _shares(z, dim)
    left = right = torch.softmax(z.left, dim)
    radius = (torch.maximum(left, shares.most) * shares.rounding).clamp_max_(1.0)
    radius = radius.add_((shares.most * torch.expm1(shares.change)).clamp_max_(1.0))
    if not z.still:
        right = torch.softmax(z.right, dim)
        # The bounds along the chord are within 100 u and the rounding of the sums of themselves.
        below = shares.most * torch.minimum(shares.swing.square() * 0.5, torch.ones_like(left))
        above = shares.most * torch.minimum(shares.variance * 0.5, torch.ones_like(shares.variance))
        shift = (above - below).mul_(0.5)
        left, right = left + shift, right + shift
        radius = radius.add_(above.add_(below), alpha=0.5)
    radius = radius.mul_(1 + 4000 * u + 2 * gamma(z.shape[dim] + 8, z.dtype)).add_(8 * tiny)
    radius = radius.masked_fill_(shares.masked, 8 * tiny)
    return AffineForm(left, right, radius)


def log_softmax_form(z: AffineForm, dim: int) -> AffineForm:
    """The form of z - log sum exp z along ``dim``: log sum exp lies below its chord, by at most V^ / 2."""
    z = z.settled()
    u = unit_roundoff(z.dtype)
    shares = _shares(z, dim)
    left = right = torch.log_softmax(z.left, dim)
    radius = shares.change
    if z.radius is not None:
        radius = radius + z.radius * shares.masked
    magnitude = z.magnitude.amax(dim, keepdim=True)
    if not z.still:
        right = torch.log_softmax(z.right, dim)
        shift = shares.variance * 0.25
        left, right = left + shift, right + shift
        radius = radius + shift
    # |x - max x| and the logarithm of a sum between 1 and the number of terms.
    absolute = magnitude * (8 * u) + (64 * u + gamma(z.shape[dim] + 8, z.dtype)) * (1 + math.log(z.shape[dim]))
    radius = (radius + absolute).mul_(1 + 4000 * u + 2 * gamma(z.shape[dim] + 8, z.dtype))
    return LogSoftmaxForm(left, right, radius, 4.0, logits=z) if dim == 1 else AffineForm(left, right, radius, 4.0)


def _dim(name: str, input: EnclosedTensor, dim: Any, dtype: Any) -> int:
    if dim is None:
        raise NotEnclosedError(f"{name} without a dimension has no rule of enclosure")
    if dtype not in (None, input.form.dtype):
        raise NotEnclosedError(f"{name} in another dtype has no rule of enclosure")
    check_dims(name, input, (dim,))
    return dims_of(input, dim)[0]


@rule("softmax")
def _softmax(
    input: EnclosedTensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None, **_: Any
) -> EnclosedTensor:
    return result(softmax_form(input.form, _dim("softmax", input, dim, dtype)), input)


@rule("log_softmax")
def _log_softmax(
    input: EnclosedTensor, dim: Any = None, _stacklevel: int = 3, dtype: Any = None, **_: Any
) -> EnclosedTensor:
    return result(log_softmax_form(input.form, _dim("log_softmax", input, dim, dtype)), input)


@rule("masked_fill")
def _masked_fill(input: EnclosedTensor, mask: Any, value: Any) -> EnclosedTensor:
    if isinstance(mask, EnclosedTensor) or not isinstance(value, (int, float)):
        raise NotEnclosedError("masked_fill with values that move has no rule of enclosure")
    check_aligned("masked_fill", input, mask)
    form = input.form.settled()
    if value != -math.inf and torch.tensor(value, dtype=form.dtype).double() != value:
        raise NotEnclosedError(f"masked_fill with {value}, which {form.dtype} does not represent")
    # A mask may be of a larger shape than what it fills.
    shape = torch.broadcast_shapes(form.shape, mask.shape)
    left = form.left.expand(shape).masked_fill(mask, value)
    right = left if form.still else form.right.expand(shape).masked_fill(mask, value)
    radius = None if form.radius is None else form.radius.expand(shape).masked_fill(mask, 0.0)
    return result(AffineForm(left, right, radius), input)


def _attention_shares(query: Any, key: Any, mask: Any, scale: float | None) -> EnclosedTensor:
    """softmax(query key^T scale + mask). True in a mask of truth values takes a value in."""
    q = result(
        over(query.form, math.sqrt(query.shape[-1])) if scale is None else scaled(query.form, float(scale)), query
    )
    scores = RULES["matmul"](q, key.transpose(-2, -1))
    if isinstance(mask, Tensor) and mask.dtype == torch.bool:
        scores = _masked_fill(scores, ~mask, -math.inf)
    elif mask is not None:
        scores = RULES["add"](scores, mask)
    return result(softmax_form(scores.form, scores.dim() - 1), scores)


@rule("scaled_dot_product_attention")
def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> EnclosedTensor:
    if dropout_p:
        raise NotEnclosedError("attention with dropout draws random numbers: it has no rule of enclosure")
    if enable_gqa or not isinstance(query, EnclosedTensor):
        raise NotEnclosedError("attention with enable_gqa, or of a query that does not move, has no rule of enclosure")
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    attended: EnclosedTensor = RULES["matmul"](_attention_shares(query, key, attn_mask, scale), value)
    return attended


@rule("multi_head_attention_forward")
def _multi_head_attention(
    query: Any,
    key: Any,
    value: Any,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Any,
    out_proj_bias: Any,
    training: bool = True,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    static_k: Any = None,
    static_v: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[EnclosedTensor, EnclosedTensor | None]:
    """nn.MultiheadAttention: query, key and value are [L, N, E], with the samples second."""
    if any(option is not None for option in (bias_k, bias_v, key_padding_mask, static_k, static_v)) or add_zero_attn:
        raise NotEnclosedError("MultiheadAttention with padding, added or static keys has no rule of enclosure")
    if training and dropout_p:
        raise NotEnclosedError("attention with dropout draws random numbers: it has no rule of enclosure")
    inputs = (query, key, value)
    if not all(isinstance(x, EnclosedTensor) and x.batched and x.samples_at == 1 and x.dim() == 3 for x in inputs):
        raise NotEnclosedError("MultiheadAttention needs batch_first=True, and batches, to have a rule of enclosure")
    if attn_mask is not None and attn_mask.dim() != 2:
        raise NotEnclosedError("MultiheadAttention with a mask for each head has no rule of enclosure")
    if isinstance(attn_mask, Tensor) and attn_mask.dtype == torch.bool:
        attn_mask = ~attn_mask
    weights = (q_proj_weight, k_proj_weight, v_proj_weight)
    if not use_separate_proj_weight:
        weights = in_proj_weight.chunk(3)
    biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
    q, k, v = (
        RULES["linear"](x.transpose(0, 1), weight, bias).unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for x, weight, bias in zip(inputs, weights, biases, strict=True)
    )
    shares = _attention_shares(q, k, attn_mask, None)
    joined = RULES["matmul"](shares, v).transpose(1, 2).flatten(2)
    output = RULES["linear"](joined, out_proj_weight, out_proj_bias).transpose(0, 1)
    if not need_weights:
        return output, None
    heads: EnclosedTensor = RULES["mean"](shares, 1) if average_attn_weights else shares
    return output, heads


@rule("einsum")
def _einsum(equation: str, *operands: Any) -> EnclosedTensor:
    """Of two operands: a sum of products."""
    given = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    equation = equation.replace(" ", "")
    if len(given) != 2 or "->" not in equation or "." in equation:
        raise NotEnclosedError(f"einsum {equation!r}: only two operands and letters on both sides have a rule")
    letters, output = equation.split("->")
    sides = letters.split(",")
    batched = [isinstance(value, EnclosedTensor) and value.batched for value in given]
    heads = {side[:1] for side, has in zip(sides, batched, strict=True) if has}
    lone = [side for side, has in zip(sides, batched, strict=True) if not has]
    if heads and (len(heads) > 1 or not output.startswith(head := heads.pop()) or any(head in side for side in lone)):
        raise NotEnclosedError(f"einsum {equation!r} mixes the samples of a batch")
    if any(len(set(side)) < len(side) for side in sides):
        raise NotEnclosedError(f"einsum {equation!r} takes a diagonal: it has no rule of enclosure")
    sizes = {
        letter: n for side, value in zip(sides, given, strict=True) for letter, n in zip(side, value.shape, strict=True)
    }
    terms = math.prod(n for letter, n in sizes.items() if letter not in output)
    x, y = forms_of(*given)
    return result(bilinear(lambda x, y, _: torch.einsum(equation, x, y), x, y, terms), *given)
