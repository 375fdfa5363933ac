"""A connector judged on a problem's data."""

from __future__ import annotations

from typing import Any

from ...batches.fixed_samples import held_count
from ..problem import Problem
from .certificate import ComplexCertificate, Progress, certify_complex
from .connector import Connector


def certify_connector(
    problem: Problem, connector: Connector, *, threshold: float, progress: Progress | None = None, **options: Any
) -> ComplexCertificate:
    """Certify ``connector`` on the training set of ``problem`` and keep the certificate in it.

    All points are measured on ``problem.samples("train")``; where that is a subset, the worst points and those near the
    threshold on all training samples. BatchNorm statistics are re-estimated at every point: interpolated ones belong to
    no network. ``options``: see :func:`certify_complex`.
    """
    statistics = problem.statistics[-1]
    full = None
    if held_count(problem.measured) < held_count(problem.train):
        full = problem.like(samples=0).evaluator("train", statistics=statistics)
    connector.certificate = certify_complex(
        connector.vertices,
        connector.complex.simplices,
        problem.evaluator("train", statistics=statistics),
        None if problem.test is None else problem.evaluator("test", statistics=statistics),
        threshold=threshold,
        full_train=full,
        progress=progress,
        **options,
    )
    return connector.certificate
