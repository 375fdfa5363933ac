"""The report's interactive figures: plain values that plotly.js draws.

Colours are names (``@path``) that the page's theme fills in. Text comes from run directories and is shown by plotly as
HTML of a kind, so it is escaped here.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ...analysis.pca import Components
from ...analysis.ticks import Ticks
from ..ticks import to_where
from .collect import RunSummary

#: Ticks and waypoints drawn at most: more cannot be told apart, and the file has to be mailed.
_MOST = 400
_LOG_FROM = 10.0
Figure = dict[str, Any]


def path_figure(story: RunSummary) -> Figure | None:
    """Loss and accuracy along one certified path and its straight line."""
    certificate = story.certificate
    if certificate is None:
        return None
    points, straight = certificate["points"], certificate["straight_line"]
    arcs = [point["at"]["arc"] for point in points]
    where = [_place(point) for point in points]
    loss = [_finite(point["train_loss"]) for point in points]
    data = [_line("path", arcs, loss, "@path", text=where)]
    waypoints = [i for i, point in enumerate(points) if point["at"]["fraction"] == 0]
    if len(waypoints) <= _MOST:
        data.append(
            {
                **_line("waypoints", [arcs[i] for i in waypoints], [loss[i] for i in waypoints], "@path"),
                **{"mode": "markers", "marker": {"size": 5, "color": "@path"}, "hoverinfo": "skip"},
            }
        )
    if straight:
        x = [point["fraction"] for point in straight]
        data.append(_line("straight line", x, [_finite(p["train_loss"]) for p in straight], "@straight", dash="dash"))
    threshold = float(certificate["threshold"])
    data.append(_line(f"threshold {threshold:g}", [0, 1], [threshold, threshold], "@limit", dash="dot", hover=False))
    has_accuracy = any(point.get("test_accuracy") is not None for point in points)
    layout = _layout("share of the line's length", "training loss", _values(data))
    missing = [arc for arc, value in zip(arcs, loss, strict=True) if value is None]
    layout["shapes"] = [_vertical(arc) for arc in missing]
    if missing:
        data.append(_line("loss not finite", [None], [None], "@limit", hover=False))
    if has_accuracy:
        accuracy = [_percent(point.get("test_accuracy")) for point in points]
        kept = [i for i, value in enumerate(accuracy) if value is not None]
        x, y = ([values[i] for i in kept] for values in (arcs, accuracy))
        data.append(_second(_line("test accuracy", x, y, "@path", text=[where[i] for i in kept])))
        if straight:
            x, y = [point["fraction"] for point in straight], [_percent(p.get("test_accuracy")) for p in straight]
            data.append(_second(_line("straight line's accuracy", x, y, "@straight", dash="dash")))
        layout["yaxis"]["domain"] = [0.4, 1]
        layout["yaxis2"] = {"title": {"text": "test accuracy (%)"}, "domain": [0, 0.3], "anchor": "x"}
        layout["xaxis"]["anchor"] = "y2"
    label = f"Training loss along the path of {story.name}, beside the straight line and the threshold"
    return {"data": data, "layout": layout, "label": label, "tall": has_accuracy}


def comparison_figure(stories: Sequence[RunSummary]) -> Figure | None:
    """Loss along all certified paths."""
    certified = [story for story in stories if story.certificate is not None]
    if len(certified) < 2:
        return None
    data = []
    for number, story in enumerate(certified):
        assert story.certificate is not None
        points = story.certificate["points"]
        data.append(
            _line(
                story.name,
                [point["at"]["arc"] for point in points],
                [_finite(point["train_loss"]) for point in points],
                f"@series{number % 7}",
                dash=("solid", "dash", "dashdot", "dot", "longdash")[number % 5],
                text=[_place(point) for point in points],
            )
        )
    for threshold in sorted({float(story.certificate["threshold"]) for story in certified if story.certificate}):
        data.append(
            _line(f"threshold {threshold:g}", [0, 1], [threshold, threshold], "@limit", dash="dot", hover=False)
        )
    layout = _layout("share of each path's length", "training loss", _values(data))
    return {"data": data, "layout": layout, "label": "Training loss along the paths of all runs"}


def components_figure(found: Components) -> Figure:
    """Paths in their first two principal components, loss as colour."""
    losses = [path.losses()[0] for path in found.trajectories]
    known = [value for path in losses for value in path if value is not None and math.isfinite(value)]
    log = bool(known) and min(known) > 0 and max(known) > _LOG_FROM * min(known)
    data: list[dict[str, Any]] = []
    for number, (path, coordinates) in enumerate(zip(found.trajectories, found.whole.coordinates, strict=True)):
        kept = _thin(len(path), _MOST)
        x, y = (_round(coordinates[kept, k]) for k in (0, 1))
        colours = [losses[number][i] for i in kept]
        shown: list[float | None] = [None] * len(kept)
        for i, value in enumerate(colours):
            if value is not None and math.isfinite(value) and (value > 0 or not log):
                shown[i] = math.log10(value) if log else value
        trace = _line(path.name, x, y, f"@series{number % 7}")
        trace["mode"] = "lines+markers"
        trace["text"] = [f"waypoint {i}: loss {_said(value)}" for i, value in zip(kept, colours, strict=True)]
        trace["hovertemplate"] = "%{text}"
        trace["marker"] = {
            "size": [12 if i in (0, len(kept) - 1) else 7 for i in range(len(kept))],
            "symbol": ["star" if i == len(kept) - 1 else "circle" for i in range(len(kept))],
            "color": shown if any(value is not None for value in shown) else "@limit",
            "line": {"width": 0.6, "color": "@ink"},
        }
        if known:
            trace["marker"] |= {"coloraxis": "coloraxis"}
        data.append(trace)
    share = found.whole.explained
    layout = _layout(f"component 1 ({100 * share[0]:.1f} %)", f"component 2 ({100 * share[1]:.1f} %)", [])
    layout["yaxis"] |= {"scaleanchor": "x"}
    if known:
        bar: dict[str, Any] = {"title": {"text": "training loss", "side": "right"}, "thickness": 12, "outlinewidth": 0}
        if log:
            ticks = _log_ticks(min(known), max(known))
            bar |= {"tickvals": [math.log10(value) for value in ticks], "ticktext": [f"{value:g}" for value in ticks]}
        layout["coloraxis"] = {"colorscale": "Viridis", "colorbar": bar}
    label = "The paths in their first two principal components"
    return {"data": data, "layout": layout, "label": label, "tall": True}


def layers_figures(found: Ticks, name: str) -> list[Figure]:
    """Distances and variances of the layers, and loss with gradient steps, against ticks."""
    kept = _thin(len(found.ticks), _MOST)
    ticks = [found.ticks[i] for i in kept]
    modules = list(dict.fromkeys(_module(layer) for layer in found.layers))
    figures = []
    for title, values in ((to_where(found.mode), found.distances), ("variance", found.variances)):
        data = []
        for s, layer in enumerate(found.layers):
            rank = modules.index(_module(layer))
            colour = f"@series{rank}" if len(modules) <= 7 else f"@depth{rank / max(len(modules) - 1, 1):.3f}"
            y = [_positive(float(values[i, s])) for i in kept]
            data.append(_line(layer, ticks, y, colour, dash="dot" if "bias" in layer else "solid", width=1.6))
        layout = _layout("tick", title, _values(data))
        layout["showlegend"] = len(found.layers) <= 14
        figures.append({"data": data, "layout": layout, "label": f"Each layer's {title} over the ticks of {name}"})
    loss = [_positive(found.loss[i]) for i in kept]
    steps = [found.rounds[i] for i in kept]
    data = [
        _line("loss the tick's training ended with", ticks, loss, "@path"),
        _second({"type": "bar", "name": "gradient steps", "x": ticks, "y": steps, "marker": {"color": "@series3"}}),
    ]
    layout = _layout("tick", "loss (moving mean)", _values(data[:1]))
    layout["yaxis"]["domain"] = [0.45, 1]
    layout["yaxis2"] = {"title": {"text": "gradient steps"}, "domain": [0, 0.35], "anchor": "x"}
    layout["xaxis"]["anchor"] = "y2"
    figures.append({"data": data, "layout": layout, "label": f"Loss and gradient steps over the ticks of {name}"})
    return figures


def _line(
    name: str,
    x: Sequence[Any],
    y: Sequence[Any],
    colour: str,
    *,
    dash: str = "solid",
    width: float = 2,
    text: Sequence[str] | None = None,
    hover: bool = True,
) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "name": html.escape(name),
        "x": _round(x),
        "y": _round(y),
        "line": {"color": colour, "dash": dash, "width": width},
    }
    if text is not None:
        trace |= {"text": list(text), "hovertemplate": "%{y:.4g}<br>%{text}"}
    if not hover:
        trace["hoverinfo"] = "skip"
    return trace


def _second(trace: dict[str, Any]) -> dict[str, Any]:
    return {**trace, "yaxis": "y2", "showlegend": False}


def _layout(x: str, y: str, values: Iterable[float]) -> dict[str, Any]:
    positive = [value for value in values if value > 0]
    axis: dict[str, Any] = {"title": {"text": y}}
    if positive and max(positive) > _LOG_FROM * min(positive):
        few = max(positive) < 1e3 * min(positive)
        # D2: labels at 1, 2 and 5 of each decade.
        axis |= {"type": "log", "exponentformat": "none", "tickformat": ".3~g", "dtick": "D2" if few else 1}
    return {"xaxis": {"title": {"text": x}}, "yaxis": axis}


def _values(traces: Iterable[Mapping[str, Any]]) -> list[float]:
    return [value for trace in traces for value in trace["y"] if value is not None]


def _round(values: Iterable[Any]) -> list[Any]:
    """Six significant digits: more are not seen, and double the file."""
    return [float(f"{value:.6g}") if isinstance(value, float) else value for value in map(_plain, values)]


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _positive(value: float) -> float | None:
    return value if math.isfinite(value) and value > 0 else None


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _said(value: float | None) -> str:
    return f"{value:.4g}" if value is not None and math.isfinite(value) else "not finite, or not known"


def _place(point: Mapping[str, Any]) -> str:
    at = point["at"]
    fraction = f" + {at['fraction']:g}" if at["fraction"] else ""
    return f"waypoint {at['waypoint']}{fraction}, {point.get('train_samples', 0):,} samples"


def _vertical(x: float) -> dict[str, Any]:
    place = {"x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", **place, "line": {"color": "@limit", "width": 1, "dash": "dot"}}


def _thin(count: int, most: int) -> list[int]:
    """Indices of at most ``most`` of ``count``, evenly spaced, ends included."""
    if count <= most:
        return list(range(count))
    return sorted({round(k * (count - 1) / (most - 1)) for k in range(most)})


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [value for d in decades for value in (10.0**d, 2 * 10.0**d, 5 * 10.0**d) if low <= value <= high]


def _module(name: str) -> str:
    return name.partition("[")[0].rpartition(".")[0] or name
