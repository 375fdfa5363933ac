"""``sgd_``: the correction's update over the flat buffers."""

from __future__ import annotations

import torch
from torch import Tensor

from .contents import check_rates, check_table_contents
from .flags import SegmentFlag
from .library import (
    accumulation_dtype,
    check,
    check_apart,
    check_float64,
    check_like,
    check_not_negative,
    check_parameters,
    check_row_per_path,
    check_table,
    define,
    is_active,
    refusal,
    rows,
)

SCHEMA = (
    "sgd_(Tensor(a!) p, Tensor g, Tensor(b!)? momentum_buffer, Tensor lr, Tensor segments, Tensor chunks, "
    "Tensor? active, *, float momentum, float weight_decay, bool nesterov) -> ()"
)


def sgd_(
    p: Tensor,
    g: Tensor,
    momentum_buffer: Tensor | None,
    lr: Tensor,
    segments: Tensor,
    chunks: Tensor,
    active: Tensor | None = None,
    *,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> None:
    """Stochastic gradient descent with momentum on every segment that is not FROZEN.

    The update is that of ``torch.optim.SGD`` without dampening (its documentation): g += weight_decay p;
    buffer = momentum buffer + g; step along buffer, or along g + momentum buffer with ``nesterov``. ``momentum_buffer``
    starts at zero, which equals torch's first step.

    Args:
        p: ``[N]`` or ``[K, N]``, overwritten. Padding and FROZEN segments keep every bit.
        g: gradient, p's shape, dtype and device.
        momentum_buffer: p's shape and dtype; required exactly when ``momentum`` is not 0.
        lr: float64 ``[]``, ``[1]``, ``[S]``, ``[K, 1]`` or ``[K, S]``.
        segments, chunks: the table, see :func:`llpf_fast.ops.moments`.
        active: float64, one row a path; a path whose row begins with 0 keeps every bit. May be the ``state`` of
            ``loss_gate_``.

    Raises:
        LLPFError: a shape, dtype, device or layout that differs from the above, tensors that overlap (only g may be p
            itself), a negative momentum or weight_decay; on the CPU also a wrong table and a negative rate.
    """
    try:
        torch.ops.llpf_fast.sgd_.default(
            p,
            g,
            momentum_buffer,
            lr,
            segments,
            chunks,
            active,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=nesterov,
        )
    except (RuntimeError, ValueError) as error:
        raise refusal("sgd_", error) from None


def check_sgd(
    p: Tensor,
    g: Tensor,
    momentum_buffer: Tensor | None,
    lr: Tensor,
    segments: Tensor,
    chunks: Tensor,
    active: Tensor | None,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    check_parameters("sgd_", p)
    check_like("sgd_", p, "g", g)
    check_table("sgd_", p, segments, chunks)
    k, s = rows(p), segments.shape[0]
    check_float64("sgd_", p, "lr", lr, ((), (1,), (s,), (k, 1), (k, s)))
    check_not_negative("sgd_", "momentum", momentum)
    check_not_negative("sgd_", "weight_decay", weight_decay)
    check(
        (momentum_buffer is not None) == (momentum != 0.0),
        lambda: (
            f"sgd_: momentum_buffer belongs to momentum != 0 and to it only, got momentum {momentum} with buffer "
            f"{'given' if momentum_buffer is not None else 'missing'}"
        ),
    )
    check(
        not nesterov or momentum != 0.0,
        lambda: "sgd_: nesterov needs momentum, got momentum 0.0",
    )
    if momentum_buffer is not None:
        check_like("sgd_", p, "momentum_buffer", momentum_buffer)
    check_row_per_path("sgd_", p, k, "active", active)


def inspect_sgd(
    p: Tensor,
    g: Tensor,
    momentum_buffer: Tensor | None,
    lr: Tensor,
    segments: Tensor,
    chunks: Tensor,
    active: Tensor | None,
) -> None:
    """Checks that need the tensors' memory: overlaps and, on the CPU, values."""
    read = {"g": g, "lr": lr, "segments": segments, "chunks": chunks, "active": active}
    check_apart("sgd_", {"p": p, "momentum_buffer": momentum_buffer}, read, (("p", "g"),))
    check_table_contents("sgd_", p, segments, chunks)
    check_rates("sgd_", p, lr, active)


@torch.no_grad()
def sgd_eager(
    p: Tensor,
    g: Tensor,
    momentum_buffer: Tensor | None,
    lr: Tensor,
    segments: Tensor,
    chunks: Tensor,
    active: Tensor | None,
    *,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    check_sgd(
        p,
        g,
        momentum_buffer,
        lr,
        segments,
        chunks,
        active,
        momentum,
        weight_decay,
        nesterov,
    )
    inspect_sgd(p, g, momentum_buffer, lr, segments, chunks, active)
    k, s = rows(p), segments.shape[0]
    compute = accumulation_dtype(p.dtype)
    trains = is_active(active, k, p.device)
    values, gradient = p.reshape(k, p.shape[-1]), g.reshape(k, p.shape[-1])
    buffer = None if momentum_buffer is None else momentum_buffer.reshape(k, p.shape[-1])
    rate = torch.atleast_2d(lr).expand(k, s).to(compute)
    for segment, start, length in chunks.tolist() if k else []:
        if int(segments[segment, 4]) & SegmentFlag.FROZEN:
            continue
        part = slice(start, start + length)
        old = values[:, part].to(compute)
        direction = gradient[:, part].to(compute)
        if weight_decay != 0.0:
            direction = direction + weight_decay * old
        if buffer is not None:
            moving = momentum * buffer[:, part].to(compute) + direction
            direction = direction + momentum * moving if nesterov else moving
            buffer[:, part] = torch.where(trains, moving.to(p.dtype), buffer[:, part])
        new = (old - rate[:, segment, None] * direction).to(p.dtype)
        values[:, part] = torch.where(trains, new, values[:, part])


def sgd_fake(
    p: Tensor,
    g: Tensor,
    momentum_buffer: Tensor | None,
    lr: Tensor,
    segments: Tensor,
    chunks: Tensor,
    active: Tensor | None,
    *,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    check_sgd(
        p,
        g,
        momentum_buffer,
        lr,
        segments,
        chunks,
        active,
        momentum,
        weight_decay,
        nesterov,
    )


define(SCHEMA, sgd_eager, sgd_fake)
