"""The parameter tensors that the timings run over: lengths of real networks, and one table larger than any cache."""

from __future__ import annotations

from collections.abc import Iterator


def lenet5() -> list[int]:
    """61,706 parameters: everything fits on the chip, so launches and waits are all there is."""
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


def large() -> list[int]:
    """268,435,456 parameters: two float32 streams are 2 GiB, tens of times the level-2 cache."""
    return [1 << 22] * 64


TABLES = {"LeNet5": lenet5, "ResNet18": resnet18, "256Mi": large}
