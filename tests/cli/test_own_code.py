"""A network, data and loss of a user's own, named on the command line and in a recipe."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
import yaml

from llpf_fast.path import LowLossPath, RunDirectory, load_model_file, save_model_file

#: A straight line through points, learned by a small network: real enough to join two of.
CODE = """
from dataclasses import dataclass
import torch
from torch import nn
from beside import SIZE

@dataclass
class Shape:
    width: int = SIZE

class First(nn.Linear):
    pass

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(First(1, Shape().width), nn.Tanh(), nn.Linear(Shape().width, 1))

    def forward(self, x):
        return self.body(x)

def data():
    x = torch.linspace(-1, 1, 64, dtype=torch.float64)[:, None].numpy()
    return x, x**2, x[::4], x[::4] ** 2

def distance(output, target):
    return (output - target).square().mean()

def still(parameters):
    return torch.optim.SGD(parameters, lr=0.0)

def closing(parameters):
    return torch.optim.LBFGS(parameters)

def is_first(module):
    return isinstance(module, First)

def not_a_module():
    return 3

NUMBER = 3
"""
RECIPE = {
    "threshold": 0.05,
    "max_ticks": 200,
    "step": {"relative": 0.05},
    "correction": {"threshold": 0.003, "lr": 0.02, "momentum": 0.9, "max_steps": 300, "batch_size": 16},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with the code, a recipe beside it and two trained endpoints."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "mine.py").write_text(CODE)
    (folder / "beside.py").write_text("SIZE = 64\n")
    sys.path.insert(0, str(folder))
    import mine

    sys.path.remove(str(folder))
    for name in ("mine", "beside"):  # the commands must find them themselves
        del sys.modules[name]
    inputs, targets, _, _ = (torch.as_tensor(part).float() for part in mine.data())
    for seed in (1, 2):
        torch.manual_seed(seed)
        net = mine.Net()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        for _ in range(300):
            optimizer.zero_grad()
            mine.distance(net(inputs), targets).backward()
            optimizer.step()
        save_model_file(folder / f"{seed}.pt", {f"model.{k}": v for k, v in net.state_dict().items()})
    recipe = RECIPE | {"model": "mine.py:Net", "data": "mine.py:data"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "bare.yaml").write_text(yaml.safe_dump(RECIPE))
    return folder


def test_find_and_verify_from_anywhere(llpf, project, tmp_path, monkeypatch):
    run = tmp_path / "run"
    monkeypatch.chdir(tmp_path)
    ends = (project / "1.pt", project / "2.pt")
    found = llpf("find", *ends, "--recipe", project / "recipe.yaml", "--loss", "mse_loss", "--out", run, "--quiet")
    assert found.status == 0, found.err
    record = RunDirectory.open(run).run
    assert record["settings"]["model"] == f"{project}/mine.py:Net"
    assert record["provenance"]["loss"] == "mse_loss"
    assert list(record["provenance"]["code_sha256"]) == [f"{project}/mine.py:Net", f"{project}/mine.py:data"]
    monkeypatch.chdir(project)
    verified = llpf("verify", run, "--quiet")
    assert verified.status == 0, verified.err
    assert verified.err == ""
    certificate = json.loads((run / "certificate.json").read_text())
    assert certificate["connected"] is True
    assert certificate["evaluation"]["loss"] == "mse_loss"
    assert 0 < certificate["max_loss"] <= 0.05
    assert certificate["min_test_accuracy"] is None
    assert 0 < certificate["max_test_loss"] < 1
    again = llpf("find", *ends, "--recipe", project / "recipe.yaml", "--out", run, "--resume", "--quiet")
    assert again.status == 2
    assert "its loss is mse_loss, not None" in again.err or "its loss is mse_loss, not cross_entropy" in again.err


def test_options_in_place_of_a_recipe(llpf, project, tmp_path, monkeypatch):
    monkeypatch.chdir(project)
    run = tmp_path / "run"
    code = ["--model", "mine.py:Net", "--data", "mine:data", "--loss", "mine.py:distance"]
    found = llpf("find", "1.pt", "2.pt", "--recipe", "bare.yaml", *code, "--out", run, "--quiet")
    assert found.status == 0, found.err
    settings = RunDirectory.open(run).run["settings"]
    assert (settings["model"], settings["data"]) == (f"{project}/mine.py:Net", "mine:data")
    assert llpf("verify", run, "--quiet").status == 0
    assert json.loads((run / "certificate.json").read_text())["evaluation"]["loss"] == "distance"


@pytest.mark.parametrize("by", ["options", "recipe"])
def test_an_optimizer_and_normalization_layers_of_ones_own(llpf, project, tmp_path, monkeypatch, by):
    project = shutil.copytree(project, tmp_path / "project")
    names = {"optimizer": "mine.py:still", "is_norm": "mine.py:First" if by == "options" else "mine.py:is_first"}
    settings = RECIPE | {
        "model": "mine.py:Net",
        "data": "mine.py:data",
        "mode": "m2o-o",
        "threshold": 50.0,
        "max_ticks": 2,
    }
    recipe = project / f"{by}.yaml"
    recipe.write_text(yaml.safe_dump(settings if by == "options" else settings | names))
    options = ["--optimizer", names["optimizer"], "--set", f"is_norm={names['is_norm']}"] if by == "options" else []
    command = ["find", project / "1.pt", "--recipe", recipe, "--loss", "mse_loss", *options]
    monkeypatch.chdir(project if by == "options" else tmp_path)
    run = tmp_path / "run"
    found = llpf(*command, "--out", run, "--quiet")
    assert found.status == 0, found.err
    record = RunDirectory.open(run).run
    assert {key: record["settings"][key] for key in names} == {key: f"{project}/{name}" for key, name in names.items()}
    assert {f"{project}/{name}" for name in names.values()} <= set(record["provenance"]["code_sha256"])
    start, *_, end = LowLossPath(run)
    # Kept as a normalization layer, and not trained; the other moved, and was not trained either.
    assert torch.equal(end["body.0.weight"], start["body.0.weight"])
    torch.testing.assert_close(end["body.2.weight"], start["body.2.weight"] * 0.95**2)
    again = llpf(*command, "--optimizer", "mine.py:closing", "--out", run, "--resume", "--quiet")
    assert again.status == 2
    assert "the optimizer refuses one group a parameter, for correction.lr_rule (none: one group): LBFGS" in again.err
    (project / "models").mkdir()
    for name in ("1.pt", "2.pt"):
        shutil.copy(project / name, project / "models" / name)
    command[1] = project / "models"
    refused = llpf(*command, "--parallel", 2, "--out", tmp_path / "runs", "--quiet")
    assert refused.status == 2
    assert "leave the optimizer away, or search one after the other" in refused.err
    many = llpf(*command, "--out", tmp_path / "runs", "--quiet")
    assert many.status == 0, many.err


@pytest.mark.parametrize("together", ["1", "2"])
def test_code_that_no_path_could_use_is_refused_before_the_first(llpf, project, tmp_path, together):
    models = tmp_path / "models"
    models.mkdir()
    for name in ("1.pt", "2.pt"):
        shutil.copy(project / name, models / name)
    command = ["find", models, "--recipe", project / "recipe.yaml", "--mode", "m2o", "--loss", "mse_loss", "--quiet"]
    for option in (["--optimizer", project / "mine.py:nothing"], ["--set", f"is_norm={project}/mine.py:nothing"]):
        missing = [*option, "--parallel", together, "--out", tmp_path / "runs"]
        refused = llpf(*command, *missing)
        assert refused.status == 2
        assert "unknown name 'nothing'" in refused.err
        assert not (tmp_path / "runs").exists()


def test_train_a_network_of_ones_own(llpf, project, tmp_path):
    (tmp_path / "classes.py").write_text(
        "import torch\nfrom torch import nn\nnet = lambda: nn.Linear(2, 3)\n"
        "def data():\n    x = torch.randn(40, 2)\n    return x, (x[:, 0] > 0).long(), x, (x[:, 0] > 0).long()\n"
    )
    code = ["--model", tmp_path / "classes.py:net", "--data", tmp_path / "classes.py:data"]
    done = llpf("train", *code, "--epochs", 2, "--out", tmp_path / "a.pt", "--quiet")
    assert done.status == 0, done.err
    assert load_model_file(tmp_path / "a.pt").state["weight"].shape == (3, 2)


def test_code_of_a_moved_or_changed_run(llpf, project, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(project, copy)
    run = tmp_path / "run"
    command = ["find", copy / "1.pt", copy / "2.pt", "--recipe", copy / "recipe.yaml", "--loss", "mse_loss"]
    assert llpf(*command, "--out", run, "--quiet").status == 0
    (copy / "mine.py").write_text(CODE + "\n# changed\n")
    changed = llpf("verify", run, "--quiet")
    assert changed.status == 0
    assert f"llpf: warning: {copy}/mine.py was changed since the search" in changed.err
    (copy / "mine.py").rename(tmp_path / "moved.py")
    sys.modules.pop(
        next(name for name, module in sys.modules.items() if getattr(module, "__file__", "") == str(copy / "mine.py"))
    )
    missing = llpf("verify", run, "--quiet")
    assert missing.status == 2
    assert f"{copy}/mine.py is missing" in missing.err
    code = ["--model", tmp_path / "moved.py:Net", "--data", tmp_path / "moved.py:data"]
    assert llpf("verify", run, *code, "--quiet").status == 0


def test_a_run_brings_no_program_along(llpf, project, tmp_path):
    run = tmp_path / "run"
    command = ["find", project / "1.pt", project / "2.pt", "--recipe", project / "recipe.yaml", "--loss", "mse_loss"]
    assert llpf(*command, "--out", run, "--quiet").status == 0
    witness = tmp_path / "witness"
    (run / "evil.py").write_text(f"open({str(witness)!r}, 'w')\n")
    text = (run / "run.yaml").read_text()
    for key in ("mine.py:Net", "mine.py:data", "mse_loss"):
        place = f"{run}/evil.py:x" if key == "mse_loss" else f"{run}/evil.py:{key[8:]}"
        whole = key if key == "mse_loss" else f"{project}/{key}"
        (run / "run.yaml").write_text(text.replace(whole, place))
        refused = llpf("verify", run, "--quiet")
        assert refused.status == 2, key
        assert "names code inside the run itself" in refused.err
        assert not witness.exists()


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--model", "none.py:Net", "none.py is missing"),
        ("--model", "mine.py:", "write it as file.py:name"),
        ("--model", "mine.py:Nett", "unknown name 'Nett'; did you mean 'Net'?"),
        ("--model", "mine.py:NUMBER", "is an int, not a function or class"),
        ("--model", "mine.py:not_a_module", "gave an int, not a torch.nn.Module"),
        ("--model", "no_such_module_here:Net", "cannot be imported: ModuleNotFoundError"),
        ("--model", "broken.py:Net", "cannot be imported: ZeroDivisionError: division by zero"),
        ("--data", "data.py:three", "gave 3 values; it must return (train_inputs, train_targets, test_"),
        ("--data", "data.py:text", "data.py:text' holds a str; pass tensors or NumPy arrays"),
        ("--data", "data.py:uneven", "has 4 inputs but 3 targets"),
        ("--data", "data.py:empty", "data.py:empty' is empty"),
        ("--data", "data.py:nan", "inputs has values that are NaN or infinite"),
        ("--data", "data.py:fails", "failed: KeyError: 'x'"),
        ("--loss", "mse_los", "unknown loss 'mse_los'; did you mean 'mse_loss'"),
        ("--optimizer", "AdamW", "optimizer 'AdamW': write it as file.py:name"),
        ("--optimizer", "mine.py:not_a_module", "not_a_module' failed: TypeError: "),
        ("--optimizer", "mine.py:is_first", "gave a bool, not a torch.optim.Optimizer"),
        ("--set", "is_norm=mine.py:distance", "distance' failed on a "),
        ("--set", "is_norm=mine.py:Shape", "gave a Shape, not true or false"),
    ],
)
def test_wrong_code_is_one_line(llpf, project, tmp_path, monkeypatch, option, name, message):
    folder = tmp_path / "copy"
    shutil.copytree(project, folder)
    monkeypatch.chdir(folder)
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "data.py").write_text(
        "import torch\nx = torch.ones(4, 1)\n"
        "three = lambda: (x, x, x)\ntext = lambda: (x, 'abc', x, x)\nuneven = lambda: (x, x[:3], x, x)\n"
        "empty = lambda: (x, x, x[:0], x[:0])\nnan = lambda: (x / 0 * 0, x, x, x)\n"
        "def fails():\n    return {}['x']\n"
    )
    given = {"--model": "mine.py:Net", "--data": "mine.py:data", "--loss": "mse_loss"} | {option: name}
    options = [word for pair in given.items() for word in pair]
    outcome = llpf("find", "1.pt", "2.pt", "--recipe", "bare.yaml", *options, "--out", tmp_path / "run", "--quiet")
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert not (tmp_path / "run").exists()
