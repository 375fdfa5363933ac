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

#: Graphs whose capture failed. They must not be freed: torch's allocator still asks each which allocations are its.
_failed: list[torch.cuda.CUDAGraph] = []


def capture(call: Callable[[], object], device: torch.device, *, keep_graph: bool = False) -> torch.cuda.CUDAGraph:
    """Capture what ``call`` queues, on a side stream; with ``keep_graph`` ``raw_cuda_graph`` works on the result.

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
        _end_failed_capture(device)
        # Torch ends an invalid capture with another error, which does not name the reason.
        raise cause or error from None
    current.wait_stream(side)
    return graph


@contextlib.contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, side: torch.cuda.Stream, device: torch.device) -> Iterator[None]:
    # torch.cuda.graph restores the current stream only after a capture that succeeds. Other threads (a progress bar)
    # may call CUDA meanwhile.
    with (
        torch.cuda.device(device),
        torch.cuda.stream(side),
        torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"),
    ):
        yield


def _end_failed_capture(device: torch.device) -> None:
    """Capture something that succeeds.

    After a failed capture the device's generator still counts as being captured and refuses the next random number.
    """
    side = torch.cuda.Stream(device)
    with contextlib.suppress(RuntimeError), torch.cuda.stream(side):
        scratch = torch.zeros(1, device=device)
        with _capturing(torch.cuda.CUDAGraph(), side, device):
            scratch.zero_()


class LoopingReplay:
    """A replay of which one call runs iterations until the gate closes or a loss is not finite."""

    def __call__(self) -> None:
        raise NotImplementedError


class WhileGraph(LoopingReplay):
    """A CUDA graph with a WHILE node: called, it queues one launch that repeats the iteration on the device.

    Args:
        body: one iteration, captured with ``keep_graph``; it must outlive this object, which refers to it.
        state: of ``loss_gate_``, float64 ``[4 + window]`` or ``[K, 4 + window]``: what the iteration advances.
        window: the gate's window.
        max_steps: iterations of a call at most, whatever the gate says; counted on the device.

    Raises:
        LLPFError: the driver refuses the graph; one line with its reason.
    """

    def __init__(self, body: torch.cuda.CUDAGraph, state: Tensor, *, window: int, max_steps: int) -> None:
        library = _library()
        self._body, self._state, self._device = body, state, state.device
        self._steps_left = torch.zeros(1, dtype=torch.int64, device=state.device)
        self._handle, self._launch = ctypes.c_void_p(), library.llpf_while_launch
        with torch.cuda.device(self._device):
            _must(
                library.llpf_while_make(
                    body.raw_cuda_graph(),
                    state.data_ptr(),
                    1 if state.dim() == 1 else len(state),
                    window,
                    max_steps,
                    self._steps_left.data_ptr(),
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
    """Why no :class:`WhileGraph` can be made here, as half a sentence; None where one may work."""
    reason = load_failure("cuda")
    if reason is not None:
        return reason
    if not hasattr(torch.cuda.CUDAGraph, "raw_cuda_graph"):
        return f"torch {torch.__version__} does not hand out the graph that it captured"
    try:
        message = _library().llpf_while_unsupported()
    except AttributeError:
        return f"{FILES['cuda'].name} is older than this file: build it again"
    return None if message is None else str(message.decode())


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


#: Seconds of queued iterations between two reads of the gate. A read costs some 20 microseconds of an idle device;
#: replays queued after the gate closed cost half a block on average.
_READ_EVERY = 5e-4
#: Iterations before a capture: libraries choose their kernels and take their workspaces in the first ones.
WARM_UP = 3


class NotCapturableError(LLPFError):
    """The iteration cannot be replayed. ``expected``: by its nature (random numbers), not by a failure."""

    def __init__(self, reason: str, *, expected: bool = False) -> None:
        super().__init__(reason)
        self.expected = expected


@dataclass(frozen=True)
class GateReading:
    """The gate as the host read it.

    Attributes:
        steps: that counted, up to the first whose loss was not finite.
        loss: mean of the window, or the loss that was not finite.
        closed: whether the correction has ended.
        finite: whether every loss of the window is.
    """

    steps: int
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
            return WhileGraph(graph, step.state, window=rule["window"], max_steps=rule["max_steps"])
        except LLPFError as error:
            reason = str(error)
    warnings.warn(f"correction.cuda_graph is while, but {reason}; the host queues replays instead", stacklevel=2)
    return graph.replay


class GraphRunner:
    """Runs corrections by replaying ``step``; steps, losses and values are those of one call after the other.

    Args:
        step: after :meth:`SgdStep.bind_batches`.
        make_replay: :func:`as_cuda_graph`, :func:`as_while_graph`, or the identity (``step`` is called).
    """

    def __init__(self, step: SgdStep, make_replay: Callable[[SgdStep], Callable[[], None]] = as_cuda_graph) -> None:
        self._step, self._make_replay = step, make_replay
        self._replay: Callable[[], None] | None = None
        self._memory: tuple[int, ...] = ()
        state = step.state
        self._host_state = torch.empty(state.shape, dtype=state.dtype, pin_memory=True) if state.is_cuda else state

    def prepare(self) -> None:
        """Capture, if that has not been done for the memory in use now; the gate is closed afterwards.

        Raises:
            NotCapturableError: the capture fails.
        """
        step = self._step
        step.flat.ensure_gradients()
        if self._replay is not None and step.memory() == self._memory:
            return
        # With a closed gate these calls change nothing but buffers that the module replaces.
        step.state.zero_()
        self._replay = None
        before = {name: buffer.clone() for name, buffer in step.flat.buffers().items()}
        try:
            self._warm_up()
            self._memory = step.memory()
            self._replay = self._make_replay(step)
        except Exception as error:  # a capture fails in as many ways as there are modules
            for name, buffer in step.flat.buffers().items():
                if name in before and buffer.shape == before[name].shape:
                    buffer.copy_(before[name])
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
                    for _ in range(WARM_UP):
                        step()
                current.wait_stream(side)
            else:
                step()
            if before.consumed():
                raise NotCapturableError("the model consumes random numbers (dropout?)", expected=True)
        finally:
            before.restore()

    def run(self) -> GateReading:
        """Replay until the gate closes or a loss is not finite; call :meth:`prepare` and open the gate first.

        Raises:
            LLPFError: a :class:`LoopingReplay` left the gate open.
        """
        assert self._replay is not None
        window, most = self._step.rule["window"], self._step.rule["max_steps"]
        loops = isinstance(self._replay, LoopingReplay)
        block = 1 if loops else window
        while True:
            began = time.perf_counter()
            for _ in range(block):
                self._replay()
            gate = self._read_gate(window)
            if gate.closed or not gate.finite:
                return gate
            if loops:
                raise LLPFError(f"the captured iteration stopped after {gate.steps} steps with its gate open")
            took = (time.perf_counter() - began) / block
            # At most a window: the gate's state has no older losses, and the first that is not finite must be known.
            block = min(window, most - gate.steps, max(1, round(_READ_EVERY / took)))

    def _read_gate(self, window: int) -> GateReading:
        state = self._step.state
        if state.is_cuda:
            self._host_state.copy_(state, non_blocking=True)
            torch.cuda.current_stream(state.device).synchronize()
        values = self._host_state.tolist()
        steps = int(values[STEPS])
        for step in range(max(0, steps - window), steps):
            loss = values[WINDOW + step % window]
            if not math.isfinite(loss):
                return GateReading(step + 1, loss, closed=False, finite=False)
        return GateReading(steps, values[MEAN], closed=values[ACTIVE] == 0 or values[FINAL] != 0, finite=True)
