"""The page: template, styles, script and plotly.js put together into one file that needs no other."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ... import __version__
from ...analysis.pca import Components, principal_components
from ...analysis.ticks import read_ticks
from ...analysis.trajectory import Trajectory, architecture, own_names
from ...errors import LLPFError, require
from ...path import RunDirectory
from ...path.durable import write_bytes
from ...types import ProgressCallback
from . import collect, figures
from .collect import RunSummary

#: The first line of every report: what may be overwritten without asking.
MARK = "<!doctype html><!-- llpf_fast report -->"
#: Waypoints of all runs together are read for principal components up to this size (some 20 s).
COMPONENTS_BYTES = 4 * 2**30


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    components: bool = True,
    progress: ProgressCallback | None = None,
) -> Path:
    """Write one self-contained HTML file (5 MB, most of it plotly.js) about ``runs``; returns its path.

    It opens from disk and asks for nothing from any network: its Content-Security-Policy forbids it, and forbids every
    script but the two that belong to it. Text from the runs is escaped. A run without certificate, an unfinished one,
    one whose files or certificate were changed is reported as just that.

    Args:
        components: also the paths' principal components (every waypoint is read), where all are of one architecture
            and together at most 4 GB.
        progress: called with (done, expected, text).

    Raises:
        LLPFError: no run; one of them is not a run directory; the file cannot be written.
    """
    if not runs:
        raise LLPFError("no run is given; name at least one run directory")
    directories = [RunDirectory.open(run) for run in runs]
    names = own_names([os.fspath(run) for run in runs])
    stories = []
    for number, (name, run) in enumerate(zip(names, directories, strict=True)):
        stories.append(collect.summarize(name, run))
        if progress:
            progress(number + 1, len(runs), "runs read")
    found, why_not = _components(stories, progress) if components else (None, "")
    out = Path(out)
    write_bytes(out, render(stories, found, why_not).encode(), durable=False)
    return out


def is_report(path: Path) -> bool:
    """Whether ``path`` is a report that this module wrote."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MARK)) == MARK.encode()
    except OSError:
        return False


def render(stories: Sequence[RunSummary], found: Components | None = None, why_not: str = "") -> str:
    """The page as text; the same stories give the same text."""
    jinja2, plotly = (require(name, "a report") for name in ("jinja2", "plotly.offline"))
    here = files(__package__)
    drawn: dict[str, figures.Figure] = {}

    def place(figure: figures.Figure | None) -> str | None:
        """The key under which the page's script finds a figure."""
        if figure is None:
            return None
        key = f"figure-{len(drawn)}"
        drawn[key] = figure
        return key

    sections = []
    for story in stories:
        layers, problem = _layers(story)
        sections.append(
            {
                "story": story,
                "numbers": collect.key_numbers(story),
                "path": place(figures.path_figure(story)),
                "layers": [place(figure) for figure in layers],
                "problem": problem,
                "words": collect.certificate_words(story.certificate) if story.certificate else [],
                "reasons": _reasons(story.certificate),
                "settings": collect.facts(story.settings),
                "environment": collect.environment(story),
                "provenance": collect.provenance(story),
            }
        )
    scripts = {"plotly": plotly.get_plotlyjs(), "page": (here / "page.js").read_text(encoding="utf-8")}
    for name, script in scripts.items():
        if "</script" in script.lower():
            raise AssertionError(f"{name}'s script would end its own element")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((here / "page.html.j2").read_text(encoding="utf-8"))
    columns, rows = collect.comparison(stories)
    context: dict[str, Any] = {
        "title": stories[0].name if len(stories) == 1 else f"{len(stories)} runs",
        "version": __version__,
        "sections": sections,
        "columns": columns,
        "rows": rows,
        "comparison": place(figures.comparison_figure(stories)),
        "components": place(figures.components_figure(found)) if found else None,
        "hidden": None if found is None else 100 * (1 - float(found.whole.explained[:2].sum())),
        "why_not": why_not,
        "figures": drawn,
        "style": (here / "page.css").read_text(encoding="utf-8"),
        "script": scripts,
        "hashes": " ".join(f"'sha256-{_digest(script)}'" for script in scripts.values()),
    }
    return f"{MARK}\n{template.render(context)}"


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _layers(story: RunSummary) -> tuple[list[figures.Figure], str]:
    """Figures of the search's layers, or why there are none."""
    if not story.metrics:
        return [], "The search recorded no ticks, so there is nothing to show of its layers."
    try:
        return figures.layers_figures(read_ticks(story.run), story.name), ""
    except (LLPFError, KeyError, TypeError, ValueError) as error:
        return [], f"The search's layers cannot be shown: {error}"


def _components(stories: Sequence[RunSummary], progress: ProgressCallback | None) -> tuple[Components | None, str]:
    """Principal components of all runs whose files are sound, or why there are none."""
    usable = [story for story in stories if story.sound and story.waypoints]
    if not usable:
        return None, "No run has waypoints that could be shown."
    size = sum(story.bytes for story in usable)
    if size > COMPONENTS_BYTES:
        return None, (
            f"The waypoints hold {size / 2**30:.1f} GB, more than a report reads; llpf analyze pca draws where they go."
        )
    try:
        module = architecture(usable[0].run)
        paths = [
            Trajectory(story.run, module, name=story.name, certified=story.certificate is not None) for story in usable
        ]
        return principal_components(paths, components=2, progress=progress), ""
    except LLPFError as error:
        return None, f"The paths cannot be shown in one picture: {error}"


def _reasons(certificate: Mapping[str, Any] | None) -> list[str]:
    """Why it is not connected, what is open, and in what it differs from the search."""
    if certificate is None:
        return []
    differs = (f"unlike the search: {line}" for line in certificate.get("differs") or ())
    notes = (f"note: {line}" for line in certificate.get("notes") or ())
    return [*certificate["reasons"], *certificate["undecided"], *differs, *notes]
