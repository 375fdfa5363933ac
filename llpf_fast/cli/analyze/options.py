"""Options that the analyses share: models, problem, results."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import LLPFError
from ..options import add_data_dir, add_device, add_loss, add_quiet, add_threads, choose_device, set_threads, user_path

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Mapping, Sequence

    from ...analysis import Networks, Problem


def add_models(parser: ArgumentParser, help: str = "") -> None:
    """Positional MODELS: model files, runs, waypoints of runs."""
    parser.add_argument(
        "models",
        type=user_path,
        nargs="+",
        metavar="MODELS",
        help=help or "model files; RUN for both endpoints of a run, RUN@12 for its waypoint 12",
    )


def add_problem(parser: ArgumentParser) -> None:
    """Network, data and loss; by default those of the model files or the run."""
    parser.add_argument(
        "--model",
        type=user_path,
        metavar="NAME",
        help="the network: lenet5, ..., FILE.py:FACTORY (default: that of MODELS)",
    )
    parser.add_argument(
        "--data",
        type=user_path,
        metavar="NAME",
        help="the data: mnist, ..., FILE.py:FUNCTION (default: that of MODELS)",
    )
    add_data_dir(parser)
    add_loss(parser)
    parser.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="training samples measured on, 0 for all (default: all on a GPU, at most 10,000 on a CPU)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of batches and random directions")
    add_device(parser)
    add_threads(parser)


def add_output(parser: ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--out", type=user_path, default=default, metavar="DIR", help=f"folder of the results ({default})"
    )
    parser.add_argument(
        "--cache", type=user_path, metavar="DIR", help="folder of cached evaluations (default: OUT/cache)"
    )
    add_quiet(parser)


def load_problem(args: Namespace, sources: Sequence[str] | None = None) -> Problem:
    """The problem of the options; what they leave out is that of ``sources`` (default: MODELS).

    LLPFError where neither names the network or the data.
    """
    device = choose_device(args.device)
    out_folder(args)

    from ...analysis.problem import Problem, default_samples

    sources = list(args.models if sources is None else sources)
    options: dict[str, Any] = {
        "samples": default_samples(device) if args.samples is None else args.samples,
        "seed": args.seed,
        "device": device,
        "cache": args.cache or str(Path(args.out) / "cache"),
    }
    run = next((folder for folder in map(_run_folder, sources) if folder is not None), None)
    if run is not None and args.model is None and args.data is None:
        from ...user_code import loss_function

        loss_fn = None if args.loss is None else loss_function(args.loss)
        problem = Problem.from_run(run, loss_fn=loss_fn, data_dir=args.data_dir, **options)
    else:
        model, data = _names(args, sources, run)
        problem = Problem.from_names(model, data, data_dir=args.data_dir, loss=args.loss, **options)
    set_threads(args.threads, problem.module)
    return problem


def load(args: Namespace, *, fewest: int = 2) -> tuple[Problem, Networks]:
    """The problem, and MODELS checked against it."""
    problem = load_problem(args)
    return problem, problem.networks(args.models, fewest=fewest)


def out_folder(args: Namespace) -> Path:
    """``--out``, made; LLPFError where it is a file or cannot be made."""
    from ...path.durable import writing

    folder = Path(args.out)
    if folder.exists() and not folder.is_dir():
        raise LLPFError(f"{folder} is a file; name a folder for the results")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _run_folder(source: str) -> str | None:
    """The run directory that ``source`` (RUN or RUN@12) names; None where it names a file, or nothing."""
    folder, at, _ = source.rpartition("@")
    for name in (source, folder if at else ""):
        if name and Path(name).is_dir():
            return name
    return None


def _names(args: Namespace, sources: Sequence[str], run: str | None) -> tuple[str, str]:
    names = {"model": args.model, "data": args.data}
    if None in names.values():
        for key, value in _recorded(sources, run).items():
            names[key] = names[key] or value
    for key, value in names.items():
        if not value:
            raise LLPFError(f"{sources[0]} does not name its {key}; name it with --{key}")
    return names["model"], names["data"]


def _recorded(sources: Sequence[str], run: str | None) -> dict[str, str | None]:
    from ...path import RunDirectory, load_model_file

    if run is not None:
        settings = RunDirectory.open(run).run.get("settings") or {}
        return {key: settings.get(key) for key in ("model", "data")}
    first = load_model_file(sources[0])
    return {"model": first.model_name, "data": first.dataset_name}


def show_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table on stdout: one column a key of the first row; numbers to four digits, right-aligned."""
    from ..output import print_table

    columns = {name: not isinstance(value, str) for name, value in rows[0].items()}
    cells = ([_cell(row.get(name)) for name in columns] for row in rows)
    # Wide enough for all columns.
    print_table(columns, cells, 60 + 40 * len(columns))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (bool, str)):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
