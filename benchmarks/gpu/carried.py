"""Data that pack.sh made small enough to travel, as the folders that ``load_dataset`` reads."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np


def mnist(carry: Path, folder: Path) -> Path:
    """Unpacks MNIST into ``folder``; returns it."""
    with tarfile.open(carry / "mnist.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def cifar10(carry: Path, folder: Path) -> Path:
    """Puts the JPEG files' common header before each again, for data 'cifar10-jpeg' in ``folder``; returns it."""
    with np.load(carry / "cifar10.npz") as packed:
        header, bodies, lengths = packed["header"].tobytes(), packed["bodies"].tobytes(), packed["lengths"]
        rest = {name: packed[name] for name in ("labels", "is_test", "classes")}
    ends = np.cumsum(lengths, dtype=np.int64)
    files = (header + bodies[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True))
    jpeg = np.frombuffer(b"".join(files), dtype=np.uint8)
    offsets = np.concatenate([[0], ends + len(header) * np.arange(1, len(ends) + 1)])
    to = folder / "CIFAR10/cifar10-jpeg.npz"
    to.parent.mkdir(parents=True, exist_ok=True)
    np.savez(to, jpeg=jpeg, offsets=offsets, **rest)
    return folder
