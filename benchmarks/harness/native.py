"""C++ of the benchmarks, built on the spot for this processor."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

_COMPILE = ("-O3", "-ffast-math", "-march=native", "-fopenmp", "-fPIC", "-c")
#: Without -ffast-math: linked with it, gcc's start-up code would have the whole process flush subnormal numbers to 0.
_LINK = ("-fopenmp", "-shared")


@cache
def library(source: Path) -> ctypes.CDLL | None:
    """The compiled source, or ``None`` without a compiler."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        parts, built = (Path(folder) / f"{source.stem}{ending}" for ending in (".o", ".so"))
        for command in ([*_COMPILE, source, "-o", parts], [*_LINK, parts, "-o", built]):
            if subprocess.run([compiler, *map(str, command)], capture_output=True, check=False).returncode != 0:
                return None
        return ctypes.CDLL(str(built))
