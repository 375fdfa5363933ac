"""A network class of one's own and a squared error: join two regressions of diabetes progression (scikit-learn's data).

python examples/own_model_regression.py
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import llpf_fast
from llpf_fast.find import ArrivalSettings, CorrectionSettings, Settings, StepSettings
from llpf_fast.report.picture import draw_path
from llpf_fast.verify import Certificate


class Regressor(nn.Module):
    """Ten measurements of a patient -> progression of the disease a year later, in standard deviations."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, 1)

    def forward(self, patients: Tensor) -> Tensor:
        return self.head(self.body(patients)).squeeze(1)


def patients() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """342 patients to train on and 100 to test on: inputs ``[n, 10]``, targets ``[n]``, mean 0 and deviation 1 each."""
    inputs, targets = (torch.from_numpy(part).float() for part in load_diabetes(return_X_y=True))
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    targets = (targets - targets.mean()) / targets.std()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    train, test = order[:342], order[342:]
    return (inputs[train], targets[train]), (inputs[test], targets[test])


def train(seed: int, data: tuple[Tensor, Tensor], steps: int = 120) -> nn.Module:
    torch.manual_seed(seed)
    model = Regressor()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    for _ in range(steps):
        optimizer.zero_grad()
        mse_loss(model(data[0]), data[1]).backward()
        optimizer.step()
    return model


def main(out: Path, steps: int = 120) -> Certificate:
    torch.set_num_threads(1)
    data, test = patients()
    ends = [train(seed, data, steps) for seed in (1, 2)]
    for seed, model in enumerate(ends, start=1):
        with torch.no_grad():
            losses = [float(mse_loss(model(x), y)) for x, y in (data, test)]
        print(f"network {seed}: squared error {losses[0]:.3f} on training patients, {losses[1]:.3f} on others")

    settings = Settings(
        threshold=0.5,
        max_ticks=1000,
        # The default, 0.6, is for losses that can come near 0; a squared error of 0.3 is not to be had here.
        arrival=ArrivalSettings(margin=0.95),
        step=StepSettings(relative=0.08),
        correction=CorrectionSettings(threshold=0.4, batch_size=64, lr=0.02, momentum=0.9, max_steps=200),
    )
    path = llpf_fast.find_path(Regressor(), *ends, data=data, loss_fn=mse_loss, settings=settings, out=out)
    print(f"path of {len(path)} waypoints in {out}")

    certificate = llpf_fast.verify_run(out, model=Regressor(), loss_fn=mse_loss, train=data, test=test)
    highest = max(point.train_loss for point in certificate.straight_line)
    print(f"connected: {certificate.connected} at threshold {certificate.threshold}")
    print(f"highest squared error {certificate.max_loss:.3f} on the path, {highest:.3f} on the straight line")
    print(f"picture: {draw_path(out)}")
    return certificate


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="run directory to create (default: a temporary one)")
    parser.add_argument("--steps", type=int, default=120, help="gradient steps that train an endpoint")
    chosen = parser.parse_args()
    main(chosen.out or Path(tempfile.mkdtemp()) / "run", chosen.steps)
