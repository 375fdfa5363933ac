"""A capture that fails leaves torch as it was: on a torch.cuda like that of torch 2.11 (on a GPU: tests/gpu)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llpf_fast.correct import graphs as cuda_graph
from llpf_fast.correct.graphs import capture


class FakeCuda:
    """What torch 2.11 does around a capture, its gaps included: nothing is put back where ``capture_end`` raises."""

    def __init__(self) -> None:
        self.current, self.made, self.generator_captures, self.invalid = "main", 0, False, False
        self.graphs: list[Any] = []

    def as_module(self) -> SimpleNamespace:
        return SimpleNamespace(
            current_stream=lambda _: self._stream(self.current),
            Stream=lambda _: self._stream(f"side {self._next()}"),
            CUDAGraph=self._graph,
            device=lambda _: contextlib.nullcontext(),
            stream=self._on,
            graph=self._capture,
        )

    def _next(self) -> int:
        self.made += 1
        return self.made

    def _stream(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, wait_stream=lambda _: None)

    def _graph(self, keep_graph: bool = False) -> SimpleNamespace:
        self.graphs.append(SimpleNamespace(keep_graph=keep_graph))
        return self.graphs[-1]

    @contextlib.contextmanager
    def _on(self, stream: SimpleNamespace) -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def _capture(self, graph: Any, *, stream: SimpleNamespace, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        before, self.current = self.current, stream.name
        self.generator_captures, self.invalid = True, False
        try:
            yield
        finally:
            if self.invalid:
                raise RuntimeError("operation failed due to a previous error during capture")
            self.generator_captures, self.current = False, before

    def wait_for_the_device(self) -> None:
        self.invalid = True
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(cuda_graph.torch, "cuda", fake.as_module())
    monkeypatch.setattr(cuda_graph, "_failed", [])
    return fake


CPU = torch.device("cpu")


def test_a_capture(cuda: FakeCuda) -> None:
    streams: list[str] = []
    graph: Any = capture(lambda: streams.append(cuda.current), CPU, keep_graph=True)
    assert streams == ["side 1"]
    assert graph.keep_graph
    assert (cuda.current, cuda.generator_captures, cuda_graph._failed) == ("main", False, [])


def test_a_failed_capture_says_why_and_leaves_no_trace(cuda: FakeCuda) -> None:
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        capture(cuda.wait_for_the_device, CPU)
    assert (cuda.current, cuda.generator_captures) == ("main", False)
    assert cuda_graph._failed == cuda.graphs[:1]
    capture(lambda: None, CPU)


def test_an_error_that_leaves_the_capture_valid(cuda: FakeCuda) -> None:
    def wrong() -> None:
        raise ValueError("the model does not like it")

    with pytest.raises(ValueError, match="does not like it"):
        capture(wrong, CPU)
    assert (cuda.current, cuda.generator_captures) == ("main", False)


def test_the_gaps_are_there_without_it(cuda: FakeCuda) -> None:
    module, graph = cuda.as_module(), object()
    with pytest.raises(RuntimeError), module.graph(graph, stream=module.Stream(0), capture_error_mode="thread_local"):
        cuda.wait_for_the_device()
    assert (cuda.current, cuda.generator_captures) == ("side 1", True)
