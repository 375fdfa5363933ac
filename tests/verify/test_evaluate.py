import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from llpf_fast.errors import LLPFError
from llpf_fast.verify import Evaluator


def cross_entropy_only(output, target):
    """A loss that gives no per-sample values."""
    return F.cross_entropy(output, target)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(230, 5, generator=generator), torch.randint(4, (230,), generator=generator)


@pytest.fixture
def module():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize("batch_size", [230, 100, 7])
def test_mean_error_and_accuracy_against_float64(module, data, batch_size):
    inputs, targets = data
    evaluation = Evaluator(module, F.cross_entropy, inputs, targets, batch_size=batch_size)(module.state_dict())
    output = copy.deepcopy(module).double().eval()(inputs.double())
    each = F.cross_entropy(output, targets, reduction="none").detach()
    assert evaluation.loss == pytest.approx(float(each.mean()), rel=1e-6)
    assert evaluation.standard_error == pytest.approx(float(each.std() / math.sqrt(230)), rel=1e-5)
    assert evaluation.accuracy == pytest.approx(float((output.argmax(1) == targets).double().mean()))
    assert (evaluation.samples, evaluation.not_finite, evaluation.statistics) == (230, 0, "stored")


def test_values_of_the_state_count_not_the_modules(module, data):
    evaluate = Evaluator(module, nn.CrossEntropyLoss(), *data)
    zeros = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in module.state_dict().items()}
    assert evaluate(zeros).loss == pytest.approx(math.log(4))
    assert evaluate(zeros).standard_error == pytest.approx(0, abs=1e-7)
    assert evaluate(module.state_dict()).loss != pytest.approx(math.log(4))


def test_module_state_and_global_generator_stay(module, data):
    module.train()
    module[3].eval()
    given = {name: value.clone() for name, value in module.state_dict().items()}
    state = {name: torch.randn_like(value) for name, value in given.items()}
    copies = {name: value.clone() for name, value in state.items()}
    before = torch.get_rng_state()
    loader = DataLoader(TensorDataset(*data), batch_size=32, shuffle=True)
    Evaluator(module, F.cross_entropy, loader)(state)
    assert torch.equal(torch.get_rng_state(), before)
    assert [layer.training for layer in module] == [True, True, True, False]
    assert all(torch.equal(module.state_dict()[name], value) for name, value in given.items())
    assert all(torch.equal(state[name], value) for name, value in copies.items())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_batches_are_read_once(module, data):
    loader = DataLoader(TensorDataset(*data), batch_size=32, shuffle=True)
    state = module.state_dict()
    from_loader = Evaluator(module, F.cross_entropy, loader)
    expected = Evaluator(module, F.cross_entropy, *data)(state)
    assert from_loader(state).loss == pytest.approx(expected.loss, rel=1e-6)
    assert from_loader(state) == from_loader(state)
    with pytest.raises(LLPFError, match="generator, which can be read only once"):
        Evaluator(module, F.cross_entropy, ((x, y) for x, y in zip(*(t.split(50) for t in data), strict=True)))


def test_model_that_draws_numbers_even_in_eval_mode(data):
    class Noisy(nn.Linear):
        def forward(self, x):
            return F.dropout(super().forward(x), 0.5, training=True)

    module = Noisy(5, 4)
    evaluate = Evaluator(module, F.cross_entropy, *data)
    before = torch.get_rng_state()
    assert evaluate(module.state_dict()) == evaluate(module.state_dict())
    assert torch.equal(torch.get_rng_state(), before)


def test_any_loss_from_batch_means(module, data):
    inputs, targets = data
    state = module.state_dict()
    evaluation = Evaluator(module, cross_entropy_only, inputs, targets, batch_size=23)(state)
    known = Evaluator(module, F.cross_entropy, inputs, targets, batch_size=23)(state)
    assert evaluation.loss == pytest.approx(known.loss, rel=1e-6)
    module.eval().requires_grad_(False)
    means = torch.stack([F.cross_entropy(module(x), y) for x, y in zip(inputs.split(23), targets.split(23))])  # noqa: B905
    assert evaluation.standard_error == pytest.approx(float(means.double().std() / math.sqrt(10)), rel=1e-4)


def test_weighted_loss_is_the_weighted_mean(module, data):
    """torch divides by the sum of the class weights: the mean of per-sample values would be another number."""
    inputs, targets = data
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.1, 2.0]))
    evaluation = Evaluator(module, loss, inputs, targets, batch_size=230)(module.state_dict())
    assert evaluation.loss == pytest.approx(float(loss(module.eval()(inputs), targets).detach()), rel=1e-6)


def test_regression_has_no_accuracy(data):
    inputs = data[0]
    module = nn.Linear(5, 1)
    evaluation = Evaluator(module, F.mse_loss, inputs, inputs[:, :1])(module.state_dict())
    assert evaluation.accuracy is None
    assert evaluation.standard_error is not None


def test_structured_inputs(data):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 4)

        def forward(self, x, scale):
            return self.linear(x) * scale

    inputs, targets = data
    module = Two()
    expected = Evaluator(module.linear, F.cross_entropy, inputs, targets)(module.linear.state_dict())
    for batch in ((inputs, torch.ones(230, 1)), {"x": inputs, "scale": torch.ones(230, 1)}):
        evaluation = Evaluator(module, F.cross_entropy, [(batch, targets)])(module.state_dict())
        assert evaluation.loss == pytest.approx(expected.loss, rel=1e-6)
        assert (evaluation.samples, evaluation.accuracy) == (230, expected.accuracy)


def test_not_finite_is_reported(module, data):
    inputs, targets = data
    state = module.state_dict()
    spoiled = inputs.clone()
    spoiled[[3, 50, 229]] = math.nan
    for loss, expected in ((F.cross_entropy, 3), (cross_entropy_only, 3)):
        evaluation = Evaluator(module, loss, spoiled, targets, batch_size=40)(state)
        assert math.isnan(evaluation.loss)
        assert evaluation.not_finite == expected
    state["3.bias"] = torch.tensor([0.0, math.inf, 0.0, 0.0])
    assert Evaluator(module, F.cross_entropy, inputs, targets)(state).not_finite > 0


class TestStatistics:
    @pytest.fixture
    def net(self):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU(), nn.Flatten())
            net.append(nn.Linear(4 * 16, 4))
        return net

    @pytest.fixture
    def images(self):
        generator = torch.Generator().manual_seed(3)
        return 3 + 2 * torch.randn(256, 1, 6, 6, generator=generator), torch.randint(4, (256,), generator=generator)

    def test_stored_are_the_states_own(self, net, images):
        state = net.state_dict()
        state["1.running_mean"] = torch.full((4,), 7.0)
        evaluation = Evaluator(net, F.cross_entropy, *images)(state)
        other = copy.deepcopy(net).requires_grad_(False)
        other.load_state_dict(state)
        assert evaluation.loss == pytest.approx(float(F.cross_entropy(other.eval()(images[0]), images[1])), rel=1e-5)
        assert evaluation.statistics == "stored"

    def test_reestimated_do_not_depend_on_what_is_stored(self, net, images):
        evaluate = Evaluator(
            net, F.cross_entropy, *images, statistics="reestimated", statistics_inputs=images[0], batch_size=64
        )
        state = net.state_dict()
        spoiled = {**state, "1.running_mean": torch.full((4,), 70.0), "1.running_var": torch.full((4,), 1e6)}
        assert evaluate(state) == evaluate(spoiled)
        assert evaluate(state).statistics == "reestimated"
        assert net.state_dict()["1.num_batches_tracked"] == 0

    def test_reestimated_equal_torchs_update_bn(self, net, images):
        evaluate = Evaluator(
            net, F.cross_entropy, *images, statistics="reestimated", statistics_inputs=images[0], batch_size=64
        )
        twin = copy.deepcopy(net).requires_grad_(False)
        twin[2].p = 0.0
        torch.optim.swa_utils.update_bn(images[0].split(64), twin)
        expected = F.cross_entropy(twin.eval()(images[0]), images[1])
        assert evaluate(net.state_dict()).loss == pytest.approx(float(expected), rel=1e-5)
        assert Evaluator(net, F.cross_entropy, *images)(net.state_dict()).loss != pytest.approx(float(expected))

    def test_needs_training_data(self, net, images):
        with pytest.raises(LLPFError, match="statistics_inputs"):
            Evaluator(net, F.cross_entropy, *images, statistics="reestimated")


def test_refusals(module, data):
    inputs, targets = data
    with pytest.raises(LLPFError, match="empty"):
        Evaluator(module, F.cross_entropy, inputs[:0], targets[:0])
    with pytest.raises(LLPFError, match="empty"):
        Evaluator(module, F.cross_entropy, [])
    with pytest.raises(LLPFError, match="230 inputs but 229 targets"):
        Evaluator(module, F.cross_entropy, inputs, targets[1:])
    with pytest.raises(LLPFError, match="pass a pair"):
        Evaluator(module, F.cross_entropy, inputs)
    with pytest.raises(LLPFError, match="pair"):
        Evaluator(module, F.cross_entropy, [inputs])
    with pytest.raises(LLPFError, match="forward fails on data of shape"):
        Evaluator(module, F.cross_entropy, inputs[:, :4], targets)(module.state_dict())
    state = module.state_dict()
    state["3.bias"] = torch.zeros(1)
    with pytest.raises(LLPFError, match=r"3\.bias"):
        Evaluator(module, F.cross_entropy, inputs, targets)(state)
    del state["3.bias"]
    with pytest.raises(LLPFError, match=r"3\.bias"):
        Evaluator(module, F.cross_entropy, inputs, targets)(state)
