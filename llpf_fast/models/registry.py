"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import LLPFError
from ..wording import unknown_name
from .lenet5 import LeNet5
from .mlp import MLP


@dataclass(frozen=True)
class _Entry:
    factory: Callable[..., nn.Module]
    image_shape: tuple[int, ...] | None


_MODELS: dict[str, _Entry] = {}


def register_model(
    name: str, factory: Callable[..., nn.Module], *, image_shape: tuple[int, ...] | None = None, replace: bool = False
) -> None:
    """Make ``factory(**keywords) -> nn.Module`` known to recipes and to the command line as ``name``.

    ``image_shape`` is the shape ``(C, H, W)`` of one input, where the network takes only one; images of another shape
    are then refused by name. Raises :class:`LLPFError` where the name is taken and ``replace`` is not set.
    """
    if name in _MODELS and not replace:
        raise LLPFError(f"a model named {name!r} is registered already; take another name or pass replace=True")
    _MODELS[name] = _Entry(factory, image_shape)


def model_names() -> list[str]:
    """Registered names, sorted."""
    return sorted(_MODELS)


def build_model(name: str, **keywords: Any) -> nn.Module:
    """A freshly initialised network, float32 on the CPU, drawn from torch's global generator.

    Raises :class:`LLPFError` for an unknown name (with the nearest known ones) and for keywords it does not take.
    """
    entry = _entry(name)
    try:
        return entry.factory(**keywords)
    except TypeError as error:
        raise LLPFError(f"model {name!r} cannot be built with {keywords}: {error}") from error


def check_images(name: str, images: Tensor) -> None:
    """Raise :class:`LLPFError` where images ``[B, C, H, W]`` are not of the one shape that network ``name`` takes."""
    expected = _entry(name).image_shape
    actual = tuple(images.shape[1:])
    if expected is not None and actual != expected:
        raise LLPFError(f"model {name!r} takes images of {_by(expected)}, these are {_by(actual)}; use other data")


def _entry(name: str) -> _Entry:
    try:
        return _MODELS[name]
    except KeyError:
        raise LLPFError(unknown_name("model", name, _MODELS)) from None


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "no dimension"


register_model("lenet5", LeNet5, image_shape=(1, 28, 28))
register_model("mlp", MLP, image_shape=(1, 8, 8))
