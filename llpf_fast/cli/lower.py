"""``llpf lower``: train the path of a run as a whole, to a lower loss."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .options import add_data_dir, add_device, add_loss, add_quiet, add_threads, choose_device, set_threads, user_path
from .output import Progress, duration

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "lower the loss along the path of a run: train it as a whole, its ends fixed; exit status 1 where it stays high"

#: Options that set the setting of the same name.
_SETTINGS = ("to", "steps", "curve", "bends", "lr", "momentum", "favor", "waypoints")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=user_path, metavar="RUN", help="run directory of a finished search")
    parser.add_argument("--out", type=user_path, required=True, metavar="RUN2", help="run directory to create")
    parser.add_argument("--to", type=float, metavar="LOSS", help="stop once no screened point has a higher loss")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="gradient steps at most (default: 7 times those of the search)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue an interrupted run of the same command; a complete run stays"
    )
    how = parser.add_argument_group("how")
    how.add_argument("--curve", type=str, metavar="KIND", help="bezier (default) or polygon")
    how.add_argument(
        "--bends",
        type=int,
        metavar="N",
        help="nodes that are trained (default: 1; of a polygon the fewest whose sides stay below the threshold)",
    )
    how.add_argument("--lr", type=float, metavar="RATE", help="learning rate (default: from the search's correction)")
    how.add_argument("--momentum", type=float, metavar="M", help="of the steps (default: 0.9)")
    how.add_argument(
        "--favor", type=float, metavar="P", help="draw points by their loss to this power (default: 3; 0: evenly)"
    )
    how.add_argument(
        "--spheres", action="store_true", help="put the pivots of a polygon back on the search's variance spheres"
    )
    how.add_argument("--waypoints", type=int, metavar="N", help="of the new run, for a Bezier curve (default: 17)")
    code = parser.add_argument_group("network, data and loss, where they have moved (default: the search's)")
    code.add_argument("--model", type=user_path, metavar="CODE", help="the network's FILE.py:FACTORY")
    code.add_argument("--data", type=user_path, metavar="NAME", help="the data's FILE.py:FUNCTION")
    add_data_dir(code)
    add_loss(code)
    machine = parser.add_argument_group("machine")
    add_device(machine)
    add_threads(machine)
    add_quiet(machine)


def run(args: Namespace) -> int:
    from ..find import LowerSettings, PathLowering
    from ..path import RunDirectory
    from ..verify.origin import RunOrigin

    given = {key: value for key in _SETTINGS if (value := getattr(args, key)) is not None}
    settings = LowerSettings(**given, spheres=args.spheres)
    origin = RunOrigin(RunDirectory.open(args.run))
    device = choose_device(args.device)
    provenance: dict[str, Any] = {}
    if args.model is None:
        model = origin.model()
    else:
        from ..models import build_model

        model = build_model(args.model)
    set_threads(args.threads, model)
    if args.loss is None:
        loss = origin.loss()
    else:
        from ..user_code import loss_function

        loss, provenance["loss"] = loss_function(args.loss), args.loss
    if args.data is None:
        train = origin.data(args.data_dir)[0]
    else:
        from ..data import load_dataset

        train = load_dataset(args.data, args.data_dir).train
    if args.data_dir is not None:
        provenance["data_dir"] = os.path.abspath(args.data_dir)
    lowering = PathLowering(
        model,
        args.run,
        settings=settings,
        train=train,
        loss_fn=loss,
        device=device,
        out=args.out,
        resume=args.resume,
        provenance=provenance,
    )
    if not args.quiet:
        print(f"memory {_megabytes(lowering.memory_bytes)} beside the batch, disk {_megabytes(lowering.disk_bytes)}")
    with Progress("step", quiet=args.quiet, upper_bound=args.to is not None) as progress:
        result = lowering.run(progress.update)
    print(
        f"{result.folder}: highest screened loss {result.loss:.4f} after {result.steps:,} gradient steps "
        f"({result.sgd_steps:,} with the search), {duration(result.seconds)}; {result.waypoints:,} waypoints"
    )
    if not result.low_enough:
        print(f"that is above {result.goal:g}: raise --steps, or change --lr")
        return 1
    print(f"certify it: llpf verify {result.folder}")
    return 0


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
