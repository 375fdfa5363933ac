"""The stacked correction: rows come and go, gates close one by one, and closed rows keep every bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llpf_fast import LLPFError
from llpf_fast.batches import TensorBatches
from llpf_fast.batches.augment import augmentation
from llpf_fast.correct import Correction, CorrectionResult
from llpf_fast.correct.stacked_correction import StackedCorrection, StackRow
from llpf_fast.flat import FlatParameters

RULE: dict[str, Any] = {"threshold": 0.5, "window": 4, "max_steps": 30, "lr": 0.1, "momentum": 0.9}


def network() -> nn.Module:
    first = [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*first, nn.Linear(36, 10))


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    """Ten clouds: learned in some ten rounds."""
    torch.manual_seed(0)
    targets = torch.randint(10, (200,))
    return torch.randn(10, 64)[targets] + 0.7 * torch.randn(200, 64), targets


def modules(count: int) -> list[nn.Module]:
    torch.manual_seed(1)
    return [network() for _ in range(count)]


def stack(count: int, data: tuple[Tensor, Tensor], **changes: Any) -> tuple[StackedCorrection, list[StackRow], list]:
    flats = [FlatParameters(module) for module in modules(count)]
    batches = TensorBatches(*data, 32, seed=3)
    stacked = StackedCorrection(flats[0], nn.functional.cross_entropy, batches, paths=count, **{**RULE, **changes})
    return stacked, [stacked.take(flat) for flat in flats], flats


def to_the_end(stacked: StackedCorrection, paths: list[StackRow]) -> dict[StackRow, Any]:
    """Every path's end; none begins again."""
    ended: dict[StackRow, Any] = {}
    while len(ended) < len(paths):
        ended |= {path: how for path, how in stacked.iterate() if path not in ended}
    return ended


def bits(flat: FlatParameters) -> list[Tensor]:
    return [value.clone() for value in flat.state_dict().values()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(map(torch.equal, a, b))


def test_in_turn_is_the_correction_alone(data) -> None:
    stacked, paths, flats = stack(3, data, least=4)
    first = (0, 1 << 33, 70)
    outcomes = []
    for path, round_ in zip(paths, first, strict=True):
        path.begin(round_)
    while paths:
        for path, how in stacked.iterate():
            outcomes.append((first[flats.index(_flat_of(stacked, path))], how, bits(_flat_of(stacked, path))))
            stacked.drop(path)
            paths.remove(path)
    assert len({how.steps for _, how, _ in outcomes}) > 1, "they end at different times, and rows move"
    for round_, how, values in outcomes:
        flat = FlatParameters(modules(3)[first.index(round_)])
        batches = TensorBatches(*data, 32, seed=3)
        alone = Correction(flat, nn.functional.cross_entropy, batches, **RULE)
        assert alone.run(round_) == how
        assert equal(bits(flat), values)


def _flat_of(stacked: StackedCorrection, path: StackRow) -> FlatParameters:
    return stacked.step.stack.flats[path.row]


@pytest.mark.parametrize("block", [2, 3, 4])
def test_looking_less_often_changes_no_bit(data, block) -> None:
    """What a GPU does: iterations are queued past the end of a row, which must not feel them."""
    outcomes = []
    for every in (1, block):
        stacked, paths, flats = stack(4, data, block=every)
        for i, path in enumerate(paths):
            path.scale_lr(torch.full((len(flats[0].table),), 1.0 + i, dtype=torch.float64))
            path.begin(10 * i)
        ended, values = {}, {}
        while len(ended) < 4:
            for path, how in stacked.iterate():
                if path.row not in ended:
                    ended[path.row], values[path.row] = how, bits(flats[path.row])
                    # A closed gate, as a row has that waits for its next correction.
                    assert every > 1 or stacked.step.state[path.row, 1] == 1
        outcomes.append((ended, values))
    (one, one_values), (other, other_values) = outcomes
    assert one == other
    assert len({how.steps for how in one.values()}) > 1
    assert all(equal(one_values[row], other_values[row]) for row in range(4))


def test_a_closed_row_keeps_every_bit(data) -> None:
    stacked, paths, flats = stack(3, data, block=2)
    paths[0].begin(0)
    paths[2].begin(0)
    before, momentum = bits(flats[1]), paths[1].momentum_buffer.clone()
    state = stacked.step.state[1].clone()
    for _ in range(3):
        stacked.iterate()
    assert equal(bits(flats[1]), before)
    assert torch.equal(paths[1].momentum_buffer, momentum)
    assert torch.equal(stacked.step.state[1], state)
    assert not equal(bits(flats[2]), bits(FlatParameters(modules(3)[2])))


def test_rows_do_not_feel_each_other(data) -> None:
    """A neighbour whose values are NaN, and one with another seed, leave a row's bits alone."""
    outcomes = []
    for poison in (False, True):
        stacked, paths, flats = stack(3, data, max_steps=6)
        if poison:
            flats[1].data.fill_(float("nan"))
        for path in paths:
            path.begin(5, stop_at_nan=True)
        ended = to_the_end(stacked, paths)
        assert ended[paths[1]].finite is not poison
        outcomes.append((ended[paths[0]], ended[paths[2]], bits(flats[0]), bits(flats[2])))
    assert outcomes[0][:2] == outcomes[1][:2]
    assert equal(outcomes[0][2], outcomes[1][2])
    assert equal(outcomes[0][3], outcomes[1][3])


def test_a_loss_that_is_not_finite(data) -> None:
    for block in (1, 3):
        stacked, paths, flats = stack(2, data, block=block)
        flats[1].data.fill_(float("nan"))
        paths[0].begin(0)
        paths[1].begin(0)
        ((path, error),) = stacked.iterate()
        assert path is paths[1]
        assert isinstance(error, LLPFError)
        assert "the training loss became nan in step 1 of the correction" in str(error)


def test_momentum_is_kept_where_it_should_be(data) -> None:
    for keep in (False, True):
        stacked, paths, _ = stack(2, data, keep_momentum=keep)
        assert paths[0].keeps_momentum is keep
        for path in paths:
            path.begin(0)
        stacked.iterate()
        paths[0].begin(1, continued=True)
        paths[1].begin(1)
        assert bool(paths[0].momentum_buffer.any())
        assert bool(paths[1].momentum_buffer.any()) is keep


def test_tied_and_frozen_parameters(data) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
            self.b.weight = self.a.weight
            self.head.bias.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.b(torch.relu(self.a(x)))))

    results = []
    for least in (5, 2):
        torch.manual_seed(2)
        flats = [FlatParameters(copy.deepcopy(module)) for module in (Tied(), Tied())]
        batches = TensorBatches(*data, 32, seed=3)
        rule = {**RULE, "max_steps": 5, "threshold": 0.0, "weight_decay": 0.01}
        stacked = StackedCorrection(flats[0], nn.functional.cross_entropy, batches, paths=2, least=least, **rule)
        frozen = flats[0].module.head.bias.clone()
        paths = [stacked.take(flat) for flat in flats]
        for path in paths:
            path.begin(0)
        assert {how.steps for how in to_the_end(stacked, paths).values()} == {5}
        assert torch.equal(flats[0].module.head.bias, frozen)
        # Not computed either, where the passes are those of a stack.
        assert least == 5 or not any(flat.views(flat.grad)["head.bias"].any() for flat in flats)
        assert flats[0].module.a.weight is flats[0].module.b.weight
        results.append([flat.data.clone() for flat in flats])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_rows_of_batches_are_the_batches_of_each_row(data) -> None:
    """Augmented too, at any round, with the channels last."""
    images = torch.randn(50, 3, 12, 12)
    for last in (False, True):
        batches = TensorBatches(images, data[1][:50], 8, seed=4, augment=augmentation("cifar"), channels_last=last)
        first, gate = torch.tensor([3, 1 << 40, 3]), torch.zeros(3, 9, dtype=torch.float64)
        gate[2, 2] = 5
        x, y = batches.batches_of_rows(first, gate)
        for row, round_ in enumerate((3, 1 << 40, 8)):
            inputs, targets = batches.batch(round_)
            assert torch.equal(x[row], inputs)
            assert x[row].stride() == inputs.stride()
            assert torch.equal(y[row], targets)


def test_corrected_is_what_the_window_says(data) -> None:
    stacked, paths, _ = stack(2, data, threshold=0.0, max_steps=6)
    for path in paths:
        path.begin(0)
    for how in to_the_end(stacked, paths).values():
        assert isinstance(how, CorrectionResult)
        assert (how.steps, how.met, how.finite) == (6, False, True)


def test_a_pass_that_fails_leaves_torchs_random_state_alone(data) -> None:
    def fails(output: Tensor, targets: Tensor) -> Tensor:
        torch.rand(3)
        raise LLPFError("no loss")

    flats = [FlatParameters(module) for module in modules(2)]
    stacked = StackedCorrection(flats[0], fails, TensorBatches(*data, 32, seed=3), paths=2, least=4, **RULE)
    for path in [stacked.take(flat) for flat in flats]:
        path.begin(0, seed=5)
    before = torch.get_rng_state()
    with pytest.raises(LLPFError, match="no loss"):
        stacked.iterate()
    assert torch.equal(torch.get_rng_state(), before)
