"""The report's interactive figures: lists and mappings that plotly.js draws.

Colours are names (``@path``) that the page's theme fills in. Text from run directories is escaped here, because
plotly.js shows text as a kind of HTML.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ...analysis.pca import Components
from ...analysis.ticks import Ticks
from ..style import LOG_FROM, evenly_spaced, finite
from ..ticks import distance_label, module_name
from .summary import RunSummary

#: Ticks and waypoints drawn at most. More cannot be told apart on a screen and make the file larger.
_MOST = 400
#: A figure as plotly.js takes it: ``data``, ``layout``; and ``label`` (for screen readers), ``tall`` for the page.
Figure = dict[str, Any]


def path_figure(summary: RunSummary) -> Figure | None:
    """Loss and accuracy along a certified path and its straight line; None without a certificate."""
    certificate = summary.certificate
    if certificate is None:
        return None
    points, straight = certificate["points"], certificate["straight_line"]
    arcs = [point["at"]["arc"] for point in points]
    positions = [_position(point) for point in points]
    loss = [_finite(point["train_loss"]) for point in points]
    data = [_line("path", arcs, loss, "@path", text=positions)]
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
        measured = [i for i, value in enumerate(accuracy) if value is not None]
        x, y = ([values[i] for i in measured] for values in (arcs, accuracy))
        data.append(_second(_line("test accuracy", x, y, "@path", text=[positions[i] for i in measured])))
        if straight:
            x, y = [point["fraction"] for point in straight], [_percent(p.get("test_accuracy")) for p in straight]
            data.append(_second(_line("straight line's accuracy", x, y, "@straight", dash="dash")))
        _add_second_axis(layout, "test accuracy (%)", top=0.3, first_bottom=0.4)
    label = f"Training loss along the path of {summary.name}, beside the straight line and the threshold"
    return {"data": data, "layout": layout, "label": label, "tall": has_accuracy}


def comparison_figure(summaries: Sequence[RunSummary]) -> Figure | None:
    """Loss along all certified paths; None where fewer than two are certified."""
    certified = [summary for summary in summaries if summary.certificate is not None]
    if len(certified) < 2:
        return None
    data = []
    for number, summary in enumerate(certified):
        assert summary.certificate is not None
        points = summary.certificate["points"]
        data.append(
            _line(
                summary.name,
                [point["at"]["arc"] for point in points],
                [_finite(point["train_loss"]) for point in points],
                f"@series{number % 7}",
                dash=("solid", "dash", "dashdot", "dot", "longdash")[number % 5],
                text=[_position(point) for point in points],
            )
        )
    for threshold in sorted({float(summary.certificate["threshold"]) for summary in certified if summary.certificate}):
        data.append(
            _line(f"threshold {threshold:g}", [0, 1], [threshold, threshold], "@limit", dash="dot", hover=False)
        )
    layout = _layout("share of each path's length", "training loss", _values(data))
    return {"data": data, "layout": layout, "label": "Training loss along the paths of all runs"}


def components_figure(components: Components) -> Figure:
    """Paths in their first two principal components, loss as colour."""
    losses = [path.losses()[0] for path in components.trajectories]
    known = finite(value for path in losses for value in path)
    log = bool(known) and min(known) > 0 and max(known) > LOG_FROM * min(known)
    data: list[dict[str, Any]] = []
    paths = zip(components.trajectories, components.whole.coordinates, strict=True)
    for number, (path, coordinates) in enumerate(paths):
        drawn = evenly_spaced(len(path), _MOST)
        x, y = (_round(coordinates[drawn, k]) for k in (0, 1))
        path_losses = [losses[number][i] for i in drawn]
        colours: list[float | None] = [None] * len(drawn)
        for i, value in enumerate(path_losses):
            if value is not None and math.isfinite(value) and (value > 0 or not log):
                colours[i] = math.log10(value) if log else value
        trace = _line(path.name, x, y, f"@series{number % 7}")
        trace["mode"] = "lines+markers"
        trace["text"] = [f"waypoint {i}: loss {_loss_text(value)}" for i, value in zip(drawn, path_losses, strict=True)]
        trace["hovertemplate"] = "%{text}"
        trace["marker"] = {
            "size": [12 if i in (0, len(drawn) - 1) else 7 for i in range(len(drawn))],
            "symbol": ["star" if i == len(drawn) - 1 else "circle" for i in range(len(drawn))],
            "color": colours if any(value is not None for value in colours) else "@limit",
            "line": {"width": 0.6, "color": "@ink"},
        }
        if known:
            trace["marker"] |= {"coloraxis": "coloraxis"}
        data.append(trace)
    share = components.whole.explained
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


def layers_figures(ticks: Ticks, name: str) -> list[Figure]:
    """Distances of the layers, their variances, and loss with gradient steps: three figures against ticks."""
    drawn = evenly_spaced(len(ticks.ticks), _MOST)
    x = [ticks.ticks[i] for i in drawn]
    modules = list(dict.fromkeys(module_name(layer) for layer in ticks.layers))
    figures = []
    for title, values in ((distance_label(ticks.mode), ticks.distances), ("variance", ticks.variances)):
        data = []
        for s, layer in enumerate(ticks.layers):
            rank = modules.index(module_name(layer))
            colour = f"@series{rank}" if len(modules) <= 7 else f"@depth{rank / max(len(modules) - 1, 1):.3f}"
            y = [_positive(float(values[i, s])) for i in drawn]
            data.append(_line(layer, x, y, colour, dash="dot" if "bias" in layer else "solid", width=1.6))
        layout = _layout("tick", title, _values(data))
        layout["showlegend"] = len(ticks.layers) <= 14
        figures.append({"data": data, "layout": layout, "label": f"Each layer's {title} over the ticks of {name}"})
    loss = [_positive(ticks.loss[i]) for i in drawn]
    steps = [ticks.rounds[i] for i in drawn]
    data = [
        _line("loss the tick's training ended with", x, loss, "@path"),
        _second({"type": "bar", "name": "gradient steps", "x": x, "y": steps, "marker": {"color": "@series3"}}),
    ]
    layout = _layout("tick", "loss (moving mean)", _values(data[:1]))
    _add_second_axis(layout, "gradient steps", top=0.35, first_bottom=0.45)
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


def _add_second_axis(layout: dict[str, Any], title: str, *, top: float, first_bottom: float) -> None:
    """Add a y axis from 0 to ``top`` of the figure, below the first, which begins at ``first_bottom``."""
    layout["yaxis"]["domain"] = [first_bottom, 1]
    layout["yaxis2"] = {"title": {"text": title}, "domain": [0, top], "anchor": "x"}
    layout["xaxis"]["anchor"] = "y2"


def _second(trace: dict[str, Any]) -> dict[str, Any]:
    """``trace`` on the second y axis."""
    return {**trace, "yaxis": "y2", "showlegend": False}


def _layout(x: str, y: str, values: Iterable[float]) -> dict[str, Any]:
    positive = [value for value in values if value > 0]
    axis: dict[str, Any] = {"title": {"text": y}}
    if positive and max(positive) > LOG_FROM * min(positive):
        few = max(positive) < 1e3 * min(positive)
        # D2: labels at 1, 2 and 5 of each decade.
        axis |= {"type": "log", "exponentformat": "none", "tickformat": ".3~g", "dtick": "D2" if few else 1}
    return {"xaxis": {"title": {"text": x}}, "yaxis": axis}


def _values(traces: Iterable[Mapping[str, Any]]) -> list[float]:
    return [value for trace in traces for value in trace["y"] if value is not None]


def _round(values: Iterable[Any]) -> list[Any]:
    """``values`` to six significant digits: more cannot be seen and double the file."""
    return [float(f"{value:.6g}") if isinstance(value, float) else value for value in map(_to_json, values)]


def _to_json(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _positive(value: float) -> float | None:
    return value if math.isfinite(value) and value > 0 else None


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _loss_text(value: float | None) -> str:
    return f"{value:.4g}" if value is not None and math.isfinite(value) else "not finite, or not known"


def _position(point: Mapping[str, Any]) -> str:
    at = point["at"]
    fraction = f" + {at['fraction']:g}" if at["fraction"] else ""
    return f"waypoint {at['waypoint']}{fraction}, {point.get('train_samples', 0):,} samples"


def _vertical(x: float) -> dict[str, Any]:
    coordinates = {"x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", **coordinates, "line": {"color": "@limit", "width": 1, "dash": "dot"}}


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [value for d in decades for value in (10.0**d, 2 * 10.0**d, 5 * 10.0**d) if low <= value <= high]
