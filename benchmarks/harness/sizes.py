"""The parameter tensors that cases run over: lengths of real networks, and plain tables of any size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

#: Largest segment of a plain table, 16 MiB of float32: as in a large network, no segment fits a core's cache.
PIECE = 1 << 22


def lenet5() -> list[int]:
    """61,706 parameters: launches and calls are all there is."""
    return [150, 6, 2400, 16, 48000, 120, 10080, 84, 840, 10]


def resnet18() -> list[int]:
    """11,173,962 parameters, the CIFAR stem: 62 tensors, from 64 to 2,359,296 elements."""
    return list(_resnet18())


def _resnet18() -> Iterator[int]:
    def convolution(wide: int, deep: int, kernel: int) -> Iterator[int]:
        yield wide * deep * kernel * kernel
        yield from (deep, deep)  # its batch normalization

    yield from convolution(3, 64, 3)
    wide = 64
    for deep in (64, 128, 256, 512):
        for block in range(2):
            yield from convolution(wide, deep, 3)
            yield from convolution(deep, deep, 3)
            if block == 0 and wide != deep:
                yield from convolution(wide, deep, 1)
            wide = deep
    yield from (512 * 10, 10)


def resnet50() -> list[int]:
    """25,557,032 parameters, ImageNet: 161 tensors."""
    return list(_resnet50())


def _resnet50() -> Iterator[int]:
    def convolution(wide: int, deep: int, kernel: int) -> Iterator[int]:
        yield wide * deep * kernel * kernel
        yield from (deep, deep)  # its batch normalization

    yield from convolution(3, 64, 7)
    wide = 64
    for deep, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from convolution(wide, deep, 1)
            yield from convolution(deep, deep, 3)
            yield from convolution(deep, 4 * deep, 1)
            if block == 0:
                yield from convolution(wide, 4 * deep, 1)
            wide = 4 * deep
    yield from (2048 * 1000, 1000)


def plain(parameters: int) -> list[int]:
    """Equal segments of at most :data:`PIECE` elements."""
    whole, rest = divmod(parameters, PIECE)
    return [PIECE] * whole + ([rest] if rest else [])


TABLES: dict[str, Callable[[], list[int]]] = {
    "tiny": lambda: [150, 6, 4099, 1, 17],
    "LeNet5": lenet5,
    "256Ki": lambda: plain(1 << 18),
    "1Mi": lambda: plain(1 << 20),
    "3Mi": lambda: plain(3 << 20),
    "4Mi": lambda: plain(1 << 22),
    "ResNet18": resnet18,
    "ResNet50": resnet50,
    "100M": lambda: plain(24 * PIECE),
    "268M": lambda: plain(64 * PIECE),
    "1B": lambda: plain(239 * PIECE),
}


def parameters(size: str) -> int:
    return sum(TABLES[size]())
