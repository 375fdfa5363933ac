"""A tick with the habits of the authors' program as it was read: what an ordinary research code costs, without a goal.

Reproduced are its copies and its waits, not its text: state dicts deep-copied before each step, ``torch.equal`` and
several ``.item()`` a tensor, the model loaded anew after each step, and a line of figures a tensor, flushed. Left out
is the evaluation on the whole test set at every tick, which is not parameter work and would dwarf the rest.
"""

from __future__ import annotations

import copy
from typing import TextIO

import torch
from torch import Tensor, nn

StateDict = dict[str, Tensor]


class Model(nn.Module):
    """Parameters of given values, under the names "layer.0", "layer.1", ..."""

    def __init__(self, values: list[Tensor]) -> None:
        super().__init__()
        self.layer = nn.ParameterList(nn.Parameter(value.clone()) for value in values)


def _rescaled(state: StateDict, variance: dict[str, float]) -> StateDict:
    out = copy.deepcopy(state)
    for name, value in out.items():
        if value.numel() > 1 and not torch.equal(value, torch.zeros_like(value)):
            mean = value.mean().item()
            scale = (variance[name] / value.var().item()) ** 0.5
            out[name] = (value - mean) * scale + mean
    return out


def _moved(state: StateDict, goal: StateDict, fixed: float, relative: float) -> StateDict:
    out = copy.deepcopy(state)
    for name, value in out.items():
        if torch.equal(value, goal[name]):
            continue
        toward = goal[name] - value
        distance = toward.norm().item()
        length = min(fixed + relative * distance, distance)
        out[name] = value + toward / toward.norm() * length
    return out


def _report(before: StateDict, after: StateDict, goal: StateDict, to: TextIO) -> None:
    for name, value in after.items():
        change = value - before[name]
        figures = [value.mean().item(), value.norm().item(), value.abs().max().item(), change.norm().item()]
        figures += [change.abs().max().item(), (goal[name] - value).norm().item()]
        to.write(f"{name},{','.join(f'{figure:.6g}' for figure in figures)}\n")
        to.flush()


@torch.no_grad()
def tick_(
    model: nn.Module, goal: StateDict, variance: dict[str, float], fixed: float, relative: float, to: TextIO
) -> None:
    """Project, move toward ``goal``, project: the model's parameters are loaded anew each time."""
    before = copy.deepcopy(model.state_dict())
    model.load_state_dict(_rescaled(model.state_dict(), variance))
    model.load_state_dict(_moved(model.state_dict(), goal, fixed, relative))
    model.load_state_dict(_rescaled(model.state_dict(), variance))
    _report(before, model.state_dict(), goal, to)
