"""The gate before timing: right results pass, a wrong one in a single value stops the case."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import suite
from benchmarks.cases import affine, coefficients, correction, loss_gate, many_paths, moments, sgd, tick
from benchmarks.harness import run as runner
from benchmarks.harness import stream
from benchmarks.harness.case import OURS, Contender, Prepared, WrongResultError, check
from benchmarks.harness.problem import ALLOWED, RULE, Problem
from benchmarks.harness.sizes import TABLES
from llpf_fast.cli.main import main
from llpf_fast.ops.backend import use_backend
from llpf_fast.ops.library import EAGER
from llpf_fast.ops.moments import moments_eager
from llpf_fast.ops.tick import tick_eager

CPU = torch.device("cpu")
_TICK = partial(tick.prepare, "tiny", "float32", "", ())
PREPARE: dict[str, Callable[[torch.device, int], Prepared]] = {
    "tick_": _TICK,
    "sgd_": partial(sgd.prepare, "tiny", "float32", "", ()),
    "moments": partial(moments.prepare, "tiny"),
    "affine_": partial(affine.prepare, "tiny"),
    "coefficients": partial(coefficients.prepare, "tiny"),
    "loss_gate_": loss_gate.prepare,
}


@contextmanager
def wrong(op: str, spoil: Callable[..., None]) -> Iterator[None]:
    """``op`` on the CPU is the eager kernel with its result spoiled."""

    def kernel(*arguments: Any, **keywords: Any) -> Any:
        out = EAGER[op](*arguments, **keywords)
        spoil(arguments[0] if out is None else out)
        return out

    with use_backend("eager"):  # the compiled kernels would forbid another registration
        library = torch.library.Library("llpf_fast", "IMPL")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library.impl(op, kernel, "CPU", allow_override=True)
        try:
            yield
        finally:
            library._destroy()


def last_value_off(result: Tensor) -> None:
    """Eight units in the last place of a float32, in one value."""
    flat = result.view(-1)
    at = int(flat.nonzero()[-1])
    flat[at] *= 1 + 2.0**-20 if result.dtype != torch.float64 else 1 + 2.0**-30


@pytest.mark.parametrize("op", PREPARE)
@pytest.mark.parametrize("backend", ["cpp", "eager"])
def test_right_results_pass(op: str, backend: str) -> None:
    with use_backend(backend):
        assert check(PREPARE[op](CPU, 2), op)[OURS]["error"] <= 1e-6


@pytest.mark.parametrize("op", PREPARE)
def test_one_value_that_is_slightly_off_stops_the_case(op: str) -> None:
    prepared = PREPARE[op](CPU, 1)
    with wrong(op, last_value_off), pytest.raises(WrongResultError, match=f"{op}: llpf_fast is wrong"):
        check(prepared, op)


def test_nan_is_wrong() -> None:
    prepared = _TICK(CPU, 1)
    with wrong("tick_", lambda p: p.view(-1)[:1].fill_(torch.nan)), pytest.raises(WrongResultError, match="nan"):
        check(prepared, "tick_")


def test_writing_to_padding_or_to_masked_segments_is_wrong() -> None:
    for variant, at in (("", 156), ("half masked", 161)):
        prepared = tick.prepare("tiny", "float32", variant, (), CPU, 1)
        with wrong("tick_", lambda p, at=at: p[at : at + 1].fill_(0.5)), pytest.raises(WrongResultError):
            check(prepared, "tick_")


@pytest.mark.parametrize("variant", ["moments_in", "waypoint", "origin", "half masked"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float32/bfloat16"])
def test_every_variant_of_a_tick_passes(variant: str, dtype: str) -> None:
    check(tick.prepare("tiny", dtype, variant, (), CPU, 1), "tick_")


def test_a_wrong_waypoint_is_wrong() -> None:
    prepared = tick.prepare("tiny", "float32", "waypoint", (), CPU, 1)
    waypoint = prepared.contenders[OURS].calls[0].keywords["waypoint"]  # type: ignore[attr-defined]
    spoil: Callable[[Tensor], None] = lambda p: waypoint[3:4].mul_(1 + 2.0**-20)
    with wrong("tick_", spoil), pytest.raises(WrongResultError):
        check(prepared, "tick_")


@pytest.mark.parametrize("variant", ["", "no momentum"])
def test_every_variant_of_an_update_passes(variant: str) -> None:
    check(sgd.prepare("tiny", "float32", variant, (), CPU, 1), "sgd_")


def test_a_correction_passes_and_a_wrong_update_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correction, "ROUNDS", 3)
    monkeypatch.setattr(correction, "BATCH", 4)
    check(correction.prepare("none", 0.9, CPU, 1), "correction")
    prepared = correction.prepare("none", 0.9, CPU, 1)
    with wrong("sgd_", lambda p: p.mul_(1 + 1e-4)), pytest.raises(WrongResultError):
        check(prepared, "correction")


@pytest.mark.parametrize("name", [name for name in tick.BASELINES if name != "torch.compile, flat"])
def test_baselines_of_a_tick_are_right(name: str) -> None:
    error = check(tick.prepare("tiny", "float32", "", (name,), CPU, 2), "tick_")[name]["error"]
    assert error > 0  # they do compute it another way


def test_the_compiled_baseline_is_right_before_it_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.baselines import compiled

    plain = compiled.tick_(lambda function, dynamic: function)
    monkeypatch.setattr(compiled, "tick_", lambda: plain)
    monkeypatch.setitem(TABLES, "even", lambda: [64] * 5)
    check(tick.prepare("even", "float32", "", ("torch.compile, flat",), CPU, 2), "tick_")


@pytest.mark.skipif(not stream.compiled(), reason="no C++ compiler")
def test_the_plain_loops_are_right() -> None:
    check(tick.prepare("tiny", "float32", "", (tick.PLAIN,), CPU, 2), "tick_")


@pytest.mark.parametrize("how", ["fused", "foreach"])
def test_baselines_of_an_update_are_right(how: str) -> None:
    check(sgd.prepare("tiny", "float32", "", (how,), CPU, 2), "sgd_")


def test_of_many_paths_a_few_may_take_the_other_side_of_a_tie() -> None:
    assert many_paths.judged([1e-4] * 15 + [1e-2]) == 1e-2
    assert many_paths.judged([1e-4] * 61 + [1e-2] * 3) < 1e-3
    assert many_paths.judged([1e-4] * 60 + [1e-2] * 4) == 1e-2
    assert many_paths.judged([1e-4] * 63 + [1.0]) > 1e-3


def test_a_wrong_baseline_stops_the_case(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.baselines import per_layer

    monkeypatch.setattr(per_layer, "project_", lambda p, variance: None)
    with pytest.raises(WrongResultError, match="per-layer eager is wrong"):
        check(tick.prepare("tiny", "float32", "", ("per-layer eager",), CPU, 1), "tick_")


def test_a_baseline_that_does_not_run_is_left_out_and_named() -> None:
    def fails() -> float:
        raise KeyError("buf3")

    prepared, said = _TICK(CPU, 1), []
    prepared.contenders["broken"] = Contender([], fails, 0.0)
    assert list(check(prepared, "tick_", said.append)) == [OURS]
    assert list(prepared.contenders) == [OURS]
    assert said == ["tick_: broken does not run here: KeyError: 'buf3'"]
    prepared.contenders[OURS] = Contender([], fails, 0.0)
    with pytest.raises(KeyError):
        check(prepared, "tick_", said.append)


def test_the_reference_is_the_eager_specification_in_float64() -> None:
    problem = Problem("tiny", torch.float64, torch.float64, CPU, 1)
    table = problem.table.segments, problem.table.chunks
    want = moments_eager(problem.p, problem.d, *table, problem.scratch)
    torch.testing.assert_close(problem.moments64(problem.p, problem.d), want, rtol=1e-12, atol=1e-15)
    before = problem.p.clone()
    maps = problem.maps64(before, problem.d)
    given = problem.target, problem.step, None, None, None, None, problem.scratch
    tick_eager(problem.p, problem.d, *table, *given, destination=0, **RULE)
    error = problem.error(tick.segments(problem, problem.p), before, problem.d, maps, (0, 1, 2))
    assert error <= ALLOWED[torch.float64]


def test_nothing_of_a_wrong_case_is_timed_and_the_command_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    timed = []
    monkeypatch.setattr(runner, "measure", lambda *_, **__: timed.append(1))
    monkeypatch.setattr(runner, "backends", lambda *_: ["eager"])
    monkeypatch.setattr(runner, "use_backend", lambda _: wrong("loss_gate_", last_value_off))
    assert main(["bench", "--quick", "--only", "loss_gate_"]) == 2
    captured = capsys.readouterr()
    assert "loss_gate_ one path float64: llpf_fast is wrong" in captured.err
    assert timed == []
    assert suite.names()
