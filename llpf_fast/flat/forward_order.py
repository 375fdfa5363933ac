"""``data_flow_order``: a module's parameters by layer, in the order in which one forward pass uses them."""

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

from ..errors import LLPFError, one_line
from .parameter_sites import ParameterSite, bias_weights, owning_layer, parameter_sites


@dataclass(frozen=True)
class DataFlow:
    """The order in which data flow through a module's parameters, see :func:`data_flow_order`."""

    #: Parameter names, one group per layer, in the order of use; ``unused`` is the last group if it is not empty.
    groups: tuple[tuple[str, ...], ...]
    #: Parameters that the pass did not use (an auxiliary head, an expert that was not chosen).
    unused: tuple[str, ...]


def data_flow_order(module: nn.Module, forward: Callable[[], object]) -> DataFlow:
    """The module's parameters by layer, in the order in which one forward pass first uses them.

    A pass computes branches before it joins them, so a shortcut's layers precede whatever follows the join. Every
    operator that reads a parameter counts, functional ones too (class tokens, positional embeddings); reading a shape
    or dtype does not. A layer is a module without children and all its parameters; or, in a module with children, a
    run of its direct parameters, a bias always with its weight. Parametrized tensors belong to the layer they
    parametrize; tied parameters to their first use.

    The pass runs without gradients and with every module in eval mode (by its ``training`` flag alone: user-defined
    ``train()`` methods are not called). Flags, buffers and torch's random state are restored; the random states of
    Python and NumPy are not.

    Args:
        module: its parameters are grouped.
        forward: runs the module once, on one small batch; its result is ignored.

    Returns:
        Names as in ``module.named_parameters()`` (the first name of tied parameters), each exactly once.

    Raises:
        LLPFError: the pass fails, or uses no parameter.
    """
    first: dict[nn.Parameter, ParameterSite] = {}
    for site in parameter_sites(module):
        first.setdefault(site.parameter, site)
    uses = _FirstUses(first)
    with _in_eval_mode(module), _eager():
        try:
            with torch.no_grad(), uses:
                forward()
        except LLPFError:
            raise
        except Exception as error:
            raise LLPFError(
                f"the forward pass of {type(module).__name__} that records the data flow failed with "
                f"{type(error).__name__}: {one_line(error)}"
            ) from error
    if first and not uses.calls:
        raise LLPFError(
            f"the forward pass used no parameter of {type(module).__name__}: run this module itself, not a copy"
        )
    groups = _layers(module, first, uses.calls)
    unused = tuple(site.name for parameter, site in first.items() if parameter not in uses.calls)
    return DataFlow(groups=(*groups, unused) if unused else groups, unused=unused)


class _FirstUses(TorchDispatchMode):
    """Records which operator call first read each parameter.

    It works below autograd, which every operator reaches and reads of attributes do not.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: torch's default, True, imports torch._dynamo at the first operator, 5 s once per process.

        A compiler could then trace this class, which :func:`_eager` prevents.
        """
        return False

    def __init__(self, parameters: dict[nn.Parameter, ParameterSite]) -> None:
        super().__init__()
        self._parameters = {id(parameter): parameter for parameter in parameters}
        self._count = 0
        #: Number of the first call by parameter, in the order of use.
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
    # One call may read several layers (a fused encoder): inside it the order of the module decides.
    for parameter in sorted(calls, key=lambda p: (when[p], position[p])):
        path, _ = owning_layer(first[parameter])
        run += path != previous
        previous = path
        layers.setdefault((path, 0 if _is_leaf(by_path[path]) else run), []).append(parameter)
    return tuple(tuple(first[p].name for p in sorted(layer, key=position.__getitem__)) for layer in layers.values())


def _is_leaf(module: nn.Module) -> bool:
    return not any(name != "parametrizations" for name in module._modules)


def _eager() -> AbstractContextManager[object]:
    """Run compiled modules uncompiled. Where nothing has imported the compiler, there are none."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; flags, buffers and torch's random state restored afterwards."""
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
                # A table that grew with its input (rotary embeddings) stays: its owner relies on the new size.
                if now is None or now.shape == before.shape:
                    owner._buffers[name] = buffer
                    if not buffer.is_meta and not torch.equal(buffer, before):
                        buffer.copy_(before)
