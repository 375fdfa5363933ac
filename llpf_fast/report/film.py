"""A path as a film: its position in the first two principal components, and its loss."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..analysis.pca import Components
from ..analysis.trajectory import CERTIFIED, Matrix
from ..errors import LLPFError, require
from ..path.durable import temporary_name, write_bytes, writing
from ..types import ProgressCallback
from .style import (
    BLUE,
    COLOUR_MAP,
    GAP,
    LIMIT,
    VERMILION,
    colour_bar,
    colour_scale,
    evenly_spaced,
    log_if_wide,
    new_figure,
    save_figure,
    with_gaps,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Of the film; the PNG and SVG beside it are saved at twice that.
_DOTS_PER_INCH = 80
_LAST_FRAME_SECONDS = 2.0
_MP4 = "an mp4 (a gif does not)"
COLUMNS = ("frame", "waypoint", "fraction", "arc", "pc1", "pc2", "loss")


@dataclass(frozen=True)
class _Frame:
    """A point of the path: ``position`` in the first two components, ``arc`` its share of the path's length."""

    waypoint: int
    fraction: float
    arc: float
    position: tuple[float, float]
    loss: float | None


@dataclass(frozen=True)
class _Film:
    """What is drawn: the frames, (fraction, loss) of the straight line, where the losses come from."""

    frames: list[_Frame]
    straight: list[tuple[float, float]]
    threshold: float | None
    source: str


def animate_path(
    components: Components,
    folder: str | os.PathLike[str],
    stem: str = "animation",
    *,
    kind: str = "gif",
    frames: int = 90,
    seconds: float = 9.0,
    progress: ProgressCallback | None = None,
) -> Path:
    """Write the first path as ``stem.gif`` or ``.mp4``, its last frame as PNG and SVG, its numbers as CSV.

    The left side shows the path in its first two components, the right side its loss over the share of its length.
    With a certificate, the loss is that of every measured point, on and between waypoints, beside the straight line's;
    positions between waypoints are exact, because a projected straight segment is straight. Without a certificate of
    these waypoints, only the waypoints and the logged loss are shown.

    Args:
        kind: "gif" (Pillow) or "mp4" (imageio-ffmpeg).
        frames: at most.
        seconds: length of the film; its last frame is shown two seconds longer.
        progress: called with the frames done, all frames, "".

    Returns:
        The film's path.

    Raises:
        LLPFError: another ``kind``; fewer than two frames; a missing package; disk trouble.
    """
    check_film(kind, frames, seconds)
    film = _film(components)
    shown = [film.frames[i] for i in evenly_spaced(len(film.frames), frames)]
    out = Path(folder) / f"{stem}.{kind}"
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    with new_figure(11, 5) as figure:
        draw_frame = _draw_background(figure, components, film)

        def images() -> Iterator[np.ndarray]:
            for number, frame in enumerate(shown):
                draw_frame(frame)
                figure.set_dpi(_DOTS_PER_INCH)
                figure.canvas.draw()
                yield np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
                if progress:
                    progress(number + 1, len(shown), "")

        (_write_gif if kind == "gif" else _write_mp4)(out, images(), len(shown) / seconds)
        draw_frame(shown[-1])
        rows = [[i, f.waypoint, f.fraction, f.arc, *f.position, f.loss] for i, f in enumerate(shown)]
        save_figure(figure, folder, stem, COLUMNS, rows)
    return out


def check_film(kind: str, frames: int, seconds: float) -> None:
    """Raise :func:`animate_path`'s LLPFError for its arguments, before any work."""
    if kind not in ("gif", "mp4"):
        raise LLPFError(f"an animation is a gif or an mp4, got {kind}")
    if frames < 2 or not seconds > 0:
        raise LLPFError(f"an animation takes at least 2 frames and some time, got {frames} frames, {seconds} s")
    if kind == "mp4":
        require("imageio_ffmpeg", _MP4)


def _film(components: Components) -> _Film:
    path, coordinates = components.trajectories[0], components.whole.coordinates[0][:, :2]
    losses, source = path.losses()
    if source != CERTIFIED:
        last = max(len(path) - 1, 1)
        frames = [_Frame(i, 0.0, i / last, (float(x), float(y)), losses[i]) for i, (x, y) in enumerate(coordinates)]
        return _Film(frames, [], None, source)
    certificate = path.directory.certificate() or {}
    try:
        frames = [_certified_frame(point, coordinates) for point in certificate["points"]]
        straight = [
            (point["fraction"], point["train_loss"])
            for point in certificate["straight_line"]
            if point["train_loss"] is not None
        ]
        return _Film(frames, straight, float(certificate["threshold"]), source)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise LLPFError(f"the certificate of {path.folder} is damaged; make it anew with llpf verify") from error


def _certified_frame(point: Mapping[str, Any], coordinates: Matrix) -> _Frame:
    at = point["at"]
    position = coordinates[at["waypoint"]]
    if at["fraction"]:
        position = position + at["fraction"] * (coordinates[at["waypoint"] + 1] - position)
    x, y = position
    return _Frame(at["waypoint"], at["fraction"], at["arc"] or 0.0, (float(x), float(y)), point["train_loss"])


def _draw_background(figure: Figure, components: Components, film: _Film) -> Callable[[_Frame], None]:
    """Draw what every frame shows; returns the function that draws one frame."""
    import matplotlib
    from matplotlib.cm import ScalarMappable

    left, right = figure.subplots(1, 2, width_ratios=[1.1, 1])
    x, y = zip(*(frame.position for frame in film.frames), strict=True)
    arcs = [frame.arc for frame in film.frames]
    losses = with_gaps(frame.loss for frame in film.frames)
    norm = colour_scale(losses)
    _draw_components(left, components, x, y)
    if norm is not None:
        colour_bar(figure, ScalarMappable(norm, COLOUR_MAP), left, film.source)
    _draw_losses(right, film, arcs, losses)
    path_left = left.plot([], [], color=BLUE, linewidth=2)[0]
    path_right = right.plot([], [], color=BLUE, linewidth=2, label="path")[0]
    dots = [axes.plot([], [], marker="o", markersize=10, markeredgecolor="black")[0] for axes in (left, right)]
    right.legend(loc="best")
    caption = right.set_title(" ", loc="left", fontsize=11)
    # Laid out once: a layout that follows the caption would make the axes tremble.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    colours = matplotlib.colormaps[COLOUR_MAP]

    def draw_frame(frame: _Frame) -> None:
        count = film.frames.index(frame) + 1
        path_left.set_data(x[:count], y[:count])
        path_right.set_data(arcs[:count], losses[:count])
        loss = frame.loss if frame.loss is not None and math.isfinite(frame.loss) else None
        for dot, (dot_x, dot_y) in zip(dots, (frame.position, (frame.arc, loss)), strict=True):
            dot.set_data([dot_x], [math.nan if dot_y is None else dot_y])
            dot.set_color(GAP if norm is None or loss is None else colours(norm(loss)))
        value = "not finite or not known" if loss is None else f"{loss:.4f}"
        caption.set_text(f"waypoint {frame.waypoint + frame.fraction:6.2f}   loss {value}")

    return draw_frame


def _draw_components(axes: Axes, components: Components, x: Sequence[float], y: Sequence[float]) -> None:
    path, explained = components.trajectories[0], components.whole.explained
    axes.plot(x, y, color=GAP, linewidth=1.2)
    axes.plot([x[0]], [y[0]], marker="o", markersize=9, color=LIMIT, linestyle="none", label="start")
    axes.plot([x[-1]], [y[-1]], marker="*", markersize=14, color=LIMIT, linestyle="none", label="end")
    if path.directory.arrived:
        axes.plot([x[0], x[-1]], [y[0], y[-1]], color=VERMILION, linewidth=1.2, linestyle="--", label="straight line")
    axes.legend()
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel(f"component 1 ({100 * float(explained[0]):.1f} %)")
    axes.set_ylabel(f"component 2 ({100 * float(explained[1]):.1f} %)")
    axes.set_title(path.name, loc="left", fontweight="bold")


def _draw_losses(axes: Axes, film: _Film, arcs: Sequence[float], losses: Sequence[float]) -> None:
    axes.plot(arcs, losses, color=GAP, linewidth=1.2)
    if film.straight:
        fractions, straight_losses = zip(*film.straight, strict=True)
        axes.plot(fractions, straight_losses, color=VERMILION, linestyle="--", linewidth=1.2, label="straight line")
    if film.threshold is not None:
        axes.axhline(film.threshold, color=LIMIT, linestyle=":", label=f"threshold {film.threshold:g}")
    log_if_wide(axes, [*losses, *(loss for _, loss in film.straight)])
    axes.set_xlabel("share of the path's length" if film.threshold is not None else "share of the waypoints")
    axes.set_ylabel("training loss")


def _write_gif(out: Path, images: Iterator[np.ndarray], rate: float) -> None:
    image_module = require("PIL.Image", "a gif")
    no_dither = image_module.Dither.NONE
    pictures = [image_module.fromarray(image).quantize(128, dither=no_dither) for image in images]
    # A GIF's clock has steps of 10 ms.
    milliseconds = max(20, round(100 / rate) * 10)
    durations = [milliseconds] * (len(pictures) - 1) + [int(1000 * _LAST_FRAME_SECONDS)]
    film = io.BytesIO()
    options: dict[str, Any] = {"save_all": True, "append_images": pictures[1:], "duration": durations, "loop": 0}
    pictures[0].save(film, format="GIF", optimize=True, **options)
    write_bytes(out, film.getvalue(), durable=False)


def _write_mp4(out: Path, images: Iterator[np.ndarray], rate: float) -> None:
    ffmpeg = require("imageio_ffmpeg", _MP4)
    first = next(images)
    height, width = first.shape[:2]
    # ffmpeg takes the format from the file's suffix.
    temporary = temporary_name(out).with_suffix(".mp4")
    with writing(out.parent):
        writer = ffmpeg.write_frames(
            *(str(temporary), (width, height)), fps=rate, codec="libx264", pix_fmt_in="rgb24", macro_block_size=2
        )
        writer.send(None)
        try:
            last = first
            writer.send(np.ascontiguousarray(first))
            for last in images:
                writer.send(np.ascontiguousarray(last))
            for _ in range(max(1, round(rate * _LAST_FRAME_SECONDS))):
                writer.send(np.ascontiguousarray(last))
        finally:
            writer.close()
        os.replace(temporary, out)
