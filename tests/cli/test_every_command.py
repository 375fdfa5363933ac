"""Every command with bad input of every kind: one line on stderr, exit status 2, no traceback, nothing removed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch

from llpf_fast.cli import main as main_module
from llpf_fast.cli.main import main
from llpf_fast.path import save_model_file

QUICK = "mlp-digits-m2m-quick"
#: Stands in the place of a file or a folder.
THINGS = (
    *("MISSING", "EMPTY_FILE", "TEXT", "BINARY", "EMPTY_FOLDER", "FOLDER", "RUN_WITHOUT_YAML", "DANGLING", "LOOP", ""),
    *(
        "SECRET/x",
        "TEXT/x",
        "NUL\0",
        "LONG",
        "é",
        "-",
        "~nobody-of-this-name/x",
        "file:///x",
        "things.py:",
        ":x",
        "a:b:c",
    ),
)
NUMBERS = ("0", "-1", "1.5", "1e99", "nan", "inf", "", "x", "0x", "true", "None", "[1]", "9" * 30, "1,2", "1 2", "²")
DEVICES = (
    "mps",
    "cuda:7",
    "cuda:-1",
    "xpu",
    "meta",
    "gpu",
    "",
    "CPU ",
    "cuda:x",
    "cpu:cpu",
    "0",
    "é",
    "tpu",
    "hip",
    "vulkan",
)
WORDS = (
    "",
    "x",
    "None",
    "true",
    "0",
    "[]",
    "{}",
    "é",
    "a=b",
    "=",
    "..",
    "'",
    '"',
    "\n",
    "a\nb",
    "%s",
    "{0}",
    "*",
    "\0",
    "~",
)
LISTS = (
    "0",
    "-1",
    "",
    ",",
    "1,,2",
    "x",
    "1.5",
    "nan",
    "1;2",
    " ",
    "1,x",
    "--",
    "[1]",
    "1 2",
    "0,1",
    "1,0",
    "²",
    "1e3",
    "all",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with one of everything."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "EMPTY_FILE").touch()
    (folder / "TEXT").write_text("loss: 0.3\n")
    (folder / "BINARY").write_bytes(bytes(range(256)))
    (folder / "EMPTY_FOLDER").mkdir()
    (folder / "FOLDER").mkdir()
    (folder / "FOLDER" / "thesis.tex").write_text("precious")
    (folder / "RUN_WITHOUT_YAML" / "waypoints").mkdir(parents=True)
    (folder / "DANGLING").symlink_to(folder / "nothing")
    (folder / "LOOP").symlink_to(folder / "LOOP")
    (folder / "things.py").write_text("import sys\ndef ends(): sys.exit(7)\ndef fails(): 1 / 0\nNUMBER = 3\n")
    (folder / "ends.py").write_text("raise SystemExit(7)\n")
    return folder


@pytest.fixture
def refused(llpf, place, monkeypatch, tmp_path):
    monkeypatch.setenv("LLPF_TRACEBACK", "1")
    monkeypatch.chdir(place)

    def run(*arguments: object, statuses: tuple[int, ...] = (2,)) -> str:
        given = [str(word).replace("LONG", "x" * 5000) for word in arguments]
        kept = [
            (path, path.is_file() and path.read_bytes())
            for path in sorted(place.rglob("*"))
            if "pycache" not in str(path)
        ]
        try:
            outcome = llpf(*given)
        except BaseException as error:
            pytest.fail(f"llpf {given}: {type(error).__name__}: {error}"[:3000])
        said = f"llpf {given}: {outcome}"[:3000]
        assert outcome.status in statuses, said
        if outcome.status == 2:
            assert outcome.err.count("\n") == 1, said
            assert outcome.err.startswith("llpf: error: "), said
            assert len(outcome.err) > len("llpf: error: \n"), said
        for path, content in kept:
            assert path.is_symlink() or path.exists(), f"{path} is gone: {said}"
            assert not content or path.read_bytes() == content, f"{path} was changed: {said}"
        return outcome.err

    return run


def bad(valid: list[object], option: str, values: tuple[str, ...]):
    """The command with ``option``, or what stands in the place called ``option``, given each of ``values``."""
    for value in values:
        if option in valid:
            yield [value if word == option else word for word in valid]
        elif option.startswith("-"):
            yield [*valid, f"{option}={value}"]


#: Code that is no function, or ends the program.
CODE = (
    *(
        "things.py:ends",
        "things.py:fails",
        "things.py:NUMBER",
        "things.py:NUMBER.x",
        "ends.py:x",
        "..:x",
        "things:x.y.z",
    ),
)
#: Numbers that a learning rate may be.
FINE = ("0", "1.5", "1e99")

FEW = ("MISSING", "TEXT", "FOLDER", "", "NUL\0", "things.py:", "things.py:ends")


def but(values: tuple[str, ...], *fine: str) -> tuple[str, ...]:
    return tuple(value for value in values if value not in fine)


#: A command that would work (A, B: networks; RUN: a run; OUT: what does not exist yet), its options and what they take.
FIND = ["find", "A", "B", "--recipe", QUICK, "--out", "OUT", "--quiet"]
TRAIN = ["train", "--model", "mlp", "--data", "digits", "--out", "OUT", "--epochs", "1", "--quiet"]
COMMANDS = {
    "find files": (FIND, {"A": THINGS, "B": THINGS, QUICK: THINGS}),
    "find out": (
        FIND,
        {
            "OUT": tuple(
                thing
                for thing in THINGS
                if thing
                not in (
                    "MISSING",
                    "EMPTY_FOLDER",
                    "é",
                    "-",
                    "a:b:c",
                    ":x",
                    "things.py:",
                    "file:///x",
                    "~nobody-of-this-name/x",
                    "SECRET/x",
                )
            )
        },
    ),
    "find code": (
        FIND,
        dict.fromkeys(("--model", "--data", "--loss", "--optimizer"), (*THINGS, *CODE)),
    ),
    "find words": (
        FIND,
        dict.fromkeys(("--mode", "--set", "--pairing", "--parallel"), WORDS),
    ),
    "find numbers": (
        FIND,
        {"--seed": but(NUMBERS, "0", "-1"), "--threads": NUMBERS, "--device": DEVICES},
    ),
    "train files": (TRAIN, {"mlp": THINGS, "digits": (*THINGS, "things.py:ends", "things.py:fails"), "--init": THINGS}),
    "train numbers": (
        TRAIN,
        {
            **dict.fromkeys(("--epochs", "--batch-size", "--threads", "--lr-epochs"), NUMBERS),
            **dict.fromkeys(("--checkpoint-epochs", "--warmup-epochs"), NUMBERS[1:]),
            **dict.fromkeys(("--lr", "--momentum", "--weight-decay", "--label-smoothing"), but(NUMBERS, *FINE)),
            "--device": DEVICES,
        },
    ),
    "train words": (TRAIN, dict.fromkeys(("--optimizer", "--lr-schedule", "--augmentation", "--loss"), WORDS)),
    "verify": (
        ["verify", "RUN", "--quiet"],
        {
            "RUN": THINGS,
            "--device": DEVICES,
            "--threads": NUMBERS,
            "--model": THINGS,
            "--data": THINGS,
            "--loss": THINGS,
        },
    ),
    "report": (
        ["report", "RUN", "--out", "OUT", "--quiet"],
        {
            "RUN": THINGS,
            "OUT": (
                "EMPTY_FILE",
                "TEXT",
                "BINARY",
                "EMPTY_FOLDER",
                "FOLDER",
                "",
                "TEXT/x",
                "NO/x",
                "NUL\0",
                "LONG",
                "LOOP",
            ),
        },
    ),
    "recipes": (["recipes", "NAME"], {"NAME": THINGS}),
    "demo": (
        ["demo", "--quiet"],
        {
            "--out": (
                "EMPTY_FILE",
                "TEXT",
                "BINARY",
                "FOLDER",
                "RUN_WITHOUT_YAML",
                "",
                "TEXT/x",
                "NUL\0",
                "LONG",
                "LOOP",
                "DANGLING",
            )
        },
    ),
    "bench": (
        ["bench", "--only", "no such case"],
        {
            "--device": DEVICES,
            "--threads": but(LISTS, "1"),
            "--seconds": but(NUMBERS, "1.5", "1e99"),
            "--out": ("EMPTY_FILE", "TEXT", "BINARY", "", "TEXT/x", "NUL\0", "LONG", "LOOP"),
        },
    ),
    "info": (["info"], {"--json": WORDS, "--no-such-option": WORDS}),
    "ticks": (
        ["analyze", "ticks", "RUN", "--out", "OUT"],
        {"RUN": THINGS, "OUT": ("EMPTY_FILE", "TEXT", "", "TEXT/x", "NUL\0", "LONG", "LOOP")},
    ),
    "pca": (
        ["analyze", "pca", "RUN", "--out", "OUT", "--quiet"],
        {
            "RUN": THINGS,
            "--components": but(NUMBERS, "9" * 30),
            "--memory": but(NUMBERS, "9" * 30),
            "--device": DEVICES,
        },
    ),
    "animate": (
        ["analyze", "animate", "RUN", "--out", "OUT", "--quiet"],
        {
            "RUN": THINGS,
            "--frames": but(NUMBERS, "9" * 30),
            "--format": WORDS,
            "--seconds": but(NUMBERS, "1.5", "1e99"),
        },
    ),
    "linear": (
        ["analyze", "linear", "A", "B", "--out", "OUT", "--quiet"],
        {
            "A": THINGS,
            "--base": THINGS,
            "--points": but(NUMBERS, "9" * 30),
            "--samples": but(NUMBERS, "0", "9" * 30),
            "--device": DEVICES,
            "--model": FEW,
            "--data": FEW,
            "--loss": FEW,
        },
    ),
    "widths": (
        ["analyze", "widths", "A", "--out", "OUT", "--quiet"],
        {
            "A": THINGS,
            "--directions": but(NUMBERS, "9" * 30),
            "--threshold": ("nan", "x", "", "-1", "inf"),
            "--law": WORDS,
        },
    ),
    "plane": (
        ["analyze", "plane", "RUN", "--out", "OUT", "--quiet"],
        {"RUN": THINGS, "--statistics": WORDS, "--resolution": but(NUMBERS, "9" * 30)},
    ),
    "layers": (
        ["analyze", "layers", "A", "B", "--out", "OUT", "--quiet"],
        {"B": THINGS, "--hessian-samples": but(NUMBERS, "0", "9" * 30)},
    ),
    "curves": (
        ["analyze", "curves", "A", "B", "--out", "OUT", "--quiet"],
        {"A": FEW, "--methods": WORDS, "--rate": WORDS, "--recipe": FEW},
    ),
    "connect": (
        ["analyze", "connect", "A", "B", "--out", "OUT", "--quiet"],
        {"A": THINGS, "--threshold": ("0", "-1", "nan", "inf", "x", ""), "--spacing": ("0", "-1", "2", "nan", "x", "")},
    ),
    "sharpness": (
        ["analyze", "sharpness", "RUN", "--out", "OUT", "--quiet"],
        {"RUN": THINGS, "--tolerance": ("0", "-1", "nan", "x", "")},
    ),
    "ensemble": (["analyze", "ensemble", "RUN", "--out", "OUT", "--quiet"], {"RUN": THINGS}),
    "subspace": (
        ["analyze", "subspace", "--model", "mlp", "--data", "digits", "--out", "OUT", "--quiet"],
        {"--dimensions": ("x", "1.5", "", "0", "-1"), "mlp": FEW},
    ),
    "width-sweep": (
        ["analyze", "width-sweep", "--out", "OUT", "--quiet"],
        {"--lr": ("0.1", "x", ""), "--model": THINGS},
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_bad_input(refused, ends, finished, tmp_path, name):
    valid, options = COMMANDS[name]
    places = {"A": ends.start, "B": ends.destination, "RUN": finished, "OUT": tmp_path / "out"}
    for option, values in options.items():
        for arguments in bad(valid, option, values):
            refused(*(places.get(word, word) for word in arguments))
            assert not (tmp_path / "out").is_file(), arguments


@pytest.mark.parametrize("name", COMMANDS)
def test_options_that_do_not_exist(refused, ends, finished, tmp_path, name):
    valid, _ = COMMANDS[name]
    places = {"A": ends.start, "B": ends.destination, "RUN": finished, "OUT": tmp_path / "out"}
    command = [places.get(word, word) for word in valid]
    for more in (
        ["--no-such-option"],
        ["--no-such-option=3"],
        ["one", "too", "many", "--x"],
        ["--quiet=perhaps"],
        ["-q"],
    ):
        refused(*command, *more)


def test_no_command(llpf):
    assert llpf().status == 2
    for arguments in (["x"], ["--x"], [""], ["find"], ["train"], ["verify"], ["report"], ["analyze"], ["analyze", "x"]):
        outcome = llpf(*arguments)
        assert outcome.status == 2, arguments
        assert outcome.err.count("\n") == 1, outcome.err


@pytest.mark.parametrize(
    ("variable", "value"),
    [("LLPF_BACKEND", "cdua"), ("LLPF_BACKEND", "CPP"), ("LLPF_ISA", "sse"), ("LLPF_ISA", "AVX2"), ("LLPF_ISA", " ")],
)
def test_variables_that_choose_among_words(llpf, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    outcome = llpf("recipes")
    assert outcome.status == 2
    assert f"the environment variable {variable} is {value!r}; unset it, or set it to" in outcome.err
    monkeypatch.setenv(variable, "")
    assert llpf("recipes").status == 0


def test_the_words_are_those_of_the_kernels():
    from llpf_fast.ops.backend import NAMES

    assert main_module._VARIABLES["LLPF_BACKEND"] == NAMES


def test_an_error_that_nobody_foresaw(llpf, monkeypatch):
    def fail(_):
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr(main_module.info, "run", fail)
    monkeypatch.delenv("LLPF_TRACEBACK", raising=False)
    outcome = llpf("info")
    assert outcome.status == 2
    assert outcome.err == (
        "llpf: error: internal: ZeroDivisionError: one two; set LLPF_TRACEBACK=1 for the traceback\n"
    )
    monkeypatch.setenv("LLPF_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["info"])


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["verify", "nowhere"], {}),
        (["find", "a.pt", "b.pt", "--recipe", QUICK, "--out", "x", "--device", "cuda:99"], {}),
        (["train", "--model", "ends.py:x", "--data", "digits", "--out", "x.pt"], {}),
        (["info"], {"LLPF_BACKEND": "no such"}),
    ],
)
def test_as_a_process(place, arguments, variables):
    program = [sys.executable, "-m", "llpf_fast.cli.main", *arguments]
    done = subprocess.run(
        program, cwd=place, capture_output=True, text=True, timeout=120, env={**os.environ, **variables}, check=False
    )
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("llpf: error: ")
    assert done.stdout == ""


OPTIMIZERS = """
import torch

def sparse(parameters): return torch.optim.SparseAdam(list(parameters))
def a_class(parameters): return torch.optim.SGD
def nothing(parameters): return None
def fails(parameters): raise KeyError("rate")
def ends(parameters): raise SystemExit(3)
def refuses(parameters): return torch.optim.SGD(parameters, lr=-1)
def takes_none(): return 3
def other(parameters): return torch.optim.SGD([torch.zeros(3, requires_grad=True)], lr=0.1)
instance = torch.optim.SGD([torch.zeros(3, requires_grad=True)], lr=0.1)
def same(parameters): return instance
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sparse", "gave a SparseAdam, which takes no dense gradients; use Adam"),
        ("a_class", "gave a class; call it with the parameters, not a torch.optim.Optimizer"),
        ("nothing", "gave a NoneType, not a torch.optim.Optimizer"),
        ("fails", "failed: KeyError: 'rate'"),
        ("ends", "failed: SystemExit: 3"),
        ("refuses", "the optimizer refuses"),
        ("takes_none", "failed: TypeError: takes_none() takes 0 positional arguments but 1 was given"),
        ("other", "trains other parameters than those that it was given; make a new one from its argument"),
        ("same", "trains other parameters than those that it was given; make a new one from its argument"),
        ("instance", "is a SGD, not a function or class; name a function that makes an optimizer of the parameters"),
        ("nowhere", "unknown name 'nowhere'"),
    ],
)
def test_optimizers_that_cannot_work(llpf, ends, tmp_path, name, message):
    code = tmp_path / "optimizers.py"
    code.write_text(OPTIMIZERS)
    command = ["find", ends.start, ends.destination, "--recipe", QUICK, "--out", tmp_path / "run", "--quiet"]
    outcome = llpf(*command, "--optimizer", f"{code}:{name}")
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1, outcome.err
    assert not (tmp_path / "run").exists()


def test_a_network_that_cannot_be_copied(llpf, tmp_path, monkeypatch):
    """The old weight_norm keeps what a pass computed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.py").write_text(
        "import torch\nfrom torch import nn\nimport warnings\nwarnings.simplefilter('ignore')\n"
        "def net(): return nn.Sequential(nn.utils.weight_norm(nn.Linear(8, 3)))\n"
        "def data():\n    x = torch.randn(6, 8)\n    return x, torch.arange(6) % 3, x, torch.arange(6) % 3\n"
    )
    (tmp_path / "old.yaml").write_text(
        "model: old.py:net\ndata: old.py:data\nthreshold: 10\ncorrection: {threshold: 9}\n"
    )
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = {"0.bias": torch.randn(3), "0.weight_g": torch.randn(3, 1), "0.weight_v": torch.randn(3, 8)}
        save_model_file(tmp_path / f"{seed}.pt", state)
    outcome = llpf("find", "1.pt", "2.pt", "--recipe", "old.yaml", "--out", "run", "--quiet")
    assert outcome.status == 2
    assert "uses the old torch.nn.utils.weight_norm" in outcome.err
    assert not shutil.os.path.exists("run")
