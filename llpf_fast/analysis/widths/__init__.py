"""Radial widths of low-loss regions, and what they depend on."""

from .directions import LAWS, DirectionLaw, filter_normalised, random_direction
from .measure import PathWidth, PointWidth, WidthSettings, measure_along_path, measure_width, measure_widths
from .radial import RadialRule, RadialWidth, radial_width
from .sweep import AXES, MEASURES, Cell, WidthSweep, width_sweep
from .training import Trained, Training, train_network

__all__ = [
    "AXES",
    "LAWS",
    "MEASURES",
    "Cell",
    "DirectionLaw",
    "PathWidth",
    "PointWidth",
    "RadialRule",
    "RadialWidth",
    "Trained",
    "Training",
    "WidthSettings",
    "WidthSweep",
    "filter_normalised",
    "measure_along_path",
    "measure_width",
    "measure_widths",
    "radial_width",
    "random_direction",
    "train_network",
    "width_sweep",
]
