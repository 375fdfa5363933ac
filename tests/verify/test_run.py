import json

import pytest
import torch
import yaml
from torch import nn

from llpf_fast.batches.digest import data_digest, sample_set_digest
from llpf_fast.data import load_dataset
from llpf_fast.errors import LLPFError
from llpf_fast.models import build_model, train_model
from llpf_fast.path import RunDirectory, state_digest
from llpf_fast.path.fingerprint import digest
from llpf_fast.verify import Limits, check_certificate, verify_run

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


def task_of(settings, inputs, targets, loss="cross_entropy"):
    """What a search records of its loss, data and settings."""
    sha256 = data_digest([(inputs, targets)])
    data = {"form": "samples", "samples": len(targets), "digest_of": len(targets), "sha256": sha256}
    return {"loss": {"name": loss}, "data": data, "settings_sha256": digest(settings)}


def write_run(folder, states, *, arrived=True, finished=True, destination=None, data=None, **more):
    settings = more.pop("settings", {"model": "", "data": "digits", "threshold": 0.15})
    run = RunDirectory.create(
        folder,
        {
            "settings": settings,
            "task": task_of(settings, *(data or load_dataset("digits").train)),
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
        return verify_run(folder, model=module, workers=1, **options)

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
    first, second = (verify(folder, seed=1).as_dict() for _ in range(2))
    for certificate in (first, second):
        assert certificate["resolution"].pop("seconds") > 0
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)


def test_levels(waypoints, tmp_path, monkeypatch, digits):
    """Full by default for few samples; sampled for many, or where it is asked for."""
    data = tuple(torch.cat([part] * 4) for part in digits.train)
    folder = write_run(tmp_path / "run", waypoints, data=data)
    given = {"model": build_model("mlp", hidden=32), "train": data, "workers": 1}
    full, sampled = verify_run(folder, **given), verify_run(folder, **given, level="sampled")
    assert (full.level, full.verdict) == ("full", "proved")
    assert (sampled.level, sampled.verdict, sampled.connected) == ("sampled", "sampled", True)
    train = sampled.evaluation["train"]
    assert (train["screened"], train["screening_samples"], train["samples"]) == (True, 2000, len(data[1]))
    assert 0.9 * full.bound < sampled.bound <= 0.15
    assert (sampled.start_loss, sampled.destination_loss) == (full.start_loss, full.destination_loss)
    monkeypatch.setattr("llpf_fast.verify.run.SAMPLED_ABOVE", 2000)
    assert verify_run(folder, **given).level == "sampled"


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


class TestBinding:
    """What is not the search's is not connected, unless it is allowed by name; the certificate says so either way."""

    def check(self, verify, folder, kind, text, **options):
        for allowed in (False, True):
            certificate = verify(folder, **options, **({f"other_{kind}": True} if allowed else {}))
            assert certificate.connected is allowed, certificate.as_dict()
            assert text in certificate.covers + "".join(certificate.notes)
            if not allowed:
                assert text in "".join(certificate.reasons)
                assert f"pass other_{kind}=True (--other-{kind})" in certificate.reasons[0]

    def test_other_data(self, verify, waypoints, tmp_path, digits):
        inputs, targets = digits.train
        folder = write_run(tmp_path / "run", waypoints)
        text = "the training data are not the samples of the search"
        self.check(verify, folder, "data", text, train=(inputs + 0.01, targets))
        self.check(verify, folder, "data", "the search's were 1437", train=(inputs[:900], targets[:900]))

    def test_another_order_is_the_same_data(self, verify, waypoints, tmp_path, digits):
        inputs, targets = digits.train
        order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
        folder = write_run(tmp_path / "run", waypoints)
        edit(folder, lambda run: run["task"]["data"].update(set_sha256=sample_set_digest([(inputs, targets)])))
        certificate = verify(folder, train=(inputs[order], targets[order]))
        assert certificate.connected
        assert "the training data are the search's in another order" in certificate.covers

    def test_other_loss(self, verify, waypoints, tmp_path):
        loss = nn.CrossEntropyLoss(label_smoothing=0.001)
        text = "the loss is cross_entropy(label_smoothing=0.001), the search's was cross_entropy"
        self.check(verify, write_run(tmp_path / "run", waypoints), "loss", text, loss_fn=loss)

    def test_a_weaker_threshold(self, verify, waypoints, tmp_path):
        folder = write_run(tmp_path / "run", waypoints)
        self.check(verify, folder, "settings", "the threshold is 0.2, the search's was 0.15", threshold=0.2)
        stricter = verify(folder, threshold=0.14)
        assert stricter.connected
        assert "the threshold is 0.14, the search's was 0.15" in stricter.covers

    def test_edited_settings(self, verify, waypoints, tmp_path):
        folder = write_run(tmp_path / "run", waypoints)
        edit(folder, lambda run: run["settings"].update(threshold=0.2))
        self.check(verify, folder, "settings", "the settings in run.yaml were edited after the search")

    @pytest.mark.parametrize(
        ("entry", "kind"), [("settings_sha256", "settings"), ("loss", "loss"), ("data", "data"), (None, "settings")]
    )
    def test_removed_entries(self, verify, waypoints, tmp_path, entry, kind):
        folder = write_run(tmp_path / "run", waypoints)
        edit(folder, lambda run: run["task"].pop(entry) if entry else run.pop("task"))
        if entry:
            self.check(verify, folder, kind, "run.yaml records no ")
        else:
            assert len(verify(folder).reasons) == 3
            assert verify(folder, other_data=True, other_loss=True, other_settings=True).connected

    def test_statistics_edited(self, verify, waypoints, tmp_path):
        """Another policy than the search's, as run.yaml now says."""
        folder = write_run(tmp_path / "run", waypoints)
        edit(folder, lambda run: run["settings"].update(statistics="reestimated"))
        self.check(verify, folder, "settings", "the settings in run.yaml were edited after the search")


def edit(folder, change):
    """Change run.yaml."""
    content = yaml.safe_load((folder / "run.yaml").read_text())
    change(content)
    (folder / "run.yaml").write_text(yaml.safe_dump(content))


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
        assert certificate.verdict == "proved"
        assert "from the start to where the search stopped, short of its destination" in certificate.covers

    def test_how_far_half_a_path_goes(self, verify, waypoints, tmp_path):
        folder = write_run(tmp_path / "run", waypoints[:-1], finished=False, destination=waypoints[-1])
        run = RunDirectory.open(folder)
        for tick, distance in enumerate((8.0, 6.0, 3.6), start=1):
            run.append_metrics({"tick": tick, "distance": distance})
        certificate = verify(folder)
        assert not certificate.connected
        assert "from the start to about 55 % of the way to the destination" in certificate.covers

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
    certificate = verify_run(run, workers=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert certificate.connected
    assert (certificate.evaluation["model"], certificate.evaluation["loss"]) == ("mlp", "cross_entropy")
    assert verify_run(run, workers=1, threshold=0.1).verdict == "refuted"


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
    folder = write_run(tmp_path / "run", [start, end], data=(inputs, targets))
    data = {"model": net, "train": (inputs, targets), "workers": 1}
    stored = verify_run(folder, **data)
    assert stored.verdict == "refuted"
    reestimated = verify_run(folder, **data, statistics="reestimated")
    assert (reestimated.connected, reestimated.verdict) == (False, "sampled")
    assert "--other-settings" in reestimated.reasons[0]
    reestimated = verify_run(folder, **data, statistics="reestimated", other_settings=True)
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


class TestCheck:
    @pytest.fixture
    def check(self):
        def check(folder, certificate=None, **options):
            return check_certificate(folder, certificate, model=build_model("mlp", hidden=32), **options)

        return check

    def test_proved(self, verify, check, waypoints, tmp_path):
        folder = write_run(tmp_path / "run", waypoints)
        certificate = verify(folder)
        before = sorted((file, file.stat().st_mtime_ns) for file in folder.rglob("*"))
        for source in (None, folder / "certificate.json", certificate.as_dict()):
            confirmation = check(folder, source)
            assert (confirmation.verdict, confirmation.connected) == ("proved", True)
            assert confirmation.text.startswith(
                "confirmed: connected (proved) at threshold 0.15; 5 waypoints, data, loss"
            )
            assert f"of its {len(certificate.pieces)} pieces were bounded again, by at most 0." in confirmation.text
        assert before == sorted((file, file.stat().st_mtime_ns) for file in folder.rglob("*"))

    def test_refuted(self, verify, check, waypoints, tmp_path):
        spoiled = {name: value + 0.5 * (name == "fc2.weight") for name, value in waypoints[2].items()}
        spoiled["fc2.weight"][3] -= 5
        folder = write_run(tmp_path / "run", [*waypoints[:2], spoiled, *waypoints[3:]])
        certificate = verify(folder)
        confirmation = check(folder)
        assert (confirmation.verdict, confirmation.connected) == ("refuted", False)
        assert f"its witness has the loss {certificate.witness.loss:.4g} again" in confirmation.text
        low = {**certificate.as_dict(), "witness": {**certificate.as_dict()["witness"], "waypoint": 0, "fraction": 0.0}}
        with pytest.raises(LLPFError, match="the witness does not refute the path"):
            check(folder, low)

    def test_sampled(self, waypoints, tmp_path, digits):
        data = tuple(torch.cat([part] * 4) for part in digits.train)
        folder = write_run(tmp_path / "run", waypoints, data=data)
        given = {"model": build_model("mlp", hidden=32), "train": data}
        verify_run(folder, **given, level="sampled", workers=1)
        confirmation = check_certificate(folder, **given)
        assert (confirmation.verdict, confirmation.connected) == ("sampled", True)
        assert "pieces have at most 0." in confirmation.text

    def test_undecided(self, verify, check, waypoints, tmp_path):
        folder = write_run(tmp_path / "run", waypoints)
        verify(folder, limits=Limits(evaluations=1))
        confirmation = check(folder)
        assert (confirmation.verdict, confirmation.connected) == ("undecided", False)

    def test_half_a_path(self, verify, check, waypoints, tmp_path):
        folder = write_run(tmp_path / "run", waypoints[:-1], finished=False, destination=waypoints[-1])
        verify(folder)
        assert "not connected (proved)" in check(folder).text
        edited = {**json.loads((folder / "certificate.json").read_text()), "connected": True, "reasons": []}
        with pytest.raises(LLPFError, match="says connected, but the destination is not reached"):
            check(folder, edited)

    def test_other_files(self, verify, check, waypoints, tmp_path, digits):
        folder = write_run(tmp_path / "run", waypoints)
        verify(folder)
        inputs, targets = digits.train
        with pytest.raises(LLPFError, match=r"the training data of .* is not what the certificate is about"):
            check(folder, train=(inputs + 0.01, targets))
        with pytest.raises(LLPFError, match="the loss of"):
            check(folder, loss_fn=nn.CrossEntropyLoss(label_smoothing=0.1))
        other = write_run(tmp_path / "other", [waypoints[0], *waypoints[2:]])
        with pytest.raises(LLPFError, match="the list of waypoint files of"):
            check(other, folder / "certificate.json")
        with pytest.raises(LLPFError, match=r"nothing\.json is missing"):
            check(folder, tmp_path / "nothing.json")
        edit(folder, lambda run: run["settings"].update(threshold=0.2))
        with pytest.raises(LLPFError, match=r"run\.yaml of"):
            check(folder)
        file = folder / "waypoints" / "000003.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\1")
        with pytest.raises(LLPFError, match=r"000003\.safetensors"):
            check(folder)

    def test_an_edited_certificate(self, verify, check, waypoints, tmp_path):
        folder = write_run(tmp_path / "run", waypoints)
        content = verify(folder).as_dict()
        pieces = content["pieces"]
        edits = {
            "contradicts itself": {"verdict": "undecided"},
            "do not cover the segment after waypoint 1": {"pieces": [p for p in pieces if p[0] != 1]},
            "do not cover the segment after waypoint 0": {"pieces": [*pieces, pieces[0]]},
            "is above its threshold": {"threshold": 0.01},
            "damaged": {"pieces": [[1]]},
            "no proof": {"threshold": 0.02, "pieces": [[*p[:3], 0.01, 0.01, None] for p in pieces]},
        }
        for message, edit in edits.items():
            with pytest.raises(LLPFError, match=message):
                check(folder, {**content, **edit})
