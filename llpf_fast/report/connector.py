"""The figure of a connector: the certified loss on a simplicial complex."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .style import BLUE, COLOUR_MAP, GAP, LIMIT, REMARK, VERMILION, new_figure, plain_number, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..analysis.complex_certificate import ComplexCertificate
    from ..analysis.connector import Connector


def draw_connector(connector: Connector, folder: str | os.PathLike[str], stem: str = "connector") -> Path:
    """Draw the loss on the complex, and the highest loss of each simplex; returns the PNG's path.

    For three optima the loss is a map: the optima are the corners of a triangle, pair points the middles of its sides
    and the centre its centre, so it shows barycentric coordinates, not lengths. Otherwise the loss is drawn along each
    edge. The CSV holds every evaluated point with its weights.

    Raises:
        ValueError: the connector has no certificate.
    """
    certificate = connector.certificate
    if certificate is None:
        raise ValueError("the connector has no certificate yet")
    is_triangle = connector.complex.optima == 3 and connector.complex.dimension == 2
    with new_figure(11.0, 4.8) as figure:
        left, right = figure.subplots(1, 2, width_ratios=[1.35, 1])
        if is_triangle:
            _draw_map(figure, left, connector, certificate)
        else:
            _draw_edges(left, connector, certificate)
        _draw_maxima(right, connector, certificate)
        verdict = "connected" if certificate.connected else "not connected"
        figure.suptitle(
            f"{connector.complex.optima} optima, {len(certificate.simplices)} simplices of dimension "
            f"{connector.complex.dimension}: {verdict} at training loss {certificate.threshold:g}",
            fontweight="bold",
            fontsize=12,
        )
        labels = [connector.complex.label(v) for v in range(len(connector.vertices))]
        columns = [f"weight_{label}" for label in labels]
        columns += ["loss", "samples", "standard_error", "accuracy", "test_loss", "test_accuracy"]
        rows = [
            [*p.weights, p.loss, p.samples, p.standard_error, p.accuracy, p.test_loss, p.test_accuracy]
            for p in certificate.points
        ]
        return save_figure(figure, folder, stem, columns, rows)


def _draw_map(figure: Any, axes: Axes, connector: Connector, certificate: ComplexCertificate) -> None:
    from matplotlib.colors import LogNorm
    from matplotlib.tri import Triangulation

    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    positions = np.array([corners[list(face)].mean(0) for face in connector.complex.faces])
    points = np.array([point.weights for point in certificate.points]) @ positions
    losses = np.array([point.loss for point in certificate.points])
    known = np.isfinite(losses) & (losses > 0)
    low, high = losses[known].min(), max(losses[known].max(), certificate.threshold)
    loss_map = axes.tripcolor(
        Triangulation(*points[known].T),
        losses[known],
        shading="gouraud",
        cmap=COLOUR_MAP,
        norm=LogNorm(low, max(high, low * 1.01)),
        rasterized=True,
    )
    axes.plot(*points[~known].T, "x", color=GAP, label="loss not finite or 0")
    for simplex in connector.complex.simplices:
        outline = positions[[*simplex, simplex[0]]]
        axes.plot(*outline.T, color="white", linewidth=0.7, alpha=0.8)
    top = np.array(certificate.max_loss_at) @ positions
    axes.plot(*top, marker="D", color=VERMILION, markeredgecolor="white", markersize=7, linestyle="none")
    axes.annotate(
        f"highest {certificate.max_loss:.3g}",
        top,
        (8, 8),
        textcoords="offset points",
        fontsize=9,
        color="black",
        bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
    )
    for vertex, corner in enumerate(corners):
        below = corner[1] < 0.5
        name, loss = connector.vertices.names[vertex], certificate.vertex_loss[vertex]
        axes.annotate(
            f"{vertex}: {name}\n{loss:.3g}",
            corner,
            (0, -5 if below else 5),
            textcoords="offset points",
            ha="center",
            va="top" if below else "bottom",
            fontsize=9,
        )
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.margins(0.08, 0.14)
    bar = figure.colorbar(loss_map, ax=axes, shrink=0.8, label="training loss", format=plain_number)
    bar.ax.axhline(certificate.threshold, color=VERMILION, linewidth=2)
    bar.ax.minorticks_off()
    axes.set_title("barycentric coordinates, not lengths", fontsize=9, color=REMARK, y=-0.12)


def _draw_edges(axes: Axes, connector: Connector, certificate: ComplexCertificate) -> None:
    edges = sorted({(a, b) for simplex in certificate.simplices for a in simplex for b in simplex if a < b})
    for a, b in edges:
        profile = [
            (point.weights[b], point.loss)
            for point in certificate.points
            if math.isclose(point.weights[a] + point.weights[b], 1.0)
        ]
        axes.plot(*zip(*sorted(profile), strict=True), color=BLUE, alpha=0.5, linewidth=1.2)
    axes.axhline(certificate.threshold, color=LIMIT, linestyle=":", label=f"threshold {certificate.threshold:g}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("fraction of each edge of the complex")
    axes.set_ylabel("training loss")
    axes.legend()


def _draw_maxima(axes: Axes, connector: Connector, certificate: ComplexCertificate) -> None:
    names = [" – ".join(connector.complex.label(v) for v in simplex) for simplex in certificate.simplices]
    lengths = [loss if math.isfinite(loss) else 0.0 for loss in certificate.simplex_max]
    axes.barh(range(len(names)), lengths, color=BLUE, height=0.6)
    for i, loss in enumerate(certificate.simplex_max):
        axes.annotate(f"{loss:.3g}", (lengths[i], i), (3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.axvline(certificate.threshold, color=LIMIT, linestyle=":")
    if len(names) <= 24:
        axes.set_yticks(range(len(names)), names, fontsize=8)
    else:
        axes.set_ylabel("simplex")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("highest training loss on each simplex", fontsize=10)
    axes.set_title(f"{certificate.points_evaluated:,} points in all", fontsize=9, color=REMARK)
