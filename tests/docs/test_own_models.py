"""The examples with a user's own class, loss and optimiser: they end connected, and their certificates say so."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from llpf_fast.path import LowLossPath

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _threads():
    """The examples set one thread for their process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def load(name: str) -> ModuleType:
    if not EXAMPLES.exists():
        pytest.skip("the examples are not beside the tests")
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def own_measurement(path: LowLossPath, model: nn.Module, loss_fn, data) -> float:
    """Highest loss at the waypoints and between them, without the package's evaluator."""
    highest = 0.0
    for step in range(2 * len(path) - 1):
        model.load_state_dict(path.interpolate(step / 2))
        with torch.no_grad():
            highest = max(highest, float(loss_fn(model.eval()(data[0]), data[1])))
    return highest


def test_regression(tmp_path, capsys):
    example = load("own_model_regression")
    certificate = example.main(tmp_path / "run")
    printed = capsys.readouterr().out
    assert certificate.connected
    assert "connected: True at threshold 0.5" in printed
    assert max(point.train_loss for point in certificate.straight_line) > 0.5
    train, _ = example.patients()
    highest = own_measurement(LowLossPath(tmp_path / "run"), example.Regressor(), mse_loss, train)
    assert 0.3 < highest <= certificate.max_loss + 1e-6
    assert certificate.min_test_accuracy is None
    assert certificate.max_test_loss < 0.6
    recorded = json.loads((tmp_path / "run" / "certificate.json").read_text())
    assert recorded["evaluation"]["loss"] == "mse_loss"
    assert recorded["evaluation"]["model"] == "Regressor"
    assert (tmp_path / "run" / "path.png").stat().st_size > 10_000


def test_language_model(tmp_path, capsys):
    example = load("own_language_model")
    certificate = example.main(tmp_path / "run", steps=160, characters=300)
    printed = capsys.readouterr().out
    assert certificate.connected
    assert "connected: True at threshold 0.8" in printed
    assert max(point.train_loss for point in certificate.straight_line) > 2
    text = example.zen()[:300]
    alphabet = "".join(sorted(set(text)))
    data = example.windows(text, alphabet)
    model = example.CharacterModel(len(alphabet))
    highest = own_measurement(LowLossPath(tmp_path / "run"), model, example.next_character_loss, data)
    assert 0.1 < highest <= certificate.max_loss + 1e-5
    assert certificate.min_test_accuracy is None
