"""Bad input: one line that names the culprit, exit status 2, no traceback, nothing half-written."""

from __future__ import annotations

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
            *("find", "--recipe", recipe, "--start", start, "--destination", destination),
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
    refused(f"data folder {folder} holds no MNIST/raw", **lenets, more=("--data", folder))
    refused("data 'mnist' needs a folder", **lenets)
    refused(f"data folder {folder}/none does not exist", **lenets, more=("--data", folder / "none"))
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, *[0] * 12]))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, *[0] * 4]))
    refused("data 'mnist'", **lenets, more=("--data", folder))


def test_wrong_image_size(refused, lenets):
    refused("takes images of 1x28x28, these are 1x8x8", **lenets, more=("--set", "data=digits"))


def test_unknown_recipe_key(refused):
    refused("unknown key 'step.relativ'; did you mean 'step.relative'?", more=("--set", "step.relativ=0.1"))
    refused("unknown recipe 'mlp-digits'", recipe="mlp-digits")
    refused("step.relative must be float, got fast", more=("--set", "step.relative=fast"))


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


def on_a_disk(folder, options, arguments):
    """Run ``llpf`` with a tmpfs of its own, mounted with ``options``, on ``folder``; what is on it is listed after."""
    folder.mkdir(exist_ok=True)
    script = (
        'mount -t tmpfs -o size=1m none "$1" || exit 99; mount -o "remount,$2" "$1" || exit 99; '
        'folder="$1"; shift 2; "$@"; status=$?; find "$folder" -mindepth 1; exit $status'
    )
    command = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script, "bash", folder, options]
    done = subprocess.run(
        [*map(str, command), sys.executable, "-m", "llpf_fast.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no user namespace to mount a small disk in: {done.stderr.strip()}")
    return done


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare (Linux) to mount a small disk")
def test_read_only_disk(ends, tmp_path):
    disk = tmp_path / "disk"
    done = on_a_disk(disk, "ro", ends.find(disk / "run"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert str(disk) in done.stderr
    assert "read-only" in done.stderr.lower() or "cannot be written" in done.stderr
    assert done.stdout == ""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare (Linux) to mount a small disk")
def test_full_disk_leaves_whole_files(ends, tmp_path):
    disk = tmp_path / "disk"
    done = on_a_disk(disk, "size=200k", ends.find(disk / "run"))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "no space left" in done.stderr.lower()
    assert str(disk) in done.stderr
    assert ".tmp" not in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare (Linux) to mount a small disk")
def test_train_on_a_full_disk_writes_nothing(tmp_path):
    disk = tmp_path / "disk"
    arguments = ["train", "--model", "mlp", "--data", "digits", "--epochs", "1", "--quiet", "--out", disk / "a.pt"]
    done = on_a_disk(disk, "size=8k", arguments)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "no space left" in done.stderr.lower()
    assert done.stdout == ""
