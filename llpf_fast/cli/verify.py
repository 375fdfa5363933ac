"""``llpf verify``: compute and draw the certificate of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LLPFError, MissingPackageError
from .options import add_device, add_quiet, check_threads, choose_device, user_path
from .output import Progress

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from ..verify import Certificate
    from ..verify.verdict import Level

#: Arguments of ``verify_run`` that allow what is not the search's.
_OTHER = ("other_data", "other_loss", "other_settings")
#: What the first bytes of a picture's files contain.
_PICTURE = {"csv": b"line,position,waypoint,fraction,", "png": b"Matplotlib version", "svg": b"Matplotlib"}

HELP = "certify the path in a run directory: exit status 0 when it is connected, 1 when not, 2 for an error"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=user_path, metavar="RUN", help="run directory")
    parser.add_argument(
        "--model", type=user_path, metavar="CODE", help="the network's FILE.py:FACTORY, where it has moved"
    )
    parser.add_argument(
        "--data", type=user_path, metavar="NAME", help="the data's FILE.py:FUNCTION, where it has moved"
    )
    parser.add_argument(
        "--data-dir", type=user_path, metavar="DIR", help="folder that holds the data, where it has moved"
    )
    parser.add_argument("--loss", type=user_path, metavar="NAME", help="the loss, likewise")
    parser.add_argument(
        "--level",
        choices=("sampled", "full"),
        help="chosen training samples, or all of them (default: sampled on a CPU for more than 10,000)",
    )
    parser.add_argument(
        "--check",
        type=user_path,
        metavar="CERTIFICATE",
        help="confirm this certificate.json of RUN in seconds, from the files, and write nothing",
    )
    for kind, what in (
        ("data", "the training data may be others than the search's"),
        ("loss", "the loss may be another than the search's"),
        ("settings", "the settings may have been edited since the search"),
    ):
        parser.add_argument(f"--other-{kind}", action="store_true", help=what)
    parser.add_argument(
        "--threads", type=int, metavar="N", help="points measured at a time on a CPU (default: torch's thread count)"
    )
    add_device(parser)
    add_quiet(parser)


def run(args: Namespace) -> int:
    if args.check is not None:
        return _check(args)
    certificate = verify(
        args.run,
        data_dir=args.data_dir,
        model=args.model,
        data=args.data,
        loss=args.loss,
        level=args.level,
        other=[kind for kind in _OTHER if getattr(args, kind)],
        device=args.device,
        threads=args.threads,
        quiet=args.quiet,
    )
    print(verdict(args.run, certificate))
    print(f"picture: {draw(args.run)}")
    return 0 if certificate.connected else 1


def _check(args: Namespace) -> int:
    pointless = [name for name in ("level", *_OTHER) if getattr(args, name)]
    if pointless:
        raise LLPFError(f"--{pointless[0].replace('_', '-')} makes a new certificate; --check confirms an old one")
    if args.threads is not None:
        check_threads(args.threads)
    device = choose_device(args.device)

    from ..verify import check_certificate

    with Progress("sample", quiet=args.quiet) as progress:
        confirmation = check_certificate(
            args.run,
            args.check,
            data_dir=args.data_dir,
            device=device,
            progress=progress.update,
            **_given(args.model, args.data, args.data_dir, args.loss),
        )
    print(f"{args.run}: {confirmation.text}")
    return 0 if confirmation.connected else 1


def verify(
    run_folder: str | os.PathLike[str],
    *,
    data_dir: str | None = None,
    model: str | None = None,
    data: str | None = None,
    loss: str | None = None,
    level: Level | None = None,
    other: Sequence[str] = (),
    device: str = "cpu",
    threads: int | None = None,
    quiet: bool = False,
) -> Certificate:
    """Compute ``RUN/certificate.json``, showing progress; ``model``, ``data`` and ``loss`` in place of the recorded.

    ``other``: names of the arguments of ``verify_run`` that allow what is not the search's.
    """
    if threads is not None:
        check_threads(threads)
    torch_device = choose_device(device)
    _check_picture(Path(run_folder))

    from ..verify import verify_run

    given = _given(model, data, data_dir, loss) | dict.fromkeys(other, True)
    with Progress("percent", quiet=quiet) as progress:
        return verify_run(
            run_folder,
            data_dir=data_dir,
            level=level,
            device=torch_device,
            workers=threads,
            progress=progress.update,
            **given,
        )


def _given(model: str | None, data: str | None, data_dir: str | None, loss: str | None) -> dict[str, Any]:
    """Arguments of ``verify_run`` from names."""
    given: dict[str, Any] = {}
    if model is not None:
        from ..models import build_model

        given["model"] = build_model(model)
    if data is not None:
        from ..data import load_dataset

        loaded = load_dataset(data, data_dir)
        given |= {"train": loaded.train, "test": loaded.test}
    if loss is not None:
        from ..user_code import loss_function

        given["loss_fn"] = loss_function(loss)
    return given


def verdict(run_folder: str | os.PathLike[str], certificate: Certificate) -> str:
    """The verdict with its numbers in a line, then a line for each reason, difference from the search and note."""
    from ..path import RunDirectory
    from ..verify.verdict import verdict_words

    numbers = [f"highest training loss {certificate.max_loss:.4f}"]
    if certificate.bound is not None:
        numbers.insert(0, f"bound {certificate.bound:.4f}")
    if certificate.min_test_accuracy is not None:
        numbers.append(f"lowest test accuracy {certificate.min_test_accuracy:.4f}")
    words = verdict_words(certificate.verdict, certificate.connected)
    first = f"{os.fspath(run_folder)}: {words} at threshold {certificate.threshold:g}: {', '.join(numbers)}"
    differs = [
        f"unlike the search: {line}"
        for line in certificate.differs
        if not any(line in reason for reason in certificate.reasons)
    ]
    search_notes = (RunDirectory.open(run_folder).status or {}).get("notes") or ()
    notes = [f"note: {note}" for note in (*certificate.notes, *search_notes)]
    witness = [] if certificate.witness is None else ["to see it:", *_indented(certificate.witness.reproduce)]
    lines = (certificate.covers, *certificate.reasons, *witness, *certificate.undecided, *differs, *notes)
    return "\n".join([first, *(f"  {line}" for line in lines)])


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]


def _check_picture(folder: Path) -> None:
    """Raise LLPFError where ``draw`` would replace files that it did not write."""
    existing = [file for kind in _PICTURE if (file := folder / f"path.{kind}").exists()]
    foreign = [file for file in existing if not _is_picture(file)]
    if existing and folder / "path.csv" not in existing:
        # Any figure of matplotlib begins like ours; only the CSV identifies it.
        foreign = existing
    if foreign:
        raise LLPFError(f"{foreign[0]} is not the picture of llpf verify, which would replace it; move it away")


def _is_picture(file: Path) -> bool:
    try:
        with open(file, "rb") as content:
            return _PICTURE[file.suffix[1:]] in content.read(2000)
    except OSError:
        return False


def draw(run_folder: str | os.PathLike[str]) -> str:
    """Draw the certified path; returns the picture's file, or says that matplotlib is missing."""
    from ..report.picture import draw_path

    try:
        return str(draw_path(run_folder))
    except MissingPackageError as error:
        return f"not drawn: {error}"
