"""What a certificate says."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["connected", "not connected", "undecided"]


@dataclass(frozen=True)
class Place:
    """Where on a path: ``fraction`` of the way from waypoint ``waypoint`` to the next; ``arc`` is the share (0..1) of
    the polyline's length that lies before it."""

    waypoint: int
    fraction: float
    arc: float

    def __str__(self) -> str:
        return f"waypoint {self.waypoint}" + (f" + {self.fraction:g}" if self.fraction else "")


@dataclass(frozen=True)
class PathPoint:
    """One evaluated point. Losses are means; NaN where they came out so. None where it was not evaluated.

    ``train_samples`` tells on how many samples ``train_loss`` rests, ``standard_error`` is that of ``train_loss`` and
    None where all samples were evaluated. ``screened_loss`` is the subset's value where the full set's followed.
    """

    at: Place
    train_loss: float
    train_samples: int
    standard_error: float | None = None
    screened_loss: float | None = None
    train_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None


@dataclass(frozen=True)
class LinePoint:
    """A point of the straight line between the endpoints, for comparison; the verdict does not look at it."""

    fraction: float
    train_loss: float
    train_accuracy: float | None = None
    test_loss: float | None = None
    test_accuracy: float | None = None


@dataclass(frozen=True)
class Certificate:
    """The verdict over a polyline, and everything it rests on.

    ``verdict`` is "connected" where the loss on the training set is finite and at most ``threshold`` at every
    evaluated point, on all samples where those were evaluated and clearly below it on the screening subset elsewhere;
    where no gap between evaluated points may exceed the threshold, estimated from the curvature; and where
    (``verify_run``) the polyline leads from the run's start to its destination. It is "not connected" where one of
    these is known not to hold: ``reasons`` says which. Else it is "undecided": ``undecided`` says what is open, and
    what would settle it. ``connected`` is true where both lists are empty. What lies between evaluated points is
    estimated, not proved; ``resolution`` says how close they are, and the ``seed`` of their random places.

    ``differs`` says in what the data, the loss or the settings are not those of the search; ``notes`` what else a
    reader should know. Neither changes the verdict.

    Losses are means over samples; ``lengths`` are L2: ``arc`` and ``straight`` of the parameters, in their units, and
    ``buffers_arc`` and ``buffers_straight`` of all other tensors; accuracies are 0..1. ``max_loss`` is NaN or infinite
    where a loss is. ``max_loss_standard_error`` is None where ``max_loss`` is over all samples.
    """

    connected: bool
    verdict: Verdict
    reasons: list[str]
    undecided: list[str]
    threshold: float
    max_loss: float
    max_loss_at: Place
    max_loss_standard_error: float | None
    start_loss: float
    destination_loss: float
    min_test_accuracy: float | None
    min_test_accuracy_at: Place | None
    max_test_loss: float | None
    points_evaluated: int
    points_evaluated_on_test: int
    waypoints: int
    segments: int
    resolution: dict[str, Any]
    lengths: dict[str, float]
    evaluation: dict[str, Any]
    environment: dict[str, Any]
    run: dict[str, Any] = field(default_factory=dict)
    points: list[PathPoint] = field(default_factory=list)
    straight_line: list[LinePoint] = field(default_factory=list)
    waypoint_sha256: list[str | None] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, as written to certificate.json."""
        return asdict(self)
