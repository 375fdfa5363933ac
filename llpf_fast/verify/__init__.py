"""Evaluation of points, and the certificate of a polyline: from files and data alone, without the search."""

from .arc_length import PathLocation
from .certificate import Certificate, certify
from .check import Confirmation, check_certificate
from .coverage import Coverage, Piece
from .enclosure.bisection import Limits
from .evaluator import Evaluation, Evaluator
from .pictures import LinePoint, PathPoint
from .run import verify_run
from .verdict import Witness

__all__ = [
    "Certificate",
    "Confirmation",
    "Coverage",
    "Evaluation",
    "Evaluator",
    "Limits",
    "LinePoint",
    "PathLocation",
    "PathPoint",
    "Piece",
    "Witness",
    "certify",
    "check_certificate",
    "verify_run",
]
