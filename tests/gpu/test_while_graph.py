"""A correction as one launch: the host's part of it, why it falls back, and that its check on a GPU can fail."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import captured_checks
import pytest
import torch
from captured_checks import OnTheHost, lenet5, normalized
from torch import nn

from llpf_fast import LLPFError
from llpf_fast.correct import Correction
from llpf_fast.correct import graphs as captured
from llpf_fast.correct import graphs as while_graph
from llpf_fast.correct.graphs import LoopingReplay, as_while_graph, while_unsupported
from llpf_fast.correct.sgd_step import SgdStep

CPU = torch.device("cpu")
without_a_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def looped(**given: Any) -> tuple[Correction, list[OnTheHost]]:
    one, made = captured_checks.correction(lenet5, CPU, **given), []

    def record(step: SgdStep) -> OnTheHost:
        made.append(OnTheHost(step))
        return made[0]

    one.replay(record)
    return one, made


def test_a_correction_is_one_call() -> None:
    one, made = looped()
    assert one.run(0).steps == captured_checks.ROUNDS
    assert (made[0].calls, made[0].iterations) == (1, captured_checks.ROUNDS)
    assert one.run(40, continued=True).steps == captured_checks.ROUNDS
    assert (len(made), made[0].calls, made[0].iterations) == (1, 2, 2 * captured_checks.ROUNDS)


def test_a_loss_that_is_not_finite_ends_the_call_in_its_round() -> None:
    one, made = looped(lr=1e30)
    result = one.run(0, stop_at_nan=True)
    assert not result.finite
    assert result.steps == made[0].iterations < captured_checks.ROUNDS


def test_a_call_that_leaves_the_gate_open_is_an_error() -> None:
    class Nothing(LoopingReplay):
        def __call__(self) -> None:
            pass

    one = captured_checks.correction(lenet5, CPU)
    one.replay(lambda step: Nothing())
    with pytest.raises(LLPFError, match="stopped after 0 steps with its gate open"):
        one.run(0)


@pytest.fixture
def called_instead_of_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    build = captured_checks.correction

    def called(
        make: Callable[[], nn.Module], device: torch.device, cuda_graph: str = "auto", **given: Any
    ) -> Correction:
        one = build(make, device, **given)
        if cuda_graph != "auto":
            one.replay(OnTheHost if cuda_graph == "while" else lambda step: step)
        return one

    monkeypatch.setattr(captured_checks, "correction", called)


@pytest.mark.usefixtures("called_instead_of_captured")
def test_the_check_on_a_gpu_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    captured_checks.check_while_graph(CPU)
    # One iteration too many at the end of a launch.
    right = OnTheHost.__call__

    def wrong(self: OnTheHost) -> None:
        right(self)
        self._step.state[1] = 0.0
        self._step()

    monkeypatch.setattr(OnTheHost, "__call__", wrong)
    with pytest.raises(AssertionError, match="one launch differs"):
        captured_checks.check_while_graph(CPU)


@without_a_gpu
def test_on_a_cpu_it_is_said_once_and_the_host_runs_step_by_step() -> None:
    with pytest.warns(UserWarning, match=r"cuda_graph is while, but a cpu has no CUDA graphs; the host runs") as told:
        asked = captured_checks.correction(normalized, CPU, cuda_graph="while")
    assert len(told) == 1
    ordinary = captured_checks.correction(normalized, CPU)
    assert asked.run(0) == ordinary.run(0)
    assert not asked.captured
    assert torch.equal(asked._flat.data, ordinary._flat.data)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"load_failure": lambda _: "_C_cuda.so was not built"}, "_C_cuda.so was not built"),
        ({"torch.cuda.CUDAGraph": object}, "does not hand out the graph"),
        ({"_library": lambda: SimpleNamespace()}, "build it again"),
        ({"_library": lambda: SimpleNamespace(llpf_while_unsupported=lambda: b"too old")}, "too old"),
        ({}, None),
    ],
)
def test_why_there_is_none(monkeypatch: pytest.MonkeyPatch, broken: dict[str, Any], reason: str | None) -> None:
    able = {
        "load_failure": lambda _: None,
        "torch.cuda.CUDAGraph": SimpleNamespace(raw_cuda_graph=None),
        "_library": lambda: SimpleNamespace(llpf_while_unsupported=lambda: None),
    }
    for name, value in (able | broken).items():
        monkeypatch.setattr(f"llpf_fast.correct.graphs.{name}", value)
    said = while_unsupported()
    assert said is None if reason is None else reason in str(said)


@without_a_gpu
@pytest.mark.skipif(while_graph.load_failure("cuda") is not None, reason="_C_cuda.so is not loaded")
def test_the_library_says_that_there_is_no_driver() -> None:
    assert while_unsupported() == "there is no NVIDIA driver"
    assert b"kernels, copies and fills" in while_graph._library().llpf_while_error(801)
    assert while_graph._library().llpf_while_error(0) == b"no error"


@pytest.mark.parametrize("refused", ["before the capture", "by the driver", "not at all"])
def test_falling_back(monkeypatch: pytest.MonkeyPatch, refused: str) -> None:
    """Without a GPU: replays of the graph that was captured, and one line that says why."""
    done: list[str] = []

    class Graph:
        def __init__(self, keep_graph: bool = False) -> None:
            done.append(f"keep {keep_graph}")

        def replay(self) -> None:
            done.append("replay")

    @contextlib.contextmanager
    def graph(graph: Any, *, stream: Any, capture_error_mode: str) -> Iterator[None]:
        yield
        done.append("captured")

    class Launched(LoopingReplay):
        def __init__(self, body: Graph, state: Any, *, window: int, max_steps: int) -> None:
            if refused == "by the driver":
                raise LLPFError("the WHILE graph fails: invalid argument (CUDA error 1)")
            done.append(f"WHILE of {window} to {max_steps}")

        def __call__(self) -> None:
            done.append("launch")

    stream = SimpleNamespace(wait_stream=lambda _: None)
    fake = SimpleNamespace(
        current_stream=lambda _: stream,
        Stream=lambda _: stream,
        CUDAGraph=Graph,
        device=lambda _: contextlib.nullcontext(),
        stream=lambda _: contextlib.nullcontext(),
        graph=graph,
    )
    monkeypatch.setattr(captured, "while_unsupported", lambda: "too old" if refused == "before the capture" else None)
    monkeypatch.setattr(captured, "WhileGraph", Launched)
    monkeypatch.setattr("llpf_fast.correct.graphs.torch.cuda", fake)

    class Called:
        flat, state = SimpleNamespace(data=torch.zeros(1)), torch.zeros(7)
        rule = {"window": 3, "max_steps": 9}  # noqa: RUF012

        def __call__(self) -> None:
            done.append("step")

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        as_while_graph(Called())()  # type: ignore[arg-type]
    lines = [str(warning.message) for warning in told]
    if refused == "not at all":
        assert lines == []
        assert done == ["keep True", "step", "captured", "WHILE of 3 to 9", "launch"]
        return
    why = "too old" if refused == "before the capture" else "the WHILE graph fails: invalid argument (CUDA error 1)"
    assert lines == [f"correction.cuda_graph is while, but {why}; the host queues replays instead"]
    assert done == [f"keep {refused == 'by the driver'}", "step", "captured", "replay"]
