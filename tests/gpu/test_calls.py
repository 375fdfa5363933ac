"""benchmarks/gpu/run.sh with stages of a second: what a killed stage keeps, what is missing, what its status says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

HEAD = """
needed=() total=30 least=1 wider=1
row() { echo "{\\"result\\": \\"$1\\"}" >>"$out/rows.jsonl"; }
export -f row; export out
"""


def run(tmp_path: Path, stages: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a tree of its own, with ``stages`` in place of stages.sh."""
    for folder in ("benchmarks/gpu", "llpf_fast", "kernels"):
        (tmp_path / folder).mkdir(parents=True)
    script = shutil.copy(ROOT / "benchmarks/gpu/run.sh", tmp_path / "benchmarks/gpu")
    (tmp_path / "benchmarks/gpu/stages.sh").write_text(HEAD + stages)
    return subprocess.run(
        ["bash", script, *(arguments or ("first", "--device", "cpu"))],
        env=os.environ | {"OUT": str(tmp_path / "out")},
        capture_output=True,
        text=True,
        check=False,
    )


def rows(tmp_path: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "out" / name).read_text().splitlines()]


def test_a_killed_stage_keeps_its_rows_and_the_next_ones_run(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """first() {
          stage good 5 bash -c 'row passed; echo said'
          stage hangs 1 bash -c 'row passed; row passed; sleep 60; row failed'
          stage last 5 bash -c 'row passed; test -d llpf_fast/kernels'
        }""",
    )
    ended = [(row["name"], row["status"], row["result"]) for row in rows(tmp_path, "stages.jsonl")]
    assert ended == [("good", 0, "ended"), ("hangs", 137, "killed after its 1 s"), ("last", 0, "ended")]
    assert rows(tmp_path, "rows.jsonl") == [{"result": "passed"}] * 4
    assert (tmp_path / "out/log.txt").read_text() == "said\n"
    assert 1 <= rows(tmp_path, "stages.jsonl")[1]["seconds"] < 5
    assert done.returncode == 1
    assert not (tmp_path / "llpf_fast/kernels").is_symlink()


@pytest.mark.parametrize(("pydantic", "printed"), [("raise ImportError", "here\n"), ("", "not carried\n")])
def test_carried_wheels_are_used_where_this_python_lacks_pydantic(tmp_path: Path, pydantic: str, printed: str) -> None:
    """Elsewhere they would hide a package that works behind one of another version of Python."""
    wheels = tmp_path / "build/carry/wheels"
    wheels.mkdir(parents=True)
    (tmp_path / "pydantic.py").write_text(pydantic)
    with zipfile.ZipFile(wheels / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried_module.py", "print('here')")
    stages = "first() { stage one 9 bash -c 'python3 -c \"import carried_module\" 2>/dev/null || echo not carried'; }"
    assert run(tmp_path, stages).returncode == 0
    assert (tmp_path / "out/log.txt").read_text() == printed


@pytest.mark.parametrize(
    ("stages", "status"),
    [
        ("stage one 5 row passed", 0),
        ("stage one 5 row failed", 1),
        ("stage one 5 row wrong", 1),
        ("stage one 5 row skipped", 0),
        ("stage one 5 false", 1),
        ("total=0; stage one 5 true", 1),
    ],
)
def test_the_status_says_whether_anything_failed(tmp_path: Path, stages: str, status: int) -> None:
    stages = stages.replace("row", "bash -c 'row \"$0\"'")
    assert run(tmp_path, "first() { " + stages + "\n}").returncode == status


def test_stages_side_by_side_end_with_the_time_of_the_call(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        """total=3
        first() {
          for name in a b c; do stage $name 60 bash -c 'row passed; sleep 50' & done
          wait
          stage late 60 row passed
        }""",
    )
    found = {row["name"]: row["result"] for row in rows(tmp_path, "stages.jsonl")}
    assert set(found) == {"a", "b", "c", "late"}
    assert found.pop("late") == "no time left"
    assert all(how.startswith("killed after its ") for how in found.values())
    assert len(rows(tmp_path, "rows.jsonl")) == 3
    assert done.returncode == 1


def test_what_is_missing_is_named_in_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, 'needed=(kernels "$carry/nothing" other)\nfirst() { stage one 5 true; }')
    assert done.returncode == 2
    assert done.stderr == "run.sh: not here: build/carry/nothing other; benchmarks/gpu/pack.sh makes what is carried\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [("third",), ("first", "--device", "tpu")])
def test_other_arguments_are_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert run(tmp_path, "first() { stage one 5 true; }", *arguments).returncode == 2
