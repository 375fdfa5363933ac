"""Bad input: one line that names the culprit, exit status 2, no traceback, nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys

import pytest
import torch

from llpf_fast.models import build_model
from llpf_fast.path import save_model_file

QUICK = "mlp-digits-m2m-quick"


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture
def refused(llpf, ends, tmp_path):
    """``llpf find`` with some arguments replaced: must fail in one line and must not leave a run behind."""

    def check(message, *, start=ends.start, destination=ends.destination, recipe=QUICK, out=None, more=()):
        target = tmp_path / "run" if out is None else out
        before = listing(target)
        outcome = llpf(
            *("find", start, destination, "--recipe", recipe),
            *("--out", target, "--quiet", *more),
        )
        assert outcome.status == 2, outcome
        assert message in outcome.err
        assert outcome.err.count("\n") == 1, outcome.err
        assert outcome.err.startswith("llpf: error: ")
        assert outcome.out == ""
        assert listing(target) == before, "something was written"
        return outcome.err

    return check


def listing(folder):
    if not folder.exists():
        return None
    return {str(file.relative_to(folder)): file.is_file() and file.read_bytes() for file in folder.rglob("*")}


@pytest.fixture
def lenets(tmp_path):
    files = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        files.append(tmp_path / f"lenet{seed}.pt")
        save_model_file(files[-1], build_model("lenet5").state_dict(), model_name="lenet5", dataset_name="mnist")
    return {"start": files[0], "destination": files[1], "recipe": "lenet5-mnist-m2m-quick"}


def test_missing_file(refused, tmp_path):
    refused(str(tmp_path / "no.pt"), start=tmp_path / "no.pt")
    refused(str(tmp_path / "no.pt"), destination=tmp_path / "no.pt")


def test_text_file_as_checkpoint(refused, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("epoch 1: loss 0.3\n")
    refused("notes.txt", start=file)


def test_a_pickle_with_code_is_never_executed(refused, tmp_path):
    for name, write in (
        ("bare.pkl", lambda file, value: file.write_bytes(pickle.dumps(value))),
        ("torch.pt", lambda file, value: torch.save(value, file)),
    ):
        file, marker = tmp_path / name, tmp_path / f"executed by {name}"
        write(file, {"state_dict": Bomb(marker)})
        refused(name, destination=file)
        assert not marker.exists()
        shutil.rmtree(marker, ignore_errors=True)


def test_the_bomb_goes_off_where_pickles_are_trusted(tmp_path):
    """Guards the test above: its file does carry code."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "marker")))
    assert (tmp_path / "marker").is_dir()


def test_two_architectures(refused, lenets):
    said = refused("different architectures", destination=lenets["destination"])
    assert "conv1.weight" in said or "fc1.weight" in said
    refused("model lenet5", recipe="lenet5-mnist-m2m-quick")


def test_a_checkpoint_with_nan(refused, ends, tmp_path):
    state = torch.load(ends.start, weights_only=True)["state_dict"]
    state["fc2.weight"][3, 4] = float("nan")
    file = tmp_path / "nan.pt"
    torch.save({"state_dict": state, "model_name": "mlp", "dataset_name": "digits"}, file)
    said = refused("NaN", destination=file)
    assert "fc2.weight" in said
    assert "nan.pt" in said


def test_start_equal_to_destination(refused, ends):
    refused("equal", destination=ends.start)


def test_endpoints_above_the_threshold(refused, tmp_path):
    torch.manual_seed(9)
    file = tmp_path / "untrained.pt"
    save_model_file(file, build_model("mlp").state_dict(), model_name="mlp", dataset_name="digits")
    refused("above the threshold", start=file)


def test_empty_data(refused, lenets, tmp_path):
    pytest.importorskip("torchvision", reason="MNIST is read by torchvision")
    folder = tmp_path / "data"
    folder.mkdir()
    refused(f"data folder {folder} holds no MNIST/raw", **lenets, more=("--data-dir", folder))
    refused("data 'mnist' needs a folder", **lenets)
    refused(f"data folder {folder}/none does not exist", **lenets, more=("--data-dir", folder / "none"))
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, *[0] * 12]))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, *[0] * 4]))
    refused("data 'mnist'", **lenets, more=("--data-dir", folder))


def test_wrong_image_size(refused, lenets):
    refused("takes images of 1x28x28, these are 1x8x8", **lenets, more=("--set", "data=digits"))


def test_unknown_recipe_key(refused):
    refused("unknown key 'step.relativ'; did you mean 'step.relative'?", more=("--set", "step.relativ=0.1"))
    refused("unknown recipe 'mlp-digits'", recipe="mlp-digits")
    refused("step.relative must be a number, got 'fast'", more=("--set", "step.relative=fast"))


def test_output_folder_that_holds_another_run(refused, finished):
    refused(str(finished), out=finished)


def test_output_folder_that_holds_other_files(refused, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "thesis.tex").write_text("precious")
    refused(str(folder), out=folder)


def test_resume_where_there_is_no_run(refused, tmp_path):
    refused(str(tmp_path / "run"), more=("--resume",))


def test_resume_of_another_search(refused, ends, finished):
    refused("cannot resume", start=ends.destination, destination=ends.start, out=finished, more=("--resume",))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu(refused):
    refused("sees no NVIDIA GPU", more=("--device", "cuda"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("command", ["train", "verify"])
def test_no_gpu_elsewhere(llpf, command, finished, tmp_path):
    arguments = {
        "train": ["--model", "mlp", "--data", "digits", "--out", tmp_path / "x.pt"],
        "verify": [finished],
    }[command]
    outcome = llpf(command, *arguments, "--device", "cuda", "--quiet")
    assert outcome.status == 2
    assert "sees no NVIDIA GPU" in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "x.pt").exists()
    assert not (finished / "certificate.json").exists()


def test_verify_refuses_what_is_no_run(llpf, ends, tmp_path):
    for folder in (tmp_path / "none", ends.folder):
        outcome = llpf("verify", folder, "--quiet")
        assert outcome.status == 2
        assert str(folder) in outcome.err
        assert outcome.err.count("\n") == 1


#: In one process, because importing torch is what costs: each command on its disk, and what it said, as JSON.
DRIVER = """
import contextlib, io, json, pathlib, sys
from llpf_fast.cli.main import main

found = {}
for disk, arguments in json.loads(sys.argv[1]).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(arguments)
    files = [str(file) for file in pathlib.Path(disk).rglob("*")]
    found[pathlib.Path(disk).name] = {"status": status, "out": out.getvalue(), "err": err.getvalue(), "files": files}
print(json.dumps(found))
"""
MOUNT = """
for disk in "$1/read-only" "$1/full" "$1/tiny"; do mount -t tmpfs -o size=200k none "$disk" || exit 99; done
mount -o remount,ro "$1/read-only" && mount -o remount,size=8k "$1/tiny" || exit 99
shift; exec "$@"
"""


@pytest.fixture(scope="module")
def disks(ends, tmp_path_factory):
    """What the command line says on a read-only disk, on one that a run fills, and on one too small for a model."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare (Linux) to mount small disks")
    folder = tmp_path_factory.mktemp("disks")
    jobs = {
        "read-only": ends.find(folder / "read-only" / "run"),
        "full": ends.find(folder / "full" / "run"),
        "tiny": [
            "train",
            "--model",
            "mlp",
            "--data",
            "digits",
            "--epochs",
            "1",
            "--out",
            str(folder / "tiny" / "a.pt"),
        ],
    }
    for name in jobs:
        (folder / name).mkdir()
    arguments = json.dumps({str(folder / name): job for name, job in jobs.items()})
    done = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "--mount", "bash", "-c", MOUNT, "bash", str(folder)),
            *(sys.executable, "-c", DRIVER, arguments),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no user namespace here to mount small disks in: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "reason"), [("read-only", "read-only"), ("full", "no space left"), ("tiny", "no space left")]
)
def test_a_disk_that_refuses(disks, name, reason):
    said = disks[name]
    errors = [line for line in said["err"].splitlines() if line.startswith("llpf:")]
    assert said["status"] == 2, said
    assert len(errors) == 1, said
    assert reason in errors[0].lower() or "cannot be written" in errors[0]
    assert f"/{name}" in errors[0]
    assert "Traceback" not in said["err"]
    assert said["out"] == ""
    assert not [file for file in said["files"] if file.endswith(".tmp")]
    if name != "full":
        assert said["files"] == []


def test_a_full_disk_leaves_whole_waypoints(disks):
    files = disks["full"]["files"]
    assert any(file.endswith("waypoints/000000.safetensors") for file in files)
    assert not any(file.endswith(("status.json", "certificate.json")) for file in files)
