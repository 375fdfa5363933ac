"""Networks' libraries, imported when one of their networks is first built."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..errors import LLPFError


def library(module: str, network: str) -> Any:
    """The imported ``module``; :class:`LLPFError` with what to install where it is missing or does not fit torch."""
    try:
        return import_module(module)
    # A torchvision built for another torch raises RuntimeError (an operator that is not there) at import.
    except (ImportError, RuntimeError) as error:
        package = module.partition(".")[0].replace("_", "-")
        what = str(error).partition("\n")[0]
        raise LLPFError(
            f"model {network!r} is {package}'s, which cannot be imported ({what}): pip install llpf_fast[models]"
        ) from error
