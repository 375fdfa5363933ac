"""``llpf analyze width-sweep``: the radial width of networks trained with different settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import LLPFError
from ..output import Progress
from .options import add_output, add_problem, load_problem, out_folder, show_rows
from .widths import add_width, width_settings

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from torch import nn

HELP = "train networks over learning rates, batch sizes, weight decays and network widths; radial width of each"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--lr", type=float, nargs="+", default=[], metavar="X", help="learning rates; the first is the base"
    )
    parser.add_argument("--batch-size", type=int, nargs="+", default=[], metavar="N", help="likewise")
    parser.add_argument("--weight-decay", type=float, nargs="+", default=[], metavar="X", help="likewise")
    parser.add_argument("--width", type=int, nargs="+", default=[], metavar="N", help="network widths, likewise")
    parser.add_argument(
        "--width-keyword", type=str, default="hidden", metavar="NAME", help="parameter of the network's factory"
    )
    parser.add_argument("--epochs", type=int, default=10, metavar="N")
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="one network each")
    parser.add_argument(
        "--matched-loss", type=float, metavar="X", help="also measure networks when their loss first was at most this"
    )
    add_width(parser)
    add_problem(parser)
    add_output(parser, "width-sweep")


def run(args: Namespace) -> int:
    given = {name: getattr(args, name) for name in ("lr", "batch_size", "weight_decay", "width")}
    axes = {name: list(map(float, values)) for name, values in given.items() if values}
    if not any(len(values) > 1 for values in axes.values()):
        raise LLPFError("nothing varies: give two or more values to --lr, --batch-size, --weight-decay or --width")
    if not args.model or not args.data:
        raise LLPFError("a sweep trains networks: name --model and --data")
    problem = load_problem(args, [])

    from ...analysis.output import write_result
    from ...analysis.problem import Problem
    from ...analysis.width_sweep import Training, width_sweep
    from ...data import dataset_classes
    from ...models import build_model
    from ...report.widths import draw_sweep

    def build(width: int | None) -> nn.Module:
        extra = {} if width is None else {args.width_keyword: width}
        return build_model(args.model, classes=dataset_classes(args.data), **extra)

    def problem_of(width: int | None) -> Problem:
        return problem if width is None else problem.like(module=build(width))

    first: dict[str, Any] = {name: values[0] for name, values in axes.items()}
    base = Training(epochs=args.epochs, momentum=args.momentum)
    for name, value in first.items():
        base = base.changed(name, value)
    varied = {name: values for name, values in axes.items() if len(values) > 1}
    with Progress("network", quiet=args.quiet) as progress:
        sweep = width_sweep(
            problem_of,
            build,
            varied,
            base,
            width_settings(args),
            seeds=args.seeds,
            matched_loss=args.matched_loss,
            progress=progress.update,
        )
    folder = out_folder(args)
    about = {**problem.about(), "law": sweep.law, "base": vars(base), "matched_loss": sweep.matched_loss}
    tables = {
        "networks": [cell.row() for cell in sweep.cells],
        "summary": sweep.summary(),
        "trends": sweep.trends(),
    }
    file = write_result(folder, "width-sweep", numbers={"axes": sweep.axes, **tables}, tables=tables, about=about)
    picture = draw_sweep(sweep, folder)
    show_rows(sweep.summary())
    show_rows(sweep.trends())
    print(f"rho: Spearman's correlation with the axis over all networks\n{sweep.law}")
    print(f"numbers: {file}\npicture: {picture}")
    return 0
