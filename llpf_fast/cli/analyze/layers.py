"""``llpf analyze layers``: what each layer contributes to the barrier between two networks, and what predicts it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import LLPFError
from ..output import Progress
from .options import add_models, add_output, add_problem, load, out_folder, show_rows

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

HELP = "barriers of single layers and growing groups of layers, beside what second derivatives predict"


def add_arguments(parser: ArgumentParser) -> None:
    add_models(parser, "two model files, a run (its two ends), or two waypoints (RUN@0 RUN@12)")
    parser.add_argument("--tensors", action="store_true", help="each tensor by itself, a weight apart from its bias")
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
        found = layer_connectivity(
            problem,
            networks,
            tensors=args.tensors,
            predict=not args.no_prediction,
            hessian_samples=args.hessian_samples,
            progress=progress.update,
        )
    folder = out_folder(args)
    about = {**problem.about(), "networks": dict(zip(networks.names, networks.digests(), strict=True))}
    file = write_result(folder, "layers", numbers=found.numbers(), tables={"groups": found.rows()}, about=about)
    picture = draw_layers(found, folder)
    alone = [found.select("alone", base) for base in (0, 1)]
    show_rows(
        [
            {
                "layer": place.layer,
                "parameters": place.parameters,
                "distance": place.distance,
                **{
                    f"{kind}, base {found.names[base]}": value
                    for base in (0, 1)
                    for kind, value in (
                        ("barrier", alone[base][i].barriers["train_loss"]),
                        ("predicted", alone[base][i].predicted),
                    )
                    if value is not None
                },
            }
            for i, place in enumerate(found.layers)
        ]
    )
    midpoint = found.midpoint()["train_loss"]
    print(f"all layers at the midpoint: barrier {midpoint:.4g}", end="")
    if found.whole is not None:
        print(f", predicted {found.whole.midpoint:.4g} (curvature alone {found.whole.sixteenth:.4g})", end="")
    if found.integral is not None:
        print(
            f"; on {found.hessian_samples:,} samples {found.integral.barrier:.4g}, "
            f"curvature integral {found.integral.integral:.4g}",
            end="",
        )
    print()
    if found.whole is not None:
        for name, rank in found.ranks().items():
            if "_base_" not in name and rank.rho is not None:
                print(f"rank correlation, {name}: {rank.rho:.2f} over {rank.count} groups")
    print(f"numbers: {file}\npicture: {picture}")
    return 0
