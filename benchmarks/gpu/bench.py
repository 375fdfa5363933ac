"""Some cases of the suite, up to its largest, without the command line: python3 bench.py DEVICE TEXT OUT."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(device: str, only: str, out: str) -> None:
    sys.path.insert(0, str(ROOT))
    import torch

    from benchmarks import suite

    suite.run(suite.Options(torch.device(device), large=True, only=only, out=Path(out), seconds=2.0))


if __name__ == "__main__":
    main(*sys.argv[1:])
