"""Straight lines between two networks, as they are and aligned."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from ...batches import TensorData
from ...batches.casting import module_in
from ...batches.forward import forward, shape_of
from ...errors import LLPFError
from ...flat.copying import copied
from ..alignment import align, trace_permutations
from ..problem import Problem
from ..statistics import load_state
from .found import FoundCurve

State = Mapping[str, Tensor]


def straight_line(a: State, b: State) -> FoundCurve:
    """The straight line: nothing is searched."""
    return FoundCurve("linear", [dict(a), dict(b)], 0, 0.0)


def aligned_line(problem: Problem, a: State, b: State, *, seed: int = 0, restarts: int = 3) -> FoundCurve:
    """The straight line from ``a`` to ``b`` with its hidden units put in the order that fits ``a`` best.

    It ends at another point than ``b``: at a network that computes the same function.

    Raises:
        LLPFError: the network cannot be traced, or has no units that may change places.
    """
    import scipy.optimize  # noqa: F401 - before the clock runs: seconds once a process, which no search is to be charged

    began = time.perf_counter()
    specification = trace_permutations(problem.module, _example(problem, 2))
    found = align(a, b, specification, seed=seed, restarts=restarts)
    check_same_function(problem, b, found.state)
    return FoundCurve(
        "aligned-linear",
        [dict(a), found.state],
        0,
        time.perf_counter() - began,
        destination="b permuted",
        settings={
            "restarts": restarts,
            "seed": seed,
            "groups": [group.size for group in specification.groups],
            "distance_before": found.before,
            "distance_after": found.after,
        },
    )


def _example(problem: Problem, count: int) -> Tensor:
    """Inputs of a few training samples, on the CPU; LLPFError where they are not one tensor."""
    held = problem.train
    inputs = held.inputs if isinstance(held, TensorData) else held[0][0]
    if not isinstance(inputs, Tensor):
        raise LLPFError(
            f"{type(problem.module).__name__} takes {shape_of(inputs)}, and only networks of one input tensor can be "
            "aligned; leave out aligned-linear"
        )
    return inputs[:count].detach().cpu()


def check_same_function(problem: Problem, before: State, after: State) -> None:
    """LLPFError where two states of one network give other outputs on training data (float64, relative 1e-6)."""
    inputs = _example(problem, 64)
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    twin = module_in(copied(problem.module, "the model"), torch.device("cpu"), torch.float64).eval()
    outputs = []
    with torch.set_grad_enabled(problem.mode.gradients):
        for state in (before, after):
            load_state(twin, state)
            outputs.append(forward(twin, inputs).detach())
    if not torch.allclose(outputs[0], outputs[1], rtol=1e-6, atol=1e-6 * float(outputs[0].abs().max())):
        raise LLPFError(
            f"aligning {type(problem.module).__name__} changes what it computes: its units are used in a way that the "
            "trace does not see; leave out aligned-linear"
        )
