"""``FlatParameters``: a module's parameters, and their gradients, as views of one contiguous buffer each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import LLPFError
from ..ops import SegmentFlag
from .buffers import overlaps_itself, persistent_buffers
from .dtypes import cast, exact, is_rounding
from .layers import LayerKind, Role, roles
from .parameter_sites import ParameterSite, bias_weights, check_flattenable, dense_stride, parameter_sites
from .table import CHUNK, SegmentTable

#: Names and shapes spelled out in one error message.
_LISTED = 4
_requires_grad = attrgetter("requires_grad")
_gradient = attrgetter("grad")
_members_of: Callable[[dict[str, Any]], Iterable[Any]] = dict.values


@dataclass(frozen=True)
class _Layout:
    """Where the buffer holds a parameter, and which memory order its elements have."""

    name: str
    offset: int
    shape: torch.Size
    stride: tuple[int, ...]
    #: Row ranges it is cut into: one segment each. Empty: one segment.
    pieces: tuple[LayerKind, ...] = ()

    def check_rows(self) -> None:
        """Refuse pieces that the memory order tears apart, or shares that do not come out even."""
        rows = self.shape[0] if self.shape else 1
        if self.pieces and (rows % len(self.pieces) or self.stride[0] * rows != self.shape.numel()):
            raise LLPFError(
                f"parameter {self.name!r} {list(self.shape)} (strides {list(self.stride)}) cannot be cut into "
                f"{' and '.join(kind.value for kind in self.pieces)}: that takes equal shares of rows, each contiguous "
                "in memory; make it contiguous or do not cut attention"
            )

    def view(self, buffer: Tensor) -> Tensor:
        return buffer.as_strided(self.shape, self.stride, buffer.storage_offset() + self.offset)


class FlatParameters:
    """The parameters of ``module`` as views of ``data``, one zero-padded tensor ``[N]``.

    Each parameter is one segment of ``table``, in the order of ``module.named_parameters()`` (with ``join_bias`` a
    bias follows its weight); tied parameters are one segment, under their first name; parameters without elements
    have none. With ``cut_attention`` a stack of attention projections has one segment a projection instead, called
    ``NAME[query]``, ``NAME[key]``, ``NAME[value]``, in the parameter's own distance and variance group; everywhere
    but in ``table`` it stays one tensor under its own name. Names are ``state_dict`` keys. ``FROZEN`` is set where
    ``requires_grad`` is False, no other flag. A segment keeps the memory order of its parameter, so a channels_last
    weight stays channels_last: ``[N]`` buffers are exchanged through :meth:`flatten`, :meth:`state_dict` and
    :meth:`views`, which convert.

    The Parameter objects stay the module's own: optimisers, hooks and compiled graphs made before go on working.
    Whatever replaces a parameter's memory (``.to()``, ``load_state_dict(assign=True)``, ``parameter.data = ...``)
    takes it out of the buffer; :meth:`ensure` notices and brings it back. Call it before each use of ``data``.

    Pickling and ``copy.deepcopy`` give an independent pair of module and buffer. ``torch.save`` writes the buffer
    once; plain ``pickle`` writes it once a *parameter* (torch's doing), so :meth:`release` first or use torch.save.

    Args:
        module: at least one parameter; float32, float64, bfloat16 or float16, all of one dtype on one device.
        join_bias: a weight and the bias of the same submodule share a distance group.
        chunk: elements a chunk of the table.
        is_norm: also counts a module for which it returns True as a normalization layer (``kinds``).
        cut_attention: cut every FUSED_ATTENTION parameter, weight or bias, into its projections.

    Attributes:
        module: the module.
        data: ``[N]``, parameter dtype and device, N a multiple of 16. Replaced only when ``version`` changes.
        table: where each parameter lies; replaced when a ``requires_grad`` or the device changes.
        kinds: one :class:`LayerKind` a segment; that of the piece where a parameter is cut.
        is_bias: one bool a segment: an additive term of whatever kind, so that a policy can hold query weights only.
        is_layer_norm: one bool a segment: of a layer normalization (the authors' code compensates these alone).
        parameter_names: one name a segment: the parameter it is, or is a piece of.
        aliases: other names of tied parameters, each with the name its segment has.
        version: counts changes of dtype, device or memory order. ``[N]`` buffers made under another version do not
            fit any more.

    Raises:
        LLPFError: no parameters; lazy, integer, complex, sparse or subclassed parameters; mixed dtypes or devices;
            distinct parameters that share memory; with ``cut_attention`` a stack whose projections are no contiguous
            equal shares (a transposed weight). The message names them.
    """

    module: nn.Module
    data: Tensor
    table: SegmentTable
    kinds: tuple[LayerKind, ...]
    is_bias: tuple[bool, ...]
    is_layer_norm: tuple[bool, ...]
    parameter_names: tuple[str, ...]
    aliases: dict[str, str]
    version: int

    def __init__(
        self,
        module: nn.Module,
        *,
        join_bias: bool = False,
        chunk: int = CHUNK,
        is_norm: Callable[[nn.Module], bool] | None = None,
        cut_attention: bool = False,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise LLPFError(f"expected a torch.nn.Module, got {type(module).__name__}")
        self._build(module, join_bias, chunk, cut_attention, roles(module, is_norm))

    @torch.inference_mode(False)
    @torch.no_grad()
    def _build(
        self, module: nn.Module, join_bias: bool, chunk: int, cut_attention: bool, told: Mapping[str, Role]
    ) -> None:
        found = list(parameter_sites(module))
        first_names: dict[nn.Parameter, str] = {}
        for place in found:
            first_names.setdefault(place.parameter, place.name)
        by_name = {name: parameter for parameter, name in first_names.items()}
        if not any(is_lazy(p) or p.numel() for p in by_name.values()):
            raise LLPFError(f"{type(module).__name__} has no parameters to flatten")
        check_flattenable(module, by_name)
        parameters = [p for p in by_name.values() if p.numel()]
        weights = bias_weights(module) if join_bias else {}
        position = {p: i for i, p in enumerate(parameters)}
        groups = {p: position[weights.get(p, p)] for p in parameters}
        parameters.sort(key=lambda p: (groups[p], p in weights))
        names = [first_names[p] for p in parameters]

        reference = parameters[0]
        whole = SegmentTable.from_lengths(
            [p.numel() for p in parameters],
            names=names,
            flags=[_flag(p) for p in parameters],
            distance_groups=[groups[p] for p in parameters],
            chunk=chunk,
        ).to(reference.device)
        layouts = tuple(
            _Layout(row.name, row.offset, p.shape, dense_stride(p), told[row.name].pieces if cut_attention else ())
            for row, p in zip(whole.rows, parameters, strict=True)
        )
        for layout in layouts:
            layout.check_rows()

        self.module = module
        self.version = 0
        self._join_bias = join_bias
        self._cut_attention = cut_attention
        self._told = dict(told)
        self._layouts = layouts
        self._describe_segments(whole)
        positions = {name: i for i, name in enumerate(names)}
        #: Parameter (index of its layout) of every name; None for parameters without elements.
        self._positions = {p.name: positions.get(first_names[p.parameter]) for p in found}
        self.aliases = {name: names[i] for name, i in self._positions.items() if i is not None and names[i] != name}
        self.data = torch.zeros(self.table.numel, dtype=reference.dtype, device=reference.device)
        self._grad: Tensor | None = None
        self._released = False
        for layout, parameter in zip(self._layouts, parameters, strict=True):
            view = layout.view(self.data)
            view.copy_(parameter)
            parameter.data = view
        self._remember(parameters)

    def _describe_segments(self, whole: SegmentTable) -> None:
        """The table and what is known of its segments, from a table of one segment a parameter."""
        cuts = {
            i: [(f"[{kind.value}]", layout.shape.numel() // len(layout.pieces)) for kind in layout.pieces]
            for i, layout in enumerate(self._layouts)
            if layout.pieces
        }
        self.table = whole.cut(cuts)
        segments = [
            (i, layout.name, kind)
            for i, layout in enumerate(self._layouts)
            for kind in layout.pieces or (self._told[layout.name].kind,)
        ]
        #: Parameter (index of its layout) of every segment.
        self._parameter_of = [i for i, _, _ in segments]
        self.parameter_names = tuple(name for _, name, _ in segments)
        self.kinds = tuple(kind for _, _, kind in segments)
        self.is_bias = tuple(self._told[name].is_bias for name in self.parameter_names)
        self.is_layer_norm = tuple(self._told[name].is_layer_norm for name in self.parameter_names)

    def _remember(self, parameters: list[nn.Parameter]) -> None:
        """What :meth:`ensure` compares with. Holding the objects keeps their ids from being used again."""
        self._parameters = parameters
        self._members: list[dict[str, Any]] = []
        for owner in self.module.modules():
            self._members += owner._modules, owner._parameters
        self._held = list(chain.from_iterable(map(_members_of, self._members)))
        self._identities = list(map(id, self._held))
        self._pointers = list(map(Tensor.data_ptr, parameters))
        self._strides = [layout.stride for layout in self._layouts]
        self._numels = [layout.shape.numel() for layout in self._layouts]
        self._trained = list(map(_requires_grad, parameters))
        self._trainable = [parameter for parameter in parameters if parameter.requires_grad]
        self._gradient_views: list[Tensor] | None = None
        self._gradient_pointers: list[int] = []

    # -- aliasing

    def ensure(self) -> None:
        """Make every parameter a view of ``data`` again, with the parameter's present values. Cheap if all still are.

        A parameter that was re-assigned is copied back; a module that went to another dtype or device takes the
        buffer and the table along; a new memory order is adopted (both count up ``version``); a changed
        ``requires_grad`` changes the table's flags; ties that ``load_state_dict(assign=True)`` cut are restored.

        Raises:
            LLPFError: a parameter appeared, vanished or changed its shape, tied parameters became different, or what
                the constructor refuses. Nothing has been changed then.
        """
        parameters = self._parameters
        if not (
            list(map(id, chain.from_iterable(map(_members_of, self._members)))) == self._identities
            and list(map(Tensor.data_ptr, parameters)) == self._pointers
            and list(map(Tensor.stride, parameters)) == self._strides
            and list(map(Tensor.numel, parameters)) == self._numels
            and list(map(_requires_grad, parameters)) == self._trained
        ):
            self._repair()

    @torch.inference_mode(False)
    @torch.no_grad()
    def _repair(self) -> None:
        parameters, retie = self._present()
        reference = parameters[0]
        moved = (reference.dtype, reference.device) != (self.data.dtype, self.data.device)
        layouts = tuple(
            replace(layout, stride=dense_stride(parameter))
            for layout, parameter in zip(self._layouts, parameters, strict=True)
        )
        for layout in layouts:
            layout.check_rows()
        strayed = [
            (layout, parameter)
            for layout, parameter in zip(layouts, parameters, strict=True)
            if moved or not _same_memory(parameter, layout.view(self.data))
        ]
        # All values are taken out before any is written: two parameters may have swapped their memory.
        values = [p.data.clone() if _same_storage(p, self.data) else p.data for _, p in strayed]
        if moved:
            self.data = torch.zeros(self.table.numel, dtype=reference.dtype, device=reference.device)
            self.table = self.table.to(reference.device)
        for (layout, parameter), value in zip(strayed, values, strict=True):
            view = layout.view(self.data)
            view.copy_(value)
            parameter.data = view
        for place, parameter in retie:
            setattr(place.owner, place.attribute, parameter)
        if moved or layouts != self._layouts:
            self.version += 1
            self._layouts = layouts
            # Made anew, in the new order, from the gradients that the parameters have.
            self._grad = None
        flags = [_flag(parameters[i]) for i in self._parameter_of]
        if flags != [row.flags for row in self.table.rows]:
            self.table = self.table.with_flags(flags)
        self._remember(parameters)

    def _present(self) -> tuple[list[nn.Parameter], list[tuple[ParameterSite, nn.Parameter]]]:
        """The module's parameters as they are now, one a layout, and the places whose ties were cut."""
        if self._released:
            raise LLPFError("these FlatParameters were released: make new ones from the module")
        found = {place.name: place for place in parameter_sites(self.module)}
        for change, names in (
            ("vanished from", [name for name in self._positions if name not in found]),
            ("appeared in", [name for name in found if name not in self._positions]),
        ):
            if names:
                raise LLPFError(
                    f"{_listed(map(repr, names))} {change} the module since it was flattened: make new FlatParameters"
                )
        parameters = [found[layout.name].parameter for layout in self._layouts]
        for name, i in self._positions.items():
            shape = torch.Size([0]) if i is None else self._layouts[i].shape
            now = found[name].parameter
            if (now.numel() > 0) if i is None else (is_lazy(now) or now.shape != shape):
                raise LLPFError(
                    f"parameter {name!r} has changed its shape from {list(shape)} to {list(now.shape)} since the "
                    "module was flattened: make new FlatParameters"
                )
        retie = []
        for alias, name in self.aliases.items():
            place, first = found[alias], found[name].parameter
            if place.parameter is not first:
                if not _equal(place.parameter, first):
                    raise LLPFError(
                        f"parameters {name!r} and {alias!r} were tied when the module was flattened and now differ: "
                        "tie them again or make new FlatParameters"
                    )
                retie.append((place, first))
        names_of: dict[nn.Parameter, str] = {}
        for layout, parameter in zip(self._layouts, parameters, strict=True):
            if names_of.setdefault(parameter, layout.name) != layout.name:
                raise LLPFError(
                    f"parameters {names_of[parameter]!r} and {layout.name!r} have been tied since the module was "
                    "flattened: make new FlatParameters"
                )
        check_flattenable(
            self.module, {n: found[n].parameter for n, i in self._positions.items() if n not in self.aliases}
        )
        return parameters, retie

    @torch.inference_mode(False)
    @torch.no_grad()
    def move_to(self, data: Tensor, grad: Tensor) -> None:
        """Let ``data`` and ``grad`` be this memory, ``[N]`` each (rows of a stack, say), with the values they have now.

        Those of before belong to nobody from then on. ``version`` stays: ``[N]`` buffers fit as they did.

        Raises:
            LLPFError: memory of another size, dtype or device, or with holes.
        """
        self.ensure()
        like = self.data
        for memory in (data, grad):
            fits = (memory.shape, memory.dtype, memory.device) == (like.shape, like.dtype, like.device)
            if not (fits and memory.is_contiguous()):
                raise LLPFError(
                    f"expected contiguous memory of {self.table.numel} {self.data.dtype} on {self.data.device}, got "
                    f"shape {list(memory.shape)}, {memory.dtype} on {memory.device}"
                )
        grad.copy_(self.grad)
        data.copy_(self.data)
        self.data, self._grad = data, grad
        for layout, parameter in zip(self._layouts, self._parameters, strict=True):
            parameter.data = layout.view(data)
            parameter.grad = layout.view(grad) if parameter.requires_grad else None
        self._remember(self._parameters)
        self._adopt_gradients()

    def release(self) -> None:
        """Give every parameter, and its gradient, memory of its own again. These FlatParameters are of no more use."""
        self.ensure()
        with torch.inference_mode(False), torch.no_grad():
            for parameter in self._parameters:
                gradient = parameter.grad
                parameter.data = parameter.data.clone()
                if gradient is not None:
                    parameter.grad = gradient.detach().clone()
        self._released = True
        self._identities = []

    # -- gradients

    @property
    def grad(self) -> Tensor:
        """``[N]``: the gradients, dtype and device of ``data``, 0 in padding and frozen segments.

        Allocated at the first use, which takes in the gradients that the parameters have. Call
        :meth:`ensure_gradients` before each later use.
        """
        if self._grad is None:
            self._adopt_gradients()
        assert self._grad is not None
        return self._grad

    def ensure_gradients(self) -> None:
        """Make ``grad`` hold the gradient of every trainable parameter, and every such ``.grad`` a view of it.

        Gradients made anew (after ``zero_grad()`` in its default form, by sparse embeddings, with ``create_graph``)
        are copied in, without their graph; a missing gradient becomes 0, so an optimiser no longer skips it. The
        segment of a frozen parameter becomes 0. Calls :meth:`ensure`. Cheap if all are views already.
        """
        self.ensure()
        if not self._gradients_attached():
            self._adopt_gradients()

    def zero_grad(self) -> None:
        """Set ``grad`` to 0 in one call. ``.grad`` of every trainable parameter stays, or becomes, a view of it."""
        self.ensure()
        if not self._gradients_attached():
            for parameter in self._parameters:
                parameter.grad = None
            self._adopt_gradients()
        self.grad.zero_()

    def _gradients_attached(self) -> bool:
        views = self._gradient_views
        return (
            views is not None
            and all(map(is_, map(_gradient, self._trainable), views))
            and list(map(Tensor.data_ptr, views)) == self._gradient_pointers
        )

    @torch.inference_mode(False)
    @torch.no_grad()
    def _adopt_gradients(self) -> None:
        if self._grad is None:
            self._grad = torch.zeros_like(self.data)
        found = [parameter.grad for parameter in self._parameters]
        # As for the parameters: taken out before any is written.
        for i, gradient in enumerate(found):
            if gradient is not None and gradient.layout is not torch.strided:
                found[i] = gradient.to_dense()
            elif gradient is not None and _same_storage(gradient, self._grad):
                in_place = _same_memory(gradient, self._layouts[i].view(self._grad))
                found[i] = gradient if in_place else gradient.clone()
        views: list[Tensor] = []
        fresh: list[tuple[Tensor, Tensor]] = []
        for layout, parameter, gradient in zip(self._layouts, self._parameters, found, strict=True):
            view = layout.view(self._grad)
            if not parameter.requires_grad:
                if gradient is not None and _same_storage(gradient, self._grad):
                    parameter.grad = None
                view.zero_()
                continue
            if gradient is None:
                view.zero_()
            elif not _same_memory(gradient, view):
                fresh.append((view, gradient))
            parameter.grad = view
            views.append(view)
        if fresh:
            # One kernel on a GPU, where a captured iteration comes here.
            torch._foreach_copy_([view for view, _ in fresh], [gradient for _, gradient in fresh])
        self._gradient_views = views
        self._gradient_pointers = list(map(Tensor.data_ptr, views))

    # -- exchange

    def buffers(self) -> dict[str, Tensor]:
        """The module's buffers by name (running statistics and the like), its own tensors. They are never moved."""
        return dict(self.module.named_buffers())

    def persistent_buffers(self) -> dict[str, Tensor]:
        """Those of :meth:`buffers` that are in ``state_dict``: all that a waypoint can hold."""
        return persistent_buffers(self.module)

    def views(self, values: Tensor) -> dict[str, Tensor]:
        """The parameters held by ``values`` ``[N]`` (any dtype and device), by first name, without a copy.

        What ``torch.func.functional_call`` takes. Differentiable.
        """
        self.ensure()
        return self._views(values)

    def _views(self, values: Tensor) -> dict[str, Tensor]:
        if values.shape != self.data.shape or not values.is_contiguous():
            raise LLPFError(
                f"expected a contiguous buffer of {self.table.numel} elements, got shape {list(values.shape)} with "
                f"strides {list(values.stride())}"
            )
        return {layout.name: layout.view(values) for layout in self._layouts}

    @torch.inference_mode(False)
    @torch.no_grad()
    def flatten(self, state: Mapping[str, Tensor]) -> Tensor:
        """A new ``[N]`` (dtype, device and memory order of ``data``, 0 in padding) from a state dict.

        Of tied names one is enough. Buffers, present or not, are ignored. Values are converted to that dtype.

        Raises:
            LLPFError: missing or unexpected names, other shapes, values that are no real floating point tensors, tied
                names with different values. The message lists the first few.
        """
        self.ensure()
        groups: list[list[str]] = [[] for _ in self._layouts]
        for name, i in self._positions.items():
            if i is not None and name in state:
                groups[i].append(name)
        problems = []
        for layout, names in zip(self._layouts, groups, strict=True):
            if not names:
                problems.append(f"missing {layout.name!r} {list(layout.shape)}")
            for name in names:
                value = state[name]
                if not isinstance(value, Tensor) or not value.is_floating_point():
                    kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
                    problems.append(f"{name!r} is {kind}, not a floating point tensor")
                elif value.shape != layout.shape:
                    problems.append(f"{name!r} is {list(value.shape)}, not {list(layout.shape)}")
        known = self._positions.keys() | self.module.state_dict(keep_vars=True).keys() | self.buffers().keys()
        for name, value in state.items():
            if name not in known:
                problems.append(f"unexpected {name!r}{f' {list(value.shape)}' if isinstance(value, Tensor) else ''}")
        if problems:
            raise LLPFError(f"state does not fit {type(self.module).__name__}: {_listed(problems, '; ')}")
        for names in groups:
            for other in names[1:]:
                if not _equal(state[names[0]], state[other]):
                    raise LLPFError(f"state has different values for the tied parameters {names[0]!r} and {other!r}")
        flat = torch.zeros_like(self.data)
        for layout, names in zip(self._layouts, groups, strict=True):
            layout.view(flat).copy_(state[names[0]])
        return flat

    @torch.inference_mode(False)
    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Parameters and buffers of a full state dict into the module. Nothing is written unless everything fits.

        Raises:
            LLPFError: as :meth:`flatten`, and for buffers that are missing, of another shape, or of a dtype with values
                that the module's cannot hold (rounding floating values is allowed).
        """
        values = self.flatten(state)
        persistent = self.module.state_dict(keep_vars=True)
        buffers = {
            name: buffer for name, buffer in self.module.named_buffers(remove_duplicate=False) if name in persistent
        }
        problems = []
        for name, buffer in buffers.items():
            value = state.get(name)
            if not isinstance(value, Tensor):
                problems.append(f"missing buffer {name!r} {list(buffer.shape)}")
            elif value.shape != buffer.shape:
                problems.append(f"buffer {name!r} is {list(value.shape)}, not {list(buffer.shape)}")
            elif overlaps_itself(buffer):
                problems.append(f"buffer {name!r} is an expanded tensor; give it memory of its own with .contiguous()")
            elif not buffer.is_meta and not _takes(buffer, value):
                problems.append(f"buffer {name!r} is {value.dtype}, with values that {buffer.dtype} cannot hold")
        if problems:
            raise LLPFError(f"state does not fit {type(self.module).__name__}: {_listed(problems, '; ')}")
        self.data.copy_(values)
        for name, buffer in buffers.items():
            buffer.copy_(state[name])
        extra = {name: state[name] for name in state if name not in buffers and name not in self._positions}
        if extra:
            self.module.load_state_dict(extra, strict=False)

    @torch.inference_mode(False)
    @torch.no_grad()
    def state_dict(self, values: Tensor | None = None, *, copied: bool = True) -> dict[str, Tensor]:
        """What ``module.load_state_dict`` takes, in its order: contiguous copies that share no memory.

        Extra state (``get_extra_state``) that is no tensor is left out.

        Args:
            values: ``[N]``, any dtype and device: the parameters' values instead of ``data``. Buffers are always the
                module's present ones.
            copied: False gives the memory itself, to be read at once.
        """
        self.ensure()
        views = list(self._views(self.data if values is None else values).values())
        state = {}
        for name, value in self.module.state_dict(keep_vars=True).items():
            i = self._positions.get(name)
            if not isinstance(value, Tensor):
                continue
            source = value if i is None else views[i]
            state[name] = source.detach()
            if copied:
                state[name] = state[name].clone(memory_format=torch.contiguous_format)
        return state

    # -- copies

    def __getstate__(self) -> dict[str, Any]:
        self.ensure()
        if self._grad is not None:
            self.ensure_gradients()
        return {
            "module": self.module,
            "join_bias": self._join_bias,
            "chunk": self.table.chunk,
            "cut_attention": self._cut_attention,
            "told": self._told,
            "grad": self._grad,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._build(state["module"], state["join_bias"], state["chunk"], state["cut_attention"], state["told"])
        if state["grad"] is not None:
            self.grad.copy_(state["grad"])

    def __repr__(self) -> str:
        return (
            f"FlatParameters({type(self.module).__name__}, {len(self.table)} segments, {self.table.numel} elements, "
            f"{self.data.dtype}, {self.data.device})"
        )


def _flag(parameter: nn.Parameter) -> SegmentFlag:
    return SegmentFlag.NONE if parameter.requires_grad else SegmentFlag.FROZEN


def _takes(buffer: Tensor, value: Tensor) -> bool:
    """Whether ``buffer`` can hold the values, or floating ones rounded."""
    if buffer.dtype == value.dtype:
        return True
    converted = cast(value, buffer.dtype)
    return is_rounding(value, converted) or exact(value, converted)


def _same_storage(tensor: Tensor, buffer: Tensor) -> bool:
    return tensor.device == buffer.device and tensor.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()


def _same_memory(tensor: Tensor, view: Tensor) -> bool:
    return (tensor.data_ptr(), tensor.stride(), tensor.shape, tensor.dtype, tensor.device) == (
        view.data_ptr(),
        view.stride(),
        view.shape,
        view.dtype,
        view.device,
    )


def _equal(a: Tensor, b: Tensor) -> bool:
    """Equal values, NaN equal to NaN. Meta tensors have no values to differ in."""
    if a.is_meta or b.is_meta:
        return a.shape == b.shape
    return a.shape == b.shape and torch.allclose(a, b.to(a), rtol=0.0, atol=0.0, equal_nan=True)


def _listed(items: Iterable[str], separator: str = ", ") -> str:
    """The first few items, and how many more there are."""
    items = list(items)
    more = [f"{len(items) - _LISTED} more"] if len(items) > _LISTED else []
    return separator.join(items[:_LISTED] + more)
