"""``EnclosedTensor``: a tensor of affine forms that torch's functions accept, each by its rule."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from .form import AffineForm, NotEnclosedError, leaky_relu

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
#: What takes a tensor whose samples are not its first dimension.
_TAKE_MOVED_SAMPLES = frozenset(
    ["permute", "transpose", "unbind", "select", "__getitem__", "multi_head_attention_forward"]
)
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
        slope: of a leaky ReLU that the values still need, beside the form ``before`` it: a max pooling does both in one
            pass. 1 where nothing waits. Reading ``form`` applies it.
        batched: whether one dimension is that of samples, which no rule may mix.
        samples_at: which: the first, but between two functions that move it there and back.
        run: of the network, in which it was made. A tensor that a network stored in an earlier run belongs to another
            piece, and is refused.
        views: weak references to all tensors that would share memory; writing in place to one of several is refused.
    """

    before: AffineForm
    slope: float
    batched: bool
    views: list[weakref.ref[EnclosedTensor]]

    @staticmethod
    def __new__(
        cls, form: AffineForm, *, batched: bool, view_of: EnclosedTensor | None = None, slope: float = 1.0
    ) -> EnclosedTensor:
        left = form.left
        made: EnclosedTensor = Tensor._make_wrapper_subclass(
            cls, left.shape, strides=left.stride(), dtype=left.dtype, device=left.device
        )
        return made

    def __init__(
        self, form: AffineForm, *, batched: bool, view_of: EnclosedTensor | None = None, slope: float = 1.0
    ) -> None:
        self.before, self.slope, self.batched, self.run = form, slope, batched, _run.get()
        self.samples_at = 0
        self.views = [] if view_of is None else view_of.views
        self.views.append(weakref.ref(self))

    @property
    def form(self) -> AffineForm:
        if self.slope != 1:
            self.before, self.slope = leaky_relu(self.before, self.slope), 1.0
        return self.before

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"EnclosedTensor(shape={tuple(self.before.shape)}, dtype={self.before.dtype})"

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
        for value in _flat((*args, *kwargs.values())):
            if isinstance(value, EnclosedTensor) and value.run is not run:
                raise NotEnclosedError(f"{name} of a tensor that the network stored in an earlier call")
            if isinstance(value, EnclosedTensor) and value.samples_at and name not in _TAKE_MOVED_SAMPLES:
                raise NotEnclosedError(f"{name} of a tensor whose samples are not its first dimension")
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


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    """The arguments of a call, and the elements of those that are sequences."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


def _plain(name: str) -> str:
    """The function of an in-place method: ``add`` for ``add_`` and ``__iadd__``."""
    return name[3:-2] if name.startswith("__i") else name[:-1]


def _in_place(name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    target = args[0]
    if not isinstance(target, EnclosedTensor):
        raise NotEnclosedError(f"{name} writes values that move into a tensor that does not")
    if not target.batched:
        raise NotEnclosedError(f"{name} writes in place to a parameter or buffer, which the next batch would see")
    if sum(view() is not None for view in target.views) > 1:
        raise NotEnclosedError(f"{name} writes in place to a tensor of which there are views")
    written = function(*args, **kwargs)
    if written.before.shape != target.before.shape:
        raise NotEnclosedError(f"{name} changes a shape in place")
    target.before, target.slope, target.batched = written.before, written.slope, written.batched
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
    if dim is None or (not isinstance(dim, int) and len(dim) == 0):
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
    tensors = [value for value in values if isinstance(value, Tensor)]
    ranks = {value.dim() for value in tensors if isinstance(value, EnclosedTensor) and value.batched}
    for value in tensors:
        if not ranks or getattr(value, "batched", False):
            continue
        # Rows of a tensor that is not of the samples would belong to positions in the batch; copies of one may be.
        if value.dim() > min(ranks) or (value.dim() == min(ranks) and not _one_row(value)):
            raise NotEnclosedError(f"{name} takes other values by a sample's position in the batch")
    if len(ranks) > 1:
        raise NotEnclosedError(f"{name} broadcasts the dimension of the samples against another one")


def _one_row(value: Tensor) -> bool:
    tensors = (value.form.left, value.form.right) if isinstance(value, EnclosedTensor) else (value,)
    return all(tensor.shape[0] == 1 or tensor.stride(0) == 0 for tensor in tensors)


class SampleNumbers(Tensor):
    """Whole numbers of the samples, such as tokens, ``[B, ...]``. Only an embedding takes them; all else is refused."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> SampleNumbers:
        made: SampleNumbers = Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=numbers.stride(), dtype=numbers.dtype, device=numbers.device
        )
        return made

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        if name == "embedding":
            return EnclosedTensor.__torch_function__(func, types, args, kwargs)
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        if name in _METADATA and attribute not in _REFUSED_ATTRIBUTES:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise NotEnclosedError(f"torch's function {name} of whole numbers of the samples has no rule of enclosure")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise NotEnclosedError(f"torch's operator {func} of whole numbers of the samples has no rule of enclosure")
