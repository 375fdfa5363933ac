"""The trials of benchmarks/studies/pacing.py change what they say, and its page says what the numbers say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.studies.pacing import RECIPE, VARIANTS, page, run
from benchmarks.studies.pacing_trials import Backwards, Clipped, Decaying, SlowConvolutions
from llpf_fast.recipes import load_recipe


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))


def gradients(module: nn.Module) -> list[torch.Tensor]:
    return [torch.full_like(p, 0.5) for p in module.parameters()]


def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """One step on the gradients above; how far each parameter went."""
    before = [p.detach().clone() for p in module.parameters()]
    for p, g in zip(module.parameters(), gradients(module), strict=True):
        p.grad = g
    optimizer.step()
    return [p.detach() - old for p, old in zip(module.parameters(), before, strict=True)]


def test_backwards_takes_no_step_along_the_way() -> None:
    module = network()
    end = {name: p.detach() + torch.randn_like(p) for name, p in module.named_parameters()}
    ways = [end[name] - p.detach() for name, p in module.named_parameters()]
    optimizer = Backwards(module.parameters(), end, module, lr=0.1, momentum=0.0)
    for _ in range(2):
        moved = step(module, optimizer)
        for change, way in zip(moved, ways, strict=True):
            assert abs(float((change * way).sum())) < 1e-5 * float(way.norm())
            assert float(change.norm()) > 0 or way.numel() == 1


def test_a_moved_point_begins_a_new_correction() -> None:
    module = network()
    optimizer = Decaying(module.parameters(), rounds=1, lr=0.1, momentum=0.0)
    lengths = [float(step(module, optimizer)[0].abs().max()) for _ in range(3)]
    assert lengths == pytest.approx([0.05, 0.025, 0.05 / 3], rel=1e-3)
    with torch.no_grad():
        next(module.parameters()).add_(1.0)
    assert float(step(module, optimizer)[0].abs().max()) == pytest.approx(0.05, rel=1e-3)


def test_clipped_and_slow_convolutions() -> None:
    module = network()
    moved = step(module, Clipped(module.parameters(), norm=0.2, lr=1.0, momentum=0.0))
    assert float(torch.cat([m.flatten() for m in moved]).norm()) == pytest.approx(0.2, rel=1e-4)
    module = network()
    moved = step(module, SlowConvolutions(module, 0.5, lr=0.1, momentum=0.0))
    assert [float(m.abs().max()) for m in moved] == pytest.approx([0.025, 0.025, 0.05, 0.05], rel=1e-3)


def test_the_changes_are_settings_of_the_recipe() -> None:
    for variant in VARIANTS.values():
        load_recipe("lenet5-mnist-m2m-quick", [c.format(half=0.1, twice=0.2) for c in variant.changes])


def row(steps: int, *, ended: str = "arrived", loss: float = 0.08) -> dict[str, object]:
    ends = {"start": "lenet5-1.model.pt", "destination": "lenet5-2.model.pt"}
    return {**ends, "ended": ended, "sgd_steps": steps, "steps_of_64": steps, "max_loss": loss}


def test_the_page_says_what_the_numbers_say(tmp_path: Path) -> None:
    runs = {
        "recipe": [row(200)],
        "before": [row(600)],
        "clip": [row(205)],
        "no chord": [row(180, loss=0.097)],
        "adam": [row(900, ended="stuck")],
    }
    source = tmp_path / "pacing.json"
    source.write_text(json.dumps({"recipe": "lenet5-mnist-m2m-quick", "runs": runs}))
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in page(source).splitlines() if " | " in line}
    assert " 1-2 |" in lines["change"]
    assert lines[VARIANTS["recipe"].about].endswith("| 200 | 200 | 1.00 | 0.080 | kept |")
    assert lines[VARIANTS["before"].about].endswith("| 600 | 600 | 3.00 | 0.080 | not kept: more steps |")
    assert lines[VARIANTS["clip"].about].endswith("| 1.02 | 0.080 | not kept: no clear gain |")
    assert lines[VARIANTS["no chord"].about].endswith("| 0.097 | not kept: no room below the threshold |")
    assert lines[VARIANTS["adam"].about].endswith("| (900) | - | - | 0.080 | not kept: does not always arrive |")


def test_trials_of_other_settings_are_kept(tmp_path: Path) -> None:
    settings = load_recipe(RECIPE, ["screening.samples=77"]).as_dict()
    file = tmp_path / "pacing.json"
    file.write_text(kept := json.dumps({"recipe": RECIPE, "settings": settings, "environment": {}, "runs": {}}))
    with pytest.raises(SystemExit, match=r"pacing\.json holds trials of other settings"):
        run([], "", ["recipe"], file)
    assert file.read_text() == kept
    settings = load_recipe(RECIPE).as_dict()
    file.write_text(json.dumps({"recipe": RECIPE, "settings": settings, "environment": {}, "runs": {}}))
    run([], "", ["recipe"], file)
