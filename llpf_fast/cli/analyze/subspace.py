"""``llpf analyze subspace``: the intrinsic dimension of a task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import LLPFError
from ..options import user_path
from ..output import Progress
from .options import add_output, add_problem, load_problem, out_folder, show_rows

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "train in random subspaces: the intrinsic dimension (d_int90) of a network and its data"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--dimensions", type=int, nargs="+", required=True, metavar="N", help="of the subspaces to try")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="one initial network each")
    parser.add_argument(
        "--init", type=user_path, nargs="+", default=[], metavar="FILE", help="start from these models instead"
    )
    parser.add_argument("--baseline", type=float, metavar="X", help="accuracy (0..1) of unrestricted training")
    parser.add_argument("--share", type=float, default=0.9, help="of the baseline, to be reached (0.9)")
    parser.add_argument("--loss-level", type=float, metavar="X", help="a training loss to reach instead")
    parser.add_argument("--steps", type=int, default=2000, metavar="N", help="gradient steps a subspace")
    parser.add_argument("--lr", type=float, default=0.03)
    parser.add_argument("--batch-size", type=int, default=64, metavar="N")
    parser.add_argument("--optimizer", choices=("adam", "sgd"), default="adam")
    parser.add_argument(
        "--memory",
        type=int,
        default=512,
        metavar="MB",
        help="memory of the directions, which are else generated at each use",
    )
    add_problem(parser)
    add_output(parser, "subspace")


def run(args: Namespace) -> int:
    if not args.init and (not args.model or not args.data):
        raise LLPFError("name --model and --data, or networks to start from with --init")
    if min(args.dimensions) < 1:
        raise LLPFError(f"--dimensions must be at least 1, got {min(args.dimensions)}")
    problem = load_problem(args, args.init)

    import torch

    from ...analysis.output import write_result
    from ...analysis.subspace import SubspaceSettings, baseline_accuracy, intrinsic_dimension
    from ...data import dataset_classes
    from ...models import build_model
    from ...report.widths import draw_subspace

    if args.init:
        starts = list(problem.networks(args.init, fewest=1))
    else:
        starts = []
        for seed in args.seeds:
            torch.manual_seed(seed)
            starts.append(build_model(args.model, classes=dataset_classes(args.data)).state_dict())
    settings = SubspaceSettings(args.steps, args.lr, args.batch_size, args.optimizer, memory=args.memory * 2**20)
    baseline = args.baseline
    with Progress("run", quiet=args.quiet) as progress:
        if baseline is None and args.loss_level is None:
            baseline = baseline_accuracy(problem, starts[0], settings, progress=progress.update)
        progress.begin("subspaces")
        dimension = intrinsic_dimension(
            problem,
            starts,
            args.dimensions,
            settings,
            baseline=baseline,
            share=args.share,
            loss_level=args.loss_level,
            progress=progress.update,
        )
    folder = out_folder(args)
    numbers = dimension.numbers()
    about = {**problem.about(), "settings": {**vars(settings)}, "starts": len(starts)}
    tables = {"runs": [vars(run) for run in dimension.runs], "summary": dimension.summary()}
    file = write_result(folder, "subspace", numbers=numbers, tables=tables, about=about)
    picture = draw_subspace({about["model"]: dimension}, folder)
    show_rows(dimension.summary())
    print(dimension.in_words())
    print(f"numbers: {file}\npicture: {picture}")
    return 0
