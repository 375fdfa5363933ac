"""Valid arguments of each op: ``examples()`` of the op's test file, which the tests of all ops use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from llpf_fast.flat.table import SegmentTable
from llpf_fast.ops.library import EAGER

Arguments = dict[str, Any]
F64 = torch.float64

TABLE = SegmentTable.from_lengths([20, 10])
#: Elements of a buffer, segments.
N, S = TABLE.numel, len(TABLE)
OPS = tuple(EAGER)


def examples(op: str) -> list[Arguments]:
    """Fresh arguments by name: every optional one given; with optional ones left out; K paths of 16-bit values."""
    return import_module(f".test_{op.rstrip('_')}", __package__).examples()  # type: ignore[no-any-return]


def example(op: str) -> Arguments:
    """The first of :func:`examples`."""
    return examples(op)[0]


def writes(op: str) -> list[str]:
    """The arguments that an op overwrites, by its schema."""
    schema = getattr(torch.ops.llpf_fast, op).default._schema
    return [argument.name for argument in schema.arguments if argument.is_write]


def table() -> Arguments:
    return {"segments": TABLE.segments.clone(), "chunks": TABLE.chunks.clone()}


def rule() -> Arguments:
    """The tensors of a tick's rule."""
    return {
        "target_variance": torch.ones(S, dtype=F64),
        "step": torch.zeros(2, dtype=F64),
        "active": torch.ones(1, dtype=F64),
        "radius": None,
    }


def options() -> Arguments:
    """The scalars of a tick's rule."""
    return {"destination": 0, "epsilon": 0.0, "combine_sum": True, "clamp": True, "project_first": True}


def narrow(*lead: int) -> torch.Tensor:
    """bfloat16 ``[*lead, N]``."""
    return torch.randn(*lead, N).bfloat16()
