"""Enclosures: bounds of a network's loss at all points of a piece of a path, by affine forms."""

from .form import AffineForm, NotEnclosedError
from .loss_enclosure import Bounds, LossEnclosure

__all__ = ["AffineForm", "Bounds", "LossEnclosure", "NotEnclosedError"]
