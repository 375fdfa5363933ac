"""Each image has separate draws; the key alone decides shifts, mirrors and rotations."""

from __future__ import annotations

import pytest
import torch

from llpf_fast import LLPFError
from llpf_fast.batches.augment import _MNIST_BLACK, FlipAndShift, RotateAndShift, augmentation


def test_shift_without_rotation_moves_whole_pixels_and_fills_with_black() -> None:
    images = torch.full((64, 1, 28, 28), _MNIST_BLACK)
    images[:, :, 14, 9] = 2.0
    moved = RotateAndShift(degrees=0.0)(images, 5)
    bright = (moved > 1.0).nonzero()
    assert len(bright) == 64
    offsets = {(int(y) - 14, int(x) - 9) for _, _, y, x in bright}
    assert {y for y, _ in offsets} == {x for _, x in offsets} == {-2, -1, 0, 1, 2}
    assert torch.allclose(moved[moved < 1.0], torch.tensor(_MNIST_BLACK))


def test_rotation_stays_within_its_bound_and_differs_between_images() -> None:
    images = torch.full((32, 1, 29, 29), _MNIST_BLACK)
    images[:, :, 14, 27] = 2.0
    moved = RotateAndShift(degrees=30.0, pixels=0)(images, 9)
    rows = (moved > 1.0).nonzero()[:, 2] - 14
    assert rows.abs().max() <= 7  # 13 pixels from the centre, sin 30 degrees: 6.5
    assert len(rows.unique()) > 5


def test_flip_and_shift_takes_crops_of_the_reflected_image() -> None:
    images = torch.arange(3 * 32 * 32.0).reshape(1, 3, 32, 32).expand(40, -1, -1, -1)
    padded = torch.nn.functional.pad(images[:1], [4] * 4, mode="reflect")[0]
    crops = [padded[:, y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    allowed = torch.stack(crops + [c.flip(2) for c in crops])
    counts = set()
    for image in FlipAndShift()(images, 3):
        same = (allowed == image).flatten(1).all(1).nonzero()
        assert len(same) == 1
        counts.add(int(same))
    assert len(counts) > 25
    assert min(counts) < 81 <= max(counts)


def test_same_key_same_batch() -> None:
    images = torch.randn(8, 3, 32, 32)
    assert torch.equal(FlipAndShift()(images, 1), FlipAndShift()(images, 1))
    assert not torch.equal(FlipAndShift()(images, 1), FlipAndShift()(images, 2))


def test_names() -> None:
    assert augmentation("none") is None
    with pytest.raises(LLPFError, match="'blur'"):
        augmentation("blur")
