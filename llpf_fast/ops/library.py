"""The torch.library namespace of the kernels, and what every op shares: checks, scratch, the row axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import LLPFError

#: Owner of the schemas. The readable eager implementation of each op is registered for every device
#: (CompositeExplicitAutograd); a compiled backend registers for its device's key, which takes precedence.
LIBRARY = torch.library.Library("llpf_fast", "DEF")

SEGMENT_COLUMNS = 5
CHUNK_COLUMNS = 3
MOMENT_COLUMNS = 5
COEFFICIENT_COLUMNS = 5

STORAGE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_NARROW = (torch.bfloat16, torch.float16)


#: The eager kernel of each op: what `define` was given.
EAGER: dict[str, Callable[..., Any]] = {}


def define(schema: str, eager: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define one op: its schema, the eager kernel that is its specification, and the kernel for tracing."""
    name = schema.split("(", 1)[0]
    EAGER[name] = eager
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, eager, "CompositeExplicitAutograd")
    torch.library.register_fake(f"llpf_fast::{name}", fake, lib=LIBRARY)


def scratch_numel(paths: int, chunks: int, segments: int) -> int:
    """Number of float64 elements every op of the namespace accepts as ``scratch``.

    Per path: five partial sums for each chunk, then five moments and five coefficients for each segment.
    The contents on entry and on exit are meaningless.
    """
    return paths * (5 * chunks + 10 * segments)


def rows(p: Tensor) -> int:
    """K: 1 for a buffer ``[N]``, the leading size for ``[K, N]``."""
    return 1 if p.dim() == 1 else p.shape[0]


def accumulation_dtype(storage: torch.dtype) -> torch.dtype:
    """Elementwise arithmetic: float64 for float64 storage, float32 for everything narrower."""
    return torch.float64 if storage == torch.float64 else torch.float32


def check(condition: bool, message: Callable[[], str]) -> None:
    """Refuse with an LLPFError; the message is only built when it is needed."""
    if not condition:
        raise LLPFError(message())


def refusal(op: str, error: RuntimeError | ValueError) -> Exception:
    """What to raise for an error of a call of ``op``: a compiled kernel's refusal arrives as a RuntimeError.

    Beside torch 2.11 it is a ValueError. Its checks are not repeated here, where they would cost a third of a
    call on a small network.
    """
    message = str(error)
    ours = message.startswith((f"{op}: ", "LLPF_"))
    return LLPFError(message.splitlines()[0]) if ours else error


def check_not_negative(op: str, name: str, value: float) -> None:
    """A scalar that must be a number of at least 0."""
    check(value >= 0, lambda: f"{op}: {name} must be at least 0, got {value:g}")


def check_parameters(op: str, p: Tensor) -> None:
    """``p`` must be a contiguous ``[N]`` or ``[K, N]`` buffer of a supported dtype."""
    check(p.dim() in (1, 2), lambda: f"{op}: p must be [N] or [K, N], got {list(p.shape)}")
    check(
        p.dtype in STORAGE_DTYPES,
        lambda: f"{op}: p must be float32, float64, bfloat16 or float16, got {p.dtype}",
    )
    check(
        p.is_contiguous(),
        lambda: f"{op}: p must be contiguous, got strides {list(p.stride())} for {list(p.shape)}",
    )


def check_destination(op: str, p: Tensor, d: Tensor | None) -> None:
    """``d`` must be ``[N]`` or of p's shape, of p's dtype or 16-bit beside a float32 p, on p's device."""
    if d is None:
        return
    check(
        d.shape == p.shape or (d.dim() == 1 and d.shape[0] == p.shape[-1]),
        lambda: f"{op}: d must be {list(p.shape)} or [{p.shape[-1]}], got {list(d.shape)}",
    )
    check(
        d.dtype == p.dtype or (p.dtype == torch.float32 and d.dtype in _NARROW),
        lambda: f"{op}: d must be {p.dtype} (or 16-bit beside a float32 p), got {d.dtype}",
    )
    check_same_device(op, p, "d", d)
    check(
        d.is_contiguous(),
        lambda: f"{op}: d must be contiguous, got strides {list(d.stride())} for {list(d.shape)}",
    )


def check_like(op: str, p: Tensor, name: str, value: Tensor) -> None:
    """``value`` must have p's shape, dtype and device and be contiguous."""
    check(
        value.shape == p.shape and value.dtype == p.dtype,
        lambda: f"{op}: {name} must be {p.dtype} {list(p.shape)}, got {value.dtype} {list(value.shape)}",
    )
    check_same_device(op, p, name, value)
    check(
        value.is_contiguous(),
        lambda: f"{op}: {name} must be contiguous, got strides {list(value.stride())}",
    )


def check_same_device(op: str, p: Tensor, name: str, value: Tensor) -> None:
    check(
        value.device == p.device,
        lambda: f"{op}: {name} must be on p's device {p.device}, got {value.device}",
    )


def check_table(op: str, like: Tensor, segments: Tensor, chunks: Tensor | None) -> None:
    """``segments`` int64 ``[S, 5]`` and ``chunks`` int64 ``[C, 3]``, contiguous, on the buffer's device."""
    _check_int_table(op, like, "segments", segments, SEGMENT_COLUMNS)
    if chunks is not None:
        _check_int_table(op, like, "chunks", chunks, CHUNK_COLUMNS)


def _check_int_table(op: str, like: Tensor, name: str, table: Tensor, columns: int) -> None:
    check(
        table.dim() == 2 and table.shape[1] == columns and table.dtype == torch.int64,
        lambda: f"{op}: {name} must be int64 [*, {columns}], got {table.dtype} {list(table.shape)}",
    )
    check(
        table.is_contiguous(),
        lambda: f"{op}: {name} must be contiguous, got strides {list(table.stride())}",
    )
    check_same_device(op, like, name, table)


def check_float64(op: str, like: Tensor, name: str, value: Tensor, shapes: tuple[tuple[int, ...], ...]) -> None:
    """``value`` must be contiguous float64 of one of ``shapes`` on the device of ``like``."""
    check(
        value.dtype == torch.float64 and tuple(value.shape) in shapes,
        lambda: (
            f"{op}: {name} must be float64 of shape "
            + " or ".join(str(list(s)) for s in dict.fromkeys(shapes))
            + f", got {value.dtype} {list(value.shape)}"
        ),
    )
    check(
        value.is_contiguous(),
        lambda: f"{op}: {name} must be contiguous, got strides {list(value.stride())}",
    )
    check_same_device(op, like, name, value)


def check_scratch(op: str, p: Tensor, segments: Tensor, chunks: Tensor, scratch: Tensor) -> None:
    """``scratch`` must be contiguous float64 with at least :func:`scratch_numel` elements."""
    need = scratch_numel(rows(p), chunks.shape[0], segments.shape[0])
    check(
        scratch.dtype == torch.float64 and scratch.numel() >= need,
        lambda: (
            f"{op}: scratch must be float64 with at least {need} elements, got {scratch.dtype} with {scratch.numel()}"
        ),
    )
    check(scratch.is_contiguous(), lambda: f"{op}: scratch must be contiguous")
    check_same_device(op, p, "scratch", scratch)


def check_row_per_path(op: str, like: Tensor, paths: int, name: str, value: Tensor | None) -> None:
    """``value`` must be contiguous float64 with a row for each path, of whatever shape."""
    if value is None:
        return
    whole = value.numel() >= paths and (paths == 0 or value.numel() % paths == 0)
    check(
        value.dtype == torch.float64 and whole,
        lambda: f"{op}: {name} must be float64 with {paths} rows (one a path), got {value.dtype} {list(value.shape)}",
    )
    check(value.is_contiguous(), lambda: f"{op}: {name} must be contiguous")
    check_same_device(op, like, name, value)


def overlap(left: Tensor, right: Tensor) -> bool:
    """Whether two contiguous tensors share memory."""
    if left.numel() == 0 or right.numel() == 0 or left.device != right.device:
        return False
    a, b = left.data_ptr(), right.data_ptr()
    return a < b + right.numel() * right.element_size() and b < a + left.numel() * left.element_size()


def check_apart(
    op: str,
    written: Mapping[str, Tensor | None],
    read: Mapping[str, Tensor | None],
    may_be: tuple[tuple[str, str], ...] = (),
) -> None:
    """What is ``written`` must share memory with nothing else, in whole or in part; what is only read may share.

    ``may_be`` names the pairs (written, read) that may be one tensor: each element is read before it is written.
    """
    known: list[tuple[str, Tensor]] = []
    for name, value in (*written.items(), *read.items()):
        if value is None:
            continue
        for other, beside in known:
            if not overlap(beside, value):
                continue
            allowed = (other, name) in may_be
            same = (
                beside.data_ptr() == value.data_ptr()
                and beside.dtype == value.dtype
                and beside.numel() == value.numel()
            )
            check(
                allowed and same,
                lambda other=other, name=name, allowed=allowed: (  # type: ignore[misc]
                    f"{op}: {other} and {name} overlap in memory"
                    f"{' without being the same tensor' if allowed else ''}; clone one"
                ),
            )
        if name in written:
            known.append((name, value))


def is_active(active: Tensor | None, paths: int, device: torch.device) -> Tensor:
    """bool ``[K, 1]``: the paths whose row of ``active`` begins with a number other than 0; ``None``: all."""
    if active is None:
        return torch.ones(paths, 1, dtype=torch.bool, device=device)
    return active.reshape(paths, -1)[:, :1] != 0 if paths else torch.ones(0, 1, dtype=torch.bool, device=device)
