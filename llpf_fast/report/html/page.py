"""The report's page: template, style sheet, script and plotly.js in one file."""

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
from ...analysis.trajectory import Trajectory, architecture, distinct_names
from ...errors import LLPFError, require
from ...path import RunDirectory
from ...path.durable import write_bytes
from ...types import ProgressCallback
from . import figures
from .summary import (
    RunSummary,
    certificate_sentences,
    comparison,
    environment,
    key_numbers,
    nested_rows,
    provenance,
    summarize,
)

#: The first line of every report. A file that begins with it may be overwritten.
MARK = "<!doctype html><!-- llpf_fast report -->"
#: Size of all waypoints up to which principal components are computed; reading that much takes some 20 s.
COMPONENTS_BYTES = 4 * 2**30


def write_report(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    components: bool = True,
    progress: ProgressCallback | None = None,
) -> Path:
    """Write one self-contained HTML file (5 MB, most of it plotly.js) about ``runs``; returns its path.

    The page loads nothing: its Content-Security-Policy forbids every request, and every script but its own two. Text
    from the runs is escaped. Runs without certificate, unfinished runs and runs with changed files are reported as
    such.

    Args:
        components: show the paths' principal components too, where all are of one architecture and their waypoints,
            all of which are read, hold at most 4 GB.
        progress: called with (done, expected, text).

    Raises:
        LLPFError: no run; one of them is not a run directory; a missing package; the file cannot be written.
    """
    if not runs:
        raise LLPFError("no run is given; name at least one run directory")
    directories = [RunDirectory.open(run) for run in runs]
    names = distinct_names([os.fspath(run) for run in runs])
    summaries = []
    for number, (name, run) in enumerate(zip(names, directories, strict=True)):
        summaries.append(summarize(name, run))
        if progress:
            progress(number + 1, len(runs), "runs read")
    projection, reason = _components(summaries, progress) if components else (None, "")
    out = Path(out)
    write_bytes(out, render(summaries, projection, reason).encode(), durable=False)
    return out


def is_report(path: Path) -> bool:
    """Whether ``path`` is a report that this module wrote."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MARK)) == MARK.encode()
    except OSError:
        return False


def render(summaries: Sequence[RunSummary], components: Components | None = None, reason: str = "") -> str:
    """The page as text; ``reason`` says why it shows no components. The same arguments give the same text."""
    jinja2, plotly = (require(name, "a report") for name in ("jinja2", "plotly.offline"))
    here = files(__package__)
    page_figures: dict[str, figures.Figure] = {}

    def add(figure: figures.Figure | None) -> str | None:
        """Add ``figure`` to the page; returns the id of its element."""
        if figure is None:
            return None
        key = f"figure-{len(page_figures)}"
        page_figures[key] = figure
        return key

    sections = []
    for summary in summaries:
        layers, problem = _layers(summary)
        sections.append(
            {
                "summary": summary,
                "numbers": key_numbers(summary),
                "path": add(figures.path_figure(summary)),
                "layers": [add(figure) for figure in layers],
                "problem": problem,
                "basis": certificate_sentences(summary.certificate) if summary.certificate else [],
                "reasons": _reasons(summary.certificate),
                "settings": nested_rows(summary.settings),
                "environment": environment(summary),
                "provenance": provenance(summary),
            }
        )
    scripts = {"plotly": plotly.get_plotlyjs(), "page": (here / "page.js").read_text(encoding="utf-8")}
    for name, script in scripts.items():
        if "</script" in script.lower():
            raise AssertionError(f"{name}'s script would end its own element")
    jinja = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = jinja.from_string((here / "page.html.j2").read_text(encoding="utf-8"))
    columns, rows = comparison(summaries)
    context: dict[str, Any] = {
        "title": summaries[0].name if len(summaries) == 1 else f"{len(summaries)} runs",
        "version": __version__,
        "sections": sections,
        "columns": columns,
        "rows": rows,
        "comparison": add(figures.comparison_figure(summaries)),
        "components": add(figures.components_figure(components)) if components else None,
        "hidden": None if components is None else 100 * (1 - float(components.whole.explained[:2].sum())),
        "reason": reason,
        "figures": page_figures,
        "style": (here / "page.css").read_text(encoding="utf-8"),
        "script": scripts,
        "hashes": " ".join(f"'sha256-{_digest(script)}'" for script in scripts.values()),
    }
    return f"{MARK}\n{template.render(context)}"


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _layers(summary: RunSummary) -> tuple[list[figures.Figure], str]:
    """Figures of the search's layers, or the reason why there are none."""
    if not summary.metrics:
        return [], "The search recorded no ticks, so there is nothing to show of its layers."
    try:
        return figures.layers_figures(read_ticks(summary.run), summary.name), ""
    except (LLPFError, KeyError, TypeError, ValueError) as error:
        return [], f"The search's layers cannot be shown: {error}"


def _components(summaries: Sequence[RunSummary], progress: ProgressCallback | None) -> tuple[Components | None, str]:
    """Principal components of all runs whose files are intact, or the reason why there are none."""
    usable = [summary for summary in summaries if summary.files_intact and summary.waypoint_count]
    if not usable:
        return None, "No run has waypoints that could be shown."
    size = sum(summary.waypoint_bytes for summary in usable)
    if size > COMPONENTS_BYTES:
        return None, (
            f"The waypoints hold {size / 2**30:.1f} GB, more than a report reads; llpf analyze pca draws where they go."
        )
    try:
        module = architecture(usable[0].run)
        paths = [
            Trajectory(summary.run, module, name=summary.name, certified=summary.certificate is not None)
            for summary in usable
        ]
        return principal_components(paths, components=2, progress=progress), ""
    except LLPFError as error:
        return None, f"The paths cannot be shown in one picture: {error}"


def _reasons(certificate: Mapping[str, Any] | None) -> list[str]:
    """Why the path is not connected or undecided, how certificate and search differ, and notes."""
    if certificate is None:
        return []
    differs = (f"unlike the search: {line}" for line in certificate.get("differs") or ())
    notes = (f"note: {line}" for line in certificate.get("notes") or ())
    return [*certificate["reasons"], *certificate["undecided"], *differs, *notes]
