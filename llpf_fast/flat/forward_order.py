"""The order in which data flows through a module's parameters, found from one forward pass."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..errors import LLPFError
from .parameter_sites import ParameterSite, bias_weights, owning_layer, parameter_sites


@dataclass(frozen=True)
class DataFlow:
    """What :func:`data_flow_order` found."""

    #: Parameter names, one group a layer, in the order of use; ``unused`` is the last group if there are any.
    groups: tuple[tuple[str, ...], ...]
    #: Parameters that the pass never used (an auxiliary head, an expert that was not chosen).
    unused: tuple[str, ...]


def data_flow_order(module: nn.Module, forward: Callable[[], object]) -> DataFlow:
    """Group the module's parameters by layer, in the order in which one forward pass first uses them.

    A pass computes branches before it joins them, so a shortcut's layers come before whatever follows the join.
    Every operator that reads a parameter counts, functional ones too (class tokens, positional embeddings); reading a
    shape or dtype does not. A layer is a module without children with all its own parameters, and in a module that
    has children the parameters of its own which follow each other, a bias always with its weight. Parametrized
    tensors belong to the layer they parametrize; tied parameters to where they are used first.

    The pass runs without gradients and with every module in eval mode (by its ``training`` flag alone: user-defined
    ``train()`` methods are not called). Afterwards flags, buffers and torch's random state are what they were.
    Random numbers of Python and NumPy are the closure's affair.

    Args:
        module: its parameters are grouped.
        forward: runs the module once, on one small batch; what it returns is ignored.

    Returns:
        names as in ``module.named_parameters()`` (the first name of tied parameters), each exactly once.

    Raises:
        LLPFError: the pass fails, or uses no parameter.
    """
    first: dict[nn.Parameter, ParameterSite] = {}
    for place in parameter_sites(module):
        first.setdefault(place.parameter, place)
    record = _FirstUses(first)
    with _undisturbed(module), _eager():
        try:
            with torch.no_grad(), record:
                forward()
        except LLPFError:
            raise
        except Exception as error:
            raise LLPFError(
                f"the forward pass of {type(module).__name__} that finds the data flow failed with "
                f"{type(error).__name__}: {' '.join(str(error).split())}"
            ) from error
    if first and not record.calls:
        raise LLPFError(
            f"the forward pass used no parameter of {type(module).__name__}: run this very module, not a copy"
        )
    groups = _layers(module, first, record.calls)
    unused = tuple(place.name for parameter, place in first.items() if parameter not in record.calls)
    return DataFlow(groups=(*groups, unused) if unused else groups, unused=unused)


class _FirstUses(TorchDispatchMode):
    """Which call first read each parameter.

    Below autograd, where every operator passes, of whatever origin, and attribute reads do not.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch's hook: True (the default) imports torch._dynamo at the first operator, 5 s once a process.

        False lets a compiler trace this class, which :func:`_eager` prevents.
        """
        return False

    def __init__(self, parameters: dict[nn.Parameter, ParameterSite]) -> None:
        super().__init__()
        self._parameters = {id(parameter): parameter for parameter in parameters}
        self._count = 0
        #: Number of the call, by parameter, in the order of use.
        self.calls: dict[nn.Parameter, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        self._count += 1
        for value in tree_leaves((args, kwargs)):
            parameter = self._parameters.get(id(value))
            if parameter is not None:
                self.calls.setdefault(parameter, self._count)
        return func(*args, **(kwargs or {}))


def _layers(
    module: nn.Module, first: dict[nn.Parameter, ParameterSite], calls: dict[nn.Parameter, int]
) -> tuple[tuple[str, ...], ...]:
    by_path = dict(module.named_modules(remove_duplicate=False))
    position = {parameter: i for i, parameter in enumerate(first)}
    when = dict(calls)
    for bias, weight in bias_weights(module).items():
        if bias in calls and weight in calls:
            when[bias] = when[weight] = min(calls[bias], calls[weight])
    layers: dict[tuple[str, int], list[nn.Parameter]] = {}
    previous, run = "", 0
    # The module's own order decides inside one call, which may read several layers (a fused encoder).
    for parameter in sorted(calls, key=lambda p: (when[p], position[p])):
        path, _ = owning_layer(first[parameter])
        run += path != previous
        previous = path
        layers.setdefault((path, 0 if _is_leaf(by_path[path]) else run), []).append(parameter)
    return tuple(tuple(first[p].name for p in sorted(layer, key=position.__getitem__)) for layer in layers.values())


def _is_leaf(module: nn.Module) -> bool:
    return not any(name != "parametrizations" for name in module._modules)


def _eager() -> AbstractContextManager[object]:
    """Compiled modules run as written. Where nothing has imported the compiler, nothing is compiled."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Eval mode, without a trace afterwards."""
    modules = list(module.modules())
    training = [each.training for each in modules]
    buffers = [
        (owner, name, buffer, buffer.detach().clone())
        for owner in modules
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    devices = {tensor.device for tensor in (*module.parameters(), *module.buffers()) if tensor.is_cuda}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # One fused call for a whole encoder layer would hide the order inside it.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.random.fork_rng(devices=[device.index for device in devices]):
            for each in modules:
                each.training = False
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for each, flag in zip(modules, training, strict=True):
            each.training = flag
        with torch.inference_mode(False), torch.no_grad():
            for owner, name, buffer, before in buffers:
                now = owner._buffers.get(name)
                # A table that grew with its input (rotary embeddings) stays: its owner counts on the new size.
                if now is None or now.shape == before.shape:
                    owner._buffers[name] = buffer
                    if not buffer.is_meta and not torch.equal(buffer, before):
                        buffer.copy_(before)
