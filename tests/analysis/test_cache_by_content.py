"""The cache: a hit where everything is the same to the byte, never otherwise; interrupt and resume."""

from __future__ import annotations

import functools
import json
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from llpf_fast import LLPFError
from llpf_fast.analysis import CachedEvaluator, Problem, cached_numbers, cached_training
from llpf_fast.analysis.cache import Values
from llpf_fast.analysis.layers import layer_connectivity
from llpf_fast.analysis.linear import linear_connectivity
from llpf_fast.path.fingerprint import Unidentifiable, describe_loss, describe_module, digest

from .toy_networks import Tanh, random_classes


def _scaled(output: torch.Tensor, target: torch.Tensor, *, factor: float = 1.0) -> torch.Tensor:
    return factor * F.cross_entropy(output, target)


def _closed(factor: float):
    return lambda output, target: factor * F.cross_entropy(output, target)


def _evaluator(folder, *, loss=F.cross_entropy, data=None, module=None, split="train", **options) -> CachedEvaluator:
    train = data or random_classes()
    evaluator = Problem(module or Tanh(), loss, train=train, test=random_classes(seed=9), cache=folder).evaluator(
        split, **options
    )
    assert isinstance(evaluator, CachedEvaluator)
    return evaluator


def _is_found(evaluator: CachedEvaluator, state: dict[str, torch.Tensor]) -> bool:
    before = evaluator.hits
    evaluator(state)
    return evaluator.hits > before


def test_the_same_question_is_answered_from_the_cache(tmp_path) -> None:
    state = Tanh(1).state_dict()
    first = _evaluator(tmp_path)
    answer = first(state)
    assert (first.measured, first.hits) == (1, 0)
    again = _evaluator(tmp_path)
    assert again({name: state[name].clone() for name in reversed(list(state))}) == answer
    assert (again.measured, again.hits) == (0, 1)


def test_one_changed_byte_of_the_state_is_another_question(tmp_path) -> None:
    state = Tanh(1).state_dict()
    _evaluator(tmp_path)(state)
    for name in state:
        other = {key: value.clone() for key, value in state.items()}
        other[name].view(torch.uint8).view(-1)[0] ^= 1
        assert not _is_found(_evaluator(tmp_path), other), name
    assert _is_found(_evaluator(tmp_path), state)


def test_one_changed_byte_of_the_data_is_another_question(tmp_path) -> None:
    state = Tanh(1).state_dict()
    _evaluator(tmp_path)(state)
    inputs, targets = random_classes()
    inputs[7, 3] = torch.nextafter(inputs[7, 3], torch.tensor(9.0))
    assert not _is_found(_evaluator(tmp_path, data=(inputs, targets)), state)
    inputs, targets = random_classes()
    targets[5] = (targets[5] + 1) % 3
    assert not _is_found(_evaluator(tmp_path, data=(inputs, targets)), state)
    assert not _is_found(_evaluator(tmp_path, split="test"), state)
    assert _is_found(_evaluator(tmp_path), state)


def test_another_loss_is_another_question(tmp_path) -> None:
    state = Tanh(1).state_dict()
    losses = [
        F.cross_entropy,
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1.0, 2.0])),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1.0, 3.0])),
        _scaled,
        functools.partial(_scaled, factor=2.0),
        functools.partial(_scaled, factor=3.0),
        _closed(2.0),
        _closed(3.0),
    ]
    for loss in losses:
        assert not _is_found(_evaluator(tmp_path, loss=loss), state), loss
    for loss in losses:
        assert _is_found(_evaluator(tmp_path, loss=loss), state), loss


def test_another_architecture_of_the_same_shapes_is_another_question(tmp_path) -> None:
    def net(activation: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 3))

    state = net(nn.ReLU()).state_dict()
    for activation in (nn.ReLU(), nn.Tanh(), nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)):
        assert not _is_found(_evaluator(tmp_path, module=net(activation)), state), activation
    hidden = net(nn.ReLU())
    hidden[0].register_buffer("mask", torch.ones(3), persistent=False)
    assert not _is_found(_evaluator(tmp_path, module=hidden), state)
    hidden[0].mask[1] = 0.0
    assert not _is_found(_evaluator(tmp_path, module=hidden), state)
    assert _is_found(_evaluator(tmp_path, module=net(nn.ReLU())), state)


def test_statistics_dtype_and_batch_size_are_part_of_the_question(tmp_path) -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    state = net.state_dict()
    variants: list[dict] = [
        {},
        {"statistics": "reestimated"},
        {"dtype": torch.float64},
        {"batch_size": 10},
        {"statistics": "reestimated", "batch_size": 10},
    ]
    for options in variants:
        assert not _is_found(_evaluator(tmp_path, module=net, **options), state), options
    for options in variants:
        assert _is_found(_evaluator(tmp_path, module=net, **options), state), options
    # Re-estimated statistics come from training data: other data are another question even for the test set.
    question = {"module": net, "split": "test", "statistics": "reestimated"}
    assert not _is_found(_evaluator(tmp_path, **question), state)
    inputs, targets = random_classes()
    assert not _is_found(_evaluator(tmp_path, **question, data=(inputs * 2, targets)), state)


def test_code_that_changed_is_another_question(tmp_path) -> None:
    from llpf_fast.user_code import loss_function

    described = []
    for folder, factor in (("a", 2), ("b", 3)):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "own.py"
        file.write_text(f"K = {factor}\ndef loss(output, target):\n    return K * (output - target).mean()\n")
        described.append(digest(describe_loss(loss_function(f"{file}:loss"))))
    assert described[0] != described[1]


def test_another_way_of_measuring_is_another_question(tmp_path, monkeypatch) -> None:
    from llpf_fast.analysis import cache

    state = Tanh(1).state_dict()
    _evaluator(tmp_path)(state)
    monkeypatch.setattr(cache, "evaluating_code", lambda: "as it was before")
    assert not _is_found(_evaluator(tmp_path), state)


def test_code_digest_is_that_of_the_files() -> None:
    from llpf_fast.analysis import cache, layers
    from llpf_fast.path.fingerprint import code_digest

    assert code_digest(cache) == code_digest(cache.Values)
    assert code_digest(cache) != code_digest(layers)
    assert code_digest(cache, layers) != code_digest(cache)


def test_what_cannot_be_identified_is_not_cached(tmp_path) -> None:
    made = eval("lambda output, target: (output - target).square().mean()")
    with pytest.raises(Unidentifiable):
        describe_loss(made)
    problem = Problem(nn.Linear(6, 1), made, train=(torch.zeros(4, 6), torch.zeros(4, 1)), cache=tmp_path)
    with pytest.warns(UserWarning, match="nothing is cached"):
        evaluator = problem.evaluator()
    evaluator(nn.Linear(6, 1).state_dict())
    assert not list(tmp_path.iterdir())


def test_parameters_values_do_not_name_the_architecture() -> None:
    assert describe_module(Tanh(1)) == describe_module(Tanh(2))
    trained = Tanh(1).eval()
    assert describe_module(trained) == describe_module(Tanh(1).train())


def test_a_torn_line_and_a_changed_line_do_not_count(tmp_path) -> None:
    answers = Values(tmp_path / "a.jsonl")
    answers.put("one", {"x": 1.5, "nan": float("nan")})
    answers.put("two", {"x": 2.5})
    content = answers.file.read_bytes()
    answers.file.write_bytes(content[:-9])
    again = Values(answers.file)
    assert again.get("one")["x"] == 1.5
    assert again.get("two") is None
    again.put("three", {"x": 3.5})
    assert Values(answers.file).get("three") == {"x": 3.5}
    answers.file.write_bytes(content.replace(b"2.5", b"9.5"))
    assert Values(answers.file).get("two") is None


def test_two_writers_lose_nothing(tmp_path) -> None:
    both = [Values(tmp_path / "a.jsonl") for _ in range(2)]

    def write(number: int) -> None:
        for i in range(50):
            both[number].put(f"{number}-{i}", {"value": i, "text": "x" * 500})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    merged = Values(tmp_path / "a.jsonl")
    assert all(merged.get(f"{number}-{i}") is not None for number in range(2) for i in range(50))


class _StoppedError(Exception):
    pass


def test_an_interrupted_analysis_goes_on_where_it_was(tmp_path, monkeypatch) -> None:
    from llpf_fast.verify import Evaluator

    calls = []
    original = Evaluator.__call__

    def counted(self, state):
        if len(calls) == 7:
            raise _StoppedError
        calls.append(1)
        return original(self, state)

    monkeypatch.setattr(Evaluator, "__call__", counted)

    def analyse():
        problem = Problem(Tanh(), train=random_classes(), cache=tmp_path)
        return linear_connectivity(problem, problem.networks([Tanh(1), Tanh(2)]), points=11).rows()

    with pytest.raises(_StoppedError):
        analyse()
    assert len(calls) == 7
    monkeypatch.setattr(Evaluator, "__call__", lambda self, state: calls.append(1) or original(self, state))
    resumed = analyse()
    assert len(calls) == 11
    monkeypatch.setattr(Evaluator, "__call__", original)
    problem = Problem(Tanh(), train=random_classes())
    assert resumed == linear_connectivity(problem, problem.networks([Tanh(1), Tanh(2)]), points=11).rows()


def test_derivatives_are_kept_too_and_never_stale(tmp_path, monkeypatch) -> None:
    from llpf_fast.analysis.directional_loss import DirectionalLoss

    expansions = []
    original = DirectionalLoss.expand
    monkeypatch.setattr(
        DirectionalLoss, "expand", lambda self, *args, **kw: expansions.append(1) or original(self, *args, **kw)
    )

    def analyse(loss=F.cross_entropy, samples=0, seed=2):
        problem = Problem(Tanh(), loss, train=random_classes(), cache=tmp_path)
        networks = problem.networks([Tanh(1), Tanh(seed)])
        return layer_connectivity(problem, networks, hessian_samples=samples, nodes=2).numbers()

    first = analyse()
    assert len(expansions) == 6
    assert analyse() == first
    assert len(expansions) == 6
    assert analyse(samples=20)["predicted"] != first["predicted"]
    assert analyse(loss=_scaled)["predicted"] == first["predicted"]
    assert analyse(seed=3)["predicted"] != first["predicted"]
    assert len(expansions) == 24


def test_training_is_kept_by_what_it_depends_on(tmp_path) -> None:
    trained = []

    def train() -> dict[str, torch.Tensor]:
        trained.append(1)
        return {"w": torch.tensor([1.0, float(len(trained))])}

    first = cached_training({"seed": 1, "lr": 0.1}, tmp_path, train)
    assert torch.equal(cached_training({"lr": 0.1, "seed": 1}, tmp_path, train)["w"], first["w"])
    assert len(trained) == 1
    cached_training({"seed": 2, "lr": 0.1}, tmp_path, train)
    assert len(trained) == 2


def test_a_damaged_training_is_trained_again(tmp_path) -> None:
    states = iter([{"w": torch.zeros(64)}, {"w": torch.ones(64)}])
    key = {"seed": 1}
    cached_training(key, tmp_path, lambda: next(states))
    (file,) = tmp_path.glob("trained-*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert torch.equal(cached_training(key, tmp_path, lambda: next(states))["w"], torch.ones(64))
    # Another training's file under this name: its digest is right, its key is not.
    cached_training({"seed": 2}, tmp_path, lambda: {"w": torch.full((64,), 2.0)})
    (other,) = (each for each in tmp_path.glob("trained-*.safetensors") if each != file)
    file.write_bytes(other.read_bytes())
    again = cached_training(key, tmp_path, lambda: {"w": torch.full((64,), 3.0)})
    assert torch.equal(again["w"], torch.full((64,), 3.0))


def test_numbers_are_kept_by_their_key(tmp_path) -> None:
    computed = []

    def compute() -> dict[str, float]:
        computed.append(1)
        return {"x": len(computed) / 3}

    assert cached_numbers({"a": 1}, tmp_path, compute) == cached_numbers({"a": 1}, tmp_path, compute) == {"x": 1 / 3}
    assert cached_numbers({"a": 2}, tmp_path, compute) == {"x": 2 / 3}


def test_a_folder_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LLPFError, match=r"cannot write in .*file"):
        cached_numbers({"a": 1}, tmp_path / "file" / "cache", lambda: {"x": 1})


def test_lines_are_json(tmp_path) -> None:
    _evaluator(tmp_path)(Tanh(1).state_dict())
    (file,) = tmp_path.iterdir()
    (line,) = file.read_text().strip().splitlines()
    key, value = json.loads(json.loads(line)["content"])
    assert len(key) == 64
    assert value["samples"] == 40
