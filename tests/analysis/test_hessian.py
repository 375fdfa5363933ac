"""Hessian products, eigenvalue, trace and one-step sharpness against whole matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llpf_fast.analysis.hessian import Hessian, sam_one_step, top_eigenvalue, trace
from llpf_fast.analysis.vector_loss import VectorLoss
from llpf_fast.errors import LLPFError


class Quadratic(nn.Module):
    """Output w.A w / 2 for each sample, whatever the input: as a loss it has the Hessian A."""

    def __init__(self, matrix: Tensor, at: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(at.clone())
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return (self.w @ self.get_buffer("matrix") @ self.w / 2).expand(len(x))


def mean_output(output: Tensor, target: Tensor) -> Tensor:
    return output.mean()


def tiny() -> tuple[Hessian, Tensor]:
    """A small network in float64, data in unequal batches, and its Hessian by torch.autograd."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    inputs, targets = torch.randn(23, 3, dtype=torch.float64), torch.randint(0, 3, (23,))
    network = VectorLoss(module, F.cross_entropy, dtype=torch.float64)
    vector = network.pack(module.state_dict())
    batches = list(zip(inputs.split(10), targets.split(10), strict=True))
    whole = torch.autograd.functional.hessian(lambda v: network.loss(v, inputs, targets), vector)
    return Hessian(network, vector, batches), whole


def quadratic(matrix: Tensor, at: Tensor) -> Hessian:
    network = VectorLoss(Quadratic(matrix, at), mean_output, dtype=torch.float64)
    return Hessian(network, at, [(torch.zeros(4, 1), torch.zeros(4)), (torch.zeros(2, 1), torch.zeros(2))])


def test_products_loss_and_gradient_are_those_of_the_whole_set() -> None:
    hessian, whole = tiny()
    direction = torch.randn(hessian.size, dtype=torch.float64)
    assert torch.allclose(hessian @ direction, whole @ direction, rtol=1e-10, atol=1e-12)
    step = 1e-6 * direction
    rise = hessian.loss(step) - hessian.loss(-step)
    assert float(2 * hessian.gradient() @ step) == pytest.approx(rise, rel=1e-6)


def test_top_eigenvalue_and_trace_against_the_full_hessian() -> None:
    hessian, whole = tiny()
    assert top_eigenvalue(hessian, tolerance=1e-8) == pytest.approx(float(torch.linalg.eigvalsh(whole)[-1]), rel=1e-7)
    estimate = trace(hessian, probes=400)
    assert abs(estimate.mean - float(whole.trace())) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.1 * float(whole.trace())
    # The error that is reported is the one that estimates of other probes scatter by.
    scatter = torch.tensor([trace(hessian, probes=25, seed=seed).mean for seed in range(40)]).std()
    assert trace(hessian, probes=25).standard_error == pytest.approx(float(scatter), rel=0.5)


def test_the_top_eigenvalue_is_the_highest_not_the_largest_in_size() -> None:
    matrix = torch.diag(torch.tensor([-9.0, -1.0, 0.5, 2.0, 0.0, 1.0], dtype=torch.float64))
    at = torch.ones(6, dtype=torch.float64)
    assert top_eigenvalue(quadratic(matrix, at)) == pytest.approx(2.0, rel=1e-3)
    estimate = trace(quadratic(matrix, at), probes=2)
    # Random signs give a diagonal matrix's trace exactly.
    assert estimate.mean == pytest.approx(-6.5, abs=1e-12)
    assert estimate.standard_error == pytest.approx(0.0, abs=1e-12)


def test_small_and_flat_hessians() -> None:
    one = torch.tensor([[3.0]], dtype=torch.float64)
    assert top_eigenvalue(quadratic(one, torch.ones(1, dtype=torch.float64))) == pytest.approx(3.0)
    assert top_eigenvalue(quadratic(torch.zeros(5, 5).double(), torch.ones(5).double())) == 0.0


def test_a_hessian_that_is_not_finite_gives_nan() -> None:
    hessian, _ = tiny()
    broken = Hessian(hessian._network, hessian._vector * math.inf, hessian._samples)
    assert math.isnan(top_eigenvalue(broken))


def test_one_step_sharpness_is_known_on_a_quadratic() -> None:
    matrix = torch.diag(torch.tensor([1.0, 4.0], dtype=torch.float64))
    at = torch.tensor([1.0, 1.0], dtype=torch.float64)
    slope = matrix @ at
    unit = slope / slope.norm()
    rho = 0.3
    expected = rho * float(slope.norm()) + rho**2 / 2 * float(unit @ matrix @ unit)
    assert sam_one_step(quadratic(matrix, at), rho) == pytest.approx(expected, rel=1e-12)
    assert sam_one_step(quadratic(matrix, torch.zeros(2).double()), rho) == 0.0


def test_settings_that_cannot_work_are_refused() -> None:
    hessian, _ = tiny()
    with pytest.raises(LLPFError, match="at least 2 probes"):
        trace(hessian, probes=1)
    for rho in (0.0, -1.0, math.nan):
        with pytest.raises(LLPFError, match="rho"):
            sam_one_step(hessian, rho)
    crowded = torch.diag(torch.linspace(0.99, 1.0, 400, dtype=torch.float64))
    with pytest.raises(LLPFError, match="has not converged"):
        top_eigenvalue(quadratic(crowded, torch.ones(400).double()), tolerance=1e-14, most=1)
    with pytest.raises(LLPFError, match="empty"):
        Hessian(hessian._network, hessian._vector, [])
