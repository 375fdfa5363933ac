"""Measuring many points of a path, several at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Crew:
    """Applies a function to many items, in order, with ``workers`` threads of one CPU thread each.

    Points are independent, so whole points in parallel need no meeting inside an operation (on busy cores two threads
    inside operations were ten times slower than one, LeNet5). torch releases the GIL in its operations; threads, unlike
    processes, share the data set (MNIST: 188 MB) and need neither pickling nor a guard in the caller's script.
    With one worker everything happens in the calling thread, with its number of CPU threads.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Crew:
        if self._workers > 1:
            self._threads = torch.get_num_threads()
            # In a thread of its own, set_num_threads does not touch the caller's pool, only what new threads inherit.
            self._pool = ThreadPoolExecutor(self._workers, initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(self._threads)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        results: Iterable[Result] = map(function, items) if self._pool is None else self._pool.map(function, items)
        yield from results
