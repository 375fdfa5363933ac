"""Extras: searching and certifying need none of them; what needs one says in one line how to install it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llpf_fast import errors

ROOT = Path(__file__).parents[1]
CODE = """
import torch
from torch import nn

def net():
    return nn.Linear(3, 2)

def data():
    x = torch.linspace(-1, 1, 48).reshape(16, 3)
    y = torch.arange(16) % 2
    return x, y, x, y
"""
#: Lines that begin with ">" are compared.
PROGRAM = """
import sys
import torch

core = ("numpy", "safetensors", "yaml", "rich", "pydantic", "pydantic_core")
loaded = {name: sys.modules.get(name) for name in core}
optional = ("torchvision", "PIL", "sklearn", "timm", "vit_pytorch", "matplotlib", "plotly", "jinja2", "scipy",
            "imageio_ffmpeg")
sys.modules |= dict.fromkeys((*core, *optional))
import llpf_fast.ops
for name, module in loaded.items():
    sys.modules[name] = module
    if module is None:
        del sys.modules[name]

import llpf_fast.find, llpf_fast.verify, llpf_fast.models, llpf_fast.data
from llpf_fast.cli.main import main
from mine import data, net

x, y, *_ = data()
llpf_fast.find_path(net(), net(), net(), data=(x, y), out="run", threshold=9.0)
print(">", main(["verify", "run", "--quiet", "--model", "mine.py:net", "--data", "mine.py:data"]))
print(">", main(["report", "run", "--quiet"]))
print(">", main(["analyze", "linear", "a.pt", "b.pt", "--data", "digits", "--out", "."]))

from pathlib import Path
from llpf_fast.data import load_dataset
from llpf_fast.models import build_model
from llpf_fast.report.film import check_film

Path("MNIST/raw").mkdir(parents=True)
Path("cifar10-jpeg.npz").write_bytes(Path("empty.npz").read_bytes())
calls = [
    lambda: load_dataset("digits"),
    lambda: load_dataset("mnist", "."),
    lambda: load_dataset("cifar10-jpeg", "."),
    lambda: build_model("resnet18"),
    lambda: build_model("dla"),
    lambda: build_model("cct7"),
    lambda: check_film("mp4", 9, 1.0),
]
for call in calls:
    try:
        call()
    except llpf_fast.LLPFError as error:
        print(">", error)
main(["train", "--help"])
"""
EXPECTED = """
0
2
2
data 'digits' needs scikit-learn: pip install 'llpf_fast[digits]'
data 'mnist' needs torchvision: pip install 'llpf_fast[vision]'
data 'cifar10-jpeg' needs pillow: pip install 'llpf_fast[vision]'
model 'resnet18' needs torchvision: pip install 'llpf_fast[vision]'
model 'dla' needs timm: pip install 'llpf_fast[models]'
model 'cct7' needs vit-pytorch: pip install 'llpf_fast[models]'
an mp4 (a gif does not) needs imageio-ffmpeg: pip install 'llpf_fast[analysis]'
"""


def test_without_any_extra(tmp_path: Path) -> None:
    import numpy as np

    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "program.py").write_text(PROGRAM)
    nothing = np.zeros(0, dtype=np.uint8)
    offsets, classes = np.zeros(1, dtype=np.int64), np.zeros(10)
    np.savez(tmp_path / "empty.npz", jpeg=nothing, offsets=offsets, labels=nothing, is_test=nothing, classes=classes)
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line[2:] for line in lines if line.startswith("> ")] == EXPECTED.strip().splitlines()
    assert lines[0].startswith("run: connected (proved) at threshold 9")
    assert "picture: not drawn: a picture needs matplotlib: pip install 'llpf_fast[report]'" in lines
    assert "--epochs N" in done.stdout
    assert (tmp_path / "run/certificate.json").is_file()
    assert "llpf: error: a report needs jinja2: pip install 'llpf_fast[report]'" in done.stderr
    assert "llpf: error: llpf analyze needs scipy: pip install 'llpf_fast[analysis]'" in done.stderr


def test_a_package_that_cannot_be_imported_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms\\ndoes not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ImportError, match=r"^x needs timm, which cannot be imported \(operator .* does not exist\): pip"
    ):
        errors.require("timm", "x")


def declared() -> tuple[set[str], dict[str, set[str]]]:
    """Names of the packages that pyproject.toml always installs, and those of each extra."""
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {extra: set(map(package_name, lines)) for extra, lines in project["optional-dependencies"].items()}
    return set(map(package_name, project["dependencies"])), extras


def package_name(requirement: str) -> str:
    return re.split(r"[\[<>=]", requirement)[0]


def imported(path: Path) -> set[str]:
    """First parts of what a file imports from outside the package, inside functions and through ``require`` too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module))
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"llpf_fast"}


def test_every_import_is_declared() -> None:
    core, extras = declared()
    for module, (package, extra) in errors._OPTIONAL.items():
        assert package in extras[extra], module
    names = {
        "yaml": "pyyaml",
        "pydantic_core": "pydantic",
        "typing_extensions": "torch",
    }  # pydantic and torch install the last two
    names |= {module: package for module, (package, _) in errors._OPTIONAL.items()}
    used = {name for path in (ROOT / "llpf_fast").rglob("*.py") for name in imported(path)}
    assert {names.get(name, name) for name in used} <= core.union(*extras.values())
