"""Evaluation of points, and the certificate of a polyline: from files and data alone, without the search."""

from .arc_length import PathLocation
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
    "PathLocation",
    "PathPoint",
    "Refinement",
    "certify",
    "verify_run",
]
