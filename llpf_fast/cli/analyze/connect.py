"""``llpf analyze connect``: a low-loss complex that joins many optima, certified."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import LLPFError
from ..output import Progress
from . import files
from .options import add_models, add_output, add_problem, load, out_folder, show_rows

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "find and certify a low-loss complex that joins two or more networks: exit status 0 when connected, 1 when not"

FILES = [*files("connect", "connector"), "vertex-*.safetensors"]


def add_arguments(parser: ArgumentParser) -> None:
    add_models(parser)
    parser.add_argument("--threshold", type=float, default=0.1, help="highest training loss allowed anywhere (0.1)")
    parser.add_argument(
        "--kind",
        choices=("simplices", "triangles", "star"),
        default="simplices",
        help="all simplices of the barycentric subdivision (up to 5 models), triangles, or lines to one centre",
    )
    parser.add_argument(
        "--aim", type=float, help="loss at which the search of a point ends (default: a tenth of the threshold)"
    )
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="most gradient steps a point")
    parser.add_argument(
        "--surface-steps", type=int, default=2000, metavar="N", help="steps that train all points on the simplices"
    )
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--batch-size", type=int, default=64, metavar="N")
    parser.add_argument("--spacing", type=float, metavar="S", help="first cells' edge, as a share of the longest edge")
    add_problem(parser)
    add_output(parser, "connect")


def run(args: Namespace) -> int:
    if not 0 < args.threshold < float("inf"):
        raise LLPFError(f"--threshold must be above 0, got {args.threshold}")
    if args.spacing is not None and not 0 < args.spacing <= 1:
        raise LLPFError(f"--spacing must be above 0 and at most 1, got {args.spacing}")
    problem, optima = load(args)

    from ...analysis.connector import ConnectorSettings, certify_connector, find_connector
    from ...analysis.output import write_result
    from ...report.connector import draw_connector

    settings = ConnectorSettings(
        kind=args.kind,
        aim=args.threshold / 10 if args.aim is None else args.aim,
        steps=args.steps,
        surface_steps=args.surface_steps,
        lr=args.lr,
        momentum=args.momentum,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    with Progress("step", quiet=args.quiet, upper_bound=True) as progress:
        progress.begin("search")
        module = problem.copy()
        connector = find_connector(module, optima, problem.loss_fn, problem.train, settings, progress=progress.update)
    with Progress("point", quiet=args.quiet) as progress:
        progress.begin("certificate")
        certificate = certify_connector(
            problem, connector, threshold=args.threshold, spacing=args.spacing, progress=progress.update
        )
    folder = out_folder(args)
    connector.save(folder)
    about = {**problem.about(), "networks": optima.digests_by_name()}
    file = write_result(folder, "connect", numbers=connector.numbers(), tables=connector.tables(), about=about)
    picture = draw_connector(connector, folder)
    show_rows(connector.tables()["simplices"])
    accuracy = certificate.min_test_accuracy
    verdict = "connected" if certificate.connected else "not connected"
    print(
        f"{verdict} at threshold {certificate.threshold:g}: highest training loss {certificate.max_loss:.4f}, "
        f"{certificate.points_evaluated:,} points on {len(certificate.simplices)} simplices"
        + (f", lowest test accuracy {accuracy:.4f}" if accuracy is not None else "")
    )
    for reason in certificate.reasons:
        print(f"  {reason}")
    print(f"numbers: {file}\npoints: {folder / 'connector.json'}\npicture: {picture}")
    return 0 if certificate.connected else 1
