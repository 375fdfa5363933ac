"""Whether a network is a function of its parameters and its input: what else it depends on, and what it changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..batches.forward import fixed_random_numbers, forward
from ..errors import LLPFError
from ..flat.tensors import same_bits
from ..path.fingerprint import Unidentifiable, describe_module
from .evaluator import Evaluator

#: Samples of each trial.
_FEW = 8


def unrepeatable(evaluator: Evaluator, states: Sequence[Mapping[str, Tensor]]) -> Iterator[str]:
    """Reasons why no verdict holds for the network, tried at ``states`` of its path.

    A network that draws random numbers, keeps something from one call to the next, or changes its parameters when it
    goes to eval mode has other losses in another process, so that none of its losses is that of a point.
    """
    inputs, _, _ = evaluator.on_few(_FEW, 0).batches[0]

    def forward_at(*states: Mapping[str, Tensor]) -> nn.Module:
        module = evaluator.module_copy()
        for state in states:
            _load(module, state)
            forward(module, _copied(inputs))
        return module

    first, others = states[0], states[1:] or states
    with (
        contextlib.suppress(LLPFError),
        fixed_random_numbers(evaluator.device),
        torch.set_grad_enabled(evaluator.mode.gradients),
    ):
        before = torch.random.get_rng_state()
        forward_at(first)
        if not torch.equal(before, torch.random.get_rng_state()):
            yield "the network draws random numbers in eval mode: its loss at a point differs from call to call"
        if any(_changes_in_eval(evaluator.module_copy(), state) for state in states):
            yield "the network changes its parameters when it goes to eval mode (merged adapters?): switch that off"
        # Attributes after evaluating one point alone, twice, and after another: those computed anew are the same.
        with contextlib.suppress(Unidentifiable):
            for state in others:
                runs = (state,), (state, state), (first, state)
                once, twice, after = (describe_module(forward_at(*run)) for run in runs)
                if once != twice or once != after:
                    yield "the network's attributes change with its calls, or keep values of an earlier point"
                    return


def _changes_in_eval(module: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether ``eval()`` after loading ``state`` in training mode, as scripts do it, changes a tensor of the state."""
    module.train()
    _load(module, state)
    loaded = {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    module.eval()
    return any(not same_bits(loaded[name], module.state_dict()[name]) for name in loaded)


@torch.no_grad()
def _load(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor):
            value.copy_(state[name])


def _copied(inputs: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)
