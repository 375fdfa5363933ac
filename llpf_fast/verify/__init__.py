"""Evaluation of points, and the certificate of a polyline. Knows nothing of how a path was found."""

from .certificate import certify
from .evaluate import Evaluation, Evaluator
from .records import Certificate, LinePoint, PathPoint, Place
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
