"""Permutation symmetries of a network, traced from its graph."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ..batches.precision import module_in
from ..errors import LLPFError
from ..flat.copying import copied


@dataclass(frozen=True)
class Axis:
    """One axis of one tensor of the state dict. Unit u has the ``repeat`` indices from u * repeat on: 1, except where
    flattened channels feed a linear layer."""

    tensor: str
    axis: int
    repeat: int = 1


@dataclass(frozen=True)
class Units:
    """``size`` hidden units (channels, features) that may be permuted, on all ``axes`` at once."""

    size: int
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class PermutationSpecification:
    """Groups of units, each permuted independently; units in no group are fixed."""

    groups: tuple[Units, ...]

    def identity(self) -> list[Tensor]:
        return [torch.arange(group.size) for group in self.groups]

    def apply(self, state: Mapping[str, Tensor], permutations: Sequence[Tensor]) -> dict[str, Tensor]:
        """``state`` with unit ``permutations[g][u]`` of group g moved to index u; new tensors, values bit for bit."""
        result = {name: value.clone() for name, value in state.items()}
        for group, permutation in zip(self.groups, permutations, strict=True):
            for axis in group.axes:
                result[axis.tensor] = permute(result[axis.tensor], axis, permutation)
        return result


def permute(value: Tensor, axis: Axis, permutation: Tensor) -> Tensor:
    """``value`` with its units along ``axis`` in the order of ``permutation [size]``."""
    index = (permutation.unsqueeze(1) * axis.repeat + torch.arange(axis.repeat)).reshape(-1)
    return value.index_select(axis.axis, index.to(value.device))


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
)
_EACH = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid),
    *(nn.Softplus, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d),
)
#: Functions that treat every element, or every channel, alike; first argument in, same layout out.
_FUNCTIONS = {
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.selu, F.gelu, F.silu, F.mish, F.tanh, F.sigmoid, F.softplus),
    *(F.hardswish, F.hardsigmoid, F.dropout, F.dropout2d, F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d),
    *(F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
    *(torch.relu, torch.tanh, torch.sigmoid, torch.clone),
}
_METHODS = {"relu", "tanh", "sigmoid", "contiguous", "clone", "relu_", "float", "double"}
_BINARY = {operator.add, operator.mul, operator.sub, operator.iadd, operator.imul, torch.add, torch.mul, torch.sub}


@dataclass(frozen=True)
class _Layout:
    """Dimension ``axis`` of an activation runs over the units of ``group``, each ``repeat`` indices wide."""

    group: int
    axis: int
    repeat: int = 1


def trace_permutations(module: nn.Module, example: Tensor) -> PermutationSpecification:
    """Which hidden units of ``module`` may be permuted, from its graph and one ``example`` input ``[b, ...]``.

    Linear and convolution layers make new units; activations, pooling, dropout, BatchNorm and depthwise convolutions
    pass them on; sums join those of their terms; a flattened channel is one unit of many features. Units that pass
    through anything else (attention, concatenation, grouped convolution, an unknown function), and those of input and
    output are fixed: the specification may be smaller than possible, but is never wrong.

    Raises:
        LLPFError: torch.fx cannot trace the module (its forward depends on values), or no units are free.
    """
    twin = module_in(copied(module), torch.device("cpu"), torch.float32).eval()
    try:
        graph = fx.symbolic_trace(twin)
        with torch.no_grad():
            example = example.detach().cpu()
            ShapeProp(graph).propagate(example.float() if example.is_floating_point() else example)
    except Exception as error:  # the user's forward may raise anything
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise LLPFError(
            f"{type(module).__name__} cannot be traced for alignment ({reason}); leave out aligned-linear"
        ) from error
    units = _Tracer(graph)
    specification = units.run()
    if not specification.groups:
        raise LLPFError(f"{type(module).__name__} has no hidden units that may be permuted; leave out aligned-linear")
    return specification


class _Tracer:
    def __init__(self, graph: fx.GraphModule) -> None:
        self._graph = graph
        self._modules = dict(graph.named_modules())
        self._parent: list[int] = []
        self._size: list[int] = []
        self._fixed: set[int] = set()
        self._axes: dict[tuple[str, int], tuple[int, int]] = {}
        self._layouts: dict[fx.Node, _Layout | None] = {}

    def run(self) -> PermutationSpecification:
        for node in self._graph.graph.nodes:
            self._layouts[node] = self._node(node)
        fixed = {self._root(group) for group in self._fixed}
        axes: dict[int, list[Axis]] = {}
        for (tensor, axis), (group, repeat) in self._axes.items():
            root = self._root(group)
            if root not in fixed and self._size[root] > 1:
                axes.setdefault(root, []).append(Axis(tensor, axis, repeat))
        return PermutationSpecification(tuple(Units(self._size[root], tuple(tied)) for root, tied in axes.items()))

    # -- groups

    def _new(self, size: int) -> int:
        self._parent.append(len(self._parent))
        self._size.append(size)
        return len(self._parent) - 1

    def _root(self, group: int) -> int:
        while self._parent[group] != group:
            group = self._parent[group]
        return group

    def _join(self, a: int, b: int) -> None:
        a, b = self._root(a), self._root(b)
        if self._size[a] != self._size[b]:
            self._fixed |= {a, b}
        elif a != b:
            self._parent[b] = a

    def _fix(self, value: Any) -> None:
        """Fix the units of every activation inside ``value``."""
        for node in _nodes(value):
            layout = self._layouts.get(node)
            if layout is not None:
                self._fixed.add(layout.group)

    def _tie(self, tensor: str, axis: int, group: int, repeat: int = 1) -> None:
        """Tie the units of ``group`` to this axis of a parameter; a layer used twice joins its groups."""
        known = self._axes.setdefault((tensor, axis), (group, repeat))
        if known == (group, repeat):
            return
        if known[1] == repeat:
            self._join(known[0], group)
        else:
            self._fixed |= {known[0], group}

    # -- nodes

    def _node(self, node: fx.Node) -> _Layout | None:
        if node.op == "call_module":
            return self._module(node, self._modules[str(node.target)])
        if node.op == "call_function" and node.target in _BINARY:
            return self._binary(node)
        if node.op == "call_method" and node.target in ("add", "mul", "sub", "add_", "mul_"):
            return self._binary(node)
        first = self._layouts.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        only_first = len(list(_nodes((node.args, node.kwargs)))) == 1
        if only_first and first is not None:
            if node.target in _FUNCTIONS or (node.op == "call_method" and node.target in _METHODS):
                return first
            if node.target in (torch.flatten, torch.reshape, "flatten", "view", "reshape"):
                return self._flatten(node, first)
            if node.target in (torch.mean, torch.sum, "mean", "sum"):
                return self._reduce(node, first)
        if node.op == "call_method" and node.target in ("view", "reshape") and first is not None:
            return self._flatten(node, first)
        if node.target in ("size", "dim", getattr):
            return None
        self._fix((node.args, node.kwargs))
        return None

    def _module(self, node: fx.Node, module: nn.Module) -> _Layout | None:
        name = str(node.target)
        source = node.args[0] if node.args else None
        layout = self._layouts.get(source) if isinstance(source, fx.Node) else None
        if len(node.args) != 1 or node.kwargs:
            self._fix((node.args, node.kwargs))
            return None
        if isinstance(module, nn.Linear):
            return self._weighted(name, module, layout, axis=_dims(source) - 1, out=_dims(node) - 1)
        if isinstance(module, _CONVOLUTIONS) and module.groups == 1:
            return self._weighted(name, module, layout, axis=1, out=1)
        if layout is None:
            return None
        if isinstance(module, _CONVOLUTIONS) and module.groups == module.in_channels == module.out_channels:
            return self._vectors(name, module, layout, 1)
        if isinstance(module, (_BatchNorm, _InstanceNorm)):
            return self._vectors(name, module, layout, 1)
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
            return self._vectors(name, module, layout, _dims(source) - 1)
        if isinstance(module, _POOLS) and layout.axis == 1:
            return layout
        if isinstance(module, nn.Flatten):
            return self._flatten(node, layout)
        if isinstance(module, _EACH):
            return layout
        self._fix(node.args)
        return None

    def _weighted(self, name: str, module: nn.Module, layout: _Layout | None, *, axis: int, out: int) -> _Layout:
        """A linear map: its input units lie along axis 1 of the weight, its output units are new."""
        if layout is not None:
            if layout.axis == axis:
                self._tie(f"{name}.weight", 1, layout.group, layout.repeat)
            else:
                self._fixed.add(layout.group)
        assert isinstance(module.weight, Tensor)
        group = self._new(module.weight.shape[0])
        self._tie(f"{name}.weight", 0, group)
        if module.bias is not None:
            self._tie(f"{name}.bias", 0, group)
        return _Layout(self._axes[f"{name}.weight", 0][0], out)

    def _vectors(self, name: str, module: nn.Module, layout: _Layout, axis: int) -> _Layout | None:
        """A layer that treats units separately: all its tensors have them along axis 0."""
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if layout.axis != axis:
            self._fixed.add(layout.group)
            return None
        for tensor, value in tensors:
            if value.dim() > 0:
                self._tie(f"{name}.{tensor}", 0, layout.group, layout.repeat)
        return layout

    def _binary(self, node: fx.Node) -> _Layout | None:
        operands = list(_nodes((node.args, node.kwargs)))
        layouts = [self._layouts.get(each) for each in operands]
        if len(operands) == 1:
            return layouts[0]
        first = layouts[0]
        alike = (
            first is not None
            and all(each is not None and (each.axis, each.repeat) == (first.axis, first.repeat) for each in layouts)
            and len({_dims(each) for each in operands}) == 1
        )
        if not alike:
            self._fix(operands)
            return None
        assert first is not None
        for each in layouts[1:]:
            assert each is not None
            self._join(first.group, each.group)
        return first

    def _flatten(self, node: fx.Node, layout: _Layout) -> _Layout | None:
        """[b, units, ...] to [b, units * ...]: each unit becomes as many neighbouring features."""
        before, after = _shape(node.args[0]), _shape(node)
        wide = math.prod(before[2:])
        if layout.axis == 1 and len(after) == 2 and after == (before[0], before[1] * wide):
            return _Layout(layout.group, 1, layout.repeat * wide)
        self._fixed.add(layout.group)
        return None

    def _reduce(self, node: fx.Node, layout: _Layout) -> _Layout | None:
        """A mean over other dimensions; the units' dimension must come before them, so that its number is unchanged."""
        before, after = _shape(node.args[0]), _shape(node)
        if layout.axis < len(after) and before[: layout.axis + 1] == after[: layout.axis + 1]:
            return layout
        self._fixed.add(layout.group)
        return None


def _nodes(value: Any) -> list[fx.Node]:
    nodes: list[fx.Node] = []
    fx.node.map_arg(value, lambda node: nodes.append(node))
    return nodes


def _shape(node: Any) -> tuple[int, ...]:
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return tuple(getattr(meta, "shape", ()))


def _dims(node: Any) -> int:
    return len(_shape(node))
