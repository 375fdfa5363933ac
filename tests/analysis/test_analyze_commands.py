"""``llpf analyze linear`` and ``layers``: results on disk, tables, and every error in one line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from llpf_fast.cli.main import main
from llpf_fast.models import build_model
from llpf_fast.path import save_model_file


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    files = []
    for seed in range(3):
        torch.manual_seed(seed)
        files.append(folder / f"m{seed}.model.pt")
        save_model_file(files[-1], build_model("mlp").state_dict(), "mlp", "digits")
    return files


def _llpf(capsys, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return status, output.out, output.err


def test_linear(models, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    status, output, err = _llpf(
        capsys, "analyze", "linear", *models, "--base", models[0], "--points", 3, "--out", out, "--quiet"
    )
    assert status == 0, err
    assert "m0 – m1" in output
    assert "Entezari" in output
    assert "angle at base" in output
    result = json.loads((out / "linear.json").read_text())
    assert len(result["numbers"]["pairs"]) == 3
    assert result["about"]["data"] == "digits"
    assert result["environment"]["torch"] == torch.__version__
    for name in ("linear.png", "linear.svg", "linear.csv", "linear-pairs.csv"):
        assert (out / name).stat().st_size > 0
    before = {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}
    _llpf(capsys, "analyze", "linear", *models, "--base", models[0], "--points", 3, "--out", out, "--quiet")
    assert before == {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()}


def test_layers(models, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    status, output, err = _llpf(
        capsys, "analyze", "layers", *models[:2], "--hessian-samples", 50, "--samples", 200, "--out", out
    )
    assert status == 0, err
    assert "predicted, base m1" in output
    assert "curvature integral" in output
    assert "rank correlation, alone" in output
    assert "step" in err
    numbers = json.loads((out / "layers.json").read_text())["numbers"]
    assert [layer["layer"] for layer in numbers["layers"]] == ["fc1", "fc2", "fc3"]
    assert numbers["hessian_samples"] == 50
    assert (out / "layers.svg").stat().st_size > 0
    assert len((out / "layers-groups.csv").read_text().splitlines()) == 1 + 2 * 4 * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name an analysis, one of {linear,layers"),
        (("nonsense",), "invalid choice: 'nonsense'"),
        (("linear",), "the following arguments are required: MODELS; see llpf analyze linear --help"),
        (("linear", "M0"), "at least 2 models are needed, 1 ("),
        (("linear", "M0", "M1", "--points", "2"), "points must be at least 3"),
        (("linear", "M0", "M1", "--points", "many"), "--points must be int, got many; see llpf analyze linear --help"),
        (("linear", "M0", "M1", "--base", "gone.pt"), "gone.pt is missing"),
        (("linear", "M0", "M1", "--model", "lenet5", "--data", "mnist"), "data 'mnist' needs a folder"),
        (("linear", "M0", "M1", "--data", "digit"), "unknown data set 'digit'; did you mean 'digits'?"),
        (("linear", "M0", "M1", "--samples", "-1"), "samples must be 0 (all) or more, got -1"),
        (("linear", "M0", "M1", "--device", "tpu"), "--device tpu"),
        (("linear", "FOLDER"), "is not the folder of a run: it has no run.yaml"),
        (("linear", "FOLDER@3", "M0"), "is not the folder of a run: it has no run.yaml"),
        (("linear", "M0", "M1", "--out", "M0"), "is a file; name a folder for the results"),
        (("layers", "M0", "M1", "M2"), "layer-wise connectivity is between two networks, 3 are given"),
        (("layers", "M0", "M0"), "have the same parameters"),
        (("layers", "M0", "M1", "--hessian-samples", "-2"), "--hessian-samples must be 0 (all) or more, got -2"),
    ],
)
def test_every_error_is_one_line(arguments, message, models, tmp_path, capsys) -> None:
    (tmp_path / "folder").mkdir()
    words = {"M0": models[0], "M1": models[1], "M2": models[2]}
    typed = [words.get(a, a.replace("FOLDER", str(tmp_path / "folder"))) for a in arguments]
    out = () if not arguments or "--out" in arguments or len(arguments) < 2 else ("--out", tmp_path / "out")
    status, _, err = _llpf(capsys, "analyze", *typed, *out)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_models_that_say_nothing_need_names(models, tmp_path, capsys) -> None:
    bare = [tmp_path / f"{i}.pt" for i in range(2)]
    for file in bare:
        torch.save(build_model("mlp").state_dict(), file)
    common = ["analyze", "linear", *bare, "--points", 3, "--out", tmp_path / "out", "--quiet"]
    status, _, err = _llpf(capsys, *common)
    assert status == 2
    assert "does not name its model; name it with --model" in err
    status, _, err = _llpf(capsys, *common, "--model", "mlp", "--data", "digits")
    assert status == 0, err
    status, _, err = _llpf(capsys, *common, "--model", "lenet5", "--data", "digits")
    assert status == 2
    assert "model 'lenet5' takes images of 1x28x28, these are 1x8x8" in err


def test_interrupted_says_how_to_go_on(models, tmp_path, capsys, monkeypatch) -> None:
    from llpf_fast.verify import Evaluator

    def stop(self, state):
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluator, "__call__", stop)
    status, _, err = _llpf(capsys, "analyze", "linear", *models, "--out", tmp_path / "out", "--quiet")
    assert status == 130
    assert err == "llpf: interrupted; the same command goes on from what was measured\n"


def test_help_of_other_commands_imports_no_analysis() -> None:
    code = (
        "import sys, contextlib, io\n"
        "from llpf_fast.cli.main import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:\n"
        "    main(['--help'])\n"
        "assert 'analyze' in out.getvalue()\n"
        "found = [name for name in sys.modules if 'llpf_fast.analysis' in name or 'cli.analyze.' in name]\n"
        "assert not found and 'torch' not in sys.modules, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_of_analyses_needs_no_torch() -> None:
    code = (
        "import sys, contextlib, io\n"
        "from llpf_fast.cli.main import main\n"
        "for words in (['--help'], ['linear', '--help'], ['layers', '--help']):\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "        main(['analyze', *words])\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
