"""``llpf analyze layers``: the barriers of single layers and of groups, and their prediction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import LLPFError
from ..output import Progress
from .options import add_models, add_output, add_problem, load, out_folder, show_rows

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "barriers of single layers and growing groups of layers, beside their second-order prediction"


def add_arguments(parser: ArgumentParser) -> None:
    add_models(parser, "two model files, a run (its two endpoints), or two waypoints (RUN@0 RUN@12)")
    parser.add_argument("--tensors", action="store_true", help="each tensor separately, not each layer")
    parser.add_argument("--no-prediction", action="store_true", help="only measure: no second derivatives")
    parser.add_argument(
        "--hessian-samples", type=int, default=2000, metavar="N", help="training samples for second derivatives, 0: all"
    )
    add_problem(parser)
    add_output(parser, "layers")


def run(args: Namespace) -> int:
    if args.hessian_samples < 0:
        raise LLPFError(f"--hessian-samples must be 0 (all) or more, got {args.hessian_samples}")
    problem, networks = load(args)

    from ...analysis.layers import layer_connectivity
    from ...analysis.output import write_result
    from ...report.layers import draw_layers

    with Progress("step", quiet=args.quiet) as progress:
        connectivity = layer_connectivity(
            problem,
            networks,
            tensors=args.tensors,
            predict=not args.no_prediction,
            hessian_samples=args.hessian_samples,
            progress=progress.update,
        )
    folder = out_folder(args)
    about = {**problem.about(), "networks": networks.digests_by_name()}
    file = write_result(
        folder, "layers", numbers=connectivity.numbers(), tables={"groups": connectivity.rows()}, about=about
    )
    picture = draw_layers(connectivity, folder)
    alone = [connectivity.select("alone", base) for base in (0, 1)]
    show_rows(
        [
            {
                "layer": share.layer,
                "parameters": share.parameters,
                "distance": share.distance,
                **{
                    f"{kind}, base {connectivity.names[base]}": value
                    for base in (0, 1)
                    for kind, value in (
                        ("barrier", alone[base][i].barriers["train_loss"]),
                        ("predicted", alone[base][i].predicted),
                    )
                    if value is not None
                },
            }
            for i, share in enumerate(connectivity.layers)
        ]
    )
    midpoint = connectivity.midpoint()["train_loss"]
    print(f"all layers at the midpoint: barrier {midpoint:.4g}", end="")
    if connectivity.whole is not None:
        print(
            f", predicted {connectivity.whole.midpoint:.4g} (curvature alone {connectivity.whole.sixteenth:.4g})",
            end="",
        )
    if connectivity.integral is not None:
        print(
            f"; on {connectivity.hessian_samples:,} samples {connectivity.integral.barrier:.4g}, "
            f"curvature integral {connectivity.integral.integral:.4g}",
            end="",
        )
    print()
    if connectivity.whole is not None:
        for name, rank in connectivity.ranks().items():
            if "_base_" not in name and rank.rho is not None:
                print(f"rank correlation, {name}: {rank.rho:.2f} over {rank.count} groups")
    print(f"numbers: {file}\npicture: {picture}")
    return 0
