"""What a report says of a run, read from its folder: whatever can be told, and plainly what cannot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...analysis.trajectory import is_of
from ...errors import LLPFError
from ...path import RunDirectory
from ..picture import span

#: "good" connected; "bad" not connected, or files that cannot be trusted; "open" not known.
Tone = Literal["good", "bad", "open"]
#: Losses in a certificate are printed numbers: this much is rounding.
_SAME = 1e-9

_MODES = {
    "m2m": "from model to model",
    "m2o": "from the model toward the origin",
    "m2o-o": "from the model toward the origin, without normalization layers",
    "infinity": "away from the origin",
    "mean": "toward each tensor's mean",
    "variance-sphere": "onto variance spheres",
    "norm-sphere": "onto L2 spheres",
}


@dataclass
class RunSummary:
    """One run.

    ``verdict`` is a few words, ``tone`` their colour, ``notes`` what a reader must know besides. ``certificate`` is
    None where there is none, or none that may be shown as this path's. ``sound`` says that the waypoint files are those
    that were recorded.
    """

    name: str
    run: RunDirectory
    verdict: str = ""
    tone: Tone = "open"
    notes: list[str] = field(default_factory=list)
    certificate: Mapping[str, Any] | None = None
    sound: bool = True
    waypoints: int = 0
    bytes: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)

    @property
    def short(self) -> str:
        """The verdict without its threshold, for a table that has a column for that."""
        return self.verdict.partition(" at ")[0]

    @property
    def subject(self) -> str:
        """Model, data and mode in words."""
        names = [str(self.settings[key]) for key in ("model", "data") if self.settings.get(key)]
        mode = _MODES.get(str(self.settings.get("mode")), str(self.settings.get("mode") or ""))
        return ", ".join(part for part in (" on ".join(names), mode) if part)


def summarize(name: str, run: RunDirectory) -> RunSummary:
    """Everything the report says of ``run``; trouble inside the folder becomes its verdict or a note, not an error."""
    story = RunSummary(name, run, settings=_mapping(run.run.get("settings")))
    _read_search(story)
    _check_files(story)
    _read_certificate(story)
    return story


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _read_search(story: RunSummary) -> None:
    try:
        story.status = dict(story.run.status or {})
    except LLPFError as error:
        story.notes.append(str(error))
    story.notes += map(str, story.status.get("notes") or ())
    try:
        story.metrics = story.run.metrics()
    except LLPFError as error:
        story.notes.append(f"What the search recorded cannot be shown: {error}")
    if not story.run.complete:
        ticks = len(story.metrics)
        story.notes.append(
            f"The search is not finished: it has recorded {ticks:,} ticks so far. llpf find --resume continues it."
        )


def _check_files(story: RunSummary) -> None:
    try:
        waypoints = story.run.waypoints()
        story.waypoints = len(waypoints)
        story.bytes = sum(waypoint.path.stat().st_size for waypoint in waypoints if waypoint.path.exists())
        if waypoints:
            story.run.check()
    except LLPFError as error:
        story.sound = False
        story.verdict, story.tone = "changed or damaged files", "bad"
        story.notes.insert(0, f"The files are not those of the search, so nothing below is proved of them: {error}")


def _read_certificate(story: RunSummary) -> None:
    if not story.sound:
        return
    if story.waypoints == 0:
        story.verdict = "no waypoints yet"
        return
    try:
        certificate = story.run.certificate()
        if certificate is not None:
            _complain(certificate)
    except LLPFError as error:
        story.verdict, story.tone = "certificate damaged", "bad"
        story.notes.insert(0, f"{error}. llpf verify {story.run.folder} makes a new one.")
        return
    if certificate is None:
        story.verdict = "not certified"
        story.notes.insert(
            0,
            "There is no certificate: the losses of the search are moving means over mini-batches and prove nothing of "
            f"what lies between the waypoints. llpf verify {story.run.folder} makes one.",
        )
        return
    if not is_of(certificate, [waypoint.sha256 for waypoint in story.run.waypoints()]):
        story.verdict = "certificate of another path"
        story.notes.insert(
            0,
            f"certificate.json judged {certificate['waypoints']:,} waypoints that are not the {story.waypoints:,} in "
            f"this folder, so it is not shown. llpf verify {story.run.folder} makes a new one.",
        )
        return
    story.certificate = certificate
    story.verdict = str(certificate["verdict"])
    story.tone = _TONES.get(story.verdict, "bad")
    story.verdict += f" at training loss {certificate['threshold']:g}"
    if certificate["connected"] and span(certificate) != "between the endpoints":
        story.notes.append(f"The certified line leads {span(certificate)}: there is no second network to arrive at.")


_TONES: dict[str, Literal["good", "bad", "open"]] = {"connected": "good", "undecided": "open"}


def _complain(certificate: Mapping[str, Any]) -> None:
    """LLPFError where a certificate lacks what every one has, or contradicts itself (an edited file, most likely)."""
    try:
        losses = [point["train_loss"] for point in certificate["points"]]
        for point in certificate["points"]:
            numbers = [point["at"][key] for key in ("arc", "waypoint", "fraction")]
            _insist(*numbers, *(point.get(key) for key in _POINT))
        for point in certificate["straight_line"]:
            _insist(point["fraction"], *(point.get(key) for key in _POINT))
        known = [float(loss) for loss in losses if loss is not None and math.isfinite(loss)]
        complete = len(known) == len(losses)
        threshold, stated = float(certificate["threshold"]), certificate["max_loss"]
        for key in ("evaluation", "resolution", "lengths", "environment", "run"):
            dict(certificate[key])
        _insist(*certificate["lengths"].values(), *(certificate.get(key) for key in _NUMBERS))
        train = _mapping(certificate["evaluation"].get("train"))
        _insist(*(train.get(key) for key in ("samples", "screening_samples", "points_on_all_samples")))
        _insist(*(certificate["resolution"].get(key) for key in ("widest_gap", "gaps_that_may_exceed")))
        int(certificate["waypoints"]), int(certificate["points_evaluated"])
        connected, reasons = bool(certificate["connected"]), [*certificate["reasons"], *certificate["undecided"]]
        if certificate["verdict"] not in ("connected", "not connected", "undecided"):
            raise TypeError("an unknown verdict")
        if not all(isinstance(reason, str) for reason in reasons):
            raise TypeError("a reason is no text")
        certificate_words(certificate)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LLPFError(
            f"certificate.json is damaged or not of this version ({type(error).__name__}: {error})"
        ) from error
    if complete and known and (stated is None or abs(max(known) - float(stated)) > _SAME * max(1.0, max(known))):
        raise LLPFError(f"certificate.json contradicts itself: its points reach {max(known):g}, it states {stated}")
    if connected and (not complete or max(known, default=0.0) > threshold or reasons):
        raise LLPFError("certificate.json contradicts itself: it says connected, its points or its reasons say not")
    if connected != (certificate["verdict"] == "connected"):
        raise LLPFError("certificate.json contradicts itself: its verdict and its 'connected' differ")


_POINT = ("train_loss", "train_samples", "test_loss", "test_accuracy")
_NUMBERS = (
    *("threshold", "max_loss", "max_loss_standard_error", "min_test_accuracy", "points_evaluated", "waypoints"),
)


def _insist(*values: Any) -> None:
    """TypeError where one is neither a number nor None: it would otherwise be formatted as one."""
    for value in values:
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise TypeError(f"{value!r} is not a number"[:80])


def key_numbers(story: RunSummary) -> list[tuple[str, str]]:
    """What the top of a run's section and the comparison's columns say."""
    certificate, status = story.certificate, story.status
    rows: list[tuple[str, str]] = []
    if certificate is not None:
        top = certificate["max_loss"]
        error = certificate.get("max_loss_standard_error")
        rows.append(("highest training loss", number(top) + (f" ± {number(error)}" if error else "")))
        rows.append(("threshold", number(certificate["threshold"])))
        if certificate.get("min_test_accuracy") is not None:
            rows.append(("lowest test accuracy", f"{100 * certificate['min_test_accuracy']:.2f} %"))
        straight = [point["train_loss"] for point in certificate["straight_line"]]
        finite = [value for value in straight if value is not None]
        if finite:
            highest = number(max(finite)) if len(finite) == len(straight) else "not finite"
            rows.append(("straight line's highest loss", highest))
        arc, chord = (certificate["lengths"].get(key) for key in ("arc", "straight"))
        if arc:
            ratio = f" ({arc / chord:.2f} × straight)" if chord else ""
            rows.append(("length", number(arc) + ratio))
        rows.append(("points measured", f"{certificate['points_evaluated']:,}"))
    rows.append(("waypoints", f"{story.waypoints:,}"))
    ticks = status.get("ticks", len(story.metrics) or None)
    steps = status.get("sgd_steps") or (story.metrics[-1].get("sgd_steps") if story.metrics else None)
    for label, value in (("ticks", ticks), ("gradient steps", steps)):
        if isinstance(value, (int, float)):
            rows.append((label, f"{value:,.0f}"))
    if isinstance(status.get("seconds"), (int, float)):
        rows.append(("search time", duration(status["seconds"])))
    return rows


def certificate_words(certificate: Mapping[str, Any]) -> list[str]:
    """What the verdict rests on, in sentences."""
    train = _mapping(certificate["evaluation"].get("train"))
    resolution = certificate["resolution"]
    points, waypoints = certificate["points_evaluated"], certificate["waypoints"]
    basis = f"Measured at {points:,} points on and between {waypoints:,} waypoints, in evaluation mode"
    if train.get("screened"):
        basis += (
            f": on {train['screening_samples']:,} training samples everywhere, on all {train['samples']:,} at "
            f"{train['points_on_all_samples']:,} of them"
        )
    elif train.get("samples"):
        basis += f", on all {train['samples']:,} training samples"
    said = [basis + "."]
    widest, doubtful = resolution.get("widest_gap"), resolution.get("gaps_that_may_exceed")
    if widest is not None and doubtful is not None:
        said.append(
            f"Neighbouring points are at most {100 * widest:.2g} % of the path's length apart. What lies between them "
            f"is not proved; estimated from its curvature, the loss may exceed the threshold in {doubtful:,} gaps."
        )
    statistics = certificate["evaluation"].get("batchnorm_statistics")
    if statistics == "reestimated":
        said.append("BatchNorm statistics were re-estimated from training data at every point.")
    if span(certificate) == "between the endpoints":
        said.append("The line leads from the start, bit for bit, to the destination.")
    return said


def facts(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested plain values as rows of name and text, names joined by dots."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += facts(value, f"{name}.")
        else:
            rows.append((name, text(value)))
    return rows


def text(value: Any) -> str:
    if value is None or value == {} or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(text(item) if not isinstance(item, Mapping) else _inline(item) for item in value)
    return str(value)


def _inline(value: Mapping[str, Any]) -> str:
    return "(" + ", ".join(f"{key} {text(item)}" for key, item in value.items()) + ")"


def number(value: Any) -> str:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return "not finite" if value is None else str(value)
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def comparison(stories: Sequence[RunSummary]) -> tuple[list[str], list[tuple[RunSummary, list[str]]]]:
    """Columns and a row a run: every key number that any run has."""
    numbers = [dict(key_numbers(story)) for story in stories]
    columns = list(dict.fromkeys(key for row in numbers for key in row))
    return columns, [
        (story, [row.get(key, "–") for key in columns]) for story, row in zip(stories, numbers, strict=True)
    ]


def environment(story: RunSummary) -> list[tuple[str, str]]:
    """Hardware and versions of the search, and of the certificate."""
    rows = [(f"search: {key}", text(value)) for key, value in _mapping(story.run.run.get("environment")).items()]
    if story.certificate is not None:
        rows += [(f"certificate: {key}", text(value)) for key, value in story.certificate["environment"].items()]
        for key in ("device", "dtype", "batch_size"):
            if key in story.certificate["evaluation"]:
                rows.append((f"certificate: {key}", text(story.certificate["evaluation"][key])))
    return rows


def provenance(story: RunSummary) -> list[tuple[str, str]]:
    """Where the run came from and what identifies it. Folders are named, not their place on somebody's disk."""
    given = _mapping(story.run.run.get("provenance"))
    rows = [
        (
            key,
            Path(value).name if key in ("start", "destination", "data_dir") and isinstance(value, str) else text(value),
        )
        for key, value in given.items()
    ]
    for key in ("start_sha256", "destination_sha256", "sphere_sha256"):
        if story.run.run.get(key):
            rows.append((key, str(story.run.run[key])))
    if story.certificate is not None:
        index = story.certificate["run"].get("waypoint_index_sha256")
        rows.append(("waypoint index sha256", text(index)))
    return rows
