"""``find_path``: the whole search in one call, for any module, loss, optimiser and data."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..correct import LossFunction
from ..errors import LLPFError
from ..path import LowLossPath, compare_architectures, load_model_file
from .finder import OptimizerFactory, PathFinder, TickProgress, TrainingData
from .settings import Settings

Model = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]


def find_path(
    model: nn.Module,
    start: Model,
    destination: Model,
    *,
    data: TrainingData,
    loss_fn: LossFunction | None = None,
    optimizer: OptimizerFactory | None = None,
    settings: Settings | None = None,
    out: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[TickProgress], None] | None = None,
    resume: bool = False,
    **changes: Any,
) -> LowLossPath:
    """Search a path of low training loss between two trained networks (LLPF, arXiv 2505.02604).

    Args:
        model: the architecture; not modified.
        start, destination: a module, a state dict, or a checkpoint file each.
        data: (inputs, targets) tensors, or a DataLoader.
        loss_fn: (model output, targets) -> scalar mean loss; cross-entropy when missing.
        optimizer: for the correction, e.g. ``lambda ps: torch.optim.AdamW(ps, lr=1e-3)``; the fused SGD when missing.
        settings: see :class:`Settings`; ``changes`` replace its top-level fields (``threshold=0.05``, ``seed=3``).
        out: folder of the run; a new temporary folder when missing.
        device: "cpu" or "cuda".
        progress: called after every tick with a :class:`TickProgress`.
        resume: continue the run in ``out``.

    Returns:
        The path, as written to ``out``. It carries no certificate yet: :func:`llpf_fast.verify_run` computes it.

    Raises:
        LLPFError: wrong input, named in one line; or the search stopped at ``max_ticks`` without arriving.
    """
    base = settings if settings is not None else Settings()
    try:
        base = replace(base, **changes)
    except TypeError as error:
        raise LLPFError(f"find_path: {error}") from None
    first, last = _state(start, "start"), _state(destination, "destination")
    compare_architectures(first, last, "start", "destination")
    compare_architectures(model.state_dict(), first, "model", "start")
    finder = PathFinder(
        copy.deepcopy(model),
        first,
        last,
        settings=base,
        train=data,
        loss_fn=loss_fn,
        optimizer=optimizer,
        device=device,
        out=out,
        progress=progress,
        resume=resume,
    )
    result = finder.run()
    if not result.arrived:
        raise LLPFError(
            f"the path did not arrive within max_ticks={base.max_ticks}; what was found is in {result.folder}: "
            "raise max_ticks or step.relative"
        )
    return LowLossPath(result.folder)


def _state(model: Model, name: str) -> dict[str, Tensor]:
    if isinstance(model, nn.Module):
        return {key: value.detach().clone() for key, value in model.state_dict().items()}
    if isinstance(model, Mapping):
        return dict(model)
    if isinstance(model, (str, os.PathLike)):
        return load_model_file(model).state
    raise LLPFError(f"{name} must be a module, a state dict or a file, got {type(model).__name__}")
