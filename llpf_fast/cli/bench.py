"""``llpf bench``: the benchmark suite of the repository that this package runs from."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LLPFError
from .options import add_device, choose_device, user_path

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

#: Files that --out writes.
_FILES = ("bench.json", "bench.md", "bandwidth.png", "throughput.png")

HELP = "time the kernels beside the machine's bandwidth and plain torch (needs a checkout of the repository)"


def add_arguments(parser: ArgumentParser) -> None:
    add_device(parser)
    parser.add_argument(
        "--quick", action="store_true", help="time the main cases only, on one thread, in under a minute"
    )
    parser.add_argument("--large", action="store_true", help="time up to a billion parameters too (13 GB of memory)")
    parser.add_argument("--only", type=str, default="", metavar="TEXT", help="time the cases whose name contains TEXT")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and stop")
    parser.add_argument("--threads", type=str, default="1,2", metavar="N,...", help="CPU threads (default: 1,2)")
    parser.add_argument("--seconds", type=float, metavar="S", help="seconds to time each row (default: 5)")
    parser.add_argument("--out", type=user_path, metavar="DIR", help="write bench.json, bench.md and pictures to DIR")
    parser.add_argument("--compare", type=str, metavar="COMMIT", help="time this checkout and COMMIT in turn (CPU)")


def run(args: Namespace) -> int:
    suite = _from_repository("suite")
    if args.list:
        print("\n".join(suite.names()))
        return 0
    options = suite.Options(
        device=choose_device(args.device),
        quick=args.quick,
        large=args.large,
        only=args.only,
        threads=_threads(args.threads),
        out=None if args.out is None else Path(args.out),
        seconds=_seconds(args.seconds),
    )
    if options.out is not None:
        _check_out(options.out)
    if args.compare is not None:
        _from_repository("compare").run(options, args.compare)
        return 0
    if not suite.run(options)["rows"]:
        raise LLPFError(f"no case was timed; llpf bench --list names them (--only {args.only!r})")
    return 0


def _check_out(folder: Path) -> None:
    """Raise LLPFError where ``folder`` is a file, or holds files of the same names that llpf bench did not write."""
    if folder.exists() and not folder.is_dir():
        raise LLPFError(f"{folder} is a file; name a folder for the results")
    existing = [file for name in _FILES if (file := folder / name).exists()]
    try:
        is_ours = {"rows", "environment"} <= set(json.loads((folder / "bench.json").read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        is_ours = False
    if existing and not is_ours:
        raise LLPFError(f"{existing[0]} was not written by llpf bench; move it away, or choose another --out")


def _threads(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise LLPFError(f"--threads must be positive whole numbers separated by commas, got {text!r}")
    return counts


def _seconds(value: float | None) -> float | None:
    if value is not None and not 0 < value < float("inf"):
        raise LLPFError(f"--seconds must be a positive number, got {value}")
    return value


def _from_repository(module: str) -> Any:
    """A module of the repository's folder ``benchmarks``, which wheels do not contain."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "benchmarks" / "suite.py").is_file():
        raise LLPFError(
            "the benchmarks are part of the repository, not of the installed package; "
            "clone it, install it with `make install` and run `llpf bench` there"
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return import_module(f"benchmarks.{module}")
