"""Models, data, losses, optimizers and norm rules in a user's code, by name: ``file.py:name``, ``package.module:name``.

Such a name executes the file or module. A name in a run directory is used only if its file is outside that directory
(:func:`check_outside`), so that a run received from somebody else cannot bring a program along.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import LLPFError, describe_error, unknown_name
from .types import IsNorm, LossFunction, OptimizerFactory


def is_code(name: str) -> bool:
    """Whether ``name`` is that of code (``file.py:name``), not of something registered."""
    return ":" in name


def load_callable(name: str, kind: str) -> Callable[..., Any]:
    """The callable ``name``; ``kind`` (model, data, loss, ...) is for messages.

    A file is executed once per process, with its folder on ``sys.path`` as with ``python file.py``. Modules are
    searched in the current folder too.

    Raises:
        LLPFError: no such file, module or name; the import fails or ends the program; the object is not callable.
    """
    source, _, attribute = name.rpartition(":")
    if not source or not attribute:
        raise LLPFError(f"{kind} {name!r}: write it as file.py:name or package.module:name")
    module = _from_file(Path(source), name, kind) if source.endswith(".py") else _from_module(source, name, kind)
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            public = [each for each in dir(value) if not each.startswith("_")]
            raise LLPFError(f"{kind} {name!r}: {unknown_name('name', part, public)}")
        value = getattr(value, part)
    if not callable(value):
        made = kind == "optimizer" and hasattr(value, "param_groups")
        remedy = "; name a function that makes an optimizer of the parameters" if made else ""
        raise LLPFError(f"{kind} {name!r} is {_with_article(value)}, not a function or class{remedy}")
    function: Callable[..., Any] = value
    return function


def model_factory(name: str) -> Callable[..., Any]:
    """The model factory ``name``; it raises LLPFError where its result is not a ``torch.nn.Module``."""
    function = load_callable(name, "model")

    @functools.wraps(function, updated=())
    def build(*args: Any, **keywords: Any) -> Any:
        from torch import nn

        module = function(*args, **keywords)
        if not isinstance(module, nn.Module):
            what = "a class; call it" if isinstance(module, type) else _with_article(module)
            raise LLPFError(f"model {name!r} gave {what}, not a torch.nn.Module")
        return module

    return build


def loss_function(name: str) -> LossFunction:
    """The loss ``name``: a function of ``torch.nn.functional`` (``mse_loss``), or code (``file.py:name``)."""
    if is_code(name):
        return load_callable(name, "loss")
    import inspect

    from torch.nn import functional

    losses = {
        each: value
        for each, value in vars(functional).items()
        if not each.startswith("_")
        and inspect.isfunction(value)
        and {"reduction", "target"} <= inspect.signature(value).parameters.keys()
    }
    if name not in losses:
        raise LLPFError(f"{unknown_name('loss', name, losses)} (your code: file.py:name)")
    function: LossFunction = losses[name]
    return function


def optimizer_factory(name: str) -> OptimizerFactory:
    """The optimizer factory ``name``, checked at every call: :func:`checked_optimizer`."""
    return checked_optimizer(load_callable(name, "optimizer"), f"optimizer {name!r}")


def checked_optimizer(function: OptimizerFactory, what: str = "the optimizer") -> OptimizerFactory:
    """``function`` with its result checked at every call.

    The result must be a ``torch.optim.Optimizer`` for dense gradients, over some of the given parameters and no others.

    Args:
        function: makes an optimizer of parameters or parameter groups.
        what: its name in messages.

    Raises:
        LLPFError: not a function (an optimizer, say); at a call, a failing function or a wrong result. A ``ValueError``
            of the function passes: the caller knows which groups it gave.
    """
    from torch.optim import Optimizer, SparseAdam

    if isinstance(function, Optimizer) or not callable(function):
        raise LLPFError(
            f"{what} must be a function that makes one from parameters (lambda ps: torch.optim.Adam(ps, lr=1e-3)), got "
            f"{_with_article(function)}"
        )

    def make(parameters: Iterable[Any]) -> Optimizer:
        given = list(parameters)
        try:
            optimizer: Any = function(given)
        except ValueError:
            raise
        except (Exception, SystemExit) as error:
            raise LLPFError(f"{what} failed: {describe_error(error)}") from error
        if not isinstance(optimizer, Optimizer):
            kind = "a class; call it with the parameters" if isinstance(optimizer, type) else _with_article(optimizer)
            raise LLPFError(f"{what} gave {kind}, not a torch.optim.Optimizer")
        if isinstance(optimizer, SparseAdam):
            raise LLPFError(f"{what} gave a SparseAdam, which takes no dense gradients; use Adam")
        # Parameters, or groups of them.
        parts = [part["params"] if isinstance(part, dict) else [part] for part in given]
        allowed = {id(parameter) for part in parts for parameter in part}
        trained = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        if not allowed.issuperset(trained) or not trained:
            raise LLPFError(
                f"{what} trains {'other parameters than' if trained else 'none of'} those that it was given; make a "
                "new one from its argument at every call"
            )
        return optimizer

    return make


def norm_rule(name: str) -> IsNorm:
    """The norm rule ``name``, checked at every call: :func:`checked_norm_rule`."""
    return checked_norm_rule(load_callable(name, "is_norm"), f"is_norm {name!r}", strict=True)


def checked_norm_rule(rule: Any, what: str = "is_norm", *, strict: bool = False) -> IsNorm:
    """``rule`` as a function of modules, checked at every call.

    Args:
        rule: a class of normalization layers, or a function that returns whether a module is one.
        what: its name in messages.
        strict: whether results other than True and False are refused; else their truth value counts.

    Raises:
        LLPFError: neither class nor function; at a call, a failing function or a wrong result.
    """
    from torch import nn

    if isinstance(rule, type) and issubclass(rule, nn.Module):
        kind = rule
        return lambda module: isinstance(module, kind)
    if isinstance(rule, nn.Module) or not callable(rule):
        raise LLPFError(
            f"{what} must be a class of layers, or a function that says of a module whether it is one, got "
            f"{_with_article(rule)}"
        )

    def is_norm(module: nn.Module) -> bool:
        try:
            result = rule(module)
            checked = result if strict else bool(result)
        except (Exception, SystemExit) as error:
            raise LLPFError(f"{what} failed on {_with_article(module)}: {describe_error(error)}") from error
        if not isinstance(checked, bool):
            raise LLPFError(f"{what} gave {_with_article(result)}, not true or false")
        return checked

    return is_norm


def absolute(name: str, *folders: str | os.PathLike[str]) -> str:
    """``name`` with the absolute path of its file, searched in the current folder and then in ``folders``.

    Names of modules and of registered things, and of missing files, are returned unchanged.
    """
    source, colon, attribute = name.rpartition(":")
    if not colon or not source.endswith(".py"):
        return name
    for folder in (".", *folders):
        path = Path(folder, os.path.expanduser(source))
        if path.is_file():
            return f"{path.resolve()}:{attribute}"
    return name


def file_digest(name: str) -> str | None:
    """sha256 (hex) of the file of ``name``; None where it has none."""
    source = name.rpartition(":")[0]
    if not source.endswith(".py") or not Path(source).is_file():
        return None
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()


def check_outside(name: str, folder: str | os.PathLike[str]) -> None:
    """Refuse code in a file inside ``folder``, a run directory that may come from anybody (LLPFError)."""
    source = name.rpartition(":")[0]
    if source.endswith(".py") and Path(source).resolve().is_relative_to(Path(folder).resolve()):
        raise LLPFError(
            f"{folder}: run.yaml names code inside the run itself ({source}), which is never executed; copy it "
            "elsewhere, read it, and pass it by name"
        )


def _from_file(path: Path, name: str, kind: str) -> ModuleType:
    path = Path(os.path.expanduser(path)).absolute()
    if not path.is_file():
        raise LLPFError(f"{kind} {name!r}: {path} is missing")
    path = path.resolve()
    # In sys.modules, so that dataclasses and pickling work in it, and a second name from the file gives the same
    # classes.
    known = f"llpf_user_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    if known in sys.modules:
        return sys.modules[known]
    spec = importlib.util.spec_from_file_location(known, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[known] = module
    _on_path(path.parent)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[known]
        if not isinstance(error, (Exception, SystemExit)):
            raise
        raise _failed(name, kind, error) from error
    return module


def _from_module(source: str, name: str, kind: str) -> ModuleType:
    _on_path(Path.cwd())
    try:
        return importlib.import_module(source)
    except (Exception, SystemExit) as error:
        raise _failed(name, kind, error) from error


def _failed(name: str, kind: str, error: BaseException) -> LLPFError:
    return LLPFError(f"{kind} {name!r} cannot be imported: {describe_error(error)}")


def _with_article(value: object) -> str:
    kind = type(value).__name__
    return f"an {kind}" if kind[0].lower() in "aeio" else f"a {kind}"


def _on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
