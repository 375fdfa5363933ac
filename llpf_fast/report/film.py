"""A path as a film: where it is, and what its loss is there."""

from __future__ import annotations

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
from .style import BLUE, COLOUR_MAP, GAP, LIMIT, VERMILION, colour_bar, new_figure, plain_number, save_figure, scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Of the film itself; the figures beside it are saved at twice that.
_DOTS_PER_INCH = 80
_HOLD_SECONDS = 2.0
_MP4 = "an mp4 (a gif does not)"
COLUMNS = ("frame", "waypoint", "fraction", "arc", "pc1", "pc2", "loss")


@dataclass(frozen=True)
class _Frame:
    waypoint: int
    fraction: float
    arc: float
    place: tuple[float, float]
    loss: float | None


def animate_path(
    found: Components,
    folder: str | os.PathLike[str],
    stem: str = "animation",
    *,
    kind: str = "gif",
    frames: int = 90,
    seconds: float = 9.0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Path:
    """Write the first path of ``found`` as ``stem.gif`` or ``.mp4``, its last frame as PNG and SVG, its numbers as CSV.

    Left the path in its first two components; right its loss over the share of its length, as the certificate measured
    it on and between waypoints (positions between waypoints are exact: a projection of a straight segment is straight),
    beside the straight line's. Without a certificate of these waypoints: the waypoints alone, and the logged loss.

    Args:
        kind: "gif" (Pillow) or "mp4" (imageio-ffmpeg, of the extra ``analysis``).
        frames: at most.
        seconds: length of the film, before its last frame is held.
        progress: called with (done, expected, text).

    Returns:
        The film's path.

    Raises:
        LLPFError: another ``kind``; fewer than two frames; imageio-ffmpeg is missing; disk trouble.
    """
    check_film(kind, frames, seconds)
    line, straight, threshold, source = _frames(found)
    kept = line if len(line) <= frames else [line[i] for i in _spread(len(line), frames)]
    out = Path(folder) / f"{stem}.{kind}"
    with writing(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    with new_figure(11, 5) as figure:
        show = _stage(figure, found, line, straight, threshold, source)
        rate = len(kept) / seconds

        def images() -> Iterator[np.ndarray]:
            for number, frame in enumerate(kept):
                show(frame)
                figure.set_dpi(_DOTS_PER_INCH)
                figure.canvas.draw()
                yield np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
                if progress:
                    progress(number + 1, len(kept), "")

        (_write_gif if kind == "gif" else _write_mp4)(out, images(), rate)
        show(kept[-1])
        save_figure(figure, folder, stem, COLUMNS, _rows(kept))
    return out


def check_film(kind: str, frames: int, seconds: float) -> None:
    """Before any work: LLPFError as :func:`animate_path`'s for its arguments."""
    if kind not in ("gif", "mp4"):
        raise LLPFError(f"an animation is a gif or an mp4, got {kind}")
    if frames < 2 or not seconds > 0:
        raise LLPFError(f"an animation takes at least 2 frames and some time, got {frames} frames, {seconds} s")
    if kind == "mp4":
        require("imageio_ffmpeg", _MP4)


def _frames(found: Components) -> tuple[list[_Frame], list[tuple[float, float]], float | None, str]:
    """Frames, the straight line's (share, loss), the threshold, and where the losses come from."""
    path, coordinates = found.trajectories[0], found.whole.coordinates[0][:, :2]
    losses, source = path.losses()
    if source != CERTIFIED:
        count = max(len(path) - 1, 1)
        places = [(float(x), float(y)) for x, y in coordinates]
        return [_Frame(i, 0.0, i / count, places[i], losses[i]) for i in range(len(path))], [], None, source
    certificate = path.directory.certificate() or {}
    try:
        return *_certified_frames(certificate, coordinates), float(certificate["threshold"]), source
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise LLPFError(f"the certificate of {path.folder} is damaged; make it anew with llpf verify") from error


def _certified_frames(
    certificate: Mapping[str, Any], coordinates: Matrix
) -> tuple[list[_Frame], list[tuple[float, float]]]:
    line = []
    for point in certificate["points"]:
        at = point["at"]
        here = coordinates[at["waypoint"]]
        if at["fraction"]:
            here = here + at["fraction"] * (coordinates[at["waypoint"] + 1] - here)
        place = (float(here[0]), float(here[1]))
        line.append(_Frame(at["waypoint"], at["fraction"], at["arc"] or 0.0, place, point["train_loss"]))
    straight = [
        (point["fraction"], point["train_loss"])
        for point in certificate["straight_line"]
        if point["train_loss"] is not None
    ]
    return line, straight


def _stage(
    figure: Figure,
    found: Components,
    line: Sequence[_Frame],
    straight: Sequence[tuple[float, float]],
    threshold: float | None,
    source: str,
) -> Callable[[_Frame], None]:
    """Everything that stays, and the function that shows one frame."""
    from matplotlib.cm import ScalarMappable

    path = found.trajectories[0]
    left, right = figure.subplots(1, 2, width_ratios=[1.1, 1])
    x, y = zip(*(frame.place for frame in line), strict=True)
    arcs = [frame.arc for frame in line]
    losses = [math.nan if frame.loss is None else frame.loss for frame in line]
    norm = scale(losses)
    left.plot(x, y, color=GAP, linewidth=1.2)
    left.plot([x[0]], [y[0]], marker="o", markersize=9, color=LIMIT, linestyle="none", label="start")
    left.plot([x[-1]], [y[-1]], marker="*", markersize=14, color=LIMIT, linestyle="none", label="end")
    if path.directory.arrived:
        left.plot([x[0], x[-1]], [y[0], y[-1]], color=VERMILION, linewidth=1.2, linestyle="--", label="straight line")
    left.legend(frameon=False, fontsize=9)
    left.set_aspect("equal", adjustable="datalim")
    left.set_xlabel(f"component 1 ({100 * float(found.whole.explained[0]):.1f} %)")
    left.set_ylabel(f"component 2 ({100 * float(found.whole.explained[1]):.1f} %)")
    left.set_title(path.name, loc="left", fontweight="bold")
    if norm is not None:
        colour_bar(figure, ScalarMappable(norm, COLOUR_MAP), left, source)
    right.plot(arcs, losses, color=GAP, linewidth=1.2)
    if straight:
        right.plot(*zip(*straight, strict=True), color=VERMILION, linestyle="--", linewidth=1.2, label="straight line")
    if threshold is not None:
        right.axhline(threshold, color=LIMIT, linestyle=":", label=f"threshold {threshold:g}")
    known = [v for v in (*losses, *(loss for _, loss in straight)) if math.isfinite(v) and v > 0]
    if known and max(known) > 10 * min(known):
        right.set_yscale("log")
        right.yaxis.set_major_formatter(plain_number)
    right.set_xlabel("share of the path's length" if threshold is not None else "share of the waypoints")
    right.set_ylabel("training loss")
    done_left = left.plot([], [], color=BLUE, linewidth=2)[0]
    done_right = right.plot([], [], color=BLUE, linewidth=2, label="path")[0]
    dots = [axes.plot([], [], marker="o", markersize=10, markeredgecolor="black")[0] for axes in (left, right)]
    right.legend(frameon=False, fontsize=9, loc="best")
    said = right.set_title(" ", loc="left", fontsize=11)
    # Laid out once: a layout that follows the text would tremble from frame to frame.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")

    import matplotlib

    colours = matplotlib.colormaps[COLOUR_MAP]

    def show(frame: _Frame) -> None:
        count = line.index(frame) + 1
        done_left.set_data(x[:count], y[:count])
        done_right.set_data(arcs[:count], losses[:count])
        loss = frame.loss if frame.loss is not None and math.isfinite(frame.loss) else math.nan
        for dot, place in zip(dots, (frame.place, (frame.arc, loss)), strict=True):
            dot.set_data([place[0]], [place[1]])
            dot.set_color(colours(norm(loss)) if norm is not None and loss == loss else GAP)
        value = f"{loss:.4f}" if loss == loss else "not finite or not known"
        said.set_text(f"waypoint {frame.waypoint + frame.fraction:6.2f}   loss {value}")

    return show


def _rows(frames: Sequence[_Frame]) -> list[list[Any]]:
    return [[i, f.waypoint, f.fraction, f.arc, *f.place, f.loss] for i, f in enumerate(frames)]


def _write_gif(out: Path, images: Iterator[np.ndarray], rate: float) -> None:
    import io

    from PIL import Image

    pictures = [Image.fromarray(image).quantize(128, dither=Image.Dither.NONE) for image in images]
    # A GIF's clock has steps of 10 ms.
    each = max(20, round(100 / rate) * 10)
    durations = [each] * (len(pictures) - 1) + [int(1000 * _HOLD_SECONDS)]
    film = io.BytesIO()
    options: dict[str, Any] = {"save_all": True, "append_images": pictures[1:], "duration": durations, "loop": 0}
    pictures[0].save(film, format="GIF", optimize=True, **options)
    write_bytes(out, film.getvalue(), durable=False)


def _write_mp4(out: Path, images: Iterator[np.ndarray], rate: float) -> None:
    ffmpeg = require("imageio_ffmpeg", _MP4)
    first = next(images)
    height, width = first.shape[:2]
    # The name ffmpeg writes must end as the format it shall choose.
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
            for _ in range(max(1, round(rate * _HOLD_SECONDS))):
                writer.send(np.ascontiguousarray(last))
        finally:
            writer.close()
        os.replace(temporary, out)


def _spread(count: int, most: int) -> list[int]:
    return sorted({round(k * (count - 1) / (most - 1)) for k in range(most)})
