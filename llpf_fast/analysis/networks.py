"""``Networks``: m trained networks of one architecture as points of one space."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import LLPFError
from ..path import RunDirectory, Waypoint, check_finite, compare_architectures, load_model_file, state_digest

State = Mapping[str, Tensor]
#: A model file, a run directory (``RUN`` for both of its ends, ``RUN@12`` for waypoint 12, ``RUN@-1`` for the last), a
#: state dict, or a module.
Source = str | os.PathLike[str] | State | nn.Module

#: Buffers of normalization layers that are floating tensors but no parameters, told by name where no module is given.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Networks:
    """m >= 1 state dicts of one architecture, checked; all arithmetic in float64.

    The space is that of the *parameters*: P numbers, each tied tensor once, in the architecture's order. Buffers are no
    coordinates; ``combine`` and ``unflatten`` say what becomes of them.

    Args:
        states: of equal names and shapes.
        names: what messages and figures call them; "0", "1", ... when missing.
        module: the architecture: says which tensors are parameters and which are tied. Without it they are the floating
            tensors less the statistics of normalization layers.

    Raises:
        LLPFError: no states; differing names or shapes; NaN or infinity in one; no parameters.
    """

    def __init__(
        self, states: Sequence[State], names: Sequence[str] | None = None, module: nn.Module | None = None
    ) -> None:
        if not states:
            raise LLPFError("no networks are given; name at least one model")
        self.names = list(names) if names is not None else [str(i) for i in range(len(states))]
        self.states: list[dict[str, Tensor]] = [{k: v.detach() for k, v in state.items()} for state in states]
        if module is not None:
            compare_architectures(module.state_dict(), self.states[0], "the model", self.names[0])
        for name, state in zip(self.names, self.states, strict=True):
            compare_architectures(self.states[0], state, self.names[0], name)
            check_finite(state, name)
        tied = _tied(self.states[0], module)
        #: Parameter tensors, each tied one once, in order.
        self.parameter_names = list(tied)
        if not tied:
            raise LLPFError(f"{self.names[0]} has no floating parameters")
        #: For each of them all of its names in the state dict.
        self._aliases = tied
        #: Where each parameter tensor lies in a flat vector.
        self.slices: dict[str, slice] = {}
        offset = 0
        for name in tied:
            count = self.states[0][name].numel()
            self.slices[name] = slice(offset, offset + count)
            offset += count
        #: P, the number of parameters.
        self.size = offset

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.states[index]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self.states)

    @property
    def layers(self) -> dict[str, list[str]]:
        """Layer (the module that owns them: ``conv1``, ``layer1.0.bn1``) -> its parameter tensors, in order.

        A parameter of the network itself, owned by no submodule, is a layer of its own name.
        """
        found: dict[str, list[str]] = {}
        for name in self.parameter_names:
            found.setdefault(name.rpartition(".")[0] or name, []).append(name)
        return found

    def aliases(self, name: str) -> list[str]:
        """All names in the state dict of the parameter tensor ``name``: more than one where it is tied."""
        return list(self._aliases[name])

    def digests(self) -> list[str]:
        """``path.state_digest`` of each, for cache keys and results."""
        return [state_digest(state) for state in self.states]

    def flatten(self, state: State) -> Tensor:
        """The parameters of ``state`` as one vector, float64 ``[P]`` on the CPU."""
        parts = [state[name].detach().to("cpu", torch.float64).reshape(-1) for name in self.parameter_names]
        return torch.cat(parts)

    def vectors(self) -> Tensor:
        """All of them, float64 ``[m, P]``."""
        return torch.stack([self.flatten(state) for state in self.states])

    def unflatten(self, vector: Tensor, buffers: State | None = None) -> dict[str, Tensor]:
        """The state dict with parameters ``vector [P]`` (float64 views of it) and the buffers of ``buffers``.

        The buffers are the first network's when missing: BatchNorm statistics then belong to no network, re-estimate
        them (``Evaluator(statistics="reestimated")``).
        """
        if vector.shape != (self.size,):
            raise LLPFError(f"a vector of shape {list(vector.shape)} is no network of {self.size} parameters")
        state = dict(self.states[0] if buffers is None else buffers)
        for name, place in self.slices.items():
            value = vector[place].view(self.states[0][name].shape)
            for alias in self._aliases[name]:
                state[alias] = value
        return state

    def combine(self, weights: Sequence[float] | Tensor) -> dict[str, Tensor]:
        """sum_i weights[i] * network i, for parameters and floating buffers, float64; integer buffers are the first's.

        ``weights [m]`` need not sum to one. Where one weight is 1 and the others are 0 it is that network itself, bit
        for bit and in its own dtypes.
        """
        w = [float(weight) for weight in weights]
        if len(w) != len(self):
            raise LLPFError(f"{len(w)} weights for {len(self)} networks")
        used = [i for i, weight in enumerate(w) if weight != 0]
        if len(used) == 1 and w[used[0]] == 1:
            return dict(self.states[used[0]])
        state = {}
        for name, value in self.states[0].items():
            if not value.is_floating_point():
                state[name] = value
                continue
            total = torch.zeros(value.shape, dtype=torch.float64)
            for i in used:
                total.add_(self.states[i][name].to("cpu", torch.float64), alpha=w[i])
            state[name] = total
        return state

    def between(self, a: int, b: int, fraction: float) -> dict[str, Tensor]:
        """(1 - fraction) * network a + fraction * network b, as ``combine``."""
        weights = [0.0] * len(self)
        weights[a] += 1 - fraction
        weights[b] += fraction
        return self.combine(weights)

    def select(self, *indices: int) -> Networks:
        """Some of them, as Networks of their own."""
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
        LLPFError: fewer than ``fewest``; not a model file, not a run, a run without waypoints; as ``Networks``.
    """
    expected = None if module is None else module.state_dict()
    states: list[State] = []
    found_names: list[str] = []
    for source in sources:
        for name, state in _load(source, len(states), expected):
            found_names.append(name)
            states.append(state)
    if len(states) < fewest:
        given = f" ({found_names[0]})" if len(states) == 1 else ""
        raise LLPFError(f"at least {fewest} models are needed, {len(states) or 'none'}{given} given; name more")
    return Networks(states, names or _short(found_names), module)


def _load(source: Source, number: int, expected: State | None) -> Iterator[tuple[str, State]]:
    if isinstance(source, nn.Module):
        yield f"model {number}", {k: v.detach().cpu().clone() for k, v in source.state_dict().items()}
        return
    if isinstance(source, Mapping):
        yield f"model {number}", source
        return
    text = os.fspath(source)
    folder, at, index = text.rpartition("@")
    if Path(text).is_dir():
        waypoints = _waypoints(text)
        yield f"{text}@0", waypoints[0].load()
        yield f"{text}@{len(waypoints) - 1}", waypoints[-1].load()
    elif at and Path(folder).is_dir():
        waypoints = _waypoints(folder)
        if not index.lstrip("-").isdecimal() or not -len(waypoints) <= int(index) < len(waypoints):
            raise LLPFError(f"{text}: {folder} has waypoints 0 to {len(waypoints) - 1}, name one as {folder}@0")
        yield text, waypoints[int(index)].load()
    else:
        yield text, load_model_file(text, expected).state


def _waypoints(folder: str) -> list[Waypoint]:
    found = RunDirectory.open(folder).waypoints()
    if not found:
        raise LLPFError(f"{folder} has no waypoints yet")
    return found


def _short(names: list[str]) -> list[str]:
    """File names without what all share: folders, and the suffix that says model."""
    short = [Path(name).name for name in names]
    for suffix in (".safetensors", ".pth", ".pt", ".model"):
        short = [name.removesuffix(suffix) for name in short]
    return short if len({*short}) == len(short) else names


def _tied(state: State, module: nn.Module | None) -> dict[str, list[str]]:
    """First name of each parameter tensor -> all its names."""
    if module is None:
        floating = [name for name, value in state.items() if value.is_floating_point()]
        return {name: [name] for name in floating if not name.endswith(_STATISTICS)}
    owners: dict[int, str] = {}
    names: dict[str, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if name in state and parameter.is_floating_point():
            names.setdefault(owners.setdefault(id(parameter), name), []).append(name)
    return names
