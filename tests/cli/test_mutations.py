"""Some four hundred damaged inputs, the same ones every time: no traceback, no other status than 0, 1 and 2, one line
where it is 2, and every file that a user may have put somewhere is there afterwards, to the byte."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from llpf_fast.path import RunDirectory, save_model_file

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))

    def forward(self, x):
        return self.body(x)

def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 4, generator=generator)
    y = torch.arange(48) % 3
    return x, y, x[:12], y[:12]
"""
RECIPE = {
    "description": "tiny",
    "threshold": 9.0,
    "max_ticks": 6,
    "screening": {"samples": 20},
    "record": {"checkpoint_every": 2},
    "arrival": {"every": 100},
    "step": {"relative": 0.2, "join_bias": True},
    "layers": {"keep": ["body.1.*"]},
    "schedule": {"stages": [{"start": 0, "layers": ["*"]}, {"start": 3}]},
    "correction": {"threshold": 8.0, "window": 1, "max_steps": 2, "batch_size": 8, "cuda_graph": "off"},
}
#: Another one gives other inputs.
SEED = os.environ.get("LLPF_MUTATIONS", "")
#: What YAML and JSON may hold where another value was expected.
VALUES = (
    *(
        "",
        "null",
        "~",
        "true",
        "off",
        "yes",
        "'off'",
        "0",
        "-1",
        "1",
        "2.5",
        "1e999",
        "-.inf",
        ".nan",
        "'0.1'",
        "9" * 30,
    ),
    *(
        "[]",
        "{}",
        "[1, 2]",
        "{a: 1}",
        "[[]]",
        "{1: 2}",
        "[null]",
        "2001-01-01",
        "2001-99-99",
        "!!binary x",
        "!!set {a}",
    ),
    *(
        "!!python/object/apply:os.getcwd []",
        "*nothing",
        "&a [*a]",
        "text",
        "'tiny_net.py:'",
        "'~/x.py:y'",
        "'no.py:Net'",
    ),
    *(
        "'\\0'",
        "'é'",
        "'a:b:c'",
        "m2o",
        "infinity",
        "norm-sphere",
        "data-flow",
        "adaptive",
        "blend",
        "[" * 400,
        "a" * 300,
    ),
)
#: What llpf itself writes into a finished run when it is asked about it.
WRITTEN = re.compile(r"certificate\.json|path\.(png|svg|csv)|report\.html|\.lock")


@dataclass
class World:
    """``folder`` holds code, recipe and checkpoints; ``run`` and ``open_run`` are never written to."""

    folder: Path
    run: Path
    open_run: Path

    def find(self, out: Path, *more: object, recipe: Path | None = None) -> list[object]:
        ends = [self.folder / "1.pt", self.folder / "2.safetensors"]
        return ["find", *ends, "--recipe", recipe or self.folder / "tiny.yaml", "--out", out, "--quiet", *more]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from llpf_fast.cli.main import main

    folder = tmp_path_factory.mktemp("world")
    code = folder / "tiny_net.py"
    code.write_text(CODE)
    (folder / "tiny.yaml").write_text(yaml.safe_dump({"model": f"{code}:Net", "data": f"{code}:data", **RECIPE}))
    scope: dict[str, type] = {}
    exec(CODE, scope)
    for seed, name in ((1, "1.pt"), (2, "2.safetensors")):
        torch.manual_seed(seed)
        save_model_file(folder / name, scope["Net"]().state_dict())
    made = World(folder, folder / "run", folder / "open")
    assert main([str(word) for word in made.find(made.run)]) in (0, 1)
    assert main(["verify", str(made.run), "--quiet"]) in (0, 1)
    shutil.copytree(made.run, made.open_run)
    for name in ("status.json", "certificate.json"):
        (made.open_run / name).unlink()
    assert (made.open_run / "checkpoint" / "checkpoint.safetensors").exists()
    return made


@pytest.fixture
def check(llpf, tmp_path, monkeypatch):
    """Run a command that must end well or in one line, and must leave ``kept`` as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLPF_TRACEBACK", "1")
    # What is drawn is fresh, whatever was damaged; it takes a second.
    monkeypatch.setattr("llpf_fast.cli.verify.draw", lambda run: "not drawn")
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "")

    def run(what: str, arguments: list[object], kept: Callable[[], dict[str, str]]) -> int:
        before = kept()
        try:
            outcome = llpf(*arguments)
        except BaseException as error:
            pytest.fail(f"{what}: llpf {' '.join(map(str, arguments))}: {type(error).__name__}: {error}")
        said = f"{what}: llpf {' '.join(map(str, arguments))}: status {outcome.status}, stderr {outcome.err[:2000]!r}"
        assert outcome.status in (0, 1, 2), said
        lines = [line for line in outcome.err.splitlines() if not line.startswith("llpf: warning: ")]
        if outcome.status == 2:
            assert len(lines) == 1, said
            assert lines[0].startswith("llpf: error: "), said
        else:
            assert lines == [], said
        assert "Traceback" not in outcome.err, said
        assert kept() == before, said
        return outcome.status

    return run


def files(folder: Path, *, but: re.Pattern[str] | None = None) -> dict[str, str]:
    """Name and digest of everything in ``folder``, but of what ``but`` matches the name of."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if but is None or not but.fullmatch(file.name):
            name = str(file.relative_to(folder))
            found[name] = "folder" if file.is_dir() else hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def damage_bytes(data: bytes, rng: random.Random) -> tuple[str, bytes | None]:
    """What was done to the content of a file, and the new one; None: a folder stands in its place."""
    kind = rng.choice(["cut", "flip", "flip", "zero", "empty", "folder", "garbage", "twice", "utf-16", "text", "swap"])
    place = rng.randrange(len(data)) if data else 0
    if kind == "cut":
        return f"cut at {place}", data[:place]
    if kind == "flip":
        bit = rng.randrange(8)
        changed = bytes([data[place] ^ (1 << bit)]) if data else b""
        return f"bit {bit} of byte {place}", data[:place] + changed + data[place + 1 :]
    if kind == "zero":
        return f"zeros from {place}", data[:place] + bytes(len(data) - place)
    if kind == "swap":
        return f"halves swapped at {place}", data[place:] + data[:place]
    return kind, {
        "empty": b"",
        "folder": None,
        "garbage": rng.randbytes(200),
        "twice": data + data,
        "utf-16": data.decode("utf-8", "replace").encode("utf-16"),
        "text": b"epoch 1: loss 0.3\n",
    }[kind]


def damage_lines(text: str, rng: random.Random) -> tuple[str, str]:
    """What was done to YAML of one key a line, and the new text."""
    lines = text.splitlines()
    number = rng.randrange(len(lines))
    kind = rng.choice(["value", "value", "value", "value", "value", "key", "drop", "indent", "twice", "list"])
    key, colon, _ = lines[number].partition(":")
    if kind == "value":
        value = rng.choice(VALUES)
        lines[number] = f"{key}{colon} {value}"
        # A group's own lines would no longer be YAML.
        depth = len(key) - len(key.lstrip())
        while number + 1 < len(lines) and len(lines[number + 1]) - len(lines[number + 1].lstrip()) > depth:
            del lines[number + 1]
        what = f"line {number + 1} is {lines[number].strip()[:60]}"
    elif kind == "key":
        lines[number] = lines[number].replace(key.strip(), key.strip()[:-1] or "x", 1)
        what = f"line {number + 1} is {lines[number]}"
    elif kind == "drop":
        what = f"without line {lines.pop(number)}"
    elif kind == "indent":
        lines[number] = "  " + lines[number]
        what = f"line {number + 1} is indented"
    elif kind == "twice":
        lines.insert(number, lines[number])
        what = f"line {number + 1} twice"
    else:
        lines = [f"- {line}" for line in lines]
        what = "a list"
    return what, "\n".join(lines) + "\n"


def put(file: Path, data: bytes | None) -> None:
    file.unlink()
    if data is None:
        file.mkdir()
    else:
        file.write_bytes(data)


@pytest.mark.parametrize("seed", range(3))
def test_recipes(check, world, tmp_path, seed):
    rng = random.Random(f"{SEED}recipes {seed}")
    original = (world.folder / "tiny.yaml").read_text()
    statuses = []
    for number in range(30):
        recipe = tmp_path / f"{number}.yaml"
        if number % 6 == 0:
            what, data = damage_bytes(original.encode(), rng)
        else:
            what, text = damage_lines(original, rng)
            data = text.encode()
        recipe.touch()
        put(recipe, data)
        more = ["--set", "max_ticks=2"] if rng.random() < 0.9 else []
        statuses.append(
            check(what, world.find(tmp_path / "out" / str(number), *more, recipe=recipe), lambda: files(world.folder))
        )
    assert 2 in statuses
    assert {0, 1} & set(statuses)


@pytest.mark.parametrize("seed", range(3))
def test_settings(check, world, tmp_path, seed):
    from llpf_fast.setting_types import setting_keys
    from llpf_fast.settings import Settings

    rng = random.Random(f"{SEED}settings {seed}")
    keys = [*setting_keys(Settings), "schedule.stages[0].start", "step.x", "", "correction..lr", "threshold.x"]
    for number in range(40):
        key, value = rng.choice(keys), rng.choice(VALUES)
        more = ["--set", "max_ticks=2", "--set", f"{key}={value}"]
        check(f"{key}={value}", world.find(tmp_path / "out" / str(number), *more), lambda: files(world.folder))


@pytest.mark.parametrize("end", ["1.pt", "2.safetensors"])
def test_checkpoints(check, world, tmp_path, end):
    rng = random.Random(f"{SEED}checkpoints {end}")
    original = (world.folder / end).read_bytes()
    for number in range(40):
        name = rng.choice(["x.pt", "x.safetensors", "x.pth", "x", "x.txt", "x.yaml"])
        file = tmp_path / str(number) / name
        file.parent.mkdir()
        file.touch()
        what, data = damage_bytes(original, rng)
        put(file, data)
        arguments = world.find(tmp_path / "out" / str(number), "--set", "max_ticks=2")
        arguments[1 if end == "1.pt" else 2] = file
        check(f"{name}: {what}", arguments, lambda at=file.parent: {**files(world.folder), **files(at)})


#: Each as one would type it; RUN is the damaged run.
COMMANDS = {
    "verify": ["verify", "RUN", "--quiet"],
    "report": ["report", "RUN", "--overwrite", "--quiet"],
    "pca": ["analyze", "pca", "RUN", "--components", "2", "--out", "pca", "--quiet"],
    "ticks": ["analyze", "ticks", "RUN", "--out", "ticks"],
    "linear": ["analyze", "linear", "RUN", "--points", "3", "--out", "linear", "--quiet"],
    "widths": ["analyze", "widths", "RUN@0", "--directions", "1", "--threshold", "20", "--out", "widths", "--quiet"],
}


def damaged(rng: random.Random, run: Path, files_: list[str]) -> str:
    """Damage one file of ``run``; what was done."""
    name = rng.choice(files_)
    if name == "run.yaml" and rng.random() < 0.8:
        what, text = damage_lines((run / name).read_text(), rng)
        data: bytes | None = text.encode()
    elif name.endswith((".json", ".jsonl")) and rng.random() < 0.6:
        what, data = damage_json((run / name).read_text(), rng)
    else:
        what, data = damage_bytes((run / name).read_bytes(), rng)
    put(run / name, data)
    return f"{name}: {what}"


def damage_json(text: str, rng: random.Random) -> tuple[str, bytes]:
    """Another value in the place of one of the numbers, words or brackets."""
    places = list(re.finditer(r'"[^"]*"|-?[0-9.e+-]+|true|false|null|\[\]|\{\}', text))
    place = rng.choice(places)
    value = rng.choice(
        ["null", "true", "-1", "1e999", "NaN", '"x"', "[]", "{}", "[[1]]", '{"a": 1}', "9" * 400, "0.5", ""]
    )
    return f"{place[0]} at {place.start()} is {value[:20]}", (
        text[: place.start()] + value + text[place.end() :]
    ).encode()


@pytest.mark.parametrize("command", COMMANDS)
def test_runs(check, world, tmp_path, command, monkeypatch):
    if command not in ("verify", "report"):
        # Drawing takes a second and sees what was read; what is damaged is met before.
        for name in (
            "pca.draw_components",
            "ticks.draw_ticks",
            "linear.draw_linear",
            "widths.draw_networks",
        ):
            drawn = tmp_path / "picture.png"
            monkeypatch.setattr(
                f"llpf_fast.report.{name}", lambda *_, _d=drawn, _n=name, **__: [_d] if "pca" in _n else _d
            )
    rng = random.Random(f"{SEED}runs {command}")
    for number in range(30):
        run = tmp_path / f"run{number}"
        shutil.copytree(world.run, run)
        (run / "notes.txt").write_text("mine")
        inside = ["run.yaml", "run.yaml", "metrics.jsonl", "waypoints.jsonl", "certificate.json", "status.json"]
        inside += ["waypoints/000000.safetensors", "waypoints/000003.safetensors", "checkpoint/checkpoint.safetensors"]
        what = damaged(rng, run, inside)
        arguments = [word.replace("RUN", str(run)) for word in COMMANDS[command]]
        check(what, arguments, lambda at=run: {**files(at, but=WRITTEN), **files(world.folder)})


@pytest.mark.parametrize("seed", range(2))
def test_resumes(check, world, tmp_path, seed):
    rng = random.Random(f"{SEED}resumes {seed}")
    mine = ["notes.txt", "waypoints/notes.txt", "checkpoint/draft.tmp.txt"]
    for number in range(30):
        run = tmp_path / f"run{number}"
        shutil.copytree(world.open_run if rng.random() < 0.8 else world.run, run)
        for name in mine:
            (run / name).write_text("mine")
        inside = ["run.yaml", "run.yaml", "run.yaml", "metrics.jsonl", "waypoints.jsonl"]
        inside += ["waypoints/000000.safetensors", "waypoints/000001.safetensors", "checkpoint/checkpoint.safetensors"]
        what = damaged(rng, run, inside)

        def kept(run: Path = run) -> dict[str, str]:
            return {**files(world.folder), **{name: (run / name).read_text() for name in mine}}

        check(what, world.find(run, "--resume"), kept)


@pytest.mark.parametrize(
    "name", ["waypoints/2024-results.csv", "checkpoint/7 days.safetensors", "checkpoint/.notes.tmp"]
)
def test_a_resume_removes_no_stranger(llpf, world, tmp_path, name):
    """Names that begin like a waypoint's, or end like a file that was being written."""
    run = tmp_path / "run"
    shutil.copytree(world.open_run, run)
    (run / name).write_text("mine")
    refused = llpf(*world.find(run, "--resume"))
    assert refused.status == 2
    assert f"{name.rpartition('/')[2]} is no part of the run; move it away" in refused.err
    assert (run / name).read_text() == "mine"
    (run / name).unlink()
    assert llpf(*world.find(run, "--resume")).status in (0, 1)
    assert RunDirectory.open(run).complete
