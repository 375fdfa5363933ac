"""Data sets by name: shapes, normalisation, and what is refused."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from llpf_fast.data import dataset_names, load_dataset, register_dataset, registry
from llpf_fast.data.dataset import from_pixels
from llpf_fast.errors import LLPFError

REPOSITORY = Path(__file__).parents[2]


def data_folder() -> Path:
    """The folder of real data: $LLPF_DATA, or shared/data beside the checkout."""
    named = os.environ.get("LLPF_DATA")
    candidates = [Path(named)] if named else [REPOSITORY.parent / "shared" / "data", REPOSITORY / "shared" / "data"]
    for folder in candidates:
        if folder.is_dir():
            return folder
    pytest.skip("no real data: set LLPF_DATA to a folder that holds MNIST/raw")


def check_split(inputs, targets, shape, classes):
    assert inputs.dtype == torch.float32
    assert inputs.is_contiguous()
    assert tuple(inputs.shape) == shape
    assert targets.dtype == torch.int64
    assert tuple(targets.shape) == shape[:1]
    assert targets.unique().tolist() == list(range(classes))


def test_digits():
    data = load_dataset("digits")
    check_split(*data.train, (1437, 1, 8, 8), 10)
    check_split(*data.test, (360, 1, 8, 8), 10)
    assert abs(float(data.train_inputs.mean())) < 1e-5
    assert abs(float(data.train_inputs.std()) - 1) < 1e-3
    # A black pixel, the commonest value, is where ImageData says it is.
    assert float(data.train_inputs.min()) == pytest.approx(-data.mean[0] / data.std[0], rel=1e-6)
    pixels = data.train_inputs * data.std[0] + data.mean[0]
    assert (float(pixels.min()), float(pixels.max())) == pytest.approx((0, 1), abs=1e-6)
    shares = data.test_targets.bincount() / data.train_targets.bincount()
    assert shares.min() > 0.24
    assert shares.max() < 0.26
    assert torch.equal(load_dataset("digits").train_inputs, data.train_inputs)


def test_mnist():
    pytest.importorskip("torchvision", reason="MNIST is read by torchvision")
    folder = data_folder()
    if not (folder / "MNIST" / "raw").is_dir():
        pytest.skip(f"{folder} holds no MNIST/raw")
    data = load_dataset("mnist", folder)
    check_split(*data.train, (60000, 1, 28, 28), 10)
    check_split(*data.test, (10000, 1, 28, 28), 10)
    assert float(data.train_inputs.mean()) == pytest.approx(0, abs=1e-3)
    assert float(data.train_inputs.std()) == pytest.approx(1, abs=1e-3)
    assert data.train_targets[:5].tolist() == [5, 0, 4, 1, 9]
    assert torch.equal(load_dataset("mnist", folder / "MNIST").test_inputs, data.test_inputs)


@pytest.mark.slow
def test_cifar10_jpeg_whole():
    folder = data_folder()
    if not (folder / "CIFAR10" / "cifar10-jpeg.npz").is_file():
        pytest.skip(f"{folder} holds no CIFAR10/cifar10-jpeg.npz")
    data = load_dataset("cifar10-jpeg", folder)
    check_split(*data.train, (50000, 3, 32, 32), 10)
    check_split(*data.test, (10000, 3, 32, 32), 10)
    assert data.label == "CIFAR-10 (JPEG)"
    assert data.train_inputs.mean((0, 2, 3)).abs().max() < 0.02


def jpeg_file(path, *, colours, is_test, drop=()):
    pillow = pytest.importorskip("PIL.Image")
    files = []
    for colour in colours:
        stream = io.BytesIO()
        image = pillow.new("RGB", (32, 32), colour)
        image.paste("black", (0, 24, 32, 32))  # the lowest quarter
        image.save(stream, "JPEG", quality=95, subsampling=0)
        files.append(stream.getvalue())
    arrays = {
        "jpeg": np.frombuffer(b"".join(files), dtype=np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "labels": np.arange(len(files)) % 2,
        "is_test": np.array(is_test),
        "classes": np.array(["red", "blue"]),
    }
    np.savez(path, **{key: value for key, value in arrays.items() if key not in drop})


def test_cifar10_jpeg_small(tmp_path):
    jpeg_file(
        tmp_path / "cifar10-jpeg.npz",
        colours=["red", "blue", "lime", "white"],
        is_test=[False, False, True, True],
    )
    data = load_dataset("cifar10-jpeg", tmp_path)
    check_split(*data.train, (2, 3, 32, 32), 2)
    check_split(*data.test, (2, 3, 32, 32), 2)
    std, mean = (torch.tensor(values).view(1, 3, 1, 1) for values in (data.std, data.mean))
    train, test = (inputs * std + mean for inputs in (data.train_inputs, data.test_inputs))
    for image, colour in ((train[0], [1, 0, 0]), (train[1], [0, 0, 1]), (test[0], [0, 1, 0]), (test[1], [1, 1, 1])):
        assert image[:, :24].mean((1, 2)).tolist() == pytest.approx(colour, abs=0.02)
        assert image[:, 24:].mean((1, 2)).tolist() == pytest.approx([0, 0, 0], abs=0.02)


def test_cifar10_jpeg_refuses(tmp_path):
    file = tmp_path / "cifar10-jpeg.npz"
    file.write_text("not an archive")
    with pytest.raises(LLPFError, match=r"cifar10-jpeg\.npz is no npz with the expected arrays"):
        load_dataset("cifar10-jpeg", tmp_path)
    jpeg_file(file, colours=["red"], is_test=[True], drop=("labels",))
    with pytest.raises(LLPFError, match=r"is no npz with the expected arrays.*labels"):
        load_dataset("cifar10-jpeg", tmp_path)
    jpeg_file(file, colours=["red"], is_test=[True])
    with pytest.raises(LLPFError, match="no training images"):
        load_dataset("cifar10-jpeg", tmp_path)
    with pytest.raises(LLPFError, match=r"holds no cifar10-jpeg\.npz"):
        load_dataset("cifar10-jpeg", REPOSITORY / "tests")


@pytest.mark.parametrize(
    ("name", "layout"),
    [("mnist", "MNIST/raw"), ("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")],
)
def test_a_folder_without_the_data_is_named(name, layout, tmp_path):
    with pytest.raises(LLPFError, match=f"data folder {tmp_path}/none does not exist.*{layout}"):
        load_dataset(name, tmp_path / "none")
    with pytest.raises(LLPFError, match=f"data folder {tmp_path} holds no {layout}"):
        load_dataset(name, tmp_path)
    with pytest.raises(LLPFError, match=f"data {name!r} needs a folder.*{layout}"):
        load_dataset(name)


def test_empty_and_damaged_mnist_files_are_refused(tmp_path):
    pytest.importorskip("torchvision", reason="MNIST is read by torchvision")
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    with pytest.raises(LLPFError, match="data 'mnist' cannot be read from"):
        load_dataset("mnist", tmp_path)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, *[0] * 12]))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, *[0] * 4]))
    with pytest.raises(LLPFError, match=r"data 'mnist' has no training images|cannot be read"):
        load_dataset("mnist", tmp_path)
    (raw / "train-images-idx3-ubyte").write_bytes(gzip.compress(b"not an IDX file"))
    with pytest.raises(LLPFError, match="cannot be read"):
        load_dataset("mnist", tmp_path)


def test_unknown_data_names_the_nearest():
    with pytest.raises(LLPFError, match=r"unknown data set 'minst'; did you mean 'mnist'\?"):
        load_dataset("minst")


def test_register_dataset(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "_DATASETS", dict(registry._DATASETS))
    asked = []
    register_dataset("mine", lambda root, download: asked.append((root, download)))
    load_dataset("mine", str(tmp_path), download=True)
    assert asked == [(tmp_path, True)]
    assert "mine" in dataset_names()
    with pytest.raises(LLPFError, match="'mine' is registered already"):
        register_dataset("mine", lambda root, download: None)


def test_from_pixels_checks_and_leaves_its_inputs_alone():
    pixels, targets = torch.full((2, 1, 2, 2), 3.0), torch.tensor([0, 1])
    data = from_pixels("x", "X", 2, (pixels, targets), (pixels, targets), (0.5,), (0.25,), scale=4.0)
    assert float(pixels.max()) == 3.0
    assert float(data.train_inputs.max()) == (0.75 - 0.5) / 0.25
    with pytest.raises(LLPFError, match="no test images"):
        from_pixels("x", "X", 2, (pixels, targets), (pixels[:0], targets[:0]), (0.5,), (0.25,))
    with pytest.raises(LLPFError, match="2 training images but 1 targets"):
        from_pixels("x", "X", 2, (pixels, targets[:1]), (pixels, targets), (0.5,), (0.25,))
    with pytest.raises(LLPFError, match="targets from 0 to 1, expected 0 to 0"):
        from_pixels("x", "X", 1, (pixels, targets), (pixels, targets), (0.5,), (0.25,))
