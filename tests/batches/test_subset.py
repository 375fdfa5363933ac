import pytest
import torch

from llpf_fast.batches import stratified_subset
from llpf_fast.errors import LLPFError


def test_every_class_gives_its_share():
    targets = torch.tensor([0] * 600 + [1] * 300 + [2] * 101)
    chosen = stratified_subset(targets, 100)
    assert targets[chosen].bincount().tolist() == [60, 30, 10]
    assert chosen.dtype == torch.int64
    assert (chosen.diff() > 0).all()


def test_rounding_fills_the_size_exactly():
    targets = torch.arange(7).repeat_interleave(13)
    for size in range(7, 91):
        counts = targets[stratified_subset(targets, size)].bincount(minlength=7)
        assert counts.sum() == size
        assert counts.max() - counts.min() <= 1


def test_fixed_and_seeded():
    targets = torch.randint(10, (5000,))
    assert torch.equal(stratified_subset(targets, 500), stratified_subset(targets, 500))
    assert not torch.equal(stratified_subset(targets, 500), stratified_subset(targets, 500, seed=1))


@pytest.mark.parametrize(
    "targets",
    [torch.rand(300), torch.randint(5, (300, 4)), torch.arange(300)],
    ids=["float", "two-dimensional", "more classes than samples"],
)
def test_uniform_where_there_are_no_classes(targets):
    chosen = stratified_subset(targets, 50)
    assert len(chosen.unique()) == 50
    assert chosen.max() < 300


@pytest.mark.parametrize("size", [0, 300, 301])
def test_all(size):
    assert torch.equal(stratified_subset(torch.zeros(300), size), torch.arange(300))


def test_global_generator_untouched():
    before = torch.get_rng_state()
    stratified_subset(torch.randint(3, (99,), generator=torch.Generator()), 10)
    assert torch.equal(torch.get_rng_state(), before)


def test_empty():
    with pytest.raises(LLPFError, match="empty"):
        stratified_subset(torch.zeros(0), 10)
