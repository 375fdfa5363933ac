"""A user's own model, data, loss, optimiser and norm rule, by name: ``file.py:name``, ``package.module:name``.

Such a name executes that file or module. It is the user who gives it; what a *run directory* says is taken only where
the code lies outside of it (``check_outside``), so that a run received from somebody else brings no program along.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import LLPFError, one_line, unknown_name


def is_code(name: str) -> bool:
    """Whether ``name`` names code (``file.py:name``) and not something registered."""
    return ":" in name


def load_callable(name: str, kind: str) -> Callable[..., Any]:
    """The object that ``name`` names; ``kind`` (model, data, loss, ...) is for messages.

    A file is executed once a process, with its folder on ``sys.path`` as ``python file.py`` would have it; modules are
    looked for in the current folder too. LLPFError when there is no such file, module or name, when importing fails
    or ends the program, and when it cannot be called.
    """
    source, _, attribute = name.rpartition(":")
    if not source or not attribute:
        raise LLPFError(f"{kind} {name!r}: write it as file.py:name or package.module:name")
    module = _from_file(Path(source), name, kind) if source.endswith(".py") else _from_module(source, name, kind)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [each for each in dir(found) if not each.startswith("_")]
            raise LLPFError(f"{kind} {name!r}: {unknown_name('name', part, public)}")
        found = getattr(found, part)
    if not callable(found):
        raise LLPFError(f"{kind} {name!r} is {_a(found)}, not a function or class{_instead(kind, found)}")
    function: Callable[..., Any] = found
    return function


def model_factory(name: str) -> Callable[..., Any]:
    """The callable behind a model's name; what it makes must be a ``torch.nn.Module`` (LLPFError)."""
    function = load_callable(name, "model")

    @functools.wraps(function, updated=())
    def build(*args: Any, **keywords: Any) -> Any:
        from torch import nn

        module = function(*args, **keywords)
        if not isinstance(module, nn.Module):
            what = "a class; call it" if isinstance(module, type) else _a(module)
            raise LLPFError(f"model {name!r} gave {what}, not a torch.nn.Module")
        return module

    return build


def loss_function(name: str) -> Callable[..., Any]:
    """(model output, target) -> mean loss: one of ``torch.nn.functional`` by its name (``mse_loss``), or code."""
    if is_code(name):
        return load_callable(name, "loss")
    import inspect

    from torch.nn import functional

    losses = {}
    for each, function in vars(functional).items():
        if each.startswith("_") or not inspect.isfunction(function):
            continue
        if {"reduction", "target"} <= inspect.signature(function).parameters.keys():
            losses[each] = function
    if name not in losses:
        raise LLPFError(f"{unknown_name('loss', name, losses)} (code of your own: file.py:name)")
    found: Callable[..., Any] = losses[name]
    return found


def optimizer_factory(name: str) -> Callable[..., Any]:
    """The callable behind an optimiser's name, checked at every call: :func:`checked_optimizer`."""
    return checked_optimizer(load_callable(name, "optimizer"), f"optimizer {name!r}")


def checked_optimizer(function: Callable[..., Any], what: str = "the optimizer") -> Callable[..., Any]:
    """``function``, which makes a ``torch.optim.Optimizer`` of parameters or of groups of them, checked at every call.

    What it makes must train some of the parameters that it is handed, none but those, and take dense gradients.

    Raises:
        LLPFError: not a function (an optimiser made already), and at a call whatever is wrong with what it makes. A
            ``ValueError`` of the optimiser's own passes: the caller knows which groups it gave.
    """
    from torch.optim import Optimizer, SparseAdam

    if isinstance(function, Optimizer) or not callable(function):
        raise LLPFError(
            f"{what} must be a function that makes one from parameters (lambda ps: torch.optim.Adam(ps, lr=1e-3)), got "
            f"{_a(function)}"
        )

    def make(parameters: Any) -> Any:
        given = list(parameters)
        try:
            optimizer = function(given)
        except ValueError:
            raise
        except (Exception, SystemExit) as error:
            raise LLPFError(f"{what} failed: {said(error)}") from error
        if not isinstance(optimizer, Optimizer):
            kind = "a class; call it with the parameters" if isinstance(optimizer, type) else _a(optimizer)
            raise LLPFError(f"{what} gave {kind}, not a torch.optim.Optimizer")
        if isinstance(optimizer, SparseAdam):
            raise LLPFError(f"{what} gave a SparseAdam, which takes no dense gradients; use Adam")
        # Parameters, or groups of them.
        parts = [part["params"] if isinstance(part, dict) else [part] for part in given]
        own = {id(parameter) for part in parts for parameter in part}
        trained = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        if not own.issuperset(trained) or not trained:
            raise LLPFError(
                f"{what} trains {'other parameters than' if trained else 'none of'} those that it was given; make it "
                "anew from its argument at every call"
            )
        return optimizer

    return make


def norm_rule(name: str) -> Callable[[Any], bool]:
    """Whether a module is a normalization layer, by the code that ``name`` names: :func:`checked_norm_rule`."""
    return checked_norm_rule(load_callable(name, "is_norm"), f"is_norm {name!r}", strict=True)


def checked_norm_rule(found: Any, what: str = "is_norm", *, strict: bool = False) -> Callable[[Any], bool]:
    """``found`` as a rule for modules: a class of normalization layers, or a function that says whether one is.

    Args:
        what: what messages call it.
        strict: whether an answer other than True or False is refused, and not taken for what it is worth.

    Raises:
        LLPFError: neither class nor function; at a call, whatever goes wrong in it.
    """
    from torch import nn

    if isinstance(found, type) and issubclass(found, nn.Module):
        kind = found
        return lambda module: isinstance(module, kind)
    if isinstance(found, nn.Module) or not callable(found):
        raise LLPFError(
            f"{what} must be a class of layers, or a function that says of a module whether it is one, got {_a(found)}"
        )

    def is_norm(module: Any) -> bool:
        try:
            answer = found(module)
            taken = answer if strict else bool(answer)
        except (Exception, SystemExit) as error:
            raise LLPFError(f"{what} failed on {_a(module)}: {said(error)}") from error
        if not isinstance(taken, bool):
            raise LLPFError(f"{what} gave {_a(answer)}, not true or false")
        return taken

    return is_norm


def said(error: BaseException) -> str:
    """What went wrong in somebody's code, in one line: ``KeyError: 'x'``."""
    text = one_line(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def absolute(name: str, *folders: str | os.PathLike[str]) -> str:
    """``name`` with its file's whole path, looked for in the current folder and then in ``folders``.

    Names of modules and of registered things stay as they are.
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
    """sha256 of the file that ``name`` names; None where it names none."""
    source = name.rpartition(":")[0]
    if not source.endswith(".py") or not Path(source).is_file():
        return None
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()


def check_outside(name: str, folder: str | os.PathLike[str]) -> None:
    """LLPFError when the code that ``name`` names lies inside ``folder``, a run that may be anybody's."""
    source = name.rpartition(":")[0]
    if source.endswith(".py") and Path(source).resolve().is_relative_to(Path(folder).resolve()):
        raise LLPFError(
            f"{folder}: run.yaml names code inside the run itself ({source}), which is never executed; copy it "
            "elsewhere, read it, and pass it by name"
        )


def _from_file(path: Path, name: str, kind: str) -> ModuleType:
    path = Path(os.path.expanduser(path)).absolute()
    if path.is_file():
        path = path.resolve()
    else:
        raise LLPFError(f"{kind} {name!r}: {path} is missing")
    # In sys.modules under a name of its own, so that dataclasses and pickling inside work and a second name from the
    # same file gives the same classes.
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
    return LLPFError(f"{kind} {name!r} cannot be imported: {said(error)}")


def _a(value: object) -> str:
    kind = type(value).__name__
    return f"an {kind}" if kind[0].lower() in "aeio" else f"a {kind}"


def _instead(kind: str, found: object) -> str:
    """What to name instead, where that is plain."""
    if kind == "optimizer" and hasattr(found, "param_groups"):
        return "; name a function that makes an optimizer of the parameters"
    return ""


def _on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
