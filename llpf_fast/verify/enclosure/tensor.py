"""``EnclosedTensor``: a tensor of affine forms that torch's functions accept, each by its rule."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from .form import AffineForm, NotEnclosedError

#: Rules by the name of torch's function or method. A rule gets the arguments of the call.
RULES: dict[str, Callable[..., Any]] = {}
#: What only reads shapes and types.
_METADATA = frozenset(
    (
        *("__get__", "__hash__", "__len__", "dim", "element_size", "get_device", "has_names", "is_complex", "is_conj"),
        *("is_contiguous", "is_floating_point", "is_inference", "is_neg", "is_pinned", "is_signed", "ndimension"),
        *("nelement", "numel", "size", "storage_offset", "stride"),
    )
)
#: Attributes that give more than shapes and types, or leave the tensor's class.
_REFUSED_ATTRIBUTES = frozenset(["data", "grad", "grad_fn", "T", "mT", "H", "mH", "real", "imag"])
#: Number of samples of the batch in work: rules must not mix them.
_samples: ContextVar[int] = ContextVar("samples_of_the_batch", default=0)
#: Identity of the run of the network in work.
_run: ContextVar[object] = ContextVar("run_of_the_network", default=None)


def rule(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Registers a function as the rule of torch's functions and methods ``names``."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            RULES[name] = function
        return function

    return register


class EnclosedTensor(Tensor):
    """A tensor whose values are an :class:`AffineForm`.

    A network's forward runs on it unchanged. Each function of torch goes to its rule; one without a rule raises
    :class:`NotEnclosedError`, and so does every way to read a value (``item``, ``if``, ``numpy``): the result would be
    that of one point.

    Attributes:
        form: the values.
        batched: whether the first dimension is that of samples, which no rule may mix.
        run: of the network, in which it was made. A tensor that a network stored in an earlier run belongs to another
            piece, and is refused.
        views: weak references to all tensors that would share memory; writing in place to one of several is refused.
    """

    form: AffineForm
    batched: bool
    views: list[weakref.ref[EnclosedTensor]]

    @staticmethod
    def __new__(cls, form: AffineForm, *, batched: bool, view_of: EnclosedTensor | None = None) -> EnclosedTensor:
        left = form.left
        made: EnclosedTensor = Tensor._make_wrapper_subclass(
            cls, left.shape, strides=left.stride(), dtype=left.dtype, device=left.device
        )
        return made

    def __init__(self, form: AffineForm, *, batched: bool, view_of: EnclosedTensor | None = None) -> None:
        self.form, self.batched, self.run = form, batched, _run.get()
        self.views = [] if view_of is None else view_of.views
        self.views.append(weakref.ref(self))

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"EnclosedTensor(shape={tuple(self.form.shape)}, dtype={self.form.dtype})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", str(func)), kwargs or {}
        if name in _METADATA:
            attribute = getattr(getattr(func, "__self__", None), "__name__", "")
            if attribute in _REFUSED_ATTRIBUTES:
                if attribute == "data" or attribute not in RULES:
                    raise NotEnclosedError(f"reading .{attribute} of a tensor cannot be enclosed")
                return RULES[attribute](*args, **kwargs)
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        in_place = (name.endswith("_") and not name.endswith("__")) or (
            name.startswith("__i") and name not in ("__invert__", "__index__", "__int__")
        )
        run = _run.get()
        for value in args if not args or not isinstance(args[0], (list, tuple)) else args[0]:
            if isinstance(value, EnclosedTensor) and value.run is not run:
                raise NotEnclosedError(f"{name} of a tensor that the network stored in an earlier call")
        function = RULES.get(name) or (RULES.get(_plain(name)) if in_place else None)
        if function is None:
            raise NotEnclosedError(f"torch's function {name} has no rule of enclosure")
        if kwargs.pop("out", None) is not None:
            raise NotEnclosedError(f"torch's function {name} with out= has no rule of enclosure")
        if kwargs.pop("inplace", False) or in_place:
            return _in_place(name, function, args, kwargs)
        return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise NotEnclosedError(f"torch's operator {func} has no rule of enclosure")


def _plain(name: str) -> str:
    """The function of an in-place method: ``add`` for ``add_`` and ``__iadd__``."""
    return name[3:-2] if name.startswith("__i") else name[:-1]


def _in_place(name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    target = args[0]
    if not isinstance(target, EnclosedTensor):
        raise NotEnclosedError(f"{name} writes values that move into a tensor that does not")
    if sum(view() is not None for view in target.views) > 1:
        raise NotEnclosedError(f"{name} writes in place to a tensor of which there are views")
    written = function(*args, **kwargs)
    if written.form.shape != target.form.shape:
        raise NotEnclosedError(f"{name} changes a shape in place")
    target.form, target.batched = written.form, written.batched
    return target


def form_of(value: Any, like: AffineForm) -> AffineForm:
    """The form of one argument in the dtype and on the device of ``like``.

    Raises:
        NotEnclosedError: neither a real tensor nor a number.
    """
    if isinstance(value, EnclosedTensor):
        return value.form
    if isinstance(value, Tensor) and not value.is_complex():
        converted = value.to(like.dtype)
        same = bool((converted.double() == value.double()).all())
    elif isinstance(value, (int, float)):
        converted = torch.tensor(value, dtype=like.dtype, device=like.left.device)
        same = converted.item() == value
    else:
        raise NotEnclosedError(f"an argument of type {type(value).__name__} cannot be enclosed")
    return AffineForm(converted, converted, None, 0.0 if same else 2.0)


def forms_of(*values: Any) -> list[AffineForm]:
    """The forms of the arguments of one call, of which one is enclosed: numbers and other tensors count as exact."""
    like = next(value.form for value in values if isinstance(value, EnclosedTensor))
    return [form_of(value, like) for value in values]


def dims_of(x: EnclosedTensor, dim: Any) -> list[int]:
    """The dimensions that an argument ``dim`` names, none negative; all for None."""
    rank = x.form.left.dim()
    if dim is None or dim == ():
        return list(range(rank))
    return [d % rank for d in ([dim] if isinstance(dim, int) else dim)]


def result(form: AffineForm, *sources: Any, view: bool = False) -> EnclosedTensor:
    """The tensor of ``form``, computed from ``sources``; with ``view`` it shares the memory of the first."""
    batched = any(isinstance(source, EnclosedTensor) and source.batched for source in sources)
    return EnclosedTensor(form, batched=batched, view_of=sources[0] if view else None)


def samples_of_batch() -> int:
    """Number of samples of the batch in work."""
    return _samples.get()


@contextlib.contextmanager
def network_run(samples: int) -> Iterator[None]:
    """One run of the network on a batch of so many ``samples``."""
    tokens = _samples.set(samples), _run.set(object())
    try:
        yield
    finally:
        _samples.reset(tokens[0])
        _run.reset(tokens[1])


def check_dims(name: str, x: EnclosedTensor, dims: Iterable[int]) -> None:
    """NotEnclosedError where a function acts along the dimension of the samples."""
    if x.batched and any(dim % max(x.form.left.dim(), 1) == 0 for dim in dims):
        raise NotEnclosedError(f"{name} along the dimension of the samples mixes the samples of a batch")


def check_aligned(name: str, *values: Any) -> None:
    """NotEnclosedError where broadcasting would align the dimension of the samples with another one."""
    ranks = {value.dim() for value in values if isinstance(value, EnclosedTensor) and value.batched}
    others = [value.dim() for value in values if isinstance(value, Tensor) and not getattr(value, "batched", False)]
    if len(ranks) > 1 or (ranks and others and max(others) > min(ranks)):
        raise NotEnclosedError(f"{name} broadcasts the dimension of the samples against another one")
