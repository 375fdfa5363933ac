"""``FlatParameters``: a module's parameters, and their gradients, as views of one contiguous buffer each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import LLPFError
from ..ops import SegmentFlag
from ..types import IsNorm, StateDict
from .buffers import persistent_buffers
from .layers import LayerKind, Role, roles
from .layout import BufferLayout
from .parameter_sites import bias_weights, check_flattenable, parameter_sites
from .table import CHUNK, SegmentTable
from .tensors import same_memory, same_storage

_requires_grad = attrgetter("requires_grad")
_gradient = attrgetter("grad")
_members_of: Callable[[dict[str, Any]], Iterable[Any]] = dict.values


class FlatParameters:
    """The parameters of ``module`` as views of ``data``, one zero-padded tensor ``[N]``.

    Each parameter is one segment of ``table``, in the order of ``module.named_parameters()`` (with ``join_bias`` a
    bias follows its weight). Tied parameters are one segment, under their first name; parameters without elements
    have none. With ``cut_attention`` a stack of attention projections has one segment a projection instead, called
    ``NAME[query]``, ``NAME[key]``, ``NAME[value]``, in the parameter's own distance and variance group; everywhere
    but in ``table`` it stays one tensor under its own name. Names are ``state_dict`` keys. ``FROZEN`` is set where
    ``requires_grad`` is False, no other flag. A segment has the memory order of its parameter, so a channels_last
    weight stays channels_last: exchange ``[N]`` buffers through :meth:`flatten`, :meth:`state_dict` and
    :meth:`views`, which convert.

    The Parameter objects stay those of the module, so optimizers, hooks and compiled graphs made before remain valid.
    Whatever replaces a parameter's memory (``.to()``, ``load_state_dict(assign=True)``, ``parameter.data = ...``)
    takes it out of the buffer; :meth:`ensure` notices and brings it back. Call it before each use of ``data``.

    Pickling and ``copy.deepcopy`` give an independent pair of module and buffer. ``torch.save`` writes the buffer
    once; ``pickle`` writes it once a parameter (torch's doing), so use torch.save, or :meth:`release` first.

    Args:
        module: at least one parameter; float32, float64, bfloat16 or float16, all of one dtype on one device.
        join_bias: whether a weight and the bias of the same submodule share a distance group.
        chunk: elements a chunk of the table.
        is_norm: further modules that count as normalization layers (``kinds``).
        cut_attention: whether FUSED_ATTENTION parameters, weights and biases, are cut into their projections.

    Attributes:
        data: ``[N]``, parameter dtype and device, N a multiple of 16. Replaced only when ``version`` changes.
        table: where each parameter lies; replaced when a ``requires_grad`` or the device changes.
        kinds: one :class:`LayerKind` a segment; that of the piece where a parameter is cut.
        is_bias: one bool a segment: an additive term, of whatever kind.
        is_layer_norm: one bool a segment: of a layer normalization (the authors' code compensates these alone).
        parameter_names: one name a segment: the parameter it is, or is a piece of.
        aliases: other names of tied parameters, each with the name of its segment.
        version: counts changes of dtype, device or memory order. ``[N]`` buffers of another version no longer fit.

    Raises:
        LLPFError: no parameters; lazy, integer, complex, sparse or subclassed parameters; mixed dtypes or devices;
            distinct parameters that share memory; with ``cut_attention`` a stack whose projections are not contiguous
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
        is_norm: IsNorm | None = None,
        cut_attention: bool = False,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise LLPFError(f"expected a torch.nn.Module, got {type(module).__name__}")
        self._build(module, join_bias, chunk, cut_attention, roles(module, is_norm))

    @torch.inference_mode(False)
    @torch.no_grad()
    def _build(
        self, module: nn.Module, join_bias: bool, chunk: int, cut_attention: bool, roles: Mapping[str, Role]
    ) -> None:
        sites = list(parameter_sites(module))
        first_names: dict[nn.Parameter, str] = {}
        for site in sites:
            first_names.setdefault(site.parameter, site.name)
        by_name = {name: parameter for parameter, name in first_names.items()}
        if not any(is_lazy(p) or p.numel() for p in by_name.values()):
            raise LLPFError(f"{type(module).__name__} has no parameters to flatten")
        check_flattenable(module, by_name)
        parameters = [p for p in by_name.values() if p.numel()]
        weights = bias_weights(module) if join_bias else {}
        order = {p: i for i, p in enumerate(parameters)}
        groups = {p: order[weights.get(p, p)] for p in parameters}
        parameters.sort(key=lambda p: (groups[p], p in weights))
        names = [first_names[p] for p in parameters]

        reference = parameters[0]
        uncut = SegmentTable.from_lengths(
            [p.numel() for p in parameters],
            names=names,
            flags=[_flag(p) for p in parameters],
            distance_groups=[groups[p] for p in parameters],
            chunk=chunk,
        ).to(reference.device)
        position = {name: i for i, name in enumerate(names)}
        index = {site.name: position.get(first_names[site.parameter]) for site in sites}

        self.module = module
        self.version = 0
        self._join_bias = join_bias
        self._cut_attention = cut_attention
        self._roles = dict(roles)
        pieces = [roles[name].pieces if cut_attention else () for name in names]
        self._layout = BufferLayout.of(uncut, parameters, pieces, index)
        self._describe_segments(uncut)
        self.aliases = self._layout.aliases
        self.data = torch.zeros(self.table.numel, dtype=reference.dtype, device=reference.device)
        self._grad: Tensor | None = None
        self._released = False
        for layout, parameter in zip(self._layout.parameters, parameters, strict=True):
            view = layout.view(self.data)
            view.copy_(parameter)
            parameter.data = view
        self._take_snapshot(parameters)

    def _describe_segments(self, uncut: SegmentTable) -> None:
        """Set the table and the attributes of its segments, from a table of one segment a parameter."""
        self.table = uncut.cut(self._layout.cuts)
        segments = [
            (i, layout.name, kind)
            for i, layout in enumerate(self._layout.parameters)
            for kind in layout.pieces or (self._roles[layout.name].kind,)
        ]
        #: Index of every segment's parameter in the layout.
        self._parameter_of = [i for i, _, _ in segments]
        self.parameter_names = tuple(name for _, name, _ in segments)
        self.kinds = tuple(kind for _, _, kind in segments)
        self.is_bias = tuple(self._roles[name].is_bias for name in self.parameter_names)
        self.is_layer_norm = tuple(self._roles[name].is_layer_norm for name in self.parameter_names)

    def _take_snapshot(self, parameters: list[nn.Parameter]) -> None:
        """Record what :meth:`ensure` compares with."""
        self._parameters = parameters
        self._members: list[dict[str, Any]] = []
        for owner in self.module.modules():
            self._members += owner._modules, owner._parameters
        # The objects, so that no id is used again.
        self._objects = list(chain.from_iterable(map(_members_of, self._members)))
        self._identities = list(map(id, self._objects))
        self._pointers = list(map(Tensor.data_ptr, parameters))
        self._strides = [layout.stride for layout in self._layout.parameters]
        self._numels = [layout.shape.numel() for layout in self._layout.parameters]
        self._trained = list(map(_requires_grad, parameters))
        self._trainable = [parameter for parameter in parameters if parameter.requires_grad]
        self._gradient_views: list[Tensor] | None = None
        self._gradient_pointers: list[int] = []

    # -- aliasing

    def ensure(self) -> None:
        """Make every parameter a view of ``data`` again, with the parameter's present values. Cheap if all still are.

        The values of a re-assigned parameter are copied into the buffer. A module in another dtype or on another
        device takes buffer and table along, and a new memory order is adopted (both count up ``version``). A changed
        ``requires_grad`` changes the table's flags. Ties that ``load_state_dict(assign=True)`` cut are restored.

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
        if self._released:
            raise LLPFError("these FlatParameters were released: make new ones from the module")
        parameters, untied = self._layout.locate(self.module)
        reference = parameters[0]
        moved = (reference.dtype, reference.device) != (self.data.dtype, self.data.device)
        layout = self._layout.with_strides(parameters)
        strayed = [
            (entry, parameter)
            for entry, parameter in zip(layout.parameters, parameters, strict=True)
            if moved or not same_memory(parameter, entry.view(self.data))
        ]
        # All values are taken out before any is written: two parameters may have swapped their memory.
        values = [p.data.clone() if same_storage(p, self.data) else p.data for _, p in strayed]
        if moved:
            self.data = torch.zeros(self.table.numel, dtype=reference.dtype, device=reference.device)
            self.table = self.table.to(reference.device)
        for (entry, parameter), value in zip(strayed, values, strict=True):
            view = entry.view(self.data)
            view.copy_(value)
            parameter.data = view
        for site, parameter in untied:
            setattr(site.owner, site.attribute, parameter)
        if moved or layout != self._layout:
            self.version += 1
            self._layout = layout
            # Allocated again at the next use, in the new order, from the gradients that the parameters have.
            self._grad = None
        flags = [_flag(parameters[i]) for i in self._parameter_of]
        if flags != [row.flags for row in self.table.rows]:
            self.table = self.table.with_flags(flags)
        self._take_snapshot(parameters)

    @torch.inference_mode(False)
    @torch.no_grad()
    def move_to(self, data: Tensor, grad: Tensor) -> None:
        """Use the memory ``data`` and ``grad``, ``[N]`` each (rows of a stack, say); values and ``version`` stay.

        The old tensors are no longer used.

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
        for layout, parameter in zip(self._layout.parameters, self._parameters, strict=True):
            parameter.data = layout.view(data)
            parameter.grad = layout.view(grad) if parameter.requires_grad else None
        self._take_snapshot(self._parameters)
        self._adopt_gradients()

    def release(self) -> None:
        """Give every parameter and its gradient separate memory again. These FlatParameters are then unusable."""
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

        Allocated at the first use, from the parameters' gradients. Call :meth:`ensure_gradients` before each later use.
        """
        if self._grad is None:
            self._adopt_gradients()
        assert self._grad is not None
        return self._grad

    def ensure_gradients(self) -> None:
        """Copy the gradient of every trainable parameter into ``grad``, and make its ``.grad`` a view of that.

        Gradients in other memory (after ``zero_grad()`` in its default form, of sparse embeddings, with
        ``create_graph``) are copied without their graph. A missing gradient becomes 0, so an optimizer no longer skips
        it. The segment of a frozen parameter becomes 0. Calls :meth:`ensure`. Cheap if all are views already.
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

    def borrow_gradient_memory(self) -> Tensor:
        """``[N]``: the memory of ``grad``, for other values. Gradients are lost until the next :meth:`zero_grad`."""
        self.ensure_gradients()
        return self.grad

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
        gradients = [parameter.grad for parameter in self._parameters]
        # As for the parameters: all are taken out before any is written.
        for i, gradient in enumerate(gradients):
            if gradient is not None and gradient.layout is not torch.strided:
                gradients[i] = gradient.to_dense()
            elif gradient is not None and same_storage(gradient, self._grad):
                in_place = same_memory(gradient, self._layout.parameters[i].view(self._grad))
                gradients[i] = gradient if in_place else gradient.clone()
        views: list[Tensor] = []
        fresh: list[tuple[Tensor, Tensor]] = []
        for layout, parameter, gradient in zip(self._layout.parameters, self._parameters, gradients, strict=True):
            view = layout.view(self._grad)
            if not parameter.requires_grad:
                if gradient is not None and same_storage(gradient, self._grad):
                    parameter.grad = None
                view.zero_()
                continue
            if gradient is None:
                view.zero_()
            elif not same_memory(gradient, view):
                fresh.append((view, gradient))
            parameter.grad = view
            views.append(view)
        if fresh:
            # One kernel on a GPU, where captured iterations run this.
            torch._foreach_copy_([view for view, _ in fresh], [gradient for _, gradient in fresh])
        self._gradient_views = views
        self._gradient_pointers = list(map(Tensor.data_ptr, views))

    # -- exchange

    def buffers(self) -> dict[str, Tensor]:
        """The module's buffers by name (running statistics and the like): its tensors themselves, never moved."""
        return dict(self.module.named_buffers())

    def persistent_buffers(self) -> dict[str, Tensor]:
        """Those of :meth:`buffers` that are in ``state_dict``, and so in a waypoint."""
        return persistent_buffers(self.module)

    def views(self, values: Tensor) -> dict[str, Tensor]:
        """The parameters in ``values`` ``[N]`` (any dtype and device), by first name, without a copy.

        What ``torch.func.functional_call`` takes. Differentiable.
        """
        self.ensure()
        self._check_buffer(values)
        return self._layout.views(values)

    def _check_buffer(self, values: Tensor) -> None:
        if values.shape != self.data.shape or not values.is_contiguous():
            raise LLPFError(
                f"expected a contiguous buffer of {self.table.numel} elements, got shape {list(values.shape)} with "
                f"strides {list(values.stride())}"
            )

    @torch.inference_mode(False)
    @torch.no_grad()
    def flatten(self, state: StateDict) -> Tensor:
        """A new ``[N]`` (dtype, device and memory order of ``data``, 0 in padding) from a state dict.

        Of tied names one is enough. Buffers, present or not, are ignored. Values are converted to that dtype.

        Raises:
            LLPFError: missing or unexpected names, other shapes, values that are not real floating point tensors, tied
                names with different values. The message lists the first few.
        """
        self.ensure()
        return self._layout.flatten(state, self.module, self.data)

    @torch.inference_mode(False)
    @torch.no_grad()
    def load(self, state: StateDict) -> None:
        """Copy parameters and buffers of a full state dict into the module; nothing is written unless everything fits.

        Raises:
            LLPFError: as :meth:`flatten`, and for buffers that are missing, of another shape, or of a dtype with values
                that the module's cannot represent (rounding floating values is allowed).
        """
        self.ensure()
        self._layout.load(state, self.module, self.data)

    @torch.inference_mode(False)
    @torch.no_grad()
    def state_dict(self, values: Tensor | None = None, *, copied: bool = True) -> dict[str, Tensor]:
        """What ``module.load_state_dict`` takes, in its order: contiguous copies that share no memory.

        Extra state (``get_extra_state``) that is no tensor is left out.

        Args:
            values: ``[N]``, any dtype and device: parameters to use instead of ``data``. Buffers are always the
                module's present ones.
            copied: False gives the memory itself, to be read at once.
        """
        self.ensure()
        values = self.data if values is None else values
        self._check_buffer(values)
        return self._layout.state_dict(self.module, values, copied=copied)

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
            "roles": self._roles,
            "grad": self._grad,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._build(state["module"], state["join_bias"], state["chunk"], state["cut_attention"], state["roles"])
        if state["grad"] is not None:
            self.grad.copy_(state["grad"])

    def __repr__(self) -> str:
        return (
            f"FlatParameters({type(self.module).__name__}, {len(self.table)} segments, {self.table.numel} elements, "
            f"{self.data.dtype}, {self.data.device})"
        )


def _flag(parameter: nn.Parameter) -> SegmentFlag:
    return SegmentFlag.NONE if parameter.requires_grad else SegmentFlag.FROZEN
