import json

import pytest
import torch
from torch import nn

from llpf_fast.data import load_dataset
from llpf_fast.errors import LLPFError
from llpf_fast.models import build_model, train_model
from llpf_fast.path import RunDirectory, state_digest
from llpf_fast.verify import run as verify_run_module
from llpf_fast.verify import verify_run

STEPS = 4


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


def state_of(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def waypoints(digits):
    """A short low path: one network, moved by a little further training."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = build_model("mlp", hidden=32)
    train_model(module, *digits.train, seed=1, epochs=8, lr=0.1)
    states = [state_of(module)]
    for seed in range(STEPS):
        train_model(module, *digits.train, seed=seed, epochs=1, lr=0.02)
        states.append(state_of(module))
    return states


def write_run(folder, states, *, arrived=True, finished=True, destination=None, **more):
    run = RunDirectory.create(
        folder,
        {
            "settings": {"model": "", "data": "digits", "threshold": 0.15},
            "start_sha256": state_digest(states[0]),
            "destination_sha256": state_digest(states[-1] if destination is None else destination),
            **more,
        },
    )
    for tick, state in enumerate(states):
        run.add_waypoint(tick, state)
    if finished:
        run.finish(arrived=arrived)
    return folder


@pytest.fixture
def verify():
    def verify(folder, **options):
        return verify_run(folder, model=module, workers=1, interior=3, **options)

    module = build_model("mlp", hidden=32)
    return verify


def test_connected_and_written(verify, waypoints, tmp_path):
    folder = write_run(tmp_path / "run", waypoints)
    certificate = verify(folder)
    assert certificate.connected, certificate.reasons
    written = json.loads((folder / "certificate.json").read_text())
    assert written == json.loads(json.dumps(certificate.as_dict()))
    assert written["connected"] is True
    assert 0 < written["start_loss"] <= written["max_loss"] <= written["threshold"] == 0.15
    assert 0.8 < written["min_test_accuracy"] <= 1
    assert written["points_evaluated"] == len(written["points"]) > 2 * STEPS
    assert written["waypoint_sha256"] == [w.sha256 for w in RunDirectory.open(folder).waypoints()]
    assert written["evaluation"]["train"]["screened"] is False
    assert written["evaluation"]["batchnorm_statistics"] == "stored"
    assert written["evaluation"]["data"] == "digits"
    assert written["run"]["start_sha256"] == state_digest(waypoints[0])
    assert len(written["straight_line"]) == 21


def test_repeats_exactly(verify, waypoints, tmp_path):
    folder = write_run(tmp_path / "run", waypoints)
    before = torch.get_rng_state()
    verify(folder, seed=1)
    first = (folder / "certificate.json").read_bytes()
    verify(folder, seed=1)
    assert (folder / "certificate.json").read_bytes() == first
    assert torch.equal(torch.get_rng_state(), before)


def test_screened_run(verify, waypoints, tmp_path, monkeypatch, digits):
    monkeypatch.setattr(verify_run_module, "SCREEN_SIZE", 400)
    folder = write_run(tmp_path / "run", waypoints)
    screened, full = verify(folder), verify(folder, full=True)
    train = screened.evaluation["train"]
    assert (train["screened"], train["screening_samples"], train["samples"]) == (True, 400, len(digits.train_targets))
    assert not full.evaluation["train"]["screened"]
    assert screened.connected
    assert full.connected
    on_both = [point for point in screened.points if point.screened_loss is not None]
    assert 2 <= len(on_both) < screened.points_evaluated
    assert all(abs(point.screened_loss - point.train_loss) < 0.05 for point in on_both)
    assert screened.start_loss == full.start_loss
    assert screened.destination_loss == full.destination_loss


class TestTampering:
    """Whatever is done to the waypoints, the certificate never says connected."""

    def test_changed_file(self, verify, waypoints, tmp_path):
        folder = write_run(tmp_path / "run", waypoints)
        file = folder / "waypoints" / "000003.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        with pytest.raises(LLPFError, match=r"000003\.safetensors"):
            verify(folder)
        assert not (folder / "certificate.json").exists()

    def test_deleted_file(self, verify, waypoints, tmp_path):
        folder = write_run(tmp_path / "run", waypoints)
        (folder / "waypoints" / "000002.safetensors").unlink()
        with pytest.raises(LLPFError, match=r"000002\.safetensors"):
            verify(folder)

    def test_foreign_file(self, verify, waypoints, tmp_path):
        folder, other = write_run(tmp_path / "run", waypoints), tmp_path / "other"
        write_run(other, waypoints[1:])
        name = "waypoints/000002.safetensors"
        (folder / name).write_bytes((other / name).read_bytes())
        with pytest.raises(LLPFError, match=r"000002\.safetensors"):
            verify(folder)

    def test_perturbed_and_recorded_again(self, verify, waypoints, tmp_path):
        """The index was rewritten too: only its losses show it."""
        noise = torch.Generator().manual_seed(0)
        spoiled = {k: v + 0.3 * torch.randn(v.shape, generator=noise) for k, v in waypoints[3].items()}
        folder = write_run(tmp_path / "run", [*waypoints[:3], spoiled, *waypoints[4:]])
        certificate = verify(folder)
        assert not certificate.connected
        assert certificate.max_loss_at.waypoint in (2, 3)

    def test_waypoint_of_another_model_recorded_again(self, verify, waypoints, tmp_path, digits):
        with torch.random.fork_rng():
            torch.manual_seed(2)
            other = build_model("mlp", hidden=32)
        train_model(other, *digits.train, seed=5, epochs=8, lr=0.1)
        folder = write_run(tmp_path / "run", [*waypoints[:3], state_of(other), *waypoints[4:]])
        certificate = verify(folder)
        assert not certificate.connected
        assert certificate.max_loss_at.waypoint in (2, 3)
        assert certificate.max_loss_at.fraction > 0

    def test_nan_in_a_waypoint(self, verify, waypoints, tmp_path):
        spoiled = {name: value.clone() for name, value in waypoints[2].items()}
        spoiled["fc2.weight"][3, 4] = torch.nan
        folder = write_run(tmp_path / "run", [*waypoints[:2], spoiled, *waypoints[3:]])
        certificate = verify(folder)
        assert not certificate.connected
        assert "not finite" in certificate.reasons[0]
        written = json.loads((folder / "certificate.json").read_text())
        assert (written["connected"], written["max_loss"]) == (False, None)


class TestUnreached:
    def test_not_finished(self, verify, waypoints, tmp_path):
        certificate = verify(write_run(tmp_path / "run", waypoints, finished=False))
        assert not certificate.connected
        assert "--resume" in certificate.reasons[0]

    def test_not_arrived(self, verify, waypoints, tmp_path):
        run = write_run(tmp_path / "run", waypoints[:-1], arrived=False, destination=waypoints[-1])
        certificate = verify(run)
        assert (certificate.connected, len(certificate.reasons)) == (False, 1)
        assert "not reached" in certificate.reasons[0]

    @pytest.mark.parametrize("goal", ["none", "sphere", "other"])
    def test_another_goal_than_the_modes(self, verify, waypoints, tmp_path, goal):
        """The digest of the settings does not cover the goal."""
        settings = {"model": "", "data": "digits", "threshold": 0.15, "mode": "m2m"}
        about = {"settings": settings, "goal": goal}
        half = write_run(tmp_path / "half", waypoints[:-1], arrived=False, destination=waypoints[-1], **about)
        assert "not reached" in verify(half).reasons[0]
        unknown = verify(write_run(tmp_path / "unknown", waypoints, destination_sha256=None, **about))
        assert "destination" in unknown.reasons[0]

    def test_without_a_goal_a_run_is_complete_where_it_ended(self, verify, waypoints, tmp_path):
        settings = {"model": "", "data": "digits", "threshold": 0.15, "mode": "m2o"}
        about = {"settings": settings, "goal": "none", "destination_sha256": None}
        assert verify(write_run(tmp_path / "run", waypoints, arrived=False, **about)).connected

    def test_unknown_destination(self, verify, waypoints, tmp_path):
        certificate = verify(write_run(tmp_path / "run", waypoints, destination_sha256=None))
        assert not certificate.connected
        assert "destination" in certificate.reasons[0]

    def test_claims_to_have_arrived(self, verify, waypoints, tmp_path):
        run = write_run(tmp_path / "run", waypoints[:-1], destination=waypoints[-1])
        with pytest.raises(LLPFError, match="not bit-identical to the destination"):
            verify(run)


def test_names_in_run_yaml(tmp_path):
    with torch.random.fork_rng():
        states = [state_of(build_model("mlp")) for _ in range(2)]
    run = write_run(tmp_path / "run", states, settings={"model": "mlp", "data": "digits", "threshold": 9.0})
    before = torch.get_rng_state()
    certificate = verify_run(run, workers=1, interior=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert certificate.connected
    assert (certificate.evaluation["model"], certificate.evaluation["loss"]) == ("mlp", "cross_entropy")
    assert not verify_run(run, workers=1, interior=1, threshold=0.1).connected


def test_given_model_data_and_statistics(tmp_path):
    """A network with BatchNorm, on data without a name."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 6, generator=generator)
    targets = (inputs[:, 0] > 0).long()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    train_model(net, inputs, targets, seed=0, epochs=20, lr=0.1)
    start = state_of(net)
    train_model(net, inputs, targets, seed=1, epochs=1, lr=0.1)
    end = state_of(net)
    end["1.running_mean"] += 100.0
    folder = write_run(tmp_path / "run", [start, end])
    data = {"model": net, "train": (inputs, targets), "workers": 1}
    stored = verify_run(folder, **data)
    assert not stored.connected
    reestimated = verify_run(folder, **data, statistics="reestimated")
    assert reestimated.connected, reestimated.reasons
    assert reestimated.evaluation["batchnorm_statistics"] == "reestimated"
    assert reestimated.min_test_accuracy is None


def test_refusals(waypoints, tmp_path):
    folder = write_run(tmp_path / "run", waypoints)
    with pytest.raises(LLPFError, match="names no model"):
        verify_run(folder)
    with pytest.raises(LLPFError, match="different architectures"):
        verify_run(folder, model=build_model("mlp", hidden=16))
    with pytest.raises(LLPFError, match="not the folder of a run"):
        verify_run(tmp_path)
    given = {"model": build_model("mlp", hidden=32), "train": (torch.zeros(4, 64), torch.zeros(4, dtype=torch.long))}
    with pytest.raises(LLPFError, match="unknown statistics 'estimated'"):
        verify_run(folder, **given, loss_fn=nn.functional.cross_entropy, statistics="estimated")
    assert not (folder / "certificate.json").exists()
