"""``lower_path``: the path of a run trained as a whole; its files, its resumption, and what it refuses."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llpf_fast import LLPFError, lower_path, open_path
from llpf_fast.batches.statistics import STATISTICS_SIZE
from llpf_fast.find import LowerSettings, PathLowering
from llpf_fast.find.curve import Bezier, PolyChain, fitted, point, redistribute
from llpf_fast.find.curve_training import PARTS, CurveTrainer
from llpf_fast.find.lower import search_settings
from llpf_fast.flat import FlatParameters
from llpf_fast.path import RunDirectory

from .conftest import eval_loss, network, quick
from .test_resume import equal


@pytest.fixture(scope="module")
def run(endpoints, digits, tmp_path_factory) -> Path:
    """A complete run between two networks with BatchNorm."""
    from llpf_fast.find import PathFinder

    out = tmp_path_factory.mktemp("lower") / "run"
    finder = PathFinder(network(), *endpoints, settings=quick(), train=digits, out=out)
    assert finder.run().arrived
    return out


def peak(folder: Path, data: Any) -> float:
    """The highest loss on the waypoints and between them, statistics as they are stored."""
    path = open_path(folder)
    count = 4 * (len(path) - 1)
    losses = [eval_loss(path.interpolate(i / 4), data) for i in range(count + 1)]
    return max(losses)


def lower(run: Path, out: Path, data: Any, **changes: Any) -> Path:
    lower_path(network(), run, data=data, out=out, **{"steps": 300, **changes})
    return out


@pytest.mark.parametrize("changes", [{}, {"bends": 3, "lr": 0.03}, {"curve": "polygon"}], ids=str)
def test_the_path_gets_lower_and_its_ends_keep_every_bit(run, digits, endpoints, tmp_path, changes) -> None:
    out = lower(run, tmp_path / "lowered", digits, **changes)
    before, after = open_path(run), open_path(out)
    assert peak(out, digits) < 0.7 * peak(run, digits)
    for index in (0, -1):
        assert all(torch.equal(after[index][name], value) for name, value in before[index].items())
    after.directory.check()
    assert after.directory.arrived
    status = after.directory.status or {}
    assert status["sgd_steps"] == (before.directory.status or {})["sgd_steps"] + 300
    assert after.run["provenance"]["lowered_index_sha256"] == before.directory.index_digest()


def test_statistics_of_inner_waypoints_are_those_of_their_own_activations(run, digits, tmp_path) -> None:
    path = open_path(lower(run, tmp_path / "lowered", digits))
    assert path.run["settings"]["statistics"] == "reestimated"
    assert len(digits[0]) < STATISTICS_SIZE  # so all samples count, in batches of 125
    module = network()
    module.load_state_dict(path[5])
    used = digits[0][: len(digits[0]) // 125 * 125]
    with torch.no_grad():
        mean = module[0](used).mean(0)
    assert torch.allclose(module[1].running_mean, mean, atol=1e-4)


def test_the_precision_of_the_search_is_used(run, digits, tmp_path) -> None:
    half = tmp_path / "half"
    shutil.copytree(run, half)
    text = (half / "run.yaml").read_text()
    (half / "run.yaml").write_text(text.replace("precision: float32", "precision: bfloat16"))
    one = open_path(lower(run, tmp_path / "a", digits, steps=100))
    other = open_path(lower(half, tmp_path / "b", digits, steps=100))
    assert search_settings(other.directory).correction.precision == "bfloat16"
    difference = float((one[5]["0.weight"] - other[5]["0.weight"]).norm() / one[5]["0.weight"].norm())
    assert 1e-4 < difference < 0.1
    assert other[5]["0.weight"].dtype == torch.float32


def make(run: Path, out: Path, data: Any, *, resume: bool = False, loss_fn: Any = None, **changes: Any) -> PathLowering:
    settings = LowerSettings(**{"steps": 300, **changes})
    return PathLowering(network(), run, settings=settings, train=data, out=out, resume=resume, loss_fn=loss_fn)


def test_momentum_of_zero_needs_no_memory_for_it(run, digits, tmp_path) -> None:
    plain, usual = (make(run, tmp_path / str(m), digits, steps=60, momentum=m, lr=0.3) for m in (0.0, 0.9))
    assert plain.memory_bytes == usual.memory_bytes - plain._flat.data.nbytes
    assert plain.run().loss < 1


def test_it_ends_as_soon_as_it_is_low_enough(run, digits, tmp_path) -> None:
    result = make(run, tmp_path / "a", digits, steps=2000, to=0.1).run()
    assert result.low_enough
    assert result.steps < 1000
    assert search_settings(RunDirectory.open(tmp_path / "a")).threshold == 0.1
    result = make(run, tmp_path / "b", digits, steps=40, to=1e-6).run()
    assert not result.low_enough
    assert result.steps == 40


def test_what_is_screened_is_the_polyline_that_is_written(run, digits, tmp_path) -> None:
    straight, bent = (make(run, tmp_path / str(n), digits, waypoints=n).run() for n in (2, 17))
    assert (straight.waypoints, bent.waypoints) == (2, 17)
    assert straight.loss > 3 * bent.loss


KILLED = """
import sys, torch
torch.set_num_threads(1)
from tests.find.conftest import network
from llpf_fast import lower_path
data = torch.load(sys.argv[1])
model = torch.nn.Sequential(*network(), torch.nn.Dropout(0.2))
for line in sys.stdin:
    out, resume, changes = line.strip().split("\\t")
    lower_path(model, sys.argv[2], data=data, out=out, resume=resume == "resume", steps=500, **eval(changes),
               progress=lambda done, steps, text: print("at", done, flush=True))
    print("ended", 0, flush=True)
"""


@pytest.mark.parametrize("changes", [{}, {"curve": "polygon", "bends": 3, "lr": 0.02}], ids=str)
def test_killed_and_resumed_equals_uninterrupted(run, digits, tmp_path, changes) -> None:
    torch.save(digits, tmp_path / "data.pt")
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(tmp_path / "data.pt"), str(run)]

    def start() -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        return subprocess.Popen(command, text=True, env=environment, cwd=root, **pipes)

    def order(process: subprocess.Popen[str], out: str, resume: str, until: str) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{tmp_path / out}\t{resume}\t{changes!r}\n")
        process.stdin.flush()
        for line in process.stdout:
            if line.strip() == until:
                return
        raise AssertionError(f"never printed {until!r}")

    process = start()
    order(process, "whole", "new", "ended 0")
    order(process, "killed", "new", "at 340")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not RunDirectory.open(tmp_path / "killed").complete
    process = start()
    order(process, "killed", "resume", "ended 0")
    process.communicate()
    equal(tmp_path / "killed", tmp_path / "whole")


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_anew(run, digits, tmp_path) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    def stop(*_: Any) -> None:
        raise Stop

    with pytest.raises(Stop):
        make(run, tmp_path / "out", digits, steps=60).run(stop)
    make(run, tmp_path / "out", digits, steps=60, resume=True).run()
    lower(run, tmp_path / "whole", digits, steps=60)
    equal(tmp_path / "out", tmp_path / "whole")


def test_what_is_refused(run, digits, finder, tmp_path) -> None:
    unfinished = finder(tmp_path / "unfinished")
    with pytest.raises(LLPFError, match="is not finished"):
        lower(tmp_path / "unfinished", tmp_path / "out", digits)
    del unfinished
    with pytest.raises(LLPFError, match="training data differ"):
        lower(run, tmp_path / "out", (digits[0] + 0.5, digits[1]))
    with pytest.raises(LLPFError, match=r"cannot lower .* its loss is cross_entropy"):
        make(run, tmp_path / "out", digits, loss_fn=lambda output, target: output.square().mean())
    with pytest.raises(LLPFError, match=r"needs lower\.curve: polygon"):
        lower(run, tmp_path / "out", digits, spheres=True)
    with pytest.raises(LLPFError, match=r"lower\.steps must be positive|lower\.steps"):
        lower(run, tmp_path / "out", digits, steps=0)
    with pytest.raises(LLPFError, match="set a learning rate below"):
        lower(run, tmp_path / "diverged", digits, lr=1e30)
    make(run, tmp_path / "made", digits)
    with pytest.raises(LLPFError, match="its settings differ"):
        make(run, tmp_path / "made", digits, steps=301, resume=True)
    lower(run, tmp_path / "other", digits, steps=20)
    with pytest.raises(LLPFError, match="does not come from the path"):
        make(tmp_path / "other", tmp_path / "made", digits, resume=True)


def test_pivots_stay_on_the_spheres_of_the_search(run, digits, endpoints, tmp_path) -> None:
    path = open_path(lower(run, tmp_path / "out", digits, curve="polygon", bends=3, spheres=True, steps=60))
    free = open_path(lower(run, tmp_path / "free", digits, curve="polygon", bends=3, steps=60))
    for name in ("0.weight", "3.weight", "5.weight"):
        start = endpoints[0][name].var()
        assert torch.allclose(path[2][name].var(), start, rtol=1e-4)
        assert not torch.allclose(free[2][name].var(), start, rtol=1e-4)


# One trainer on a loss whose gradient is known


def trainer(curve: Any, nodes: torch.Tensor, **changes: Any) -> CurveTrainer:
    module = nn.Linear(3, 1, bias=False)
    flat = FlatParameters(module)
    options = {"steps": 1000, "lr": 0.1, "momentum": 0.0, "favor": 0.0, "first_round": 0, "seed": 0}

    class Batches:
        def batch(self, round_: int) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.eye(3), torch.zeros(3, 1)

    def loss(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (module(inputs) - targets).square().sum() / 2

    padded = torch.zeros(len(nodes), flat.table.numel)
    padded[:, :3] = nodes
    return CurveTrainer(flat, loss, Batches(), curve, padded, precision="float32", **{**options, **changes})  # type: ignore[arg-type]


def test_a_step_moves_every_node_by_its_weight_times_the_gradient() -> None:
    nodes = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [1.0, 0, 0]])  # sides of one length: they stay
    for curve in (PolyChain(2), Bezier(2)):
        training = trainer(curve, nodes)
        before = training.nodes.clone()
        training._lengths = training._measure()
        t = training._draw()
        training.step()
        # The gradient of |theta|^2 / 2 is theta.
        theta = point(curve, before, t)
        assert torch.allclose(training._flat.data, theta, atol=1e-6)
        for node, weight in ((1, curve.weights(t)[1]), (2, curve.weights(t)[2])):
            assert weight > 0.01
            assert torch.allclose(before[node] - training.nodes[node], 0.1 * weight * theta, atol=1e-6)
        assert torch.equal(training.nodes[[0, -1]], before[[0, -1]])


def test_points_are_drawn_evenly_in_length_or_where_the_loss_is_high() -> None:
    nodes = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [4.0, 0, 0]])
    training = trainer(PolyChain(1), nodes)
    training._lengths = training._measure()
    drawn = []
    for training.done in range(4000):
        drawn.append(training._draw())
    # Three quarters of the length are behind the pivot, at t = 1/2.
    assert sum(t > 0.5 for t in drawn) / 4000 == pytest.approx(0.75, abs=0.01)
    training._favor = 2.0
    training.losses = [1.0] * (PARTS // 2) + [3.0] * (PARTS // 2)
    drawn = []
    for training.done in range(4000):
        drawn.append(training._draw())
    assert sum(t > 0.5 for t in drawn) / 4000 == pytest.approx(27 / 28, abs=0.01)


def test_a_polygon_stays_even_and_a_pivot_in_its_place_keeps_every_bit() -> None:
    nodes = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [2.0, 1.0, 0], [3.0, 0, 0]])
    training = trainer(PolyChain(2), nodes, momentum=0.9)
    training._make_even()
    sides = (training.nodes[1:] - training.nodes[:-1]).norm(dim=1)
    assert float(sides.max() / sides.min()) < 1.35 < float(2**0.5)
    even = torch.tensor([[0.1, 0, 0], [1.3, 0, 0], [2.5, 0, 0]])
    (same,) = redistribute(even, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert torch.equal(same[[0, -1]], even[[0, -1]])
    exact = torch.tensor([[0.0, 0, 0], [1.0, 0, 0], [2.0, 0, 0]])
    nodes, momentum = redistribute(exact, torch.tensor([0.5, 0.5], dtype=torch.float64), exact * 3)
    assert torch.equal(nodes, exact)
    assert torch.equal(momentum, exact * 3)


@pytest.mark.parametrize("curve", [Bezier(1), Bezier(3)])
def test_a_curve_is_fitted_to_its_own_points(curve: Bezier) -> None:
    nodes = torch.randn(curve.nodes, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = [point(curve, nodes, i / 40) for i in range(41)]
    assert torch.allclose(fitted(curve, iter(points), 41), nodes, atol=1e-8)
