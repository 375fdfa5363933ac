"""The figure of a certified path: loss and accuracy along it, beside the straight line's."""

from __future__ import annotations

import bisect
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LLPFError
from ..path import RunDirectory
from ..verify import Certificate
from ..verify.verdict import verdict_words
from .style import (
    BLUE,
    LIMIT,
    LOG_FROM,
    VERMILION,
    is_finite,
    new_figure,
    plain_number,
    remark_above,
    save_figure,
    with_gaps,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PATH, _STRAIGHT = BLUE, VERMILION
_COLUMNS = (
    *("line", "position", "waypoint", "fraction", "train_loss", "train_samples", "standard_error"),
    *("train_accuracy", "test_loss", "test_accuracy"),
)


def draw_path(
    source: str | os.PathLike[str] | Certificate | Mapping[str, Any], out: str | os.PathLike[str] | None = None
) -> Path:
    """Draw a certificate: training loss with the threshold, and test accuracy, against the share of each line's length.

    Writes a PNG (1,500 pixels wide), an SVG, and the numbers as a CSV, which differ in their suffix only.

    Args:
        source: a run directory with a certificate.json, or a certificate.
        out: the picture's name, with or without suffix; ``path.png`` in the run directory when missing.

    Returns:
        The PNG's path.

    Raises:
        LLPFError: the run has no certificate yet; no ``out`` for a certificate without a folder; disk trouble.
    """
    certificate, folder = _read(source)
    if out is None and folder is None:
        raise LLPFError("name the picture: draw_path(certificate, out=...)")
    base = Path(out) if out is not None else Path(str(folder), "path.png")
    if base.suffix in (".png", ".svg", ".csv"):
        base = base.with_suffix("")
    if not base.parent.is_dir():
        raise LLPFError(f"{base.parent} is not a folder; make it first, or name another")
    with new_figure() as figure:
        _draw(figure, certificate)
        return save_figure(figure, base.parent, base.name, _COLUMNS, _rows(certificate))


def _read(source: str | os.PathLike[str] | Certificate | Mapping[str, Any]) -> tuple[Mapping[str, Any], Path | None]:
    if isinstance(source, Certificate):
        return source.as_dict(), None
    if isinstance(source, Mapping):
        return source, None
    run = RunDirectory.open(source)
    certificate = run.certificate()
    if certificate is None:
        raise LLPFError(f"{run.folder} has no certificate.json; run llpf verify {run.folder} first")
    return certificate, run.folder


def span(certificate: Mapping[str, Any]) -> str:
    """From where to where the certified line leads, in words."""
    if any(reason.startswith("the destination is not reached") for reason in certificate["reasons"]):
        return "from the start to where the search stopped, short of its destination"
    run = certificate["run"]
    if run.get("start_sha256") and not run.get("destination_sha256"):
        # A search toward the origin, infinity, the mean or spheres has no second network.
        return "from the start to where the search ended"
    return "between the endpoints"


def _draw(figure: Figure, certificate: Mapping[str, Any]) -> None:
    points, straight = certificate["points"], certificate["straight_line"]
    has_accuracy = any(point["test_accuracy"] is not None for point in points)
    rows = 2 if has_accuracy else 1
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=[3, 2][:rows])[:, 0]
    _draw_loss(axes[0], certificate, points, straight)
    if has_accuracy:
        _draw_accuracy(axes[1], certificate, points, straight)
    axes[-1].set_xlabel(f"position {span(certificate)} (share of each line's length)")
    axes[-1].set_xlim(-0.01, 1.01)
    figure.align_ylabels(axes)
    _title(axes[0], certificate)


def _title(axes: Axes, certificate: Mapping[str, Any]) -> None:
    data = certificate["evaluation"]
    # Of code its file's name: a path would leave the layout no room.
    names = [Path(str(data[key])).name for key in ("model", "data") if data.get(key)]
    verdict = verdict_words(str(certificate["verdict"]), bool(certificate["connected"]))
    head = f"{' on '.join(names)}: {verdict}" if names else verdict.capitalize()
    axes.set_title(f"{head} at training loss {certificate['threshold']:g}\n", loc="left", fontweight="bold")
    train = data["train"]
    basis = f"{certificate['points_evaluated']:,} points on and between {certificate['waypoints']:,} waypoints; "
    if train["screened"]:
        basis += f"{train['screening_samples']:,} training samples at each, "
        basis += f"all {train['samples']:,} at {train['points_on_all_samples']} of them"
    else:
        basis += f"all {train['samples']:,} training samples at each"
    remark_above(axes, basis)


def _draw_loss(axes: Axes, certificate: Mapping[str, Any], points: Sequence[Any], straight: Sequence[Any]) -> None:
    threshold, lengths = certificate["threshold"], certificate["lengths"]
    x, loss = _series(points, "train_loss")
    axes.plot(x, loss, color=_PATH, linewidth=2, zorder=3, label=f"path (length {_length(lengths['arc'])})")
    if straight:
        axes.plot(
            *_series(straight, "train_loss"),
            color=_STRAIGHT,
            linestyle="--",
            linewidth=1.8,
            label=f"straight line (length {_length(lengths['straight'])})",
        )
    waypoints = [point for point in points if point["at"]["fraction"] == 0]
    axes.plot(*_series(waypoints, "train_loss"), color=_PATH, linestyle="none", marker="o", markersize=3.5)
    axes.axhline(threshold, color=LIMIT, linewidth=1.3, linestyle=":", label=f"threshold {threshold:g}")
    values = [value for value in (*loss, *_series(straight, "train_loss")[1], threshold) if value > 0]
    if min(values, default=1.0) * LOG_FROM < max(values, default=1.0):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(plain_number)
        axes.set_ylim(min(values) / 1.5, max(values) * 2)
    else:
        axes.set_ylim(0, max(values, default=1.0) * 1.2)
    _draw_pieces(axes, certificate, x, loss)
    top = certificate["max_loss_at"]
    highest = certificate["max_loss"]
    if is_finite(highest):
        _mark(axes, top["arc"], highest, f"highest on the path {highest:.3g}")
    for point in points:
        if not is_finite(point["train_loss"]):
            axes.axvline(point["at"]["arc"], color=LIMIT, linewidth=0.8, alpha=0.4)
    if not is_finite(highest):
        axes.plot([], [], color=LIMIT, linewidth=0.8, alpha=0.6, label="loss not finite")
    axes.set_ylabel("training loss")
    axes.legend(loc="best", fontsize=10)


def _draw_pieces(axes: Axes, certificate: Mapping[str, Any], x: Sequence[float], loss: Sequence[float]) -> None:
    """The bound as a band above the curve, the pieces as ticks, open pieces as bars, and the witness as a red mark."""
    arcs = {
        point["at"]["waypoint"]: point["at"]["arc"] for point in certificate["points"] if point["at"]["fraction"] == 0
    }

    def position(waypoint: int, fraction: float) -> float | None:
        if fraction == 0:
            return arcs.get(waypoint)
        ends = arcs.get(waypoint), arcs.get(waypoint + 1)
        return None if ends[0] is None or ends[1] is None else ends[0] + fraction * (ends[1] - ends[0])

    edges, label = [], "bound of the loss"
    for waypoint, start, end, start_bound, end_bound, cause in certificate.get("pieces", ()):
        left, right = position(waypoint, start), position(waypoint, end)
        if left is None or right is None:
            continue
        edges.append(left)
        if cause is not None:
            axes.axvspan(left, right, color=LIMIT, alpha=0.15, linewidth=0).set_in_layout(False)
        elif is_finite(start_bound) and is_finite(end_bound):
            lower = [_at(x, loss, left), _at(x, loss, right)]
            bounds = [start_bound, end_bound]
            band = axes.fill_between([left, right], lower, bounds, color=_PATH, alpha=0.2, linewidth=0, label=label)
            # A bound far above the picture would leave the layout no room.
            band.set_in_layout(False)
            label = "_"  # one entry of the legend for all
    options: dict[str, Any] = {"color": _PATH, "markersize": 6, "transform": axes.get_xaxis_transform()}
    axes.plot(edges, [0.0] * len(edges), "|", **options)[0].set_in_layout(False)
    witness = certificate.get("witness")
    if witness and is_finite(witness["loss"]):
        at = position(witness["waypoint"], witness["fraction"])
        if at is not None:
            axes.plot(
                at, witness["loss"], "X", color="red", markersize=10, zorder=5, label=f"witness {witness['loss']:.3g}"
            )


def _at(x: Sequence[float], values: Sequence[float], position: float) -> float:
    """The curve's value at ``position``, between its points on their chord."""
    i = min(max(bisect.bisect_left(x, position), 1), len(x) - 1)
    width = x[i] - x[i - 1]
    share = (position - x[i - 1]) / width if width > 0 else 0.0
    return values[i - 1] + share * (values[i] - values[i - 1])


def _draw_accuracy(axes: Axes, certificate: Mapping[str, Any], points: Sequence[Any], straight: Sequence[Any]) -> None:
    if straight:
        x, accuracy = _series(straight, "test_accuracy")
        axes.plot(x, [100 * value for value in accuracy], color=_STRAIGHT, linestyle="--", linewidth=1.8)
    x, accuracy = _series([point for point in points if point["test_accuracy"] is not None], "test_accuracy")
    axes.plot(x, [100 * value for value in accuracy], color=_PATH, linewidth=2)
    lowest, where = 100 * certificate["min_test_accuracy"], certificate["min_test_accuracy_at"]["arc"]
    _mark(axes, where, lowest, f"lowest on the path {lowest:.2f} %")
    low, high = axes.get_ylim()
    axes.set_ylim(low, min(high, 100.5))
    axes.set_ylabel("test accuracy (%)")
    axes.legend(loc="best", fontsize=10)


def _mark(axes: Axes, x: float, y: float, label: str) -> None:
    """Draw a diamond on the path; its value goes to the legend, where it hides nothing."""
    options = {"color": _PATH, "linestyle": "none", "markeredgecolor": "white", "zorder": 4}
    axes.plot(x, y, marker="D", markersize=7, label=label, **options)  # type: ignore[arg-type]


def _series(points: Sequence[Any], key: str) -> tuple[list[float], list[float]]:
    """Positions and values of ``points``; a value that is missing or not finite is a gap in the line."""
    x = [point["at"]["arc"] if "at" in point else point["fraction"] for point in points]
    return x, with_gaps(point[key] for point in points)


def _length(value: float | None) -> str:
    return f"{value:.3g}" if value is not None and math.isfinite(value) else "unknown"


def _rows(certificate: Mapping[str, Any]) -> Iterator[list[Any]]:
    """The CSV's rows, one a point; ``position`` is 0..1 along each line."""
    for point in certificate["points"]:
        at = point["at"]
        row = {**point, "line": "path", "position": at["arc"], "waypoint": at["waypoint"], "fraction": at["fraction"]}
        yield [row.get(name) for name in _COLUMNS]
    for point in certificate["straight_line"]:
        row = {**point, "line": "straight", "position": point["fraction"], "fraction": None}
        yield [row.get(name) for name in _COLUMNS]
