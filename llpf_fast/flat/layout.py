"""``BufferLayout``: where a flat buffer has each parameter, and its exchange with state dicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import LLPFError
from ..types import StateDict
from .layers import LayerKind
from .parameter_sites import ParameterSite, check_flattenable, dense_stride, parameter_sites
from .table import SegmentTable
from .tensors import cast, exact, is_rounding, overlaps_itself, same_values

#: Names and shapes that one error message lists.
_LISTED = 4


@dataclass(frozen=True)
class ParameterLayout:
    """Where the buffer has a parameter, and the memory order of its elements."""

    name: str
    #: Of its first element in the buffer.
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]
    #: Equal ranges of rows that are a segment each. Empty: the parameter is one segment.
    pieces: tuple[LayerKind, ...] = ()

    def __post_init__(self) -> None:
        rows = self.shape[0] if self.shape else 1
        if self.pieces and (rows % len(self.pieces) or self.stride[0] * rows != self.shape.numel()):
            raise LLPFError(
                f"parameter {self.name!r} {list(self.shape)} (strides {list(self.stride)}) cannot be cut into "
                f"{' and '.join(kind.value for kind in self.pieces)}: that takes equal shares of rows, each contiguous "
                "in memory; make it contiguous or do not cut attention"
            )

    def view(self, buffer: Tensor) -> Tensor:
        """The parameter's elements of ``buffer [N]``."""
        return buffer.as_strided(self.shape, self.stride, buffer.storage_offset() + self.offset)


@dataclass(frozen=True)
class BufferLayout:
    """Where the buffer has the parameters of a module."""

    #: In the order of the buffer.
    parameters: tuple[ParameterLayout, ...]
    #: Index into ``parameters`` of every name, aliases included; None for parameters without elements.
    index: Mapping[str, int | None]

    @classmethod
    def of(
        cls,
        table: SegmentTable,
        parameters: Sequence[nn.Parameter],
        pieces: Sequence[tuple[LayerKind, ...]],
        index: Mapping[str, int | None],
    ) -> BufferLayout:
        """The layout of ``parameters`` in a table of one segment each, before it is cut into ``pieces``."""
        entries = zip(table.rows, parameters, pieces, strict=True)
        layouts = (ParameterLayout(row.name, row.offset, p.shape, dense_stride(p), cut) for row, p, cut in entries)
        return cls(tuple(layouts), index)

    @property
    def aliases(self) -> dict[str, str]:
        """Other names of tied parameters, each with the first name."""
        first = {name: self.parameters[i].name for name, i in self.index.items() if i is not None}
        return {name: first[name] for name in first if first[name] != name}

    @property
    def cuts(self) -> dict[int, list[tuple[str, int]]]:
        """Pieces of the parameters that have any, by index: (suffix of the name, elements)."""
        return {
            i: [(f"[{kind.value}]", layout.shape.numel() // len(layout.pieces)) for kind in layout.pieces]
            for i, layout in enumerate(self.parameters)
            if layout.pieces
        }

    def with_strides(self, parameters: Iterable[nn.Parameter]) -> BufferLayout:
        """The layout with the memory orders that ``parameters`` have now."""
        pairs = zip(self.parameters, parameters, strict=True)
        return replace(self, parameters=tuple(replace(layout, stride=dense_stride(p)) for layout, p in pairs))

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """The parameters in ``buffer [N]`` by first name, without a copy."""
        return {layout.name: layout.view(buffer) for layout in self.parameters}

    def locate(self, module: nn.Module) -> tuple[list[nn.Parameter], list[tuple[ParameterSite, nn.Parameter]]]:
        """The module's present parameters, in the order of the buffer; sites that are to be tied again, and to what.

        Raises:
            LLPFError: parameters that appeared, vanished, changed shape, were tied, or were untied and differ; what
                ``check_flattenable`` refuses.
        """
        sites = {site.name: site for site in parameter_sites(module)}
        for change, names in (
            ("vanished from", [name for name in self.index if name not in sites]),
            ("appeared in", [name for name in sites if name not in self.index]),
        ):
            if names:
                raise LLPFError(
                    f"{_listed(map(repr, names))} {change} the module since it was flattened: make new FlatParameters"
                )
        for name, i in self.index.items():
            shape = torch.Size([0]) if i is None else self.parameters[i].shape
            now = sites[name].parameter
            if (now.numel() > 0) if i is None else (is_lazy(now) or now.shape != shape):
                raise LLPFError(
                    f"parameter {name!r} has changed its shape from {list(shape)} to {list(now.shape)} since the "
                    "module was flattened: make new FlatParameters"
                )
        aliases = self.aliases
        untied = []
        for alias, name in aliases.items():
            site, first = sites[alias], sites[name].parameter
            if site.parameter is not first:
                if not same_values(site.parameter, first):
                    raise LLPFError(
                        f"parameters {name!r} and {alias!r} were tied when the module was flattened and now differ: "
                        "tie them again or make new FlatParameters"
                    )
                untied.append((site, first))
        parameters = [sites[layout.name].parameter for layout in self.parameters]
        names_of: dict[nn.Parameter, str] = {}
        for layout, parameter in zip(self.parameters, parameters, strict=True):
            if names_of.setdefault(parameter, layout.name) != layout.name:
                raise LLPFError(
                    f"parameters {names_of[parameter]!r} and {layout.name!r} have been tied since the module was "
                    "flattened: make new FlatParameters"
                )
        check_flattenable(module, {name: sites[name].parameter for name in self.index if name not in aliases})
        return parameters, untied

    def flatten(self, state: StateDict, module: nn.Module, like: Tensor) -> Tensor:
        """A new ``[N]`` with the parameters of ``state``, zero in padding; dtype and device of ``like [N]``.

        Raises:
            LLPFError: see :meth:`FlatParameters.flatten <llpf_fast.flat.FlatParameters.flatten>`.
        """
        names: list[list[str]] = [[] for _ in self.parameters]
        for name, i in self.index.items():
            if i is not None and name in state:
                names[i].append(name)
        problems = []
        for layout, given in zip(self.parameters, names, strict=True):
            if not given:
                problems.append(f"missing {layout.name!r} {list(layout.shape)}")
            for name in given:
                value = state[name]
                if not isinstance(value, Tensor) or not value.is_floating_point():
                    kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                    problems.append(f"{name!r} is {kind}, not a floating point tensor")
                elif value.shape != layout.shape:
                    problems.append(f"{name!r} is {list(value.shape)}, not {list(layout.shape)}")
        known = self.index.keys() | module.state_dict(keep_vars=True).keys() | dict(module.named_buffers()).keys()
        for name, value in state.items():
            if name not in known:
                problems.append(f"unexpected {name!r}{f' {list(value.shape)}' if isinstance(value, Tensor) else ''}")
        _refuse(problems, module)
        for given in names:
            for other in given[1:]:
                if not same_values(state[given[0]], state[other]):
                    raise LLPFError(f"state has different values for the tied parameters {given[0]!r} and {other!r}")
        flat = torch.zeros_like(like)
        for layout, given in zip(self.parameters, names, strict=True):
            layout.view(flat).copy_(state[given[0]])
        return flat

    def load(self, state: StateDict, module: nn.Module, data: Tensor) -> None:
        """Copy the parameters of ``state`` into ``data [N]``, its buffers and extra state into ``module``.

        Raises:
            LLPFError: see :meth:`FlatParameters.load <llpf_fast.flat.FlatParameters.load>`; nothing has been written.
        """
        values = self.flatten(state, module, data)
        persistent = module.state_dict(keep_vars=True)
        buffers = {name: buffer for name, buffer in module.named_buffers(remove_duplicate=False) if name in persistent}
        problems = []
        for name, buffer in buffers.items():
            value = state.get(name)
            if not isinstance(value, Tensor):
                problems.append(f"missing buffer {name!r} {list(buffer.shape)}")
            elif value.shape != buffer.shape:
                problems.append(f"buffer {name!r} is {list(value.shape)}, not {list(buffer.shape)}")
            elif overlaps_itself(buffer):
                problems.append(f"buffer {name!r} is an expanded tensor; make it .contiguous()")
            elif not buffer.is_meta and not _accepts(buffer, value):
                problems.append(f"buffer {name!r} is {value.dtype}, with values that {buffer.dtype} cannot hold")
        _refuse(problems, module)
        data.copy_(values)
        for name, buffer in buffers.items():
            buffer.copy_(state[name])
        extra = {name: state[name] for name in state if name not in buffers and name not in self.index}
        if extra:
            module.load_state_dict(extra, strict=False)

    def state_dict(self, module: nn.Module, values: Tensor, *, copied: bool) -> dict[str, Tensor]:
        """The module's state dict with its parameters from ``values [N]``; contiguous copies where ``copied``."""
        views = [layout.view(values) for layout in self.parameters]
        state = {}
        for name, value in module.state_dict(keep_vars=True).items():
            if not isinstance(value, Tensor):
                continue
            i = self.index.get(name)
            state[name] = (value if i is None else views[i]).detach()
            if copied:
                state[name] = state[name].clone(memory_format=torch.contiguous_format)
        return state


def _accepts(buffer: Tensor, value: Tensor) -> bool:
    """Whether ``buffer`` can take the values exactly, or floating ones rounded."""
    if buffer.dtype == value.dtype:
        return True
    converted = cast(value, buffer.dtype)
    return is_rounding(value, converted) or exact(value, converted)


def _refuse(problems: list[str], module: nn.Module) -> None:
    if problems:
        raise LLPFError(f"state does not fit {type(module).__name__}: {_listed(problems, '; ')}")


def _listed(items: Iterable[str], separator: str = ", ") -> str:
    """The first few items, and how many more there are."""
    items = list(items)
    more = [f"{len(items) - _LISTED} more"] if len(items) > _LISTED else []
    return separator.join(items[:_LISTED] + more)
