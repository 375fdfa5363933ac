"""What pack.sh leaves to Python: CIFAR-10 without its files' common header, endpoints that serve, what travels."""

from __future__ import annotations

import argparse
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from . import carried

ROOT = Path(__file__).resolve().parents[2]
CARRY = Path("build/carry")
#: 64 MiB may travel; the rest is for what the copying adds.
LIMIT = 61 * 2**20
#: Highest training loss of an endpoint: the search needs paths below 0.1 (recipe lenet5-mnist-m2m-quick).
HIGHEST_LOSS = 0.03


def pack_cifar10(source: Path, to: Path) -> None:
    """``source``'s JPEG files without the header that all of them must share; ValueError where one does not."""
    with np.load(source) as arrays:
        stream, offsets = arrays["jpeg"].tobytes(), arrays["offsets"].tolist()
        rest = {name: arrays[name] for name in ("labels", "is_test", "classes")}
    header = stream[: _header_length(stream)]
    for number, (start, end) in enumerate(pairwise(offsets)):
        if not stream.startswith(header, start, end):
            raise ValueError(f"{source}: image {number} does not begin with the {len(header)} bytes of the first")
    bodies = b"".join(stream[start + len(header) : end] for start, end in pairwise(offsets))
    lengths = np.diff(offsets) - len(header)
    np.savez(
        to,
        header=np.frombuffer(header, dtype=np.uint8),
        bodies=np.frombuffer(bodies, dtype=np.uint8),
        lengths=lengths.astype(np.min_scalar_type(lengths.max())),
        **rest,
    )


def _header_length(jpeg: bytes) -> int:
    """Up to the end of the segment SOS, after which the image's own data begin."""
    at = 2
    while jpeg[at] == 0xFF:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        at += 2 + length
        if marker == 0xDA:
            return at
    raise ValueError("the first image is no JPEG file")


def check_cifar10(source: Path, carry: Path) -> None:
    """ValueError unless unpacking gives every byte of ``source``'s arrays: the same pixels and labels, in order."""
    with TemporaryDirectory() as folder:
        unpacked = carried.cifar10(carry, Path(folder)) / "CIFAR10/cifar10-jpeg.npz"
        with np.load(source) as wanted, np.load(unpacked) as found:
            for name in wanted:
                if wanted[name].dtype != found[name].dtype or not np.array_equal(wanted[name], found[name]):
                    raise ValueError(f"{source}: packed and unpacked again, {name!r} differs")


def training_loss(endpoint: Path, data: Any) -> float:
    """Mean loss over MNIST's training set."""
    import torch

    from llpf_fast.models import build_model
    from llpf_fast.path import load_model_file

    model = build_model("lenet5").eval()
    model.load_state_dict(load_model_file(endpoint).state)
    batches = zip(data.train_inputs.split(2000), data.train_targets.split(2000), strict=True)
    with torch.no_grad():
        total = sum(
            torch.nn.functional.cross_entropy(model(inputs), targets, reduction="sum") for inputs, targets in batches
        )
    return float(total) / len(data.train_targets)


def check_endpoints(carry: Path, data: Path) -> None:
    """ValueError where one was trained too little; prints their losses."""
    from llpf_fast.data import load_dataset

    mnist = load_dataset("mnist", data)
    for endpoint in sorted((carry / "endpoints").iterdir()):
        loss = training_loss(endpoint, mnist)
        print(f"{endpoint}: training loss {loss:.4f}")
        if not loss <= HIGHEST_LOSS:
            raise ValueError(f"{endpoint}: training loss {loss:.4f}, at most {HIGHEST_LOSS} is of use")


def commit() -> str:
    """The commit, and whether anything that travels differs from it."""
    changed = "changed" if _git("status", "--porcelain") else "unchanged"
    return f"{_git('rev-parse', 'HEAD').strip()} {changed}"


def travelling(carry: list[Path]) -> dict[str, int]:
    """Bytes by name: the tree by folder, what is carried by file."""
    names = _git("ls-files", "-co", "--exclude-standard", "-z").split("\0")
    sizes: dict[str, int] = {}
    for name in filter(None, names):
        file = Path(name)
        if file.is_symlink() or file.exists():
            top = file.parts[0] + "/" if len(file.parts) > 1 else "files at the top"
            sizes[top] = sizes.get(top, 0) + file.lstat().st_size
    files = [file for path in carry for file in (path.rglob("*") if path.is_dir() else [path]) if not file.is_dir()]
    return dict(sorted(sizes.items())) | {str(file): file.stat().st_size for file in sorted(files)}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


def report(sizes: dict[str, int]) -> int:
    """Print a line each and the sum; status 1 if it is above the limit."""
    total = sum(sizes.values())
    for name, size in [*sizes.items(), ("in all", total)]:
        print(f"{size / 2**20:8.2f} MiB  {name}")
    if total > LIMIT:
        print(f"pack.sh: {total / 2**20:.2f} MiB would travel, at most {LIMIT / 2**20:g} may", file=sys.stderr)
    return int(total > LIMIT)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--carry", type=Path, nargs="+", required=True, help="paths that git ignores and that travel")
    given = parser.parse_args()
    try:
        cifar10 = given.data / "CIFAR10/cifar10-jpeg.npz"
        pack_cifar10(cifar10, CARRY / "cifar10.npz")
        check_cifar10(cifar10, CARRY)
        with TemporaryDirectory() as folder:
            check_endpoints(CARRY, carried.mnist(CARRY, Path(folder)))
    except ValueError as error:
        print(f"pack.sh: {error}", file=sys.stderr)
        return 1
    (CARRY / "commit").write_text(commit() + "\n")
    return report(travelling(given.carry))


if __name__ == "__main__":
    sys.exit(main())
