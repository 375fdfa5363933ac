"""Certify a finished run, time that, and keep its numbers and picture in the repository (and, asked for, the README).

    python benchmarks/studies/record_path.py RUN NAME [--data DIR] [--readme]

writes benchmarks/results/paths/NAME.{json,png,svg}.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from llpf_fast.ops.environment import processor_name
from llpf_fast.path import RunDirectory
from llpf_fast.report import draw_path
from llpf_fast.verify import verify_run

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "paths"
BEGIN, END = "<!-- run:begin", "<!-- run:end -->"


def commit() -> str:
    """The commit that produced the numbers, marked when the tree held more than it."""
    text = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return text.stdout.strip() or "unknown"


def record(
    run_folder: Path,
    name: str,
    data: str | None,
    *,
    out: Path = RESULTS,
    label: dict[str, Any] | None = None,
    pictured: str | None = None,
    **verification: Any,
) -> dict[str, Any]:
    """Certify the run and write ``out/name.{json,png,svg}``; returns the numbers written.

    ``label`` comes first in the file, for what a reader must know before any number; ``pictured`` is what the picture's
    title calls the data, where their name would say too little; ``verification`` goes to ``verify_run``.
    """
    began = time.monotonic()
    certificate = verify_run(run_folder, data_dir=data, **verification)
    seconds = time.monotonic() - began
    run = RunDirectory.open(run_folder)
    provenance = {
        key: Path(value).name if key in ("start", "destination") and value else value
        for key, value in run.run["provenance"].items()
        if key != "data_dir"
    }
    numbers = {
        **(label or {}),
        "commit": commit(),
        "machine": processor_name(),
        "found": {**(run.status or {}), "environment": run.run["environment"]},
        "certified_in_seconds": seconds,
        "provenance": provenance,
        "settings": run.run["settings"],
        "certificate": certificate.as_dict(),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    picture = draw_path(entitled(numbers["certificate"], pictured), run_folder / "path.png")
    for suffix in (".png", ".svg"):
        shutil.copyfile(picture.with_suffix(suffix), out / f"{name}{suffix}")
    return numbers


def entitled(certificate: dict[str, Any], data: str | None) -> dict[str, Any]:
    return certificate if data is None else {**certificate, "evaluation": {**certificate["evaluation"], "data": data}}


def readme_text(name: str, numbers: dict[str, Any]) -> str:
    found, verdict = numbers["found"], numbers["certificate"]
    environment = found["environment"]
    recipe = numbers["provenance"]["recipe"]
    train = verdict["evaluation"]["train"]
    each = train["screening_samples"] if train["screened"] else train["samples"]
    lines = [
        f"{BEGIN}: written by benchmarks/studies/record_path.py from a real run; see CONTRIBUTING.md -->",
        f"![Loss and accuracy along the path and the straight line](benchmarks/results/paths/{name}.png)",
        "",
        f"Recipe `{recipe}`, two networks trained from different seeds: "
        f"**{'connected' if verdict['connected'] else 'not connected'} at training loss {verdict['threshold']:g}**.",
        f"Highest training loss on the path {verdict['max_loss']:.4f}, lowest test accuracy "
        f"{verdict['min_test_accuracy']:.4f}.",
        f"Found in {found['seconds']:.0f} s ({found['ticks']} ticks, {found['sgd_steps']:,} gradient steps of batch "
        f"{numbers['settings']['correction']['batch_size']}, {environment['threads']} thread),",
        f"certified in {numbers['certified_in_seconds']:.0f} s ({verdict['points_evaluated']} points of the polyline, "
        f"each on {each:,} images, {train['points_on_all_samples']} of them on all {train['samples']:,}).",
        f"Machine: {numbers['machine']}, torch {environment['torch']}, kernels {environment['kernels']}, "
        f"{verdict['environment']['workers']} evaluation workers.",
        f"Numbers: [`{name}.json`](benchmarks/results/paths/{name}.json).",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--data", help="folder that holds the data set")
    parser.add_argument("--readme", action="store_true", help="put verdict and picture into README.md")
    arguments = parser.parse_args()
    numbers = record(arguments.run, arguments.name, arguments.data)
    if arguments.readme:
        readme = ROOT / "README.md"
        before, rest = readme.read_text(encoding="utf-8").split(BEGIN, 1)
        after = rest.split(END, 1)[1]
        readme.write_text(before + readme_text(arguments.name, numbers) + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
