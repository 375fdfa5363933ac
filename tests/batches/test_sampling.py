"""Batches are a pure function of (seed, path, round) and leave torch's global state alone."""

from __future__ import annotations

import pytest
import torch

from llpf_fast import LLPFError
from llpf_fast.batches import LoaderBatches, TensorBatches
from llpf_fast.batches.sampling import hash32_int, random_bits, round_key
from llpf_fast.ops.counter_randint import hash32


def source(seed: int = 0, path: int = 0, size: int = 1000, batch: int = 64) -> TensorBatches:
    return TensorBatches(torch.arange(size).float()[:, None], torch.arange(size), batch, seed=seed, path=path)


def test_same_key_same_batch_after_any_other_rounds() -> None:
    a, b = source(), source()
    for round_ in (5, 0, 3):
        a.batch(round_)
    assert torch.equal(a.batch(7)[1], b.batch(7)[1])


@pytest.mark.parametrize("other", [{"seed": 1}, {"path": 1}, {"seed": 1 << 40}])
def test_seed_and_path_change_the_batch(other: dict[str, int]) -> None:
    assert not torch.equal(source().batch(0)[1], source(**other).batch(0)[1])


def test_rounds_differ_and_inputs_belong_to_targets() -> None:
    batches = source()
    x, y = batches.batch(0)
    assert not torch.equal(y, batches.batch(1)[1])
    assert torch.equal(x[:, 0].long(), y)


def test_global_generator_is_untouched() -> None:
    before = torch.get_rng_state()
    source().batch(3)
    assert torch.equal(before, torch.get_rng_state())


def test_every_sample_is_drawn_about_equally_often() -> None:
    batches = source(size=50)
    counts = torch.zeros(50)
    for round_ in range(2000):
        counts += torch.bincount(batches.batch(round_)[1], minlength=50)
    expected = 2000 * 64 / 50
    chi2 = ((counts - expected) ** 2 / expected).sum()
    # 49 degrees of freedom: 99.99% of fair generators stay below 96.
    assert chi2 < 96


def test_columns_and_rounds_are_uncorrelated() -> None:
    columns = torch.arange(64)
    bits = torch.stack([random_bits(round_key(0, 0, r), columns) for r in range(3000)]).double()
    correlation = torch.corrcoef(bits.T) - torch.eye(64)
    assert correlation.abs().max() < 6 / 3000**0.5
    successive = torch.corrcoef(torch.stack([bits[:-1].flatten(), bits[1:].flatten()]))[0, 1]
    assert abs(successive) < 6 / bits.numel() ** 0.5


def test_tensor_and_integer_hash_agree() -> None:
    values = [0, 1, 2**31, 2**32 - 1, 123456789]
    assert hash32(torch.tensor(values)).tolist() == [hash32_int(v) for v in values]


def test_empty_and_uneven_data_are_refused() -> None:
    with pytest.raises(LLPFError, match="empty"):
        TensorBatches(torch.zeros(0, 3), torch.zeros(0), 4, seed=0)
    with pytest.raises(LLPFError, match="5 inputs but 4 targets"):
        TensorBatches(torch.zeros(5, 3), torch.zeros(4), 4, seed=0)


def test_loader_starts_over_and_an_empty_one_is_refused() -> None:
    data = [(torch.full((2,), float(i)), torch.zeros(2)) for i in range(3)]
    batches = LoaderBatches(data, torch.device("cpu"))
    assert [float(batches.batch(r)[0][0]) for r in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    with pytest.raises(LLPFError, match="empty"):
        LoaderBatches([], torch.device("cpu")).batch(0)
