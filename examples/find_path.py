"""Two networks of one's own, a path between them, and its certificate: the whole thing from Python in a minute.

python examples/find_path.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

import llpf_fast
from llpf_fast.data import load_dataset
from llpf_fast.find import CorrectionSettings, Settings, StepSettings
from llpf_fast.models import accuracy, train_model
from llpf_fast.report.picture import draw_path


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


def main() -> None:
    torch.set_num_threads(1)
    data = load_dataset("digits")
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        ends.append(train_model(network(), *data.train, seed=seed, epochs=30, lr=0.05))
        print(f"network {seed}: test accuracy {accuracy(ends[-1], *data.test):.3f}")

    settings = Settings(
        threshold=0.1,
        max_ticks=1000,
        step=StepSettings(relative=0.05),
        correction=CorrectionSettings(threshold=0.03, max_steps=200, lr=0.1, momentum=0.9),
    )
    out = Path(tempfile.mkdtemp()) / "run"
    path = llpf_fast.find_path(network(), ends[0], ends[1], data=data.train, settings=settings, out=out)
    print(f"path of {len(path)} waypoints in {out}")

    certificate = llpf_fast.verify_run(out, model=network(), train=data.train, test=data.test)
    print(f"connected: {certificate.connected}, highest training loss {certificate.max_loss:.4f}")
    print(f"picture: {draw_path(out)}")


if __name__ == "__main__":
    main()
