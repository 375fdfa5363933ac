"""``Networks``: m trained networks of one architecture as points of one space."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LLPFError
from ..flat.buffers import STATISTICS_BUFFERS, check_buffers
from ..flat.tensors import same_bits
from ..flat.wrappers import unwrapped
from ..path import RunDirectory, Waypoint, check_finite, compare_architectures, load_model_file, state_digest
from ..path.endpoint import load_endpoint
from ..path.polyline import interpolate
from ..path.state import detached
from ..types import StateDict

#: A model file, a run directory (``RUN`` for both of its endpoints, ``RUN@12`` for waypoint 12, ``RUN@-1`` for the
#: last), a state dict, or a module.
Source = str | os.PathLike[str] | Mapping[str, Tensor] | nn.Module

#: With weights whose sum is nearer to 1 than this, values that all networks share are unchanged.
_AFFINE = 1e-9


class Networks:
    """m >= 1 state dicts of one architecture, checked; all arithmetic in float64.

    The space is that of the *parameters*: P numbers, each tied tensor once, in the architecture's order. Buffers are no
    coordinates; ``combine`` and ``unflatten`` describe how they are handled.

    Args:
        states: of equal names and shapes; entries that are no tensors are left out.
        names: what messages and figures call them; "0", "1", ... when missing.
        module: the architecture: says which tensors are parameters and which are tied. Without it they are the floating
            tensors less the statistics of normalization layers, and less what holds infinity and is the same in all (a
            mask).

    Raises:
        LLPFError: no states; differing names or shapes; NaN or infinity in a parameter or in statistics; no parameters;
            with ``module``, integer buffers that differ, or infinite values of others that do (``check_buffers``).
    """

    def __init__(
        self, states: Sequence[StateDict], names: Sequence[str] | None = None, module: nn.Module | None = None
    ) -> None:
        if not states:
            raise LLPFError("no networks are given; name at least one model")
        self.names = list(names) if names is not None else [str(i) for i in range(len(states))]
        self.states: list[dict[str, Tensor]] = [
            {name: value.detach() for name, value in state.items() if isinstance(value, Tensor)} for state in states
        ]
        #: The architecture without wrappers, if given.
        self.module = None if module is None else unwrapped(module)
        if self.module is not None:
            compare_architectures(self.module.state_dict(), self.states[0], "the model", self.names[0])
        for name, state in zip(self.names, self.states, strict=True):
            compare_architectures(self.states[0], state, self.names[0], name)
        masks = _masks(self.states) if self.module is None else set[str]()
        for name, state in zip(self.names, self.states, strict=True):
            check_finite({k: v for k, v in state.items() if k not in masks}, name, self.module)
        self._check_buffers()
        tied = _tied({k: v for k, v in self.states[0].items() if k not in masks}, self.module)
        #: Parameter tensors, each tied one once, in order.
        self.parameter_names = list(tied)
        if not tied:
            raise LLPFError(f"{self.names[0]} has no floating parameters")
        #: For each of them all of its names in the state dict.
        self._aliases = tied
        #: The part of a flat vector that each parameter tensor has.
        self.slices: dict[str, slice] = {}
        offset = 0
        for name in tied:
            count = self.states[0][name].numel()
            self.slices[name] = slice(offset, offset + count)
            offset += count
        #: P, the number of parameters.
        self.size = offset

    def _check_buffers(self) -> None:
        for name, state in zip(self.names[1:], self.states[1:], strict=True):
            if self.module is None:
                return
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of floating buffers that are interpolated
                    check_buffers(self.states[0], state, self.module)
            except LLPFError as error:
                raise LLPFError(f"{self.names[0]} and {name}: {error}") from None

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.states[index]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self.states)

    @property
    def layers(self) -> dict[str, list[str]]:
        """Layer (the module that owns them: ``conv1``, ``layer1.0.bn1``) -> its parameter tensors, in order.

        A parameter of the network itself, in no submodule, is a layer with the parameter's name.
        """
        layers: dict[str, list[str]] = {}
        for name in self.parameter_names:
            layers.setdefault(name.rpartition(".")[0] or name, []).append(name)
        return layers

    def aliases(self, name: str) -> list[str]:
        """All names in the state dict of the parameter tensor ``name``: more than one where it is tied."""
        return list(self._aliases[name])

    def digests(self) -> list[str]:
        """``path.state_digest`` of each, for cache keys."""
        return [state_digest(state) for state in self.states]

    def digests_by_name(self) -> dict[str, str]:
        """:meth:`digests` by name, for results."""
        return dict(zip(self.names, self.digests(), strict=True))

    def flatten(self, state: StateDict) -> Tensor:
        """The parameters of ``state`` as one vector, float64 ``[P]`` on the CPU."""
        parts = [state[name].detach().to("cpu", torch.float64).reshape(-1) for name in self.parameter_names]
        return torch.cat(parts)

    def vectors(self) -> Tensor:
        """All of them, float64 ``[m, P]``."""
        return torch.stack([self.flatten(state) for state in self.states])

    def unflatten(self, vector: Tensor, buffers: StateDict | None = None) -> dict[str, Tensor]:
        """The state dict with parameters ``vector [P]`` (float64 views of it) and the buffers of ``buffers``.

        The buffers are the first network's when missing: BatchNorm statistics then belong to no network, re-estimate
        them (``Evaluator(statistics="reestimated")``).
        """
        if vector.shape != (self.size,):
            raise LLPFError(f"a vector of shape {list(vector.shape)} is no network of {self.size} parameters")
        state = dict(self.states[0] if buffers is None else buffers)
        for name, part in self.slices.items():
            value = vector[part].view(self.states[0][name].shape)
            for alias in self._aliases[name]:
                state[alias] = value
        return state

    def combine(self, weights: Sequence[float] | Tensor) -> dict[str, Tensor]:
        """sum_i weights[i] * network i, for parameters and floating buffers in float64, for complex ones in complex128.

        A tensor that all networks with a weight have the same, bit for bit, is unchanged if the weights sum to one,
        and so is each single value (the infinities of a mask remain). Integer buffers are the first's. ``weights [m]``
        need not sum to one. Where one weight is 1 and the others are 0 it is that network, bit for bit and in its
        dtypes.
        """
        w = [float(weight) for weight in weights]
        if len(w) != len(self):
            raise LLPFError(f"{len(w)} weights for {len(self)} networks")
        used = [i for i, weight in enumerate(w) if weight != 0]
        if len(used) == 1 and w[used[0]] == 1:
            return dict(self.states[used[0]])
        affine = abs(sum(w) - 1) < _AFFINE
        return {
            name: _combined([self.states[i][name] for i in used], [w[i] for i in used], affine) if used else value
            for name, value in self.states[0].items()
        }

    def between(self, a: int, b: int, fraction: float) -> dict[str, Tensor]:
        """(1 - fraction) * network a + fraction * network b, as ``combine``: a point of a path's segment."""
        if a != b and 0 < fraction < 1:
            return interpolate(self.states[a], self.states[b], fraction)
        weights = [0.0] * len(self)
        weights[a] += 1 - fraction
        weights[b] += fraction
        return self.combine(weights)

    def select(self, *indices: int) -> Networks:
        """Some of the networks, as ``Networks``."""
        chosen = object.__new__(Networks)
        chosen.__dict__.update(self.__dict__)
        chosen.names = [self.names[i] for i in indices]
        chosen.states = [self.states[i] for i in indices]
        return chosen


def load_networks(
    sources: Sequence[Source], module: nn.Module | None = None, *, fewest: int = 2, names: Sequence[str] | None = None
) -> Networks:
    """The networks that ``sources`` name, of the architecture of ``module`` where it is given.

    Raises:
        LLPFError: fewer than ``fewest``; not a model file, not a run, a run without waypoints; as ``Networks``; with
            ``module``, as ``load_endpoint``, which gives every network its names and dtypes.
    """
    module = None if module is None else unwrapped(module)
    states: list[StateDict] = []
    long_names: list[str] = []
    for source in sources:
        for name, state in _load(source, len(states), module):
            long_names.append(name)
            states.append(state)
    if len(states) < fewest:
        given = f" ({long_names[0]})" if len(states) == 1 else ""
        raise LLPFError(f"at least {fewest} models are needed, {len(states) or 'none'}{given} given; name more")
    return Networks(states, names or _short(long_names), module)


def _load(source: Source, number: int, module: nn.Module | None) -> Iterator[tuple[str, StateDict]]:
    def fitted(state: Any, name: str) -> StateDict:
        return state if module is None else load_endpoint(state, module, name)

    if isinstance(source, nn.Module):
        name = f"model {number}"
        if module is None:
            state = unwrapped(source, name).state_dict()
            yield name, {k: detached(v) for k, v in state.items() if isinstance(v, Tensor)}
        else:
            yield name, fitted(source, name)
        return
    if isinstance(source, Mapping):
        yield f"model {number}", fitted(source, f"model {number}")
        return
    if not isinstance(source, (str, os.PathLike)):
        raise LLPFError(f"model {number} must be a module, a state dict, a file or a run, got {type(source).__name__}")
    text = os.fspath(source)
    folder, at, index = text.rpartition("@")
    if Path(text).is_dir():
        waypoints = _waypoints(text)
        for number in (0, len(waypoints) - 1):
            yield f"{text}@{number}", fitted(waypoints[number].load(), f"{text}@{number}")
    elif at and Path(folder).is_dir():
        waypoints = _waypoints(folder)
        if not index.lstrip("-").isdecimal() or not -len(waypoints) <= int(index) < len(waypoints):
            raise LLPFError(f"{text}: {folder} has waypoints 0 to {len(waypoints) - 1}, name one as {folder}@0")
        yield text, fitted(waypoints[int(index)].load(), text)
    else:
        yield text, load_model_file(text).state if module is None else fitted(text, text)


def _waypoints(folder: str) -> list[Waypoint]:
    waypoints = RunDirectory.open(folder).waypoints()
    if not waypoints:
        raise LLPFError(f"{folder} has no waypoints yet")
    return waypoints


def _short(names: list[str]) -> list[str]:
    """File names without folders and the suffixes of model files, where they differ."""
    short = [Path(name).name for name in names]
    for suffix in (".safetensors", ".pth", ".pt", ".model"):
        short = [name.removesuffix(suffix) for name in short]
    return short if len({*short}) == len(short) else names


def _masks(states: Sequence[StateDict]) -> set[str]:
    """Floating tensors with infinite values that are the same in all of several networks: no parameters."""
    if len(states) < 2:
        return set()
    first = states[0]
    infinite = [name for name, value in first.items() if value.is_floating_point() and bool(value.isinf().any())]
    return {name for name in infinite if all(same_bits(first[name], state[name]) for state in states[1:])}


def _combined(values: Sequence[Tensor], weights: Sequence[float], affine: bool) -> Tensor:
    """The weighted sum of one tensor of several networks, on the CPU; values that are the same in all are unchanged, if
    ``affine``."""
    first = values[0]
    if not (first.is_floating_point() or first.is_complex()):
        return first
    if affine and all(same_bits(first, value) for value in values[1:]):
        return first
    wide = torch.complex128 if first.is_complex() else torch.float64
    parts = [value.to("cpu", wide) for value in values]
    total = torch.zeros(first.shape, dtype=wide)
    for part, weight in zip(parts, weights, strict=True):
        total.add_(part, alpha=weight)
    if affine:
        same = torch.stack([part == parts[0] for part in parts]).all(0)
        total = torch.where(same, parts[0], total)
    return total


def _tied(state: StateDict, module: nn.Module | None) -> dict[str, list[str]]:
    """First name of each parameter tensor -> all its names."""
    if module is None:
        floating = [name for name, value in state.items() if value.is_floating_point()]
        return {name: [name] for name in floating if not name.endswith(STATISTICS_BUFFERS)}
    owners: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in state and parameter.is_floating_point():
            names.setdefault(owners.setdefault(id(parameter), name), []).append(name)
    return names


def load_state(module: nn.Module, state: StateDict) -> None:
    """Copy ``state`` (every tensor of the module's state dict, any dtype and device) into ``module``."""
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if isinstance(value, Tensor):
                value.copy_(state[name])
