"""Certify a finished run and write its numbers and picture for the gallery and the README.

    python -m benchmarks.studies.record_path RUN NAME [--data-dir DIR] [--readme]

writes benchmarks/results/paths/NAME.{json,png}; ``--readme`` also writes verdict and picture into README.md.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.studies.study import ROOT, commit, option_parser, save_json, small_picture
from llpf_fast.ops.info import processor_name
from llpf_fast.path import RunDirectory
from llpf_fast.report import draw_path
from llpf_fast.verify import verify_run
from llpf_fast.verify.verdict import verdict_words

RESULTS = ROOT / "benchmarks" / "results" / "paths"
BEGIN, END = "<!-- run:begin", "<!-- run:end -->"


def record(
    folder: Path,
    name: str,
    data: str | None,
    *,
    out: Path = RESULTS,
    label: dict[str, Any] | None = None,
    pictured: str | None = None,
    **verification: Any,
) -> dict[str, Any]:
    """Certify the run and write ``out/name.{json,png}``; returns the numbers written.

    ``label`` comes first in the file. ``pictured`` is the name of the data in the picture's title. ``verification``
    goes to ``verify_run``.
    """
    start = time.monotonic()
    certificate = verify_run(folder, data_dir=data, **verification)
    seconds = time.monotonic() - start
    run = RunDirectory.open(folder)
    provenance = {
        key: Path(value).name if key in ("start", "destination") and value else value
        for key, value in run.run["provenance"].items()
        if key != "data_dir"
    }
    numbers = {
        **(label or {}),
        "commit": commit(),
        "machine": processor_name(),
        "search": {**(run.status or {}), "environment": run.run["environment"]},
        "certified_in_seconds": seconds,
        "provenance": provenance,
        "settings": run.run["settings"],
        "certificate": certificate.as_dict(),
    }
    save_json(out / f"{name}.json", numbers)
    picture = draw_path(with_data_name(numbers["certificate"], pictured), folder / "path.png")
    small_picture(picture, out / f"{name}.png")
    return numbers


def with_data_name(certificate: dict[str, Any], data: str | None) -> dict[str, Any]:
    """``certificate`` with ``data`` as the name of its data, for the picture's title."""
    return certificate if data is None else {**certificate, "evaluation": {**certificate["evaluation"], "data": data}}


def readme_text(name: str, numbers: dict[str, Any]) -> str:
    """The README's section on the run."""
    search, certificate = numbers["search"], numbers["certificate"]
    environment = search["environment"]
    recipe = numbers["provenance"]["recipe"]
    train = certificate["evaluation"]["train"]
    images = f"{train['samples']:,} images"
    if train["screened"]:
        images = f"{train['screening_samples']:,} of {images}"
    verdict = verdict_words(certificate["verdict"], certificate["connected"])
    lines = [
        f"{BEGIN}: written by benchmarks/studies/record_path.py; see CONTRIBUTING.md -->",
        f"![Loss and accuracy along the path and the straight line](benchmarks/results/paths/{name}.png)",
        "",
        f"Recipe `{recipe}`, two networks trained from different seeds: "
        f"**{verdict} at training loss {certificate['threshold']:g}**.",
        f"Highest training loss on the path {certificate['max_loss']:.4f}, lowest test accuracy "
        f"{certificate['min_test_accuracy']:.4f}.",
        f"Found in {search['seconds']:.0f} s ({search['ticks']} ticks, {search['sgd_steps']:,} gradient steps of batch "
        f"{numbers['settings']['correction']['batch_size']}, {environment['threads']} thread),",
        f"certified in {numbers['certified_in_seconds']:.0f} s ({certificate['resolution']['closed_pieces']} pieces, "
        f"{images}).",
        certificate["covers"],
        f"Machine: {numbers['machine']}, torch {environment['torch']}, kernels {environment['kernels']}, "
        f"{certificate['environment']['workers']} evaluation workers.",
        f"Numbers: [`{name}.json`](benchmarks/results/paths/{name}.json).",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--data-dir", help="folder of the data set")
    parser.add_argument("--readme", action="store_true", help="write verdict and picture into README.md")
    args = parser.parse_args()
    numbers = record(args.run, args.name, args.data_dir)
    if args.readme:
        readme = ROOT / "README.md"
        before, rest = readme.read_text(encoding="utf-8").split(BEGIN, 1)
        after = rest.split(END, 1)[1]
        readme.write_text(before + readme_text(args.name, numbers) + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
