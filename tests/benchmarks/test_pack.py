"""CIFAR-10 packed without its files' common header, and what travels."""

from __future__ import annotations

import io
import os
import re
import subprocess
from importlib.metadata import requires
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.gpu import carried, pack
from llpf_fast.data import load_dataset

DATA = Path(os.environ.get("LLPF_DATA", Path(__file__).parents[3] / "shared" / "data"))


def jpeg_files(folder: Path, qualities: list[int]) -> Path:
    """``CIFAR10/cifar10-jpeg.npz`` with an image of noise for each quality: another quality, another header."""
    rng = np.random.default_rng(0)
    files = []
    for quality in qualities:
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(file, "jpeg", quality=quality)
        files.append(file.getvalue())
    count = len(files)
    to = folder / "CIFAR10/cifar10-jpeg.npz"
    to.parent.mkdir(parents=True)
    np.savez(
        to,
        jpeg=np.frombuffer(b"".join(files), dtype=np.uint8),
        offsets=np.cumsum([0, *map(len, files)]),
        labels=rng.integers(0, 10, count, dtype=np.uint8),
        is_test=(np.arange(count) % 3 == 0).astype(np.uint8),
        classes=np.array([str(number) for number in range(10)]),
    )
    return to


def test_unpacked_again_every_byte_is_the_same(tmp_path: Path) -> None:
    file = jpeg_files(tmp_path, [75] * 40)
    pack.pack_cifar10(file, tmp_path / "cifar10.npz")
    with np.load(file) as arrays, np.load(tmp_path / "cifar10.npz") as packed:
        saved = arrays["jpeg"].nbytes - packed["bodies"].nbytes
        assert saved == 40 * len(packed["header"])
        assert len(packed["header"]) > 600
    unpacked = carried.cifar10(tmp_path, tmp_path / "unpacked")
    with np.load(file) as wanted, np.load(unpacked / "CIFAR10/cifar10-jpeg.npz") as found:
        assert set(wanted) == set(found)
        for name in wanted:
            assert wanted[name].tobytes() == found[name].tobytes()
            assert wanted[name].dtype == found[name].dtype
    pack.check_cifar10(file, tmp_path)
    with np.load(tmp_path / "cifar10.npz") as packed:
        changed = {name: packed[name].copy() for name in packed}
    changed["bodies"][-3] ^= 1
    np.savez(tmp_path / "cifar10.npz", **changed)
    with pytest.raises(ValueError, match="'jpeg' differs"):
        pack.check_cifar10(file, tmp_path)


def test_a_file_with_another_header_is_refused(tmp_path: Path) -> None:
    file = jpeg_files(tmp_path, [75, 75, 80, 75])
    with pytest.raises(ValueError, match="image 2 does not begin with the 623 bytes of the first"):
        pack.pack_cifar10(file, tmp_path / "cifar10.npz")


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "CIFAR10").exists(), reason=f"no CIFAR10 in {DATA}; name its folder with LLPF_DATA")
def test_all_of_cifar10_decodes_to_the_original_pixels(tmp_path: Path) -> None:
    pack.pack_cifar10(DATA / "CIFAR10/cifar10-jpeg.npz", tmp_path / "cifar10.npz")
    assert (tmp_path / "cifar10.npz").stat().st_size < 19e6
    found = load_dataset("cifar10-jpeg", carried.cifar10(tmp_path, tmp_path / "unpacked"))
    wanted = load_dataset("cifar10-jpeg", DATA)
    assert (len(found.train_inputs), len(found.test_inputs)) == (50_000, 10_000)
    for side in ("train_inputs", "train_targets", "test_inputs", "test_targets"):
        assert torch.equal(getattr(found, side), getattr(wanted, side))


def test_what_travels_is_counted_and_too_much_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    for name, size in {"a/kept": 10, "a/new": 5, "a/seen.so": 100, "a/left.so": 1000, "carry/x/y.so": 7}.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"\n" * size)
    Path(".gitignore").write_text("*.so\n")
    subprocess.run(["git", "add", "a/kept"], check=True)
    Path("gone").write_text("")
    subprocess.run(["git", "add", "gone"], check=True)
    Path("gone").unlink()
    sizes = pack.travelling([Path("carry"), Path("a/seen.so")])
    assert sizes == {"a/": 15, "files at the top": 5, "carry/x/y.so": 7, "a/seen.so": 100}
    for limit, status in ((127, 0), (126, 1)):
        monkeypatch.setattr(pack, "LIMIT", limit)
        assert pack.report(sizes) == status
        shown = capsys.readouterr()
        assert shown.out.endswith("0.00 MiB  in all\n")
        assert shown.err.startswith("pack.sh: 0.00 MiB would travel") == bool(status)


def test_pydantic_travels_with_all_that_it_needs() -> None:
    """The image of a lent machine has none of it for certain."""
    listed = re.search(r"for name in (pydantic .*); do", Path(pack.__file__).with_suffix(".sh").read_text())
    assert listed is not None
    found, needed = set[str](), {"pydantic"}
    while needed - found:
        name = (needed - found).pop()
        found.add(name)
        plain = [one for one in requires(name) or [] if "extra ==" not in one]
        needed |= {re.split(r"[^\w-]", one)[0].replace("-", "_") for one in plain}
    assert set(listed[1].split()) == found
