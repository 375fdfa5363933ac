"""The checks of a GPU can fail, and every way of failing is a row: planted faults, without a GPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import captured_checks
import gpu_checks
import pytest
import torch
from torch import Tensor

from benchmarks.gpu import checks, rows
from llpf_fast import ops
from llpf_fast.batches.precision import float32_products
from llpf_fast.ops.backend import use_backend, why_not

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]

# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("name", gpu_checks.UNITS)
def test_backend(name: str, backend: str) -> None:
    reason = why_not(backend, "cuda")
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")
    gpu_checks.run_unit(name, backend, "cuda")


# ---- processes

#: Units of another module in place of gpu_checks.py; without torch, whose import takes seconds.
PLANTED = """
import os, signal, time

class NotHere(Exception): pass
class Unavailable(Exception): pass

def run_unit(name, backend, device):
    if name == "wrong":
        raise AssertionError("3 elements off\\nmore lines")
    if name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "exit":
        os._exit(3)
    if name.startswith("hang"):
        open(os.path.join(os.path.dirname(__file__), "hangs"), "w").write(str(os.getpid()))
        time.sleep(20)
    if name == "here":
        raise NotHere("needs a CUDA device")
    if name == "missing":
        raise Unavailable("no " + backend)
    return {"found": {"pid": os.getpid()}}
"""


@pytest.fixture
def planted(tmp_path: Path) -> str:
    file = tmp_path / "planted.py"
    file.write_text(PLANTED)
    return str(file)


def run(module: str, names: list[str], **given: Any) -> tuple[dict[str, dict[str, Any]], bool]:
    """Rows by check, the last one as "all"."""
    found: list[dict[str, Any]] = []
    units = [("cpp", name) for name in names]
    good = checks.run(units, "cpu", found.append, module=module, **{"workers": 2, "unit_seconds": 0.5, **given})
    assert found[-1]["units"] == len(names) == len(found) - 1
    return {row.get("check", "all"): row for row in found}, good


def test_every_fault_is_a_row_and_the_rest_goes_on(planted: str) -> None:
    names = ["right", "wrong", "crash", "hang", "here", "missing", "exit", "right: again"]
    found, good = run(planted, names)
    results = {name: row["result"] for name, row in found.items() if name != "all"}
    good_ones = {"right": "passed", "here": "not here", "missing": "skipped"}
    assert results == good_ones | dict.fromkeys(("wrong", "crash", "hang", "exit"), "failed")
    assert found["wrong"]["why"] == "AssertionError: 3 elements off"
    assert found["crash"]["why"] == "the process ended by signal 11 (SIGSEGV)"
    assert found["exit"]["why"] == "the process ended with status 3"
    assert "its process was ended" in found["hang"]["why"]
    assert found["right"]["group"] == "again"
    assert found["right"]["found"]["pid"] != os.getpid()
    counts = {name: found["all"][name] for name in ("passed", "failed", "not_here", "skipped")}
    assert (counts, good) == ({"passed": 2, "failed": 4, "not_here": 1, "skipped": 1}, False)
    assert run(planted, ["right", "here"], workers=1)[1]
    # A unit that fails may have spoilt its process for the next.
    found, _ = run(planted, ["first", "wrong", "second"], workers=1)
    assert found["first"]["found"] != found["second"]["found"]
    assert not run(planted, ["here"], workers=1)[1]


def test_what_the_budget_does_not_reach_is_named(planted: str) -> None:
    found, good = run(planted, ["hang", "right"], workers=1, unit_seconds=60, budget=1.5)
    assert (found["hang"]["result"], found["right"]["result"], good) == ("failed", "skipped", False)
    assert "budget" in found["hang"]["why"]


def test_processes_that_do_not_start_are_given_up(tmp_path: Path) -> None:
    module = tmp_path / "broken.py"
    module.write_text("import os; os._exit(1)")
    found, _ = run(str(module), ["right"], workers=1)
    assert (found["right"]["result"], found["right"]["why"]) == ("failed", "3 processes failed to start")


def test_a_kill_keeps_the_rows_and_leaves_no_process(planted: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    code = (
        "import sys; from pathlib import Path; from benchmarks.gpu import checks, rows; "
        "checks.run([('cpp', 'right'), ('cpp', 'hang')], 'cpu', rows.writer(Path(sys.argv[2]), 'checks', str), "
        "workers=1, module=sys.argv[1])"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, planted, file], cwd=ROOT, stdout=subprocess.DEVNULL)
    hangs = tmp_path / "hangs"
    wait_until(lambda: hangs.exists() and hangs.read_text() != "")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert [(row["stage"], row["check"], row["result"]) for row in rows.read(file)] == [("checks", "right", "passed")]
    wait_until(lambda: not alive(int(hangs.read_text())), 10.0)


def wait_until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_command_and_its_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert set(checks.names("captured")) | set(checks.names("ops")) == set(checks.names("all"))
    assert checks.names("loss_g") == ["loss_gate"]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # put back afterwards
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    given = ["--backend", "cpp,eager", "--device", "cpu", "--only", "loss_gate", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["checks", *given, "--to", str(tmp_path / "rows.jsonl")])
    assert checks.main() == 0
    found = rows.read(tmp_path / "rows.jsonl")
    assert [(row.get("backend"), row.get("result")) for row in found[:2]] == [("cpp", "passed"), ("eager", "passed")]


# ---- the checks themselves


@pytest.mark.parametrize("unit", ["sgd: float32/bfloat16", "tick: MEAN, float32", "damaged_gate", "grid_limits"])
def test_units_pass_on_the_cpu(unit: str) -> None:
    gpu_checks.run_unit(unit, "auto", CPU)


@pytest.mark.parametrize("name", gpu_checks.CAPTURED)
def test_captured_iterations_say_that_they_need_a_gpu(name: str) -> None:
    with pytest.raises(gpu_checks.NotHere):
        gpu_checks.run_unit(name, "auto", CPU)


def test_a_backend_that_is_not_here_says_so() -> None:
    with pytest.raises(gpu_checks.Unavailable, match="cuda has no kernels for cpu tensors"):
        gpu_checks.run_unit("counter_randint", "cuda", CPU)


def nan(*given: Any, **_: Any) -> None:
    given[0].reshape(-1)[0] = torch.nan


def off(*given: Any, **_: Any) -> None:
    given[0].reshape(-1)[0] += 1e-3


def closed_path_moves(*given: Any, **more: Any) -> None:
    gate = next(
        (value for value in (*given, *more.values()) if isinstance(value, Tensor) and value.shape[-1:] == (7,)), None
    )
    if gate is not None and not gate[-1, 0]:
        given[0].reshape(-1, given[0].shape[-1])[-1, 0] += 1e-3


def far_row(*given: Any, **_: Any) -> None:
    if given[0].dim() > 1 and len(given[0]) >= 700:
        given[0][699] = 0


@pytest.mark.parametrize(
    ("op", "spoil", "unit", "says"),
    [
        ("sgd_", nan, "sgd: float32", "p of sgd_ of padded"),
        ("sgd_", off, "sgd: float64", "p of sgd_ of padded"),
        ("sgd_", closed_path_moves, "sgd: float32", "differ with a gate"),
        ("tick_", nan, "tick: POINT, bfloat16", "tick_ of padded"),
        ("tick_", closed_path_moves, "tick: ORIGIN, float32", "differ with a gate"),
        ("sgd_", far_row, "grid_limits", "sgd of 700 paths"),
        ("counter_randint_", far_row, "grid_limits", "counter_randint of 700 paths"),
    ],
)
def test_planted_results_are_found(
    monkeypatch: pytest.MonkeyPatch, op: str, spoil: Callable[..., None], unit: str, says: str
) -> None:
    right = getattr(ops, op)

    def wrong(*given: Any, **more: Any) -> None:
        right(*given, **more)
        spoil(*given, **more)

    monkeypatch.setattr(ops, op, wrong)
    with pytest.raises(AssertionError, match=says):
        gpu_checks.run_unit(unit, "auto", CPU)


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Eager kernels that, as on a GPU, do not look at what lies in a gate."""
    for op in ("loss_gate", "counter_randint"):
        monkeypatch.setattr(sys.modules[f"llpf_fast.ops.{op}"], f"inspect_{op}", lambda *_: None)
    with use_backend("eager"):
        yield


@pytest.mark.usefixtures("unseen")
def test_a_damaged_gate_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu_checks.check_damaged_gate(CPU, looks=False)
    right = ops.loss_gate_

    def writes_beside(state: Tensor, *given: Any, **more: Any) -> None:
        right(state, *given, **more)
        torch.as_strided(state, (1,), (1,), 0).fill_(0.0)  # the row before the state

    monkeypatch.setattr(ops, "loss_gate_", writes_beside)
    with pytest.raises(AssertionError, match="loss_gate_ of a damaged gate"):
        gpu_checks.check_damaged_gate(CPU, looks=False)


# ---- captured iterations, called in place of captured


@pytest.fixture
def on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    build, stack = captured_checks.correction, captured_checks.StackedCorrection

    def called(make: Any, device: torch.device, cuda_graph: str = "auto", **given: Any) -> Any:
        one = build(make, device, **given)
        if cuda_graph == "on":
            one.replay(lambda step: step)
        return one

    monkeypatch.setattr(captured_checks, "correction", called)
    monkeypatch.setattr(captured_checks, "StackedCorrection", lambda *a, **k: stack(*a, **k | {"cuda_graph": "off"}))


@pytest.mark.usefixtures("on_the_host")
def test_checks_of_captured_bits_and_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    captured_checks.check_captured_bits(CPU)
    captured_checks.check_stacked_rows(CPU)
    captured_checks.check_stacked_replays(CPU)
    with monkeypatch.context() as broken:
        broken.setattr("llpf_fast.correct.stack.ParameterStack.save_buffers", lambda *_: lambda _: None)
        with pytest.raises(AssertionError, match=r"path \d, a look every 4 iterations"):
            captured_checks.check_stacked_replays(CPU)
    # Rows of another momentum than the paths alone.
    with monkeypatch.context() as broken:
        broken.setitem(captured_checks.STACKED, "momentum", 0.6)
        rows = captured_checks.stacked(CPU, "off", 4)
    monkeypatch.setattr(captured_checks, "stacked", lambda *_: rows)
    with pytest.raises(AssertionError, match="path 0, "):
        captured_checks.check_stacked_rows(CPU)


@pytest.mark.usefixtures("on_the_host")
def test_both_counts_of_nodes_are_of_one_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would be captured with, were this a GPU; its default for convolutions is TF32."""
    seen: list[set[str]] = []
    monkeypatch.setattr(captured_checks, "float32_products", as_on_a_gpu)

    def nodes(call: Callable[[], object]) -> int:
        from benchmarks.cases.correction import record_arithmetic

        seen.append(set())
        with record_arithmetic(seen[-1]):
            call()
        return 1

    captured_checks.check_nodes(CPU, nodes)
    assert seen == [{"convolutions ieee, products ieee"}] * 4


def as_on_a_gpu(precision: Any, _: torch.device) -> Any:
    return float32_products(precision, torch.device("cuda"))
