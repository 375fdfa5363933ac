"""Evaluation of points, and the certificate of a polyline. Knows nothing of how a path was found."""

from .arc_length import Place
from .certificate import Certificate, certify
from .evaluator import Evaluation, Evaluator
from .path_sampler import LinePoint, PathPoint
from .refinement import Refinement
from .run import verify_run

__all__ = [
    "Certificate",
    "Evaluation",
    "Evaluator",
    "LinePoint",
    "PathPoint",
    "Place",
    "Refinement",
    "certify",
    "verify_run",
]
