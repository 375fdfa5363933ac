"""``llpf train``: train one endpoint of a path, stored as the LLPF authors store theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LLPFError, first_line
from .options import (
    add_data_dir,
    add_device,
    add_loss,
    add_quiet,
    add_threads,
    check_new_file,
    choose_device,
    set_threads,
    user_path,
)
from .output import Progress, duration

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    import torch
    from torch import Tensor, nn

HELP = "train one network: an endpoint of a path"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", type=user_path, required=True, metavar="NAME", help="lenet5, resnet18, cct7, ...")
    parser.add_argument("--data", type=user_path, required=True, metavar="NAME", help="digits, mnist, cifar10, ...")
    add_data_dir(parser)
    parser.add_argument(
        "--augmentation",
        choices=("none", "mnist", "cifar"),
        default="none",
        help="the papers': mnist turns and shifts, cifar mirrors and shifts",
    )
    parser.add_argument(
        "--augmentation-epochs", type=int, metavar="N", help="augment in the first N epochs only (default: in all)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of initial weights and batch order")
    parser.add_argument("--init", type=user_path, metavar="FILE", help="start from this checkpoint's weights instead")
    parser.add_argument("--out", type=user_path, required=True, metavar="FILE", help="checkpoint to write")
    parser.add_argument("--epochs", type=int, default=20, metavar="N")
    parser.add_argument(
        "--checkpoint-epochs",
        type=int,
        nargs="+",
        default=[],
        metavar="N",
        help="also write FILE-epochN after these epochs (0: before the first), to train on from with --init",
    )
    parser.add_argument("--optimizer", choices=("sgd", "adamw"), default="sgd")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument(
        "--lr-schedule",
        choices=("constant", "cosine", "steps", "one-cycle"),
        default="constant",
        help="cosine ends at 0, steps divides by 10 after each of --lr-epochs, one-cycle peaks at --lr",
    )
    parser.add_argument("--lr-epochs", type=int, nargs="+", default=[], metavar="N", help="for --lr-schedule steps")
    parser.add_argument("--warmup-epochs", type=int, default=0, metavar="N", help="of the learning rate's first rise")
    parser.add_argument("--momentum", type=float, default=0.9, help="of sgd")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    parser.add_argument("--batch-size", type=int, default=64, metavar="N")
    parser.add_argument(
        "--precision",
        choices=("float32", "tf32", "bfloat16"),
        default="float32",
        help="of forward and backward; tf32 is for GPUs, bfloat16 is autocast; weights stay float32",
    )
    parser.add_argument(
        "--channels-last", action="store_true", help="convolutions with their channels last in memory: for GPUs"
    )
    parser.add_argument("--download", action="store_true", help="let torchvision fetch data that is not there")
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on after the last whole epoch of an interrupted training (FILE.resume), with the same options",
    )
    add_loss(parser)
    add_device(parser)
    add_threads(parser)
    add_quiet(parser)


def run(args: Namespace) -> int:
    for name in ("epochs", "batch_size"):
        if not 1 <= getattr(args, name) < 2**31:
            raise LLPFError(f"--{name.replace('_', '-')} must be at least 1 and below 2**31, got {getattr(args, name)}")
    for name in ("lr", "momentum", "weight_decay"):
        if not 0 <= getattr(args, name) < float("inf"):
            raise LLPFError(f"--{name.replace('_', '-')} must be 0 or more, got {getattr(args, name)}")
    if not 0 <= args.label_smoothing < 1:
        raise LLPFError(f"--label-smoothing must be at least 0 and below 1, got {args.label_smoothing}")
    several = {name: getattr(args, name) for name in ("checkpoint_epochs", "lr_epochs")}
    several["augmentation_epochs"] = [] if args.augmentation_epochs is None else [args.augmentation_epochs]
    for name, values in several.items():
        first = 1 if name == "lr_epochs" else 0
        beyond = [epoch for epoch in values if not first <= epoch <= args.epochs]
        if beyond:
            raise LLPFError(f"--{name.replace('_', '-')} must be {first} to {args.epochs}, got {beyond[0]}")
    out, state_file = Path(args.out), resume_file(Path(args.out))
    resume = args.resume and state_file.exists()
    check_new_file(out, overwrite=args.overwrite)
    if state_file.exists() and not (resume or args.overwrite):
        raise LLPFError(f"{state_file} is an interrupted training: go on with --resume, or begin anew with --overwrite")
    for file in (checkpoint_file(out, epoch) for epoch in args.checkpoint_epochs):
        # Those of the epochs before the interruption are there.
        check_new_file(file, overwrite=args.overwrite or resume)
    train_endpoint(
        args.model,
        args.data,
        out,
        seed=args.seed,
        data_dir=args.data_dir,
        augmentation=args.augmentation,
        augment_epochs=args.augmentation_epochs,
        init=args.init,
        loss=args.loss,
        checkpoint_epochs=args.checkpoint_epochs,
        device=args.device,
        threads=args.threads,
        download=args.download,
        quiet=args.quiet,
        resume=resume,
        epochs=args.epochs,
        optimizer=args.optimizer,
        lr=args.lr,
        schedule=args.lr_schedule,
        lr_epochs=args.lr_epochs,
        warmup_epochs=args.warmup_epochs,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        label_smoothing=args.label_smoothing,
        batch_size=args.batch_size,
        precision=args.precision,
        channels_last=args.channels_last,
    )
    return 0


def checkpoint_file(out: Path, epoch: int) -> Path:
    """``a.pt`` to ``a-epoch3.pt``, ``a.model.pt`` (the authors' suffix) to ``a-epoch3.model.pt``."""
    suffix = ".model.pt" if out.name.endswith(".model.pt") else out.suffix
    return out.with_name(f"{out.name.removesuffix(suffix)}-epoch{epoch}{suffix}")


def resume_file(out: Path) -> Path:
    """The file beside ``out`` that holds the state after the last whole epoch until ``out`` is written."""
    return out.with_name(f"{out.name}.resume")


def train_endpoint(
    model_name: str,
    data_name: str,
    out: Path,
    *,
    seed: int,
    epochs: int = 20,
    data_dir: str | None = None,
    augmentation: str = "none",
    init: str | None = None,
    loss: str | None = None,
    checkpoint_epochs: Sequence[int] = (),
    device: str = "cpu",
    threads: int | None = None,
    download: bool = False,
    quiet: bool = False,
    resume: bool = False,
    **training: Any,
) -> None:
    """Train with the options of :func:`llpf_fast.models.train_model`, write ``out``, print how good the network is.

    That is the training loss in eval mode on the images as they are, and the test accuracy; where the targets are no
    classes, the test loss. The checkpoint's entry ``training`` says how it was trained. After each epoch
    ``resume_file(out)`` is replaced, with the optimizer's state; it is removed when ``out`` is written.

    Args:
        init: checkpoint whose weights replace the initial ones; the optimizer begins anew.
        loss: a name that ``user_code.loss_function`` takes; None for cross-entropy.
        checkpoint_epochs: epochs after which the model is written to ``checkpoint_file(out, epoch)`` too.
        resume: go on from ``resume_file(out)``. LLPFError where that was trained with other options or data.
    """
    import io
    import time

    import torch

    from ..batches import TensorData, as_data
    from ..batches.augment import augmentation as augmentation_of
    from ..data import dataset_classes, load_dataset
    from ..models import TrainingProgress, build_model, check_images, train_model
    from ..path import save_model_file
    from ..path.durable import write_bytes
    from ..path.endpoint import load_endpoint
    from ..user_code import loss_function

    torch_device = choose_device(device)
    loss_fn = None if loss is None else loss_function(loss)
    torch.manual_seed(seed)
    model = build_model(model_name, classes=dataset_classes(data_name))
    if init is not None:
        # load_endpoint checked every tensor; extra state that is no tensor is left as the network has it.
        model.load_state_dict(load_endpoint(init, model, "--init", model=f"model {model_name}"), strict=False)
    set_threads(threads, model)
    data = load_dataset(data_name, data_dir, download=download)
    train = as_data(data.train)
    if isinstance(train, TensorData):
        check_images(model_name, train.inputs)

    description = {"seed": seed, "epochs": epochs, "augmentation": augmentation, "init": init, "loss": loss, **training}

    def save(file: Path) -> None:
        save_model_file(file, model.state_dict(), model_name=model_name, dataset_name=data_name, training=description)

    digest = train.sha256 if isinstance(train, TensorData) else None
    identity = {"model": model_name, "data": data_name, "sha256": digest, **description}
    state_file, state = resume_file(out), None
    if resume:
        state = _read_state(state_file, identity)
    began = time.monotonic()
    if 0 in checkpoint_epochs:
        save(checkpoint_file(out, 0))
    with Progress("epoch", quiet=quiet) as progress:

        def after_epoch(at: TrainingProgress) -> None:
            progress.update(at.epoch, at.epochs, f"loss {at.loss:.4f}")
            if at.epoch in checkpoint_epochs:
                save(checkpoint_file(out, at.epoch))
            content = io.BytesIO()
            torch.save({"identity": identity, "state": at.state()}, content)
            write_bytes(state_file, content.getvalue())

        progress.update(0 if state is None else state["epoch"], epochs)
        try:
            train_model(
                model.to(torch_device),
                train,
                seed=seed,
                loss_fn=loss_fn,
                epochs=epochs,
                augment=augmentation_of(augmentation),
                progress=after_epoch,
                resume=state,
                **training,
            )
        except LLPFError as error:
            raise LLPFError(f"model {model_name} on data {data_name}: {error}") from error
    seconds = time.monotonic() - began
    # Saved before testing: the training is not lost where the test data are wrong.
    save(out)
    state_file.unlink(missing_ok=True)
    results = []
    for name, samples in (("training", data.train), ("test", data.test)):
        try:
            results.append(
                f"no {name} data" if samples is None else _result(name, model, samples, loss_fn, torch_device)
            )
        except LLPFError as error:
            raise LLPFError(f"{out} is written, but on the {name} data {error}") from error
    print(f"{out}: {model_name} on {data.label}, seed {seed}: {', '.join(results)}, {duration(seconds)}")


def _read_state(file: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The training state in ``file``; LLPFError where it is damaged or ``identity`` is another training's."""
    import pickle

    import torch

    try:
        saved = torch.load(file, weights_only=True)
        was, state = saved["identity"], saved["state"]
    except (OSError, EOFError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise LLPFError(f"{file} is no state of a training: {first_line(error)}") from error
    different = [
        "the training data differ" if key == "sha256" else f"{key} was {was.get(key)!r}, is {identity.get(key)!r}"
        for key in {**was, **identity}
        if was.get(key) != identity.get(key)
    ]
    if different:
        raise LLPFError(f"cannot resume {file}: {', '.join(different)}; or begin anew with --overwrite")
    return state


def _result(
    name: str, model: nn.Module, data: Any, loss_fn: Callable[[Any, Any], Tensor] | None, device: torch.device
) -> str:
    from ..verify import Evaluator

    evaluation = Evaluator(model, loss_fn, data, device=device)(model.state_dict())
    if name == "training" or evaluation.accuracy is None:
        return f"{name} loss {evaluation.loss:.4f}"
    return f"{name} accuracy {evaluation.accuracy:.4f}"
