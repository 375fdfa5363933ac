"""Whether a network can be stacked: a forward that depends on hidden state cannot, because rows would share it."""

from __future__ import annotations

import copy
import re
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..batches.sampling import IndexedBatches
from ..errors import LLPFError
from ..flat import FlatParameters
from ..types import LossFunction
from .stack import ParameterStack

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_NUMBERS = (bool, int, float, complex)


class HiddenStateProbe:
    """Tensors and numbers in plain attributes of ``module`` and of all inside it, and in lists and dictionaries there.

    It refers to the objects and notes how often each tensor was written to. Nothing is copied, and no object's address
    is used again while the probe exists.
    """

    def __init__(self, module: nn.Module) -> None:
        known = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
        self._values: dict[str, tuple[Any, int | None]] = {}
        for prefix, part in module.named_modules():
            for name, value in vars(part).items():
                if name not in _OF_EVERY_MODULE:
                    self._take(f"{prefix}.{name}" if prefix else name, value, known)

    def _take(self, name: str, value: Any, known: set[int]) -> None:
        if isinstance(value, Tensor):
            if id(value) not in known:
                self._values[name] = value, None if value.is_inference() else value._version
        elif isinstance(value, _NUMBERS):
            self._values[name] = value, None
        elif id(value) not in known:
            known.add(id(value))  # a list may hold itself
            for key, item in _items(value):
                self._take(f"{name}[{key!r}]", item, known)

    def changed(self, earlier: HiddenStateProbe) -> list[str]:
        """Names of what has appeared, vanished, been replaced or written to since ``earlier``."""
        names = {**earlier._values, **self._values}
        return [name for name in names if not _same(earlier._values.get(name), self._values.get(name))]

    def differs(self, other: HiddenStateProbe, name: str) -> bool:
        """Whether ``name`` holds another value in ``other``, of a module of the same architecture."""
        (a, _), (b, _) = (probe._values.get(name, (None, None)) for probe in (self, other))
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a.dtype != b.dtype or not torch.equal(a, b)
        return type(a) is not type(b) or bool(a != b)


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, (list, tuple, deque)):
        yield from enumerate(value)


def _same(a: tuple[Any, int | None] | None, b: tuple[Any, int | None] | None) -> bool:
    if a is None or b is None:
        return False
    (old, written), (new, now) = a, b
    if isinstance(old, Tensor) or isinstance(new, Tensor):
        return old is new and written == now
    return type(old) is type(new) and bool(old == new)


#: The second pass shows what the first has left in the module.
_PASSES = 2
_WITHOUT = "search its paths one after the other (--parallel 1)"


class NotStackableError(LLPFError):
    """The network, its data or its settings allow only one path after the other."""


def check_stackable(flat: FlatParameters, loss_fn: LossFunction, batches: IndexedBatches) -> str | None:
    """Compare the batched passes of a stack of two with the sequential ones; ``flat`` does not change.

    Returns:
        The name of an operation that vmap only repeats row by row, so that a stack gains little; None: there is none.

    Raises:
        NotStackableError: the network draws random numbers in training, does what vmap does not support, has state
            outside its buffers, or gives other values. The message names the cause.
    """
    sequential, batched = (_stack_of_two(flat, loss_fn) for _ in range(2))
    first = torch.arange(2, device=flat.data.device)
    inputs, targets = batches.batches_of_rows(first, ops.gate_state(1, 2, device=first.device))
    with torch.random.fork_rng(devices=[flat.data.device] if flat.data.is_cuda else []):
        probes = [_probe(sequential)]
        for _ in range(_PASSES):
            want = sequential.sequential_passes(inputs, targets)
            probes.append(_probe(sequential))
    _check_hidden_state(flat, probes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            for _ in range(_PASSES):
                got = batched.batched_passes(inputs, targets)
        except (LLPFError, RuntimeError, NotImplementedError, ValueError, TypeError) as error:
            raise NotStackableError(
                f"{type(flat.module).__name__} cannot be stacked: {_reason(flat, error)}; {_WITHOUT}"
            ) from error
    pairs = [("loss", want, got), ("gradient", sequential.grad, batched.grad)]
    both = zip(_buffers(sequential), _buffers(batched), strict=True)
    pairs += [(f"buffer {name}", a, b) for (name, a), (_, b) in both]
    for name, a, b in pairs:
        if not _agree(a, b):
            raise NotStackableError(
                f"{type(flat.module).__name__} cannot be stacked: its {name} comes out different in a stack; {_WITHOUT}"
            )
    return _fallback(caught)


def _stack_of_two(flat: FlatParameters, loss_fn: LossFunction) -> ParameterStack:
    """A stack of two copies of ``flat``, one scaled a little."""
    stack = ParameterStack(flat, loss_fn, 2)
    for factor in (1.0, 1.0 + 2.0**-6):
        twin = copy.deepcopy(flat)
        with torch.no_grad():
            twin.data.mul_(factor)
        stack.take(twin)
    return stack


def _probe(stack: ParameterStack) -> list[HiddenStateProbe]:
    return [HiddenStateProbe(flat.module) for flat in stack.flats]


def _check_hidden_state(flat: FlatParameters, probes: list[list[HiddenStateProbe]]) -> None:
    """Refuse attributes that every pass changes, and those that the first pass set differently in the two rows.

    A stack has one module for all rows, so its attributes are shared. That is right for a mask or a table that the
    first pass computes once.
    """
    (before, _), (once, other), (twice, _) = probes
    different = [name for name in once.changed(before) if once.differs(other, name)]
    for name in (*twice.changed(once), *different):
        raise NotStackableError(
            f"{type(flat.module).__name__} cannot be stacked: its forward keeps {name!r}, which is no buffer, and the "
            f"paths would share it; make it a buffer, or {_WITHOUT}"
        )


def _buffers(stack: ParameterStack) -> list[tuple[str, Tensor]]:
    return [(name, buffer) for flat in stack.flats for name, buffer in flat.buffers().items()]


def _agree(a: Tensor, b: Tensor) -> bool:
    """Whether half of the digits agree. Rows that influence each other differ by far more."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    if not bool(a.isfinite().all()):
        return torch.equal(a.isfinite(), b.isfinite())
    return bool((a.double() - b.double()).norm() <= torch.finfo(a.dtype).eps ** 0.5 * a.double().norm())


def _reason(flat: FlatParameters, error: Exception) -> str:
    text = str(error)
    if "random" in text:
        kinds = nn.modules.dropout._DropoutNd
        layers = [name for name, layer in flat.module.named_modules() if isinstance(layer, kinds) and layer.p > 0]
        return f"it draws random numbers in training{f' (dropout {layers[0]!r})' if layers else ''}"
    for name, layer in flat.module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase) and layer.track_running_stats and layer.momentum is None:
            return f"{name!r} averages its statistics cumulatively (momentum=None)"
    return text.strip().splitlines()[0]


def _fallback(caught: list[warnings.WarningMessage]) -> str | None:
    for warning in caught:
        match = re.search(r"batching rule for (aten::\w+)", str(warning.message))
        if match:
            return match[1]
    return None
