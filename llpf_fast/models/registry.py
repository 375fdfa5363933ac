"""Networks by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import LLPFError, describe_error, unknown_name
from ..user_code import is_code, model_factory

Factory = TypeVar("Factory", bound="Callable[..., nn.Module]")


@dataclass(frozen=True)
class _Entry:
    factory: Callable[..., nn.Module]
    image_shape: tuple[int, ...] | None


_MODELS: dict[str, _Entry] = {}


def register_model(
    name: str, factory: Callable[..., nn.Module], *, image_shape: tuple[int, ...] | None = None, replace: bool = False
) -> None:
    """Make a network known to recipes and to the command line as ``name``.

    Args:
        factory: (keywords) -> network. If it has a parameter ``classes``, it gets the data's number of classes.
        image_shape: ``(C, H, W)`` of one input, where the network takes one shape only; other images are then refused.
        replace: a network of the same name.

    Raises:
        LLPFError: the name is taken and ``replace`` is not set.
    """
    if name in _MODELS and not replace:
        raise LLPFError(f"a model named {name!r} is registered already; take another name or pass replace=True")
    _MODELS[name] = _Entry(factory, image_shape)


def registered(name: str, image_shape: tuple[int, ...]) -> Callable[[Factory], Factory]:
    """Decorator: :func:`register_model` for the class or function below it."""

    def register(factory: Factory) -> Factory:
        register_model(name, factory, image_shape=image_shape)
        return factory

    return register


def model_names() -> list[str]:
    """Registered names, sorted."""
    return sorted(_MODELS)


def build_model(name: str, *, classes: int | None = None, **keywords: Any) -> nn.Module:
    """A new network, float32 on the CPU, initialised from torch's global generator.

    Args:
        name: a registered name, or a user's code: ``file.py:factory``, ``package.module:Class``.
        classes: number of outputs, as the data set has it; None for the network's default (10). A factory without such
            a parameter does not get it.
        keywords: further arguments of the factory.

    Raises:
        LLPFError: an unknown name, keywords that the factory does not take, a missing package, a factory that fails, a
            network with lazy parameters.
    """
    entry = _entry(name)
    if classes is not None and _takes(entry.factory, "classes"):
        keywords["classes"] = classes
    try:
        model = entry.factory(**keywords)
    except LLPFError:
        raise
    except (Exception, SystemExit) as error:
        given = f" with {keywords}" if keywords else ""
        raise LLPFError(f"model {name!r} cannot be built{given}: {describe_error(error)}") from error
    for parameter_name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise LLPFError(
                f"model {name!r} has a lazy parameter, {parameter_name!r}: run a batch through it in its factory"
            )
    return model


def check_images(name: str, images: Tensor) -> None:
    """Raise LLPFError where images ``[B, C, H, W]`` are not of the one shape that the network ``name`` takes."""
    expected = _entry(name).image_shape
    actual = tuple(images.shape[1:])
    if expected is not None and actual != expected:
        raise LLPFError(
            f"model {name!r} takes images of {_shape_text(expected)}, these are {_shape_text(actual)}; use other data"
        )


def _entry(name: str) -> _Entry:
    if is_code(name):
        return _Entry(model_factory(name), None)
    try:
        return _MODELS[name]
    except KeyError:
        raise LLPFError(unknown_name("model", name, _MODELS)) from None


def _takes(factory: Callable[..., nn.Module], keyword: str) -> bool:
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # a builtin without a signature
        return False
    return keyword in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "no dimension"
