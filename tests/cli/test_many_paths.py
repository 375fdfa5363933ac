"""Folders of models: pairings, one table, failures beside successes, resuming."""

from __future__ import annotations

import shutil

import pytest
import torch
import yaml

from llpf_fast.cli.main import main
from llpf_fast.path import RunDirectory, save_model_file

RECIPE = ["find", "--recipe", "mlp-digits-m2m-quick"]
#: Eight ticks to wherever they lead: what is tested is the book-keeping, not the paths.
SHORT = ["--set", "max_ticks=8", "--set", "screening.samples=300", "--set", "step.relative=0.001", "--quiet"]


@pytest.fixture(scope="session")
def models(ends, tmp_path_factory):
    """A folder of three trained networks."""
    folder = tmp_path_factory.mktemp("models")
    shutil.copy(ends.start, folder / "1.model.pt")
    shutil.copy(ends.destination, folder / "2.model.pt")
    common = ["--model", "mlp", "--data", "digits", "--epochs", "30", "--lr", "0.05", "--quiet"]
    assert main(["train", *common, "--seed", "3", "--out", str(folder / "3.model.pt")]) == 0
    return folder


def row(table: str, name: str) -> str:
    return next(line for line in table.splitlines() if line.startswith(f"{name} "))


def test_a_folder_with_itself(llpf, models, tmp_path):
    out = tmp_path / "runs"
    more = ["--set", "max_ticks=200", "--set", "screening.samples=400"]
    found = llpf(*RECIPE, models, models, "--pairing", "all-to-all", "--out", out, *more)
    assert found.status == 0, found.err
    names = ["1--2", "1--3", "2--3"]
    assert sorted(folder.name for folder in out.iterdir()) == names
    for name in names:
        assert "arrived" in row(found.out, name)
        assert RunDirectory.open(out / name).arrived
    assert "3 of 3 paths found" in found.out
    assert "path 1/3 1--2: tick 1/200  loss 0." in found.err
    assert "path 3/3 2--3: tick 1/200  loss 0." in found.err
    provenance = RunDirectory.open(out / "1--3").run["provenance"]
    assert provenance["start"] == str(models / "1.model.pt")
    assert provenance["destination"] == str(models / "3.model.pt")
    assert llpf("verify", out / "2--3", "--quiet").status == 0


def test_one_to_all_that_does_not_arrive(llpf, models, tmp_path):
    out = tmp_path / "runs"
    found = llpf(*RECIPE, models / "1.model.pt", models, "--pairing", "one-to-all", "--out", out, *SHORT)
    assert found.status == 1
    assert [folder.name for folder in sorted(out.iterdir())] == ["1--2", "1--3"]
    assert "did not arrive" in row(found.out, "1--3")
    assert "0 of 2 paths found" in found.out
    assert f"left out: {models}/1.model.pt and {models}/1.model.pt hold the same model" in found.err


def test_one_that_fails_does_not_stop_the_others(llpf, models, tmp_path):
    starts, out = tmp_path / "starts", tmp_path / "runs"
    shutil.copytree(models, starts)
    state = torch.load(starts / "1.model.pt", weights_only=True)["state_dict"]
    torch.manual_seed(0)
    save_model_file(starts / "1.model.pt", {name: torch.randn_like(value) for name, value in state.items()})
    found = llpf(*RECIPE, starts, models / "3.model.pt", "--pairing", "all-to-one", "--out", out, *SHORT)
    assert found.status == 1
    assert "llpf: error: 1--3: the start itself has training loss" in found.err
    assert "failed" in row(found.out, "1--3")
    assert "did not arrive" in row(found.out, "2--3")
    assert not (out / "1--3").exists()


def test_resume_continues_what_is_unfinished_and_keeps_the_rest(llpf, models, tmp_path, monkeypatch):
    from llpf_fast.cli import many

    out = tmp_path / "runs"
    command = [*RECIPE, models / "1.model.pt", models, "--pairing", "one-to-all", "--out", out, *SHORT]
    command = [word for word in command if word != "--quiet"]
    text, seen = many.describe_tick, []

    def interrupt(at):
        seen.append(at.tick)
        if seen.count(5) == 2:
            raise KeyboardInterrupt
        return text(at)

    monkeypatch.setattr(many, "describe_tick", interrupt)
    stopped = llpf(*command, "--set", "record.checkpoint_every=3")
    assert stopped.status == 130
    assert "--resume" in stopped.err
    monkeypatch.undo()
    assert RunDirectory.open(out / "1--2").complete
    assert not RunDirectory.open(out / "1--3").complete
    before = (out / "1--2" / "status.json").stat().st_mtime_ns
    again = llpf(*command, "--set", "record.checkpoint_every=3")
    assert again.status == 2
    assert f"{out}/1--2 holds a run; choose another --out, or continue with --resume" in again.err
    other = llpf(*command, "--resume", "--seed", 9)
    assert other.status == 2
    assert f"cannot resume {out}/1--2: its settings differ" in other.err
    assert not RunDirectory.open(out / "1--3").complete
    done = llpf(*command, "--set", "record.checkpoint_every=3", "--resume")
    assert "complete already" in row(done.out, "1--2")
    assert "did not arrive" in row(done.out, "1--3")
    assert "tick 4/8" in done.err, "it begins after the checkpoint"
    assert "1--2: tick" not in done.err
    assert (out / "1--2" / "status.json").stat().st_mtime_ns == before
    assert RunDirectory.open(out / "1--3").complete


def test_everything_is_checked_before_the_first_search(llpf, models, tmp_path):
    out = tmp_path / "runs"

    def refused(message, *arguments, status=2):
        outcome = llpf(*RECIPE, *arguments, "--out", out, *SHORT)
        assert outcome.status == status
        assert message in outcome.err, outcome.err
        assert outcome.err.count("\n") == 1, outcome.err
        assert not out.exists()

    starts = tmp_path / "starts"
    shutil.copytree(models, starts)
    refused("say which models to join, --pairing each-to-each", starts, models)
    refused("unknown pairing 'some'", starts, models, "--pairing", "some")
    refused("llpf find needs a destination (mode m2m)", starts)
    (starts / "3.model.pt").rename(starts / "1.pt")
    refused("would both be called 1--2", starts, models, "--pairing", "all-to-all")
    (starts / "1.pt").unlink()
    refused("found 2 starts and 3 destinations", starts, models, "--pairing", "each-to-each")
    state = torch.load(starts / "2.model.pt", weights_only=True)["state_dict"]
    state["fc1.weight"][0, 0] = float("inf")
    save_model_file(starts / "2.model.pt", state)
    refused("2.model.pt: tensor 'fc1.weight' has 1 infinite", starts, models, "--pairing", "all-to-all")
    save_model_file(starts / "2.model.pt", {"w": torch.ones(2)})
    refused("different architectures", starts, models, "--pairing", "all-to-all")


def test_an_output_folder_with_something_else_in_it(llpf, models, tmp_path):
    out = tmp_path / "runs"
    (out / "1--3").mkdir(parents=True)
    (out / "1--3" / "thesis.tex").write_text("precious")
    command = [*RECIPE, models / "1.model.pt", models, "--pairing", "one-to-all", "--out", out, *SHORT]
    outcome = llpf(*command)
    assert outcome.status == 2
    assert f"{out}/1--3 is not the folder of a run, and not empty" in outcome.err
    assert [folder.name for folder in out.iterdir()] == ["1--3"]


def test_one_pair_by_position_is_a_run_itself(llpf, models, tmp_path):
    out = tmp_path / "run"
    outcome = llpf(*RECIPE, models / "1.model.pt", models / "2.model.pt", "--out", out, *SHORT)
    assert outcome.status == 1
    assert "did not arrive after 8 ticks" in outcome.out
    assert yaml.safe_load((out / "run.yaml").read_text())["settings"]["max_ticks"] == 8


def test_modes_without_a_destination(llpf, models, tmp_path):
    out = tmp_path / "runs"
    found = llpf(*RECIPE, models, "--mode", "m2o", "--set", "dialect=authors", "--out", out, *SHORT)
    assert found.status == 0, found.err
    names = ["1--m2o", "2--m2o", "3--m2o"]
    assert sorted(folder.name for folder in out.iterdir()) == names
    assert "did all its ticks" in row(found.out, "3--m2o")
    settings = RunDirectory.open(out / "1--m2o").run["settings"]
    assert (settings["mode"], settings["dialect"]) == ("m2o", "authors")
    assert llpf("verify", out / "1--m2o", "--quiet").status == 0
    again = llpf(*RECIPE, models, "--mode", "m2o", "--set", "dialect=authors", "--out", out, *SHORT, "--resume")
    assert again.status == 0
    assert all("complete already" in row(again.out, name) for name in names)
    single = llpf(*RECIPE, models / "1.model.pt", "--mode", "m2o-o", "--out", tmp_path / "run", *SHORT)
    assert single.status == 0
    assert "did all its ticks after 8 ticks" in single.out


def test_a_model_that_gives_the_spheres(llpf, models, tmp_path):
    out = tmp_path / "runs"
    pairing = ["--mode", "variance-sphere", "--pairing", "one-to-all", "--out", out]
    llpf(*RECIPE, models / "1.model.pt", models, *pairing, *SHORT)
    assert sorted(folder.name for folder in out.iterdir()) == ["1--2", "1--3"]
    again = llpf(*RECIPE, models / "1.model.pt", models, *pairing, *SHORT, "--resume")
    assert "complete already" in row(again.out, "1--2"), again.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["D", "--mode", "m2o"], "mode m2o leads to no other model: name no destination"),
        (["--mode", "m2o", "--pairing", "all-to-all"], "--pairing all-to-all needs destinations"),
        (
            ["--mode", "norm-sphere"],
            "mode norm-sphere takes a destination that lies on its spheres, or spheres.radii",
        ),
        (
            ["D", "--mode", "norm-sphere", "--set", "spheres.radii={fc*: 1}", "--pairing", "each-to-each"],
            "both are given",
        ),
        (["--mode", "m2x"], "mode must be"),
        (["D", "--set", "dialect=mine", "--pairing", "each-to-each"], "dialect must be"),
        (["D", "--set", "schedule.kind=none", "--pairing", "each-to-each"], "schedule.kind must be"),
    ],
)
def test_modes_and_destinations_that_do_not_fit(llpf, models, tmp_path, arguments, message):
    arguments = [models if word == "D" else word for word in arguments]
    outcome = llpf(*RECIPE, models, *arguments, "--out", tmp_path / "runs", *SHORT)
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_several_at_once_have_the_same_table_and_files(llpf, models, tmp_path):
    command = [*RECIPE, models, models, "--pairing", "all-to-all", *SHORT[:-1]]
    turn, once = tmp_path / "turn", tmp_path / "once"
    assert llpf(*command, "--out", turn, "--parallel", 1).status == 1
    found = llpf(*command, "--out", once, "--parallel", 3)
    assert found.status == 1
    for name in ("1--2", "1--3", "2--3"):
        assert "did not arrive" in row(found.out, name)
        runs = [RunDirectory.open(out / name) for out in (turn, once)]
        assert [run.status["ticks"] for run in runs] == [8, 8]
        assert runs[0].run["provenance"] == runs[1].run["provenance"]
        # Three paths train in turn on a CPU: then every bit is that of the path alone.
        assert runs[0].status["index_sha256"] == runs[1].status["index_sha256"]
    assert "0 of 3 paths found" in found.out
    assert "path 3/3" in found.err
    assert "gradient steps" in found.err


def test_together_that_cannot_be(llpf, models, tmp_path):
    two = [*RECIPE, models, models, "--pairing", "all-to-all", "--out", tmp_path / "runs"]
    for wrong in ("0", "many", "-1"):
        refused = llpf(*two, f"--parallel={wrong}")
        assert refused.status == 2
        assert "--parallel must be auto or a number of paths" in refused.err
    one = [*RECIPE, models / "1.model.pt", models / "2.model.pt", "--out", tmp_path / "runs"]
    refused = llpf(*one, "--parallel", 2)
    assert refused.status == 2
    assert "--parallel is for folders of models" in refused.err
    assert not (tmp_path / "runs").exists()
