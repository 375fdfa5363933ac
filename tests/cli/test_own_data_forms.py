"""``--data file.py:function`` may return data in every form: trained, searched, certified and analysed with them."""

from __future__ import annotations

import pytest

CODE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Items(torch.utils.data.Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y
    def __len__(self):
        return len(self.x)
    def __getitem__(self, i):
        return {"features": self.x[i], "labels": self.y[i]}

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    def forward(self, features):
        return self.body(features)

def _made(seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(150, 6, generator=g)
    return x, (x[:, :3].sum(1) > 0).long() + (x[:, 3:].sum(1) > 0).long()

def datasets():
    return TensorDataset(*_made(0)), TensorDataset(*_made(1))

def items():
    return {"train": Items(*_made(0)), "test": Items(*_made(1))}

def loaders():
    return [DataLoader(Items(*_made(seed)), batch_size=30, shuffle=seed == 0) for seed in (0, 1)]

def no_test():
    x, y = _made(0)
    return [({"features": a}, b) for a, b in zip(x.split(30), y.split(30))], None

def numpy():
    return [part.numpy() for seed in (0, 1) for part in _made(seed)]
"""


@pytest.mark.parametrize("form", ["datasets", "items", "loaders", "no_test", "numpy"])
def test_every_command_takes_it(llpf, tmp_path, monkeypatch, form) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "mine.yaml").write_text(
        f"model: mine.py:Net\ndata: mine.py:{form}\nthreshold: 1.0\nstep: {{relative: 0.2}}\narrival: {{every: 1}}\n"
        "correction: {threshold: 0.9, lr: 0.05}\n"
    )
    own = ("--model", "mine.py:Net", "--data", f"mine.py:{form}")
    for seed in "12":
        done = llpf("train", *own, "--epochs", "12", "--lr", "0.1", "--seed", seed, "--out", f"{seed}.pt", "--quiet")
        assert done.status == 0, done.err
        assert ("no test data" in done.out) == (form == "no_test"), done.out
    done = llpf("find", "1.pt", "2.pt", "--recipe", "mine.yaml", "--out", "RUN", "--quiet")
    assert done.status == 0, done.err
    done = llpf("verify", "RUN", "--quiet")
    assert (done.status, done.err) == (0, ""), done.err
    assert "unlike the search" not in done.out
    done = llpf("analyze", "linear", "1.pt", "2.pt", *own, "--out", "linear", "--quiet")
    assert done.status == 0, done.err
