"""What search, certificate and training do without: packages for pictures, reports, other networks and the digits."""

from __future__ import annotations

import subprocess
import sys

MINE = """
import torch
from torch import nn

def net():
    return nn.Linear(3, 2)

def data():
    x = torch.linspace(-1, 1, 48).reshape(16, 3)
    y = torch.arange(16) % 2
    return x, y, x, y
"""
PROGRAM = """
import sys
for name in ("plotly", "matplotlib", "jinja2", "vit_pytorch", "timm", "torchvision", "sklearn", "scipy", "PIL",
             "docstring_parser", "typeshed_client"):
    sys.modules[name] = None

import llpf_fast, llpf_fast.models
from llpf_fast.cli.main import main
from mine import data, net

x, y, *_ = data()
llpf_fast.find_path(net(), net(), net(), data=(x, y), out="run", threshold=9.0)
options = ["--model", "mine.py:net", "--data-module", "mine.py:data"]
print(main(["verify", "run", "--quiet", *options]))
print(main(["report", "run", "--quiet"]))
main(["train", "--help"])
"""


def test_no_picture_costs_a_line_and_not_the_verdict(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("run: connected at threshold 9")
    assert lines[1].startswith("picture: none: ")
    assert lines[1].endswith("; pip install matplotlib")
    assert lines[2:4] == ["0", "2"]
    assert "--epochs N" in done.stdout
    assert (tmp_path / "run/certificate.json").is_file()
    assert "llpf: error: this needs a package that is not here" in done.stderr
