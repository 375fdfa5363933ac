"""The modes of a search, one row each: where it goes, what it needs, its texts. It imports nothing of the package."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal


class Destination(IntEnum):
    """Where a tick moves to. Every kind but POINT is a formula of the current values and needs no tensor ``d``.

    ``csrc/core/coefficients.h`` has the same values, held by ``tests/ops/test_flags.py``;
    ``kernels/constants.py`` takes them from here.
    """

    POINT = 0
    ORIGIN = 1
    INFINITY = 2
    MEAN = 3
    VARIANCE_SPHERE = 4
    NORM_SPHERE = 5


#: What a tick does with normalization layers; see ``LayerSettings.normalization``.
NormName = Literal["move", "keep", "compensate", "compensate-twice"]


@dataclass(frozen=True)
class Mode:
    """One mode. What settings leave null is taken from here.

    Attributes:
        destination: the formula of a tick.
        goal: what ends the path: another model, spheres (given by a model or by numbers), or nothing.
        projects: layers are put back on their variance spheres after each move.
        lr_rule: of the correction's learning rates, where layers change their size on purpose ("var").
        paper, authors: what normalization layers do in either dialect.
        authors_layer_norm: what LayerNorm does in the authors' programs.
        text: where it goes, for README.
        title: the same, for a report's heading.
        distance: what is recorded as a layer's distance, for the axis of a figure.
    """

    destination: Destination
    goal: Literal["model", "sphere", "none"]
    text: str
    title: str
    distance: str
    projects: bool = False
    lr_rule: Literal["none", "var"] = "none"
    paper: NormName = "move"
    authors: NormName = "move"
    authors_layer_norm: NormName = "move"


MODES: dict[str, Mode] = {
    "m2m": Mode(
        Destination.POINT,
        "model",
        "to another model, on the variance spheres of the start",
        "from model to model",
        "distance to the destination",
        projects=True,
    ),
    "m2o": Mode(
        Destination.ORIGIN,
        "none",
        "toward the origin",
        "from the model toward the origin",
        "distance to the origin",
        lr_rule="var",
        authors="keep",
        authors_layer_norm="compensate",
    ),
    "m2o-o": Mode(
        Destination.ORIGIN,
        "none",
        "toward the origin without normalization layers",
        "from the model toward the origin, without normalization layers",
        "distance to the origin",
        lr_rule="var",
        paper="keep",
        authors="keep",
        authors_layer_norm="keep",
    ),
    "infinity": Mode(
        Destination.INFINITY,
        "none",
        "away from the origin",
        "away from the origin",
        "norm",
        lr_rule="var",
        paper="keep",
        authors="keep",
        authors_layer_norm="compensate",
    ),
    "mean": Mode(
        Destination.MEAN,
        "none",
        "toward each tensor's own mean",
        "toward each tensor's mean",
        "distance to the mean",
        lr_rule="var",
        paper="keep",
        authors="keep",
        authors_layer_norm="compensate",
    ),
    "variance-sphere": Mode(
        Destination.VARIANCE_SPHERE,
        "sphere",
        "onto variance spheres about the mean, given by a model or by numbers",
        "onto variance spheres",
        "distance to the sphere",
    ),
    "norm-sphere": Mode(
        Destination.NORM_SPHERE,
        "sphere",
        "onto L2 spheres about the origin, given by a model or by numbers",
        "onto L2 spheres",
        "distance to the sphere",
    ),
}
