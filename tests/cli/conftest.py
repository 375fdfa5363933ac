"""Two trained endpoints and one finished run, made once through the command line itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from llpf_fast.cli.main import main

TINY = ["--set", "max_ticks=200", "--set", "screening.samples=400", "--quiet"]


@dataclass
class Outcome:
    status: int
    out: str
    err: str


@pytest.fixture
def llpf(capsys):
    """Run ``llpf ARGUMENTS`` in this process."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Outcome(status, said.out, said.err)

    return run


@dataclass
class Ends:
    folder: Path
    start: Path
    destination: Path

    def find(self, run: Path, *more: str) -> list[str]:
        return [
            *("find", "--recipe", "mlp-digits-m2m-quick", str(self.start), str(self.destination)),
            *("--out", str(run), *TINY, *more),
        ]


@pytest.fixture(scope="session")
def ends(tmp_path_factory) -> Ends:
    folder = tmp_path_factory.mktemp("ends")
    files = [folder / "a.pt", folder / "b.pt"]
    for seed, file in enumerate(files, start=1):
        common = ["--model", "mlp", "--data", "digits", "--epochs", "30", "--lr", "0.05", "--quiet"]
        assert main(["train", *common, "--seed", str(seed), "--out", str(file)]) == 0
    return Ends(folder, *files)


@pytest.fixture(scope="session")
def finished(ends, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main(ends.find(run)) == 0
    return run
