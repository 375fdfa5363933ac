"""Principal components by the Gram matrix: against scikit-learn's, whatever the blocks; what cannot be drawn."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from llpf_fast.analysis.pca import principal_components
from llpf_fast.analysis.trajectory import Piece, Trajectory, distinct_names, pieces
from llpf_fast.errors import LLPFError
from llpf_fast.path import RunDirectory


def state(generator, scale=1.0):
    def draw(*shape):
        return scale * torch.randn(shape, generator=generator)

    return {
        "a.weight": draw(7, 3),
        "a.bias": draw(7),
        "norm.weight": draw(7),
        "norm.running_mean": 100 * draw(7),
        "norm.num_batches_tracked": torch.tensor(3),
        "b.weight": draw(2, 7, 1),
        "scale": draw(),
    }


def make_run(folder, count, seed=0, edit=lambda number, value: value):
    generator = torch.Generator().manual_seed(seed)
    run = RunDirectory.create(folder, {})
    base, way = state(generator), state(generator)
    for number in range(count):
        noise = state(generator, 0.1)
        point = {k: v if v.dtype == torch.int64 else v + number * way[k] + noise[k] for k, v in base.items()}
        run.add_waypoint(number, edit(number, point))
    return folder


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / "one", 6), make_run(tmp_path / "two", 4, seed=1)]


PARAMETERS = ("a.weight", "a.bias", "norm.weight", "b.weight", "scale")


def matrix(runs, names=PARAMETERS):
    states = [waypoint.load() for run in runs for waypoint in RunDirectory.open(run).waypoints()]
    return np.stack([np.concatenate([s[name].double().numpy().ravel() for name in names]) for s in states])


def same_up_to_sign(actual, expected):
    signs = np.sign((actual * expected).sum(axis=0))
    np.testing.assert_allclose(actual * signs, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("memory", [1, 1000, 10**6])
def test_agrees_with_scikit_learn(runs, memory):
    components = principal_components(runs, components=3, per_layer=True, memory=memory)
    for part, names in [(components.whole, PARAMETERS), (components.layers["a"], ("a.weight", "a.bias"))]:
        x = matrix(runs, names)
        expected = PCA(3, svd_solver="full").fit(x)
        coordinates = expected.transform(x)
        same_up_to_sign(np.concatenate(part.coordinates), coordinates)
        np.testing.assert_allclose(part.explained, expected.explained_variance_ratio_, rtol=1e-9)
        away = np.linalg.norm(x - x.mean(axis=0) - coordinates @ expected.components_, axis=1)
        np.testing.assert_allclose(np.concatenate(part.hidden), away, atol=1e-6)
        assert part.deviation == pytest.approx(np.sqrt(np.square(x - x.mean(axis=0)).sum(axis=1).mean()))
    assert [len(part) for part in components.whole.coordinates] == [6, 4]
    assert list(components.layers) == ["a", "b", "norm", "scale"]


def test_signs_make_paths_go_forward(runs):
    for order in (runs, runs[::-1]):
        first = principal_components(order, components=2).whole.coordinates[0]
        assert (first[-1] > first[0]).all()


def test_fewer_directions_than_components(tmp_path):
    run = make_run(tmp_path / "run", 2)
    components = principal_components([run], components=3).whole
    np.testing.assert_allclose(components.explained, [1, 0, 0], atol=1e-12)
    assert np.abs(components.coordinates[0][:, 1:]).max() < 1e-9


def test_a_layer_that_stands_still(tmp_path):
    fixed = torch.randn(7, 3)

    def hold(number, value):
        return {**value, "a.weight": fixed, "a.bias": torch.ones(7)}

    components = principal_components([make_run(tmp_path / "run", 4, edit=hold)], per_layer=True)
    assert not components.layers["a"].moves
    assert components.layers["b"].moves
    assert components.whole.moves


def test_pieces_cover_every_value_once_within_bounds():
    shapes = {"w": [5, 4], "long": [2, 50], "s": [], "b": [3]}
    for columns in (1, 4, 9, 33, 1000):
        groups = list(pieces(shapes, list(shapes), columns))
        read = [(p.name, row) for group in groups for p in group for row in range(p.start, p.stop)]
        assert sorted(read) == sorted((n, r) for n, s in shapes.items() for r in range(s[0] if s else 1))
        for group in groups:
            total = sum(piece.columns for piece in group)
            assert total <= columns or (len(group) == 1 and group[0].stop - group[0].start == 1)
    assert list(pieces(shapes, ["b"], 2)) == [[Piece("b", 0, 2, 2)], [Piece("b", 2, 3, 1)]]


def test_refusals(tmp_path, runs):
    with pytest.raises(LLPFError, match="name at least one"):
        principal_components([])
    with pytest.raises(LLPFError, match="not the folder of a run"):
        principal_components([tmp_path])
    with pytest.raises(LLPFError, match="one waypoint"):
        principal_components([make_run(tmp_path / "single", 1)])
    fixed = state(torch.Generator().manual_seed(3))
    with pytest.raises(LLPFError, match="same point"):
        principal_components([make_run(tmp_path / "still", 3, edit=lambda number, value: fixed)])
    other = make_run(tmp_path / "other", 2, edit=lambda number, value: {**value, "a.bias": torch.ones(8)})
    with pytest.raises(LLPFError, match=r"different architectures.*a\.bias"):
        principal_components([runs[0], other])
    nan = make_run(tmp_path / "nan", 3, edit=lambda n, v: {**v, "scale": torch.tensor(torch.nan)} if n == 1 else v)
    with pytest.raises(LLPFError, match=r"000001.*NaN"):
        principal_components([nan])
    with pytest.raises(LLPFError, match="components"):
        principal_components(runs, components=0)


def test_a_changed_file_is_not_drawn(runs):
    waypoint = RunDirectory.open(runs[0]).waypoints()[2]
    data = bytearray(waypoint.path.read_bytes())
    data[-1] ^= 1
    waypoint.path.write_bytes(bytes(data))
    with pytest.raises(LLPFError, match=r"000002\.safetensors was changed"):
        principal_components(runs)
    waypoint.path.unlink()
    with pytest.raises(LLPFError, match=r"000002\.safetensors is missing"):
        principal_components(runs)


def test_losses_come_from_the_certificate_of_these_files_else_from_the_log(tmp_path):
    folder = make_run(tmp_path / "run", 3)
    run = RunDirectory.open(folder)
    assert Trajectory(folder).losses()[0] == [None] * 3
    for tick in (1, 2):
        run.append_metrics({"tick": tick, "loss": tick / 10})
    assert Trajectory(folder).losses() == ([None, 0.1, 0.2], "training loss (as the search logged it)")
    points = [{"at": {"waypoint": i, "fraction": f}, "train_loss": i + f} for i in range(3) for f in (0.0, 0.5)]
    run.write_certificate({"points": points, "waypoint_sha256": [w.sha256 for w in run.waypoints()]})
    assert Trajectory(folder).losses() == ([0, 1, 2], "training loss (certificate)")
    run.write_certificate({"points": points, "waypoint_sha256": ["0" * 64] * 3})
    assert Trajectory(folder).losses()[0] == [None, 0.1, 0.2]


def test_names_differ():
    assert distinct_names(["a/x", "b/y/"]) == ["x", "y"]
    assert distinct_names(["a/x", "b/x"]) == ["a/x", "b/x"]
    assert len({*distinct_names(["a/x", "a/x"])}) == 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak memory from /proc")
def test_memory_stays_small_while_the_waypoints_are_large(tmp_path):
    """128 MB of waypoints (256 MB in float64) within 32 MB beside what the program itself takes."""
    run = RunDirectory.create(tmp_path / "run", {})
    value = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
    for number in range(32):
        run.add_waypoint(number, {"w": value if number else -value})
    code = """
import sys
from llpf_fast.analysis.pca import principal_components
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1024
def grown(memory):
    open("/proc/self/clear_refs", "w").write("5")
    before = peak()
    principal_components([sys.argv[1]], memory=memory)
    return peak() - before
grown(4 * 2**20)  # 6 to 16 MB for what the first call imports and allocates once
print(grown(4 * 2**20), grown(64 * 2**20), grown(512 * 2**20))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, check=True
    )
    small, middle, large = map(float, done.stdout.split())
    assert small < 32
    assert middle < 100, "two blocks at a time"
    assert large > 200, "the measurement would have missed a matrix that is in memory as a whole"
