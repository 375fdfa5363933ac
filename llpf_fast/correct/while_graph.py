"""``WhileGraph``: a whole correction as one launch. The captured iteration is the body of a conditional CUDA node.

The graph is begin -> WHILE { iteration -> again }: ``begin`` and ``again`` are one small kernel that reads the gate and
sets the node's condition (csrc/core/cuda/while_graph.cu). Conditional nodes exist since CUDA 12.4.
"""

from __future__ import annotations

import ctypes
import weakref
from functools import cache

import torch
from torch import Tensor

from ..errors import LLPFError
from ..ops.backend import FILES, load_failure


class UntilClosed:
    """A replay of which one call runs iterations until the gate closes or a loss is not finite."""

    def __call__(self) -> None:
        raise NotImplementedError


class WhileGraph(UntilClosed):
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
