"""What the studies share: options, trained networks, result files."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llpf_fast.analysis import write_result
from llpf_fast.analysis.output import Table
from llpf_fast.cli.train import checkpoint_file, train_endpoint
from llpf_fast.models.small_nets import MLP
from llpf_fast.path.durable import write_bytes

ROOT = Path(__file__).parents[2]
#: Trained networks, measurements and results; not in git. ``gallery.py`` takes from here what the documentation shows.
WORK = ROOT / "runs" / "studies"
#: Results that docs/performance.py reads; in git.
CPU = ROOT / "benchmarks" / "results" / "cpu"
#: Of a committed picture: no channel of a pixel is off by more than a tenth, and the file is a third as large.
_COLOURS = 128


def option_parser(documentation: str, topic: str | None = None, cases: Collection[str] | None = None) -> Any:
    """The parser of a study's command line, described by its module's ``documentation``.

    With ``topic``: the positional ``case`` (one of ``cases`` where given), ``--data-dir``, ``--work`` and ``--out``.
    """
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    if topic is not None:
        parser.add_argument("case", choices=cases)
        parser.add_argument("--data-dir", help="folder of the data set")
        parser.add_argument("--work", type=Path, default=WORK, help="folder of trained networks and measurements")
        parser.add_argument("--out", type=Path, default=WORK / topic, help="folder of the results")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line's values; from here on torch computes on one thread, so that results repeat."""
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    return arguments


def commit() -> str:
    """The commit that produced the numbers, marked "-dirty" where files differed from it."""
    text = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return text.stdout.strip() or "unknown"


def save(
    folder: Path,
    stem: str,
    *,
    numbers: Mapping[str, Any],
    about: Mapping[str, Any],
    tables: Mapping[str, Table] | None = None,
) -> Path:
    """``write_result`` with the commit in ``about``."""
    return write_result(folder, stem, numbers=numbers, tables=tables, about={**about, "commit": commit()})


def save_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` to ``path``, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def small_picture(source: Path, target: Path) -> None:
    """Write the PNG ``source`` to ``target`` with a palette of 128 colours."""
    from PIL import Image

    content = io.BytesIO()
    with Image.open(source) as image:
        # Not median cut, which drops the colour of a thin line.
        palette = image.convert("RGB").quantize(_COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    palette.save(content, "PNG", optimize=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(target, content.getvalue())


class TanhMLP(MLP):
    """The digits' network with tanh in place of ReLU: twice differentiable everywhere."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(images.flatten(1))))))


def train(
    work: Path, model: str, data: str, *, data_dir: str | None, seed: int, init: Path | None = None, **options: Any
) -> Path:
    """The file of a network trained with these options; trained only where no earlier call has.

    ``checkpoint_epochs`` among the options leaves further files: ``checkpoint_file(file, epoch)``.
    """
    key = {
        **{"model": model, "data": data, "seed": seed, "torch": torch.__version__},
        **{"init": None if init is None else hashlib.sha256(init.read_bytes()).hexdigest()},
        **options,
    }
    folder = work / "networks" / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    file = folder / f"{model.rpartition(':')[2]}.model.pt"
    if not file.exists():  # written last, after all checkpoints
        folder.mkdir(parents=True, exist_ok=True)
        print(f"training {model} on {data}, seed {seed}, {options}", flush=True)
        train_endpoint(
            *(model, data, file),
            seed=seed,
            data_dir=data_dir,
            init=None if init is None else str(init),
            quiet=True,
            threads=1,
            **options,
        )
    return file


def trunk(
    work: Path, model: str, data: str, epochs: Sequence[int], *, data_dir: str | None, seed: int, **options: Any
) -> dict[int, Path]:
    """Checkpoints of one training after each of ``epochs``."""
    last = max(*epochs, 1)
    file = train(work, model, data, data_dir=data_dir, seed=seed, epochs=last, checkpoint_epochs=[*epochs], **options)
    return {epoch: checkpoint_file(file, epoch) for epoch in epochs}
