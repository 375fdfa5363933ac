"""Single tensors: what a change of dtype does to their values, whether bits or values agree, which memory they use."""

from __future__ import annotations

import torch
from torch import Tensor

#: Integer dtype by element size. Comparing elements takes a quarter of the time of comparing bytes (float32: 0.4 ms a
#: million).
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def dtype_name(tensor: Tensor) -> str:
    """``float32`` for ``torch.float32``."""
    return str(tensor.dtype).removeprefix("torch.")


def cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """``value`` in ``dtype``, on its device; the real part of complex values, without torch's warning."""
    return (value.real if value.is_complex() and not dtype.is_complex else value).to(dtype)


def exact(value: Tensor, converted: Tensor) -> bool:
    """Whether ``converted`` has exactly the values of ``value`` (of any dtype): conversion back gives each again."""
    if value.dtype == converted.dtype:
        return True
    if value.is_complex() and not converted.is_complex():
        return False
    a, b = value.to(converted.device), converted.to(value.dtype)
    if a.is_floating_point() and a.element_size() == 1:  # 8-bit floats have no comparison
        a, b = a.to(torch.float32), b.to(torch.float32)
    return bool(((a == b) | ((a != a) & (b != b))).all())


def is_rounding(value: Tensor, converted: Tensor) -> bool:
    """Whether the dtypes, floating or complex both, differ in precision alone."""
    numbers = all(t.is_floating_point() or t.is_complex() for t in (value, converted))
    return numbers and value.is_complex() <= converted.is_complex()


def same_values(a: Tensor, b: Tensor) -> bool:
    """Equal shapes and values, NaN equal to NaN. Meta tensors have no values to differ in."""
    if a.is_meta or b.is_meta:
        return a.shape == b.shape
    return a.shape == b.shape and torch.allclose(a, b.to(a), rtol=0.0, atol=0.0, equal_nan=True)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal shapes, dtypes and bits: 0.0 and -0.0 differ, NaNs of one payload agree. On any two devices."""
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(_as_integers(a), _as_integers(b.to(a.device)))


def _as_integers(tensor: Tensor) -> Tensor:
    """The bits of each element; of a complex one those of its two parts."""
    resolved = tensor.detach().resolve_conj().resolve_neg()
    real = torch.view_as_real(resolved) if resolved.is_complex() else resolved
    return real.view(_INTEGERS[real.element_size()])


def as_bytes(tensor: Tensor) -> Tensor:
    """uint8 ``[bytes]``: the elements in row-major order, on the tensor's device."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def same_storage(a: Tensor, b: Tensor) -> bool:
    """Whether both are views of one allocation."""
    return a.device == b.device and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether both are the same view of the same memory."""
    return (a.data_ptr(), a.stride(), a.shape, a.dtype, a.device) == (
        b.data_ptr(),
        b.stride(),
        b.shape,
        b.dtype,
        b.device,
    )


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether several elements share memory, as those of ``expand`` do."""
    if tensor.layout is not torch.strided:
        return False
    extent = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return extent < tensor.numel()
