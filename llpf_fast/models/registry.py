"""Networks by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import LLPFError, describe_error, unknown_name
from ..user_code import is_code, model_factory
from . import library_nets as timm_nets
from . import torchvision_nets
from .library_nets import cct7
from .small_nets import MLP, LeNet5


@dataclass(frozen=True)
class _Entry:
    factory: Callable[..., nn.Module]
    image_shape: tuple[int, ...] | None


_MODELS: dict[str, _Entry] = {}


def register_model(
    name: str, factory: Callable[..., nn.Module], *, image_shape: tuple[int, ...] | None = None, replace: bool = False
) -> None:
    """Make ``factory(**keywords) -> nn.Module`` known to recipes and to the command line as ``name``.

    A factory that takes ``classes`` is handed the number of classes of the data that the network is built for.
    ``image_shape`` is the shape ``(C, H, W)`` of one input, where the network takes only one; images of another shape
    are then refused by name. Raises :class:`LLPFError` where the name is taken and ``replace`` is not set.
    """
    if name in _MODELS and not replace:
        raise LLPFError(f"a model named {name!r} is registered already; take another name or pass replace=True")
    _MODELS[name] = _Entry(factory, image_shape)


def model_names() -> list[str]:
    """Registered names, sorted."""
    return sorted(_MODELS)


def build_model(name: str, *, classes: int | None = None, **keywords: Any) -> nn.Module:
    """A freshly initialised network, float32 on the CPU, drawn from torch's global generator.

    ``name`` is a registered one, or code of one's own: ``file.py:factory``, ``package.module:Class``.

    ``classes`` is the number of outputs, as the data set has it (``ImageData.classes``); when missing, the network's
    own default (10). A registered factory without such a parameter has outputs of its own and is not handed it.
    Raises :class:`LLPFError` for an unknown name (with the nearest known ones), for keywords it does not take, for a
    library that is not installed, and where the factory itself fails.
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
    lazy = next((each for each, parameter in model.named_parameters() if is_lazy(parameter)), None)
    if lazy is not None:
        raise LLPFError(f"model {name!r} has a lazy parameter, {lazy!r}: run a batch through it in its factory")
    return model


def check_images(name: str, images: Tensor) -> None:
    """Raise :class:`LLPFError` where images ``[B, C, H, W]`` are not of the one shape that network ``name`` takes."""
    expected = _entry(name).image_shape
    actual = tuple(images.shape[1:])
    if expected is not None and actual != expected:
        raise LLPFError(f"model {name!r} takes images of {_by(expected)}, these are {_by(actual)}; use other data")


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


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "no dimension"


register_model("lenet5", LeNet5, image_shape=(1, 28, 28))
register_model("mlp", MLP, image_shape=(1, 8, 8))
for _name, _factory in {
    "resnet18": torchvision_nets.resnet18,
    "vgg11-bn": torchvision_nets.vgg11_bn,
    "vgg16": torchvision_nets.vgg16,
    "vgg16-bn": torchvision_nets.vgg16_bn,
    "mobilenet-v2": torchvision_nets.mobilenet_v2,
    "shufflenet-v2": torchvision_nets.shufflenet_v2,
    "efficientnet-b0": torchvision_nets.efficientnet_b0,
    "regnetx-200mf": timm_nets.regnetx_200mf,
    "dla": timm_nets.dla34,
    "vit-small": timm_nets.vit_small,
    "vit-tiny": timm_nets.vit_tiny,
    "cct7": cct7,
}.items():
    register_model(_name, _factory, image_shape=(3, 32, 32))
