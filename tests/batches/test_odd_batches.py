"""Unusual batches and losses: the value is that of torch in float64, or one line says what to do."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset

from llpf_fast.batches import LossReduction, as_data, training_batches
from llpf_fast.batches.batch import batch_length, move_batch
from llpf_fast.batches.data import repeats
from llpf_fast.errors import LLPFError
from llpf_fast.models.training import train_model
from llpf_fast.verify import Evaluator

COUNT = 60
CPU = torch.device("cpu")


@pytest.fixture
def xy() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(COUNT, 6, generator=g), torch.randint(3, (COUNT,), generator=g)


def net(outputs: int = 3, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs))


class Through(nn.Module):
    """Calls ``function`` with its body and its inputs."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.body, self.function = net(), function

    def forward(self, *args: Any, **named: Any) -> Any:
        return self.function(self.body, *args, **named)


def loss_of_set(module: nn.Module, loss: Any, *data: Any, **options: Any) -> float:
    return Evaluator(module, loss, *data, **options)(module.state_dict()).loss


def in_float64(module: nn.Module, loss: Any, x: Tensor, y: Tensor) -> float:
    twin = net(module[-1].out_features) if isinstance(module, nn.Sequential) else net()
    with torch.no_grad():
        return float(loss(twin.double()(x.double()), y))


def one_line(call: Any, message: str) -> None:
    with pytest.raises(LLPFError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# Labels


def test_a_class_that_equals_the_ignored_label_modulo_256_counts(xy) -> None:
    module, labels = net(200), torch.randint(200, (COUNT,))
    labels[:40] = 156  # -100 as uint8
    want = in_float64(module, F.cross_entropy, xy[0], labels)
    assert loss_of_set(module, None, xy[0], labels.to(torch.uint8)) == pytest.approx(want, rel=1e-6)
    labels[:] = 156
    want = in_float64(module, F.cross_entropy, xy[0], labels)
    assert loss_of_set(module, None, xy[0], labels.to(torch.uint8)) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("kind", [numpy.int8, numpy.uint16, numpy.uint32, numpy.uint64])
def test_whole_numbers_of_every_width_are_labels(xy, kind) -> None:
    want = in_float64(net(), F.cross_entropy, *xy)
    assert loss_of_set(net(), None, xy[0].numpy(), xy[1].numpy().astype(kind)) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("as_partial", [True, False])
def test_training_batches_of_classes_without_weight_only_are_drawn_again(xy, smoothing, as_partial) -> None:
    weight = torch.tensor([0.0, 0.0, 2.0])
    options: dict[str, Any] = {"weight": weight, "label_smoothing": smoothing}
    loss = functools.partial(F.cross_entropy, **options) if as_partial else nn.CrossEntropyLoss(**options)
    for data in (xy, DataLoader(list(zip(*xy, strict=True)), batch_size=1)):
        batches = training_batches(as_data(data), 1, CPU, torch.float32, seed=0, reduction=LossReduction(loss))
        for round_ in range(40):
            inputs, targets = batches.batch(round_)
            assert math.isfinite(float(loss(net()(inputs), targets)))


def test_without_such_classes_batches_are_drawn_on_the_device(xy) -> None:
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.1, 1.0, 2.0]))
    assert training_batches(as_data(xy), 4, CPU, torch.float32, seed=0, reduction=LossReduction(loss)).draws_on_device


def test_llpf_train_skips_batches_without_labels(xy) -> None:
    x, y = xy
    labels = y.clone()
    labels[:45] = -100
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([0.0, 0.0, 1.0]))
    for data, loss in (
        ((x, labels), None),
        (DataLoader(list(zip(x, labels, strict=True)), batch_size=2), None),
        (xy, weighted),
        (DataLoader(list(zip(*xy, strict=True)), batch_size=1), weighted),
    ):
        model = train_model(net(), data, seed=0, epochs=2, batch_size=2, loss_fn=loss)
        assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    one_line(lambda: train_model(net(), (x, torch.full_like(y, -100)), seed=0), "no batch with a label that counts")


def test_llpf_train_says_what_it_cannot_train_on(xy) -> None:
    x, y = xy

    class Once:
        def __init__(self) -> None:
            self.batches = iter([(x, y)])

        def __iter__(self) -> Iterator[Any]:
            return self.batches

        def __len__(self) -> int:
            return 1

    one_line(lambda: train_model(net(), Once(), seed=0), r"no batch \(can they be read only once\?\) in epoch 2")
    one_line(lambda: train_model(net(), xy, seed=0, batch_size=0), "batch_size must be a whole number above 0")
    one_line(lambda: train_model(net(), xy, seed=0, batch_size=2.5), "batch_size must be a whole number above 0")  # type: ignore[arg-type]
    broken = (x, net()(x).detach() * math.nan)
    one_line(lambda: train_model(net(), broken, seed=0, loss_fn=F.mse_loss), "look for NaN in the data")


def test_a_stream_that_grows_does_not_outrun_the_schedule(xy) -> None:
    class Growing(IterableDataset):
        passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            yield from list(zip(*xy, strict=True))[: 10 * self.passes]

    train_model(net(), DataLoader(Growing(), batch_size=5), seed=0, epochs=3, schedule="one-cycle")


# Losses


@pytest.mark.filterwarnings("ignore:size_average")
def test_deprecated_arguments_for_the_reduction(xy) -> None:
    loss = functools.partial(F.cross_entropy, size_average=False)
    want = in_float64(net(), F.cross_entropy, *xy) * COUNT
    assert loss_of_set(net(), loss, *xy, batch_size=7) == pytest.approx(want, rel=1e-6)
    assert LossReduction(loss).kind == "sum"
    assert LossReduction(functools.partial(F.mse_loss, reduce=False)).kind == "batch means"
    assert LossReduction(functools.partial(F.mse_loss, size_average=True)).kind == "mean"


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss, r"is the class CrossEntropyLoss; call it: loss_fn=CrossEntropyLoss\(\)"),
        ("cross_entropy", "must be a function of output and targets .*, got 'cross_entropy'"),
        (3, "must be a function of output and targets .*, got 3"),
        (lambda o, t: F.cross_entropy(o, t) * 1j, "returns a complex number, which no threshold bounds"),
    ],
)
def test_what_is_no_loss_is_one_line(xy, loss, message) -> None:
    evaluate = functools.partial(loss_of_set, net(), loss, *xy)
    one_line(evaluate, message)


@pytest.mark.parametrize("loss", [F.mse_loss, F.cross_entropy, nn.NLLLoss(ignore_index=1)])
def test_loaders_of_samples_without_a_batch_dimension(xy, loss) -> None:
    x, y = xy
    module = nn.Sequential(net(), nn.LogSoftmax(-1))
    targets = y if loss is not F.mse_loss else net(seed=1)(x).detach()
    for wanted in (targets, torch.eye(3)[y]) if loss is F.cross_entropy else (targets,):
        loader = DataLoader(list(zip(x, wanted, strict=True)), batch_size=None)
        want = float(loss(module(x), wanted))
        assert loss_of_set(module, loss, loader) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("network", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [torch.float32, torch.float64])
@pytest.mark.parametrize("as_partial", [True, False])
def test_class_weights_of_another_dtype_than_the_networks(xy, network, weights, as_partial) -> None:
    weight = torch.tensor([0.25, 1.0, 2.0], dtype=weights)
    loss = functools.partial(F.cross_entropy, weight=weight) if as_partial else nn.CrossEntropyLoss(weight=weight)
    want = in_float64(net(), nn.CrossEntropyLoss(weight=weight.double()), *xy)
    assert loss_of_set(net().to(network), loss, *xy) == pytest.approx(want, rel=1e-6)
    assert weight.dtype == weights


# Forms of batches


Ordinary = namedtuple("Ordinary", "x y")
LabelsFirst = namedtuple("LabelsFirst", "labels x")
LabelsLast = namedtuple("LabelsLast", "x mask labels")


@dataclasses.dataclass
class Record:
    x: Tensor
    labels: Tensor


class Derived(dict):  # type: ignore[type-arg]
    pass


def _named(body: nn.Module, x: Tensor, mask: Any = None) -> Any:
    return body(x)


@pytest.mark.parametrize("form", [Ordinary, lambda a, b: LabelsFirst(b, a), lambda a, b: LabelsLast(a, a, b), Record])
@pytest.mark.parametrize("whole", [True, False])
def test_named_tuples_and_dataclasses_are_split_by_field_names(xy, form, whole) -> None:
    data = form(*xy) if whole else [form(a, b) for a, b in zip(xy[0].split(7), xy[1].split(7), strict=True)]
    module = Through(_named)
    want = float(F.cross_entropy(module(xy[0]), xy[1]))
    assert loss_of_set(module, None, data) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("kind", [dict, UserDict, Derived, OrderedDict])
def test_nested_mappings_are_read(xy, kind) -> None:
    x, y = xy
    module = Through(lambda body, part: body(part["deep"]["x"]))
    want = float(F.cross_entropy(module({"deep": {"x": x}}), y))

    def form(a: Tensor, b: Tensor) -> Any:
        return {"part": kind(deep=kind(x=a.double())), "labels": b.int()}

    batches = [form(a, b) for a, b in zip(x.split(7), y.split(7), strict=True)]
    for data in (form(x, y), batches):
        assert loss_of_set(module, None, data) == pytest.approx(want, rel=1e-6)

    def loss(output: Tensor, targets: Any) -> Tensor:
        return F.cross_entropy(output, targets["deep"]["y"])

    data = [(a, {"deep": kind(y=b.short())}) for a, b in zip(x.split(7), y.split(7), strict=True)]
    assert loss_of_set(net(), loss, data) == pytest.approx(want, rel=1e-6)


def test_several_inputs_and_several_targets_are_a_pair_and_not_two_batches(xy) -> None:
    x, y = xy
    weight = torch.rand(COUNT)
    module = Through(lambda body, p, q: body(torch.cat([p, q], 1)))

    def loss(output: Tensor, targets: Any) -> Tensor:
        return (F.cross_entropy(output, targets[0], reduction="none") * targets[1]).mean()

    want = float(loss(module.body(x), (y, weight)))
    assert loss_of_set(module, loss, ((x[:, :3], x[:, 3:]), (y, weight))) == pytest.approx(want, rel=1e-6)
    batches = [(x[:30], y[:30]), (x[30:], y[30:])]
    want = float(F.cross_entropy(net()(x), y))
    assert loss_of_set(net(), None, batches) == pytest.approx(want, rel=1e-6)
    uneven = ((x[:20], y[:20]), (x[20:], y[20:]))
    assert loss_of_set(net(), None, uneven) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("alone", [True, False])
def test_packed_sequences_reach_the_network_whole(alone) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.out = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, packed: Any) -> Tensor:
            return self.out(self.body(packed)[1][0])

    torch.manual_seed(0)
    module = Reader()
    sequences = [torch.randn(1 + i % 5, 4, dtype=torch.float64) for i in range(20)]
    labels = torch.randint(3, (20,))
    batches = [(pack_sequence(sequences[i : i + 8], enforce_sorted=False), labels[i : i + 8]) for i in (0, 8, 16)]
    with torch.no_grad():
        want = sum(float(F.cross_entropy(module(p.float()), y, reduction="sum")) for p, y in batches) / 20
    data = batches if alone else [({"packed": p}, y) for p, y in batches]
    assert loss_of_set(module, None, data) == pytest.approx(want, rel=1e-6)


def test_concatenated_labels_do_not_count_as_samples() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.LogSoftmax(-1))
    x, lengths, size = torch.randn(30, 12, 4), torch.randint(1, 5, (30,)), torch.full((30,), 12)
    labels = [torch.randint(1, 5, (int(n),)) for n in lengths]

    def loss(output: Tensor, t: Any) -> Tensor:
        return F.ctc_loss(output.transpose(0, 1), *t)

    parts = [slice(0, 16), slice(16, 30)]
    batches = [(x[p], (torch.cat(labels[p]), size[p], lengths[p])) for p in parts]
    want = float(loss(module(x), (torch.cat(labels), size, lengths)))
    assert loss_of_set(module, loss, batches) == pytest.approx(want, rel=1e-6)


def test_lengths_of_batches() -> None:
    some = torch.zeros(5)
    assert batch_length(torch.zeros(5, 2), some) == 5
    assert batch_length(torch.zeros(7, 5), torch.zeros(5)) == 5  # sequence-first inputs
    assert batch_length(torch.zeros(4, 2), {"boxes": torch.zeros(0, 4), "n": torch.zeros(4)}) == 4
    assert batch_length(torch.zeros(0, 2), torch.zeros(0)) == 0
    assert batch_length(torch.tensor(1.0), torch.tensor(1)) == 1


def test_batches_without_a_sample_train_nothing(xy) -> None:
    x, targets = xy[0], net(seed=1)(xy[0]).detach()
    batches = [(x[:0], targets[:0]), (x, targets), (x[:0], targets[:0])]
    drawn = training_batches(as_data(batches), 4, CPU, torch.float32, seed=0)
    assert [len(drawn.batch(i)[1]) for i in range(3)] == [COUNT] * 3
    train_model(net(), batches, seed=0, epochs=2, loss_fn=F.mse_loss)


class Failing(Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        if index == 40:
            raise OSError("cannot read\nimage 40")
        return torch.zeros(6), 0


class FailingStream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        yield torch.zeros(6), 0
        raise KeyError("broken\nfile")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_fails_is_one_line(workers) -> None:
    loader = DataLoader(Failing(), batch_size=8, num_workers=workers)
    one_line(lambda: loss_of_set(net(), None, loader), "reading a batch fails: OSError: cannot read image 40")
    one_line(lambda: loss_of_set(net(), None, FailingStream()), "reading a batch fails: KeyError")
    one_line(lambda: train_model(net(), loader, seed=0), "reading a batch fails: OSError: cannot read image 40")


def test_texts_in_items_of_a_dataset_are_named(xy) -> None:
    items = [(a, {"y": b, "name": "n"}) for a, b in zip(*xy, strict=True)]

    class Items(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return COUNT

        def __getitem__(self, index: int) -> Any:
            return items[index]

    def loss(output: Tensor, targets: Any) -> Tensor:
        return F.cross_entropy(output, targets["y"])

    one_line(lambda: loss_of_set(net(), loss, Items()), "hold a str among inputs or targets; .* pass a DataLoader")
    want = in_float64(net(), F.cross_entropy, *xy)
    assert loss_of_set(net(), loss, DataLoader(Items(), batch_size=60)) == pytest.approx(want, rel=1e-6)


def test_arrays_as_numpy_has_them(xy) -> None:
    x, y = xy
    want = in_float64(net(), F.cross_entropy, *xy)
    assert loss_of_set(net(), None, x.numpy()[::-1], y.numpy()[::-1]) == pytest.approx(want, rel=1e-6)
    assert loss_of_set(net(), None, x.numpy().astype(">f4"), y.numpy().astype(">i8")) == pytest.approx(want, rel=1e-6)
    masked = numpy.ma.masked_array(y.numpy(), mask=y.numpy() == 1)
    one_line(lambda: loss_of_set(net(), None, x, masked), "masked array, and tensors have no mask: pass .filled")
    assert loss_of_set(net(), None, x, numpy.ma.masked_array(y.numpy())) == pytest.approx(want, rel=1e-6)


def test_complex_inputs_take_the_networks_width(xy) -> None:
    module = Through(lambda body, x: body(x.abs()))
    numbers = torch.complex(*(xy[0].double(),) * 2)
    want = float(F.cross_entropy(module.body(numbers.abs().float()), xy[1]))
    assert loss_of_set(module, None, numbers, xy[1]) == pytest.approx(want, rel=1e-6)
    assert move_batch(numbers, xy[1], CPU, torch.float64)[0].dtype == torch.complex128


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (lambda x: torch.nested.nested_tensor(list(x)), "nested tensor; pad it"),
        (lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged), "nested tensor; pad it"),
        (lambda x: x.to("meta"), "on the device meta, which has no values"),
        (lambda x: (x, None), "holds a NoneType; pass tensors or NumPy arrays"),
    ],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_without_dense_values_are_named(xy, inputs, message) -> None:
    one_line(lambda: as_data((inputs(xy[0]), xy[1])), message)


def test_no_targets_at_all(xy) -> None:
    one_line(lambda: as_data((xy[0], None)), "has no targets")


def test_whether_data_repeat(xy) -> None:
    items = list(zip(*xy, strict=True))

    class Noisy(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return COUNT

        def __getitem__(self, index: int) -> Any:
            return items[index][0] + random.random(), items[index][1]

    shuffled = as_data(DataLoader(items, batch_size=8, shuffle=True))
    assert repeats(as_data(xy), (0, 1))
    assert repeats(as_data(DataLoader(items, batch_size=8)), (0, 1))
    assert repeats(shuffled, (1, 1))
    assert not repeats(shuffled, (0, 1))
    assert not repeats(as_data(Noisy()), (0, 0))
