"""``find_path``: the whole search in one call, for any module, loss, optimiser and data."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..batches import LossFunction
from ..correct.group_rates import OptimizerFactory
from ..errors import LLPFError
from ..flat import copied, unwrapped
from ..path import LowLossPath
from ..path.endpoint import Source, load_endpoint
from .build import TrainingData
from .dialect import can_arrive
from .finder import PathFinder
from .results import TickProgress
from .settings import Settings, as_settings


def find_path(
    model: nn.Module,
    start: Source,
    destination: Source | None = None,
    *,
    data: TrainingData,
    loss_fn: LossFunction | None = None,
    optimizer: OptimizerFactory | None = None,
    settings: Settings | None = None,
    out: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[TickProgress], None] | None = None,
    resume: bool = False,
    is_norm: Callable[[nn.Module], bool] | None = None,
    **changes: Any,
) -> LowLossPath:
    """Search a path of low training loss from a trained network (LLPF, arXiv 2505.02604).

    ``mode`` says where to: another trained network (m2m, the default), the origin (m2o; m2o-o leaves normalization
    layers out), infinity, each layer's mean, or a sphere; see :class:`Settings`.

    Args:
        model: the architecture; not modified.
        start, destination: a module, a state dict, or a checkpoint file each; the destination of m2m, or a network that
            lies on the spheres to go to, and ``None`` otherwise.
        data: (inputs, targets) tensors or arrays, a Dataset, a DataLoader, a list of batches; see
            :func:`llpf_fast.batches.as_data`.
        loss_fn: (model output, targets) -> scalar mean loss; when missing cross-entropy, where outputs and targets are
            those of a classification.
        optimizer: for the correction, e.g. ``lambda ps: torch.optim.AdamW(ps, lr=1e-3)``; the fused SGD when missing.
        settings: see :class:`Settings`; ``changes`` replace its top-level fields (``threshold=0.05``, ``seed=3``).
        out: folder of the run; a new temporary folder when missing.
        device: "cpu" or "cuda".
        progress: called after every tick with a :class:`TickProgress`.
        resume: continue the run in ``out``.
        is_norm: also counts a module for which it returns True as a normalization layer.

    Returns:
        The path, as written to ``out``. It carries no certificate yet: :func:`llpf_fast.verify_run` computes it.

    Raises:
        LLPFError: wrong input, named in one line; or a search toward a model or sphere that ended without arriving.
    """
    base = Settings() if settings is None else as_settings(settings)
    try:
        base = replace(base, **changes)
    except TypeError as error:
        raise LLPFError(f"find_path: {error}") from None
    # Before anything is loaded: what is said of a module that cannot be copied says more than names that differ.
    network = copied(unwrapped(model))
    first = load_endpoint(start, network, "start")
    last = None if destination is None else load_endpoint(destination, network, "destination")
    finder = PathFinder(
        network,
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
        is_norm=is_norm,
    )
    result = finder.run()
    if not result.arrived and can_arrive(base):
        if result.ended == "stuck":
            why = f"got stuck after {result.ticks} ticks"
            remedy = "raise the threshold or correction.max_rounds"
        else:
            why, remedy = f"did not arrive within max_ticks={base.max_ticks}", "raise max_ticks or step.relative"
        raise LLPFError(f"the path {why}; what was found is in {result.folder}: {remedy}")
    return LowLossPath(result.folder)
