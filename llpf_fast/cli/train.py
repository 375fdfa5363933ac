"""``llpf train``: one trained endpoint, as the LLPF authors train and store theirs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .common import add_device, add_quiet, add_threads, check_new_file, choose_device, set_threads
from .progress import Progress, duration

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

HELP = "train one network: an endpoint of a path"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", type=str, required=True, metavar="NAME", help="lenet5, mlp, ...")
    parser.add_argument("--data", type=str, required=True, metavar="NAME", help="digits, mnist, cifar10, ...")
    parser.add_argument("--data-dir", type=str, metavar="DIR", help="folder that holds the data; digits need none")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of initial weights and batch order")
    parser.add_argument("--out", type=str, required=True, metavar="FILE", help="checkpoint to write")
    parser.add_argument("--epochs", type=int, default=20, metavar="N")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--batch-size", type=int, default=64, metavar="N")
    parser.add_argument("--download", action="store_true", help="let torchvision fetch data that is not there")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE where it exists")
    add_device(parser)
    add_threads(parser)
    add_quiet(parser)


def run(args: Namespace) -> int:
    from ..errors import LLPFError

    for name in ("epochs", "batch_size"):
        if args[name] < 1:
            raise LLPFError(f"--{name.replace('_', '-')} must be at least 1, got {args[name]}")
    for name in ("lr", "momentum", "weight_decay"):
        if not 0 <= args[name] < float("inf"):
            raise LLPFError(f"--{name.replace('_', '-')} must be 0 or more, got {args[name]}")
    out = Path(args.out)
    check_new_file(out, overwrite=args.overwrite)
    train_endpoint(
        args.model,
        args.data,
        out,
        seed=args.seed,
        data_dir=args.data_dir,
        epochs=args.epochs,
        lr=args.lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        batch_size=args.batch_size,
        device=args.device,
        threads=args.threads,
        download=args.download,
        quiet=args.quiet,
    )
    return 0


def train_endpoint(
    model_name: str,
    data_name: str,
    out: Path,
    *,
    seed: int,
    data_dir: str | None = None,
    epochs: int = 20,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    batch_size: int = 64,
    device: str = "cpu",
    threads: int | None = None,
    download: bool = False,
    quiet: bool = False,
) -> None:
    """Train, print the test accuracy, write ``out`` and load it back."""
    import time

    import torch

    from ..data import load_dataset
    from ..models import accuracy, build_model, check_images, train_model
    from ..path import save_model_file

    where = choose_device(device)
    torch.manual_seed(seed)
    model = build_model(model_name)
    set_threads(threads, model)
    data = load_dataset(data_name, data_dir, download=download)
    check_images(model_name, data.train_inputs)
    began = time.monotonic()
    with Progress("epoch", quiet=quiet) as progress:
        progress.update(0, epochs)
        train_model(
            model.to(where),
            data.train_inputs.to(where),
            data.train_targets.to(where),
            seed=seed,
            epochs=epochs,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            batch_size=batch_size,
            progress=lambda at: progress.update(at.epoch, at.epochs, f"loss {at.loss:.4f}"),
        )
    seconds = time.monotonic() - began
    right = accuracy(model, data.test_inputs.to(where), data.test_targets.to(where))
    save_model_file(out, model.state_dict(), model_name=model_name, dataset_name=data_name)
    print(f"{out}: {model_name} on {data.label}, seed {seed}: test accuracy {right:.4f}, {duration(seconds)}")
