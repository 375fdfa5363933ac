"""The commands from end to end on the digits: files, words, exit statuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time

import pytest
import torch
import yaml

from llpf_fast.cli import find as find_command
from llpf_fast.data import load_dataset
from llpf_fast.models import accuracy, build_model
from llpf_fast.path import load_model_file, save_model_file


def test_train_writes_the_authors_dictionary(ends):
    saved = torch.load(ends.start, weights_only=True)
    assert saved["model_name"] == "mlp"
    assert saved["dataset_name"] == "digits"
    model = build_model("mlp")
    model.load_state_dict(saved["state_dict"])
    data = load_dataset("digits")
    assert accuracy(model, *data.test) > 0.93
    other = load_model_file(ends.destination).state
    assert not torch.equal(other["fc1.weight"], saved["state_dict"]["fc1.weight"])


def test_train_repeats_bit_for_bit_and_says_what_it_got(llpf, tmp_path):
    arguments = ["train", "--model", "mlp", "--data", "digits", "--seed", 5, "--epochs", 2]
    first = llpf(*arguments, "--out", tmp_path / "1.pt")
    second = llpf(*arguments, "--out", tmp_path / "2.pt", "--quiet")
    assert (first.status, second.status) == (0, 0)
    assert "epoch 2/2" in first.err
    assert second.err == ""
    assert "mlp on digits (scikit-learn), seed 5: training loss 1." in second.out
    assert ", test accuracy 0." in second.out
    one, two = (load_model_file(tmp_path / name).state for name in ("1.pt", "2.pt"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_train_keeps_an_existing_file(llpf, tmp_path):
    file = tmp_path / "a.pt"
    file.write_text("precious")
    arguments = ["train", "--model", "mlp", "--data", "digits", "--epochs", 1, "--out", file, "--quiet"]
    refused = llpf(*arguments)
    assert refused.status == 2
    assert f"{file} exists already" in refused.err
    assert file.read_text() == "precious"
    assert llpf(*arguments, "--overwrite").status == 0
    assert load_model_file(file).state["fc1.weight"].shape == (64, 64)


def test_find_says_how_it_ended_and_what_comes_next(llpf, ends, tmp_path):
    run = tmp_path / "run"
    found = llpf(*(word for word in ends.find(run, "--seed", "4") if word != "--quiet"))
    assert found.status == 0, found.err
    assert f"{run}: arrived after" in found.out
    assert f"llpf verify {run}" in found.out
    assert "tick 1/200  loss 0." in found.err
    assert "distance left" in found.err
    record = yaml.safe_load((run / "run.yaml").read_text())
    assert record["settings"]["seed"] == 4
    assert record["provenance"]["start"] == str(ends.start)


def test_find_that_does_not_arrive_has_status_1(llpf, ends, tmp_path):
    outcome = llpf(*ends.find(tmp_path / "run", "--set", "max_ticks=1", "--set", "step.relative=0.001"))
    assert outcome.status == 1
    assert "did not arrive after 1 ticks" in outcome.out
    assert "max_ticks" in outcome.out


def test_resume_of_a_finished_run_changes_nothing(llpf, ends, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = {file.name: file.read_bytes() for file in (run / "waypoints").iterdir()}
    again = llpf(*ends.find(run, "--resume"))
    assert again.status == 0, again.err
    assert {file.name: file.read_bytes() for file in (run / "waypoints").iterdir()} == before


def test_interrupt_says_how_to_resume_and_the_resumed_path_is_the_same(llpf, ends, finished, tmp_path, monkeypatch):
    run = tmp_path / "run"
    text = find_command.describe_tick

    def interrupt(at):
        if at.tick == 7:
            raise KeyboardInterrupt
        return text(at)

    settings = ["--set", "record.checkpoint_every=5"]
    whole = tmp_path / "whole"
    assert llpf(*ends.find(whole, *settings)).status == 0
    monkeypatch.setattr(find_command, "describe_tick", interrupt)
    stopped = llpf(*ends.find(run, *settings))
    assert stopped.status == 130
    assert stopped.err.count("\n") == 1
    assert "continue with: llpf find --recipe mlp-digits-m2m-quick" in stopped.err
    assert stopped.err.rstrip().endswith("--resume")
    monkeypatch.undo()
    assert llpf(*ends.find(run, *settings, "--resume")).status == 0
    names = sorted(file.name for file in (whole / "waypoints").iterdir())
    assert sorted(file.name for file in (run / "waypoints").iterdir()) == names
    assert all((run / "waypoints" / n).read_bytes() == (whole / "waypoints" / n).read_bytes() for n in names)


def test_verify_connected(llpf, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    outcome = llpf("verify", run, "--quiet", "--threads", 2)
    assert outcome.status == 0, outcome.err
    certificate = json.loads((run / "certificate.json").read_text())
    assert certificate["connected"] is True
    assert certificate["max_loss"] <= certificate["threshold"] == 0.1
    assert {"max_loss_at", "min_test_accuracy", "points_evaluated"} <= set(certificate)
    assert "connected" in outcome.out
    assert f"{certificate['max_loss']:.4f}" in outcome.out


def test_verify_not_connected_has_status_1(llpf, ends, tmp_path):
    run = tmp_path / "run"
    assert llpf(*ends.find(run, "--set", "max_ticks=1", "--set", "step.relative=0.001")).status == 1
    outcome = llpf("verify", run, "--quiet")
    assert outcome.status == 1
    assert "not connected" in outcome.out


def test_info_names_every_backend(llpf):
    outcome = llpf("info")
    assert outcome.status == 0
    assert torch.__version__ in outcome.out
    for word in ("eager", "triton"):
        assert word in outcome.out.lower()
    assert isinstance(json.loads(llpf("info", "--json").out), dict)


def test_recipes_are_listed_and_shown(llpf, tmp_path):
    listed = llpf("recipes")
    assert re.search(r"^lenet5-mnist-m2m-quick +LeNet5 on MNIST", listed.out, flags=re.MULTILINE)
    assert llpf("find", "--recipe", "list").out == listed.out
    shown = llpf("recipes", "mlp-digits-m2m-quick")
    file = tmp_path / "mine.yaml"
    file.write_text(shown.out)
    assert llpf("recipes", file).out == shown.out


def test_demo_in_a_minute(llpf, tmp_path):
    folder = tmp_path / "demo"
    began = time.monotonic()
    outcome = llpf("demo", "--out", folder, "--quiet")
    assert outcome.status == 0, outcome.err
    assert time.monotonic() - began < 60
    assert "connected" in outcome.out
    assert f"picture: {folder}" in outcome.out
    assert json.loads((folder / "run" / "certificate.json").read_text())["connected"] is True
    stranger = folder / "thesis.tex"
    stranger.write_text("precious")
    refused = llpf("demo", "--out", folder)
    assert refused.status == 2
    assert "thesis.tex, which llpf demo did not write" in refused.err
    assert (folder / "run" / "certificate.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fnd"], "invalid choice: 'fnd'"),
        (["find"], "the following arguments are required: --recipe"),
        (["find", "--recipe", "mlp-digits-m2m-quick"], "llpf find needs STARTS"),
        (["find", "--recipe", "x", "--strat", "a"], "unrecognized arguments: --strat"),
        (["verify"], "required: RUN"),
        (["train", "--model", "mlp", "--data", "digits", "--out", "x", "--seed", "y"], "--seed must be int, got y"),
        (["train", "--model", "mlp", "--data", "digits", "--out", "x", "--epochs", "0"], "--epochs must be at least 1"),
        (["train", "--model", "mlp", "--data", "digits", "--out", "x", "--lr", "-1"], "--lr must be 0 or more"),
        (["train", "--model", "mlp", "--data", "digits", "--out", "no/such/x"], "does not exist; create it first"),
        (["train", "--model", "mpl", "--data", "digits", "--out", "x"], "unknown model 'mpl'; did you mean 'mlp'?"),
        (["train", "--model", "mlp", "--data", "digit", "--out", "x"], "did you mean 'digits'?"),
        (["train", "--model", "mlp", "--data", "digits", "--out", "x", "--device", "tpu"], "--device tpu: no such"),
        (["train", "--model", "mlp", "--data", "digits", "--out", "x", "--threads", "0"], "--threads must be at least"),
        (["verify", "run", "--threads", "0"], "--threads must be at least 1"),
        (["train", "--model", "lenet5", "--data", "digits", "--out", "x"], "images of 1x28x28, these are 1x8x8"),
    ],
)
def test_wrong_command_lines_are_one_line(llpf, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    outcome = llpf(*arguments)
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert outcome.err.startswith("llpf: error: ")
    assert list(tmp_path.iterdir()) == []


def test_help_needs_no_torch():
    code = (
        "import sys; from llpf_fast.cli.main import main\n"
        "try: main(['find', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "--data-dir DIR" in done.stdout
    assert done.returncode == 0, "llpf --help imports torch or numpy"


def test_layers_of_norm_0_are_named(llpf, ends, tmp_path):
    file = load_model_file(ends.start)
    state = {name: value.clone() for name, value in file.state.items()}
    bias = next(name for name in state if name.endswith("bias"))
    state[bias].zero_()
    (tmp_path / "models").mkdir()
    save_model_file(tmp_path / "models" / "start.pt", state, model_name="mlp", dataset_name="digits")
    # No training that float32 could hold.
    sets = ["mode=norm-sphere", f"spheres.radii={{{bias}: 1.0}}", "threshold=50", "correction.lr=1e-300", "max_ticks=3"]
    command = ["find", "--recipe", "mlp-digits-m2m-quick", *(word for each in sets for word in ("--set", each))]
    run = tmp_path / "run"
    found = llpf(*command, tmp_path / "models" / "start.pt", "--out", run, "--quiet")
    note = f"not on their spheres, because from norm 0 no direction leads there: {bias}"
    assert f"\n  note: {note}\n" in found.out
    assert f"\n  note: {note}\n" in llpf("verify", run, "--quiet").out
    many = llpf(*command, tmp_path / "models", "--out", tmp_path / "runs", "--quiet")
    again = llpf(*command, tmp_path / "models", "--out", tmp_path / "runs", "--resume", "--quiet")
    for outcome in (many, again):
        assert f"\nstart--norm-sphere: {note}\n" in outcome.out
