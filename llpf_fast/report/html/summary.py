"""What a report says of a run, read from its folder; damaged files become its verdict or a note, not an error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...analysis.trajectory import is_of
from ...errors import LLPFError
from ...modes import MODES
from ...path import RunDirectory
from ...verify.verdict import verdict_words
from ..picture import span

#: The verdict's CSS class: "good" connected; "bad" not connected, or files that cannot be trusted; "open" undecided.
VerdictClass = Literal["good", "bad", "open"]
#: Relative difference of two numbers of a certificate that rounding explains.
_ROUNDING = 1e-9


@dataclass
class RunSummary:
    """What the report says of one run.

    Attributes:
        name: of the run, unique in the report.
        verdict: a few words.
        notes: further sentences, most important first.
        certificate: None where there is none, or none of these waypoints.
        files_intact: whether the waypoint files are those that the search recorded.
        waypoint_bytes: size of the waypoint files.
        settings: of the search, as ``run.yaml`` records them.
        status: as ``status.json`` records it, {} where it does not.
        metrics: one mapping a tick.
    """

    name: str
    run: RunDirectory
    verdict: str = ""
    verdict_class: VerdictClass = "open"
    notes: list[str] = field(default_factory=list)
    certificate: Mapping[str, Any] | None = None
    files_intact: bool = True
    waypoint_count: int = 0
    waypoint_bytes: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)

    @property
    def short_verdict(self) -> str:
        """The verdict without its threshold, for a table that has a column for that."""
        return self.verdict.partition(" at ")[0]

    @property
    def description(self) -> str:
        """Model, data and mode in words."""
        names = [str(self.settings[key]) for key in ("model", "data") if self.settings.get(key)]
        name = str(self.settings.get("mode") or "")
        mode = MODES[name].title if name in MODES else name
        return ", ".join(part for part in (" on ".join(names), mode) if part)


def summarize(name: str, run: RunDirectory) -> RunSummary:
    """Read what the report says of ``run``; trouble inside its folder becomes the verdict or a note."""
    summary = RunSummary(name, run, settings=_mapping(run.run.get("settings")))
    _read_search(summary)
    _check_files(summary)
    _read_certificate(summary)
    return summary


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _read_search(summary: RunSummary) -> None:
    try:
        summary.status = dict(summary.run.status or {})
    except LLPFError as error:
        summary.notes.append(str(error))
    summary.notes += map(str, summary.status.get("notes") or ())
    try:
        summary.metrics = summary.run.metrics()
    except LLPFError as error:
        summary.notes.append(f"What the search recorded cannot be shown: {error}")
    if not summary.run.complete:
        ticks = len(summary.metrics)
        summary.notes.append(
            f"The search is not finished: it has recorded {ticks:,} ticks so far. llpf find --resume continues it."
        )


def _check_files(summary: RunSummary) -> None:
    try:
        waypoints = summary.run.waypoints()
        summary.waypoint_count = len(waypoints)
        summary.waypoint_bytes = sum(waypoint.path.stat().st_size for waypoint in waypoints if waypoint.path.exists())
        if waypoints:
            summary.run.check()
    except LLPFError as error:
        summary.files_intact = False
        summary.verdict, summary.verdict_class = "changed or damaged files", "bad"
        summary.notes.insert(
            0, f"The waypoint files are not those that the search recorded, so nothing below holds for them: {error}"
        )


def _read_certificate(summary: RunSummary) -> None:
    if not summary.files_intact:
        return
    if summary.waypoint_count == 0:
        summary.verdict = "no waypoints yet"
        return
    try:
        certificate = summary.run.certificate()
        if certificate is not None:
            _check_certificate(certificate)
    except LLPFError as error:
        summary.verdict, summary.verdict_class = "certificate damaged", "bad"
        summary.notes.insert(0, f"{error}. llpf verify {summary.run.folder} makes a new one.")
        return
    if certificate is None:
        summary.verdict = "not certified"
        summary.notes.insert(
            0,
            "There is no certificate. The losses of the search are moving means over mini-batches and say nothing of "
            f"the path between the waypoints. llpf verify {summary.run.folder} makes one.",
        )
        return
    if not is_of(certificate, [waypoint.sha256 for waypoint in summary.run.waypoints()]):
        summary.verdict = "certificate of another path"
        summary.notes.insert(
            0,
            f"certificate.json is of {certificate['waypoints']:,} waypoints, not of the {summary.waypoint_count:,} in "
            f"this folder, so it is not shown. llpf verify {summary.run.folder} makes a new one.",
        )
        return
    summary.certificate = certificate
    summary.verdict = verdict_words(str(certificate["verdict"]), bool(certificate["connected"]))
    summary.verdict_class = "good" if certificate["connected"] else _CLASSES.get(str(certificate["verdict"]), "bad")
    summary.verdict += f" at training loss {certificate['threshold']:g}"
    if certificate["connected"] and span(certificate) != "between the endpoints":
        summary.notes.append(f"The certified line leads {span(certificate)}: there is no second network to arrive at.")


_CLASSES: dict[str, VerdictClass] = {"undecided": "open"}


def _check_certificate(certificate: Mapping[str, Any]) -> None:
    """Raise LLPFError where a certificate lacks an entry or contradicts itself, most likely an edited file."""
    try:
        losses = [point["train_loss"] for point in certificate["points"]]
        for point in certificate["points"]:
            position = [point["at"][key] for key in ("arc", "waypoint", "fraction")]
            _check_numbers(*position, *(point.get(key) for key in _POINT_NUMBERS))
        for point in certificate["straight_line"]:
            _check_numbers(point["fraction"], *(point.get(key) for key in _POINT_NUMBERS))
        known = [float(loss) for loss in losses if loss is not None and math.isfinite(loss)]
        complete = len(known) == len(losses)
        threshold, stated = float(certificate["threshold"]), certificate["max_loss"]
        for key in ("evaluation", "resolution", "lengths", "environment", "run"):
            dict(certificate[key])
        _check_numbers(*certificate["lengths"].values(), *(certificate.get(key) for key in _NUMBERS))
        train = _mapping(certificate["evaluation"].get("train"))
        _check_numbers(*(train.get(key) for key in ("samples", "screening_samples", "points_on_all_samples")))
        _check_numbers(*(certificate["resolution"].get(key) for key in ("closed_pieces", "open_pieces")))
        int(certificate["waypoints"]), int(certificate["points_evaluated"])
        connected, reasons = bool(certificate["connected"]), [*certificate["reasons"], *certificate["undecided"]]
        if certificate["verdict"] not in ("proved", "sampled", "refuted", "undecided"):
            raise TypeError("an unknown verdict")
        if not all(isinstance(text, str) for text in (certificate["covers"], *reasons)):
            raise TypeError("a reason is no text")
        certificate_sentences(certificate)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LLPFError(
            f"certificate.json is damaged or not of this version ({type(error).__name__}: {error})"
        ) from error
    if complete and known and (stated is None or abs(max(known) - float(stated)) > _ROUNDING * max(1.0, max(known))):
        raise LLPFError(f"certificate.json contradicts itself: its points reach {max(known):g}, it states {stated}")
    if connected and (not complete or max(known, default=0.0) > threshold or reasons):
        raise LLPFError("certificate.json contradicts itself: it says connected, its points or its reasons say not")
    if connected and certificate["verdict"] not in ("proved", "sampled"):
        raise LLPFError("certificate.json contradicts itself: its verdict and its 'connected' differ")


_POINT_NUMBERS = ("train_loss", "train_samples", "test_loss", "test_accuracy")
_NUMBERS = (
    *(
        "threshold",
        "bound",
        "max_loss",
        "max_loss_standard_error",
        "min_test_accuracy",
        "points_evaluated",
        "waypoints",
    ),
)


def _check_numbers(*values: Any) -> None:
    """Raise TypeError for a value that is neither a number nor None and would be formatted as a number."""
    for value in values:
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise TypeError(f"{value!r} is not a number"[:80])


def key_numbers(summary: RunSummary) -> list[tuple[str, str]]:
    """Name and text of the numbers at the top of a run's section and in the comparison."""
    certificate, status = summary.certificate, summary.status
    rows: list[tuple[str, str]] = []
    if certificate is not None:
        top = certificate["max_loss"]
        error = certificate.get("max_loss_standard_error")
        rows.append(("highest training loss", format_number(top) + (f" ± {format_number(error)}" if error else "")))
        if certificate.get("bound") is not None:
            rows.append(("bound of the training loss", format_number(certificate["bound"])))
        rows.append(("threshold", format_number(certificate["threshold"])))
        if certificate.get("min_test_accuracy") is not None:
            rows.append(("lowest test accuracy", f"{100 * certificate['min_test_accuracy']:.2f} %"))
        straight = [point["train_loss"] for point in certificate["straight_line"]]
        finite = [value for value in straight if value is not None]
        if finite:
            highest = format_number(max(finite)) if len(finite) == len(straight) else "not finite"
            rows.append(("straight line's highest loss", highest))
        arc, chord = (certificate["lengths"].get(key) for key in ("arc", "straight"))
        if arc:
            ratio = f" ({arc / chord:.2f} × straight)" if chord else ""
            rows.append(("length", format_number(arc) + ratio))
        rows.append(("points measured", f"{certificate['points_evaluated']:,}"))
    rows.append(("waypoints", f"{summary.waypoint_count:,}"))
    ticks = status.get("ticks", len(summary.metrics) or None)
    steps = status.get("sgd_steps") or (summary.metrics[-1].get("sgd_steps") if summary.metrics else None)
    for label, value in (("ticks", ticks), ("gradient steps", steps)):
        if isinstance(value, (int, float)):
            rows.append((label, f"{value:,.0f}"))
    if isinstance(status.get("seconds"), (int, float)):
        rows.append(("search time", format_duration(status["seconds"])))
    return rows


def certificate_sentences(certificate: Mapping[str, Any]) -> list[str]:
    """Sentences about what the verdict rests on."""
    train = _mapping(certificate["evaluation"].get("train"))
    points, waypoints = certificate["points_evaluated"], certificate["waypoints"]
    basis = f"Measured at {points:,} points on and between {waypoints:,} waypoints, in evaluation mode"
    if train.get("screened"):
        basis += (
            f": on {train['screening_samples']:,} training samples everywhere, on all {train['samples']:,} at "
            f"{train['points_on_all_samples']:,} of them"
        )
    elif train.get("samples"):
        basis += f", on all {train['samples']:,} training samples"
    sentences = [str(certificate["covers"]), basis + "."]
    statistics = certificate["evaluation"].get("batchnorm_statistics")
    if statistics == "reestimated":
        sentences.append("BatchNorm statistics were re-estimated from training data at every point.")
    if span(certificate) == "between the endpoints":
        sentences.append("The line leads from the start, bit for bit, to the destination.")
    return sentences


def nested_rows(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as rows of name and text; names are joined by dots."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            rows += nested_rows(value, f"{name}.")
        else:
            rows.append((name, format_value(value)))
    return rows


def format_value(value: Any) -> str:
    if value is None or value == {} or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format_number(value)
    if isinstance(value, (list, tuple)):
        return ", ".join(format_value(item) if not isinstance(item, Mapping) else _inline(item) for item in value)
    return str(value)


def _inline(value: Mapping[str, Any]) -> str:
    return "(" + ", ".join(f"{key} {format_value(item)}" for key, item in value.items()) + ")"


def format_number(value: Any) -> str:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return "not finite" if value is None else str(value)
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


def format_duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def comparison(summaries: Sequence[RunSummary]) -> tuple[list[str], list[tuple[RunSummary, list[str]]]]:
    """The table of all runs: columns are the key numbers that any run has, and each run has a row."""
    numbers = [dict(key_numbers(summary)) for summary in summaries]
    columns = list(dict.fromkeys(key for row in numbers for key in row))
    return columns, [
        (summary, [row.get(key, "–") for key in columns]) for summary, row in zip(summaries, numbers, strict=True)
    ]


def environment(summary: RunSummary) -> list[tuple[str, str]]:
    """Name and text of hardware and versions, of the search and of the certificate."""
    sources = [("search", _mapping(summary.run.run.get("environment")))]
    if summary.certificate is not None:
        evaluation = summary.certificate["evaluation"]
        settings = {key: evaluation[key] for key in ("device", "dtype", "batch_size") if key in evaluation}
        sources.append(("certificate", {**summary.certificate["environment"], **settings}))
    return [(f"{source}: {key}", format_value(value)) for source, values in sources for key, value in values.items()]


def provenance(summary: RunSummary) -> list[tuple[str, str]]:
    """Name and text of the run's origin and digests. Of a path only the last part: a report may be published."""
    rows = []
    for key, value in _mapping(summary.run.run.get("provenance")).items():
        is_path = key in ("start", "destination", "data_dir") and isinstance(value, str)
        rows.append((key, Path(value).name if is_path else format_value(value)))
    for key in ("start_sha256", "destination_sha256", "sphere_sha256"):
        if summary.run.run.get(key):
            rows.append((key, str(summary.run.run[key])))
    if summary.certificate is not None:
        index = summary.certificate["run"].get("waypoint_index_sha256")
        rows.append(("waypoint index sha256", format_value(index)))
    return rows
