"""The iteration of a correction as a CUDA graph: captured once, replayed until the gate closes."""

from __future__ import annotations

import contextlib
import ctypes
import math
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from ..errors import LLPFError
from ..ops.backend import FILES, load_failure
from ..ops.loss_gate import ACTIVE, FINAL, MEAN, STEPS, WINDOW
from .sgd_step import SgdStep
from .snapshots import RngSnapshot

#: Graphs whose capture failed. Torch's allocator goes on asking each of them which allocations are its own.
_failed: list[torch.cuda.CUDAGraph] = []


def capture(call: Callable[[], object], device: torch.device, *, keep_graph: bool = False) -> torch.cuda.CUDAGraph:
    """Capture what ``call`` queues, on a side stream; with ``keep_graph`` the graph can be had raw.

    Raises:
        Exception: what ``call`` raised, or torch because of it. The current stream and the random numbers of the
            device then work as before.
    """
    current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(current)
    graph = torch.cuda.CUDAGraph(keep_graph=True) if keep_graph else torch.cuda.CUDAGraph()
    cause: Exception | None = None
    try:
        with _capturing(graph, side, device):
            try:
                call()
            except Exception as error:
                cause = error
                raise
    except Exception as error:
        _failed.append(graph)
        _mend(device)
        # Torch ends an invalid capture with an error of its own, which says nothing of the reason.
        raise cause or error from None
    current.wait_stream(side)
    return graph


@contextlib.contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, side: torch.cuda.Stream, device: torch.device) -> Iterator[None]:
    # torch.cuda.graph puts the stream back after a capture that succeeds only. Other threads (a progress bar) may call
    # CUDA meanwhile.
    with (
        torch.cuda.device(device),
        torch.cuda.stream(side),
        torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"),
    ):
        yield


def _mend(device: torch.device) -> None:
    """A capture that succeeds: the one that failed left the device's generator believing that it is being captured, and
    the next random number drawn would be refused.
    """
    side = torch.cuda.Stream(device)
    with contextlib.suppress(RuntimeError), torch.cuda.stream(side):
        something = torch.zeros(1, device=device)
        with _capturing(torch.cuda.CUDAGraph(), side, device):
            something.zero_()


class LoopingReplay:
    """A replay of which one call runs iterations until the gate closes or a loss is not finite."""

    def __call__(self) -> None:
        raise NotImplementedError


class WhileGraph(LoopingReplay):
    """Queues a launch on the current stream when it is called; the host decides nothing in between.

    Args:
        body: one iteration, captured with ``keep_graph``; its memory is held.
        state: of ``loss_gate_``, float64 ``[4 + min_rounds]`` or ``[K, 4 + min_rounds]``: what the iteration advances.
        min_rounds: the gate's window.
        max_rounds: iterations of a call at most, whatever the gate says; counted on the device.

    Raises:
        LLPFError: the driver refuses the graph; one line with its reason.
    """

    def __init__(self, body: torch.cuda.CUDAGraph, state: Tensor, *, min_rounds: int, max_rounds: int) -> None:
        library = _library()
        self._body, self._state, self._device = body, state, state.device
        self._left = torch.zeros(1, dtype=torch.int64, device=state.device)
        self._handle, self._launch = ctypes.c_void_p(), library.llpf_while_launch
        with torch.cuda.device(self._device):
            _must(
                library.llpf_while_make(
                    body.raw_cuda_graph(),
                    state.data_ptr(),
                    1 if state.dim() == 1 else len(state),
                    min_rounds,
                    max_rounds,
                    self._left.data_ptr(),
                    ctypes.byref(self._handle),
                )
            )
        # Not at the interpreter's end: the driver may be gone by then, and frees everything itself.
        weakref.finalize(self, library.llpf_while_destroy, self._handle).atexit = False

    def __call__(self) -> None:
        """
        Raises:
            LLPFError: the launch fails.
        """
        with torch.cuda.device(self._device):
            _must(self._launch(self._handle, torch.cuda.current_stream(self._device).cuda_stream))


def while_unsupported() -> str | None:
    """Why no :class:`WhileGraph` can be made here, as half a sentence; None: nothing is known against it."""
    reason = load_failure("cuda")
    if reason is not None:
        return reason
    if not hasattr(torch.cuda.CUDAGraph, "raw_cuda_graph"):
        return f"torch {torch.__version__} does not hand out the graph that it captured"
    try:
        said = _library().llpf_while_unsupported()
    except AttributeError:
        return f"{FILES['cuda'].name} is older than this file: build it again"
    return None if said is None else str(said.decode())


def _must(error: int) -> None:
    if error != 0:
        raise LLPFError(f"the WHILE graph fails: {_library().llpf_while_error(error).decode()} (CUDA error {error})")


@cache
def _library() -> ctypes.CDLL:
    """The functions of csrc/torch/cuda_while.cpp; AttributeError where the file has none."""
    library = ctypes.CDLL(str(FILES["cuda"]))
    address, number = ctypes.c_void_p, ctypes.c_int64
    for name, result, arguments in (
        ("llpf_while_unsupported", ctypes.c_char_p, ()),
        (
            "llpf_while_make",
            ctypes.c_int,
            (address, address, number, number, number, address, ctypes.POINTER(address)),
        ),
        ("llpf_while_launch", ctypes.c_int, (address, address)),
        ("llpf_while_destroy", None, (address,)),
        ("llpf_while_error", ctypes.c_char_p, (ctypes.c_int,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


#: Seconds of queued iterations between two looks. A look costs some 20 microseconds of an idle device; replays queued
#: after the gate closed cost half a block on average.
_LOOK_EVERY = 5e-4
#: Iterations before the capture: libraries choose their kernels and take their workspaces in the first ones.
_WARM_UP = 3


class NotCapturableError(LLPFError):
    """The iteration cannot be replayed. ``expected``: by its nature (random numbers), not by a failure."""

    def __init__(self, reason: str, *, expected: bool = False) -> None:
        super().__init__(reason)
        self.expected = expected


@dataclass(frozen=True)
class GateReading:
    """The gate at a look: rounds that counted, and their mean loss, or that of the round that was not finite."""

    rounds: int
    loss: float
    closed: bool
    finite: bool


def as_cuda_graph(step: SgdStep) -> Callable[[], None]:
    """Capture ``step`` on a side stream; a function that queues one replay on the current stream."""
    return capture(step, step.flat.data.device).replay


def as_while_graph(step: SgdStep) -> Callable[[], None]:
    """Capture ``step`` on a side stream; a :class:`WhileGraph` of it, else (with a warning) a replay on the stream."""
    reason, rule = while_unsupported(), step.rule
    graph = capture(step, step.flat.data.device, keep_graph=reason is None)
    if reason is None:
        try:
            return WhileGraph(graph, step.state, min_rounds=rule["window"], max_rounds=rule["max_steps"])
        except LLPFError as error:
            reason = str(error)
    warnings.warn(f"correction.cuda_graph is while, but {reason}; the host queues replays instead", stacklevel=2)
    return graph.replay


class GraphRunner:
    """Runs corrections by replaying ``step``; rounds, losses and values are those of one call after the other.

    Args:
        step: ready to be called.
        record: makes a replay of it: :func:`as_cuda_graph`, :func:`as_while_graph`, or the identity (it is called).

    Raises:
        NotCapturableError: at the first run.
    """

    def __init__(self, step: SgdStep, record: Callable[[SgdStep], Callable[[], None]] = as_cuda_graph) -> None:
        self._step, self._record = step, record
        self._replay: Callable[[], None] | None = None
        self._memory: tuple[int, ...] = ()
        state = step.state
        self._seen = torch.empty(state.shape, dtype=state.dtype, pin_memory=True) if state.is_cuda else state
        self._block = 1

    def prepare(self) -> None:
        """Capture, if that has not been done for the memory that is in use now; the gate is closed afterwards."""
        step = self._step
        step.flat.ensure_gradients()
        if self._replay is not None and step.memory() == self._memory:
            return
        # With a closed gate nothing that is tried out here leaves a trace, but in buffers that the module replaces.
        step.state.zero_()
        self._replay = None
        kept = {name: buffer.clone() for name, buffer in step.flat.buffers().items()}
        try:
            self._warm_up()
            self._memory = step.memory()
            self._replay = self._record(step)
        except Exception as error:  # a capture fails in as many ways as there are modules
            for name, buffer in step.flat.buffers().items():
                if name in kept and buffer.shape == kept[name].shape:
                    buffer.copy_(kept[name])
            if isinstance(error, NotCapturableError):
                raise
            raise NotCapturableError((str(error).strip() or type(error).__name__).splitlines()[0]) from error

    def _warm_up(self) -> None:
        step, device = self._step, self._step.flat.data.device
        before = RngSnapshot(device)
        try:
            if device.type == "cuda":
                current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
                side.wait_stream(current)
                with torch.cuda.stream(side):
                    for _ in range(_WARM_UP):
                        step()
                current.wait_stream(side)
            else:
                step()
            if before.consumed():
                raise NotCapturableError("the model consumes random numbers (dropout?)", expected=True)
        finally:
            before.restore()

    def run(self) -> GateReading:
        """Replay until the gate closes or a loss is not finite. ``prepare`` has been called and the gate is open.

        Raises:
            LLPFError: a replay that is to end by itself left the gate open.
        """
        assert self._replay is not None
        least, most = self._step.rule["window"], self._step.rule["max_steps"]
        whole = isinstance(self._replay, LoopingReplay)
        block = 1 if whole else least
        while True:
            began = time.perf_counter()
            for _ in range(block):
                self._replay()
            seen = self._look(least)
            if seen.closed or not seen.finite:
                return seen
            if whole:
                raise LLPFError(f"the captured iteration stopped after {seen.rounds} rounds with its gate open")
            took = (time.perf_counter() - began) / block
            # Never more than the window remembers: which round was not finite must be known, whatever the clock says.
            block = min(least, most - seen.rounds, max(1, round(_LOOK_EVERY / took)))

    def _look(self, window: int) -> GateReading:
        state = self._step.state
        if state.is_cuda:
            self._seen.copy_(state, non_blocking=True)
            torch.cuda.current_stream(state.device).synchronize()
        values = self._seen.tolist()
        rounds = int(values[STEPS])
        for round_ in range(max(0, rounds - window), rounds):
            loss = values[WINDOW + round_ % window]
            if not math.isfinite(loss):
                return GateReading(round_ + 1, loss, closed=False, finite=False)
        return GateReading(rounds, values[MEAN], closed=values[ACTIVE] == 0 or values[FINAL] != 0, finite=True)
