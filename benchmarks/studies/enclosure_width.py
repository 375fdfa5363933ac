"""How narrow a piece of a path must be for a useful enclosure, and in which layers its radius grows.

    python -m benchmarks.studies.enclosure_width START DESTINATION --data-dir DIR
    python -m benchmarks.studies.enclosure_width RUN --data-dir DIR
    python -m benchmarks.studies.enclosure_width vit_pytorch.cct:cct_2 --options '{"img_size": 32, "num_classes": 10}'

takes pieces of the straight segment from START to DESTINATION (model files that name model and data), of a run's first
segment, or between two new networks of a registered model on normal noise, and writes to
benchmarks/results/cpu/enclosure-width.json, under --name:

widths: for each width of the piece, as a fraction of the segment, the mean radius of the outputs in float32 and
    float64, and their deviation: how far the outputs in the middle lie from the chord of those at both ends.
layers: for each layer at one width, in float64, the means of |value|, deviation and radius; up to the first layer whose
    radius is infinite.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.studies.study import CPU, commit, option_parser, parse, save_json
from llpf_fast.data import load_dataset
from llpf_fast.models import build_model
from llpf_fast.path import RunDirectory
from llpf_fast.path.model_file import load_model_file
from llpf_fast.path.polyline import Polyline, Position
from llpf_fast.verify.enclosure.loss_enclosure import LossEnclosure
from llpf_fast.verify.enclosure.tensor import EnclosedTensor
from llpf_fast.verify.evaluator import Evaluator
from llpf_fast.verify.origin import RunOrigin

WIDTHS = tuple(10.0**-k for k in range(1, 11))
RESULT = CPU / "enclosure-width.json"


class Untried(LossEnclosure):
    """An enclosure whose constructor does not refuse infinite bounds, which are a result here."""

    def _try(self) -> None:
        pass


class Layers:
    """What the layers of a network return: the means of their forms, and their values, by name in order of use."""

    def __init__(self, module: nn.Module) -> None:
        self.forms: dict[str, dict[str, float]] = {}
        self.values: dict[str, Tensor] = {}
        for name, part in module.named_modules():
            if name and not list(part.children()) and not isinstance(part, (nn.Dropout, nn.Identity)):
                part.register_forward_hook(self._recording(name))
        module.register_forward_hook(self._recording("output"))

    def _recording(self, name: str) -> Callable[..., None]:
        def record(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, EnclosedTensor):
                form = output.form
                value, radius = (form.left + form.right) / 2, form.full_radius().double().mean().item()
                self.forms[name] = {"value": value.abs().double().mean().item(), "radius": radius}
            elif isinstance(output, Tensor):
                self.values[name] = output.detach().double()

        return record


def endpoints(args: Any) -> tuple[nn.Module, Polyline, Tensor, Tensor]:
    """The network, a path whose first segment is meant, inputs and targets."""
    first, *rest = args.networks
    if not rest and Path(first).is_dir():
        run = RunDirectory.open(first)
        inputs, targets = RunOrigin(run).data(args.data_dir)[0]
        return RunOrigin(run).model(), Polyline(run.waypoints()), inputs[: args.samples], targets[: args.samples]
    if not rest:
        networks = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            networks.append(build_model(first, **json.loads(args.options)).eval())
        shape = (1, 28, 28) if first == "lenet5" else (3, 32, 32)
        inputs = torch.randn(args.samples, *shape, generator=torch.Generator().manual_seed(2))
        targets = torch.arange(args.samples) % 10
        return networks[0], Polyline([network.state_dict() for network in networks]), inputs, targets
    files = [load_model_file(path) for path in (first, *rest)]
    data, line = load_dataset(str(files[0].dataset_name), args.data_dir), Polyline([file.state for file in files])
    module = build_model(str(files[0].model_name))
    return module, line, data.train_inputs[: args.samples], data.train_targets[: args.samples]


def deviations(layers: Layers, evaluator: Evaluator, line: Polyline, start: float, width: float) -> dict[str, float]:
    """Mean distance of each layer's values in the middle of the piece from the chord of those at its ends."""
    values = []
    for fraction in (start, start + width / 2, start + width):
        evaluator(line.state(Position(0, fraction)))
        values.append(dict(layers.values))
    return {name: (values[1][name] - (values[0][name] + values[2][name]) / 2).abs().mean().item() for name in values[0]}


def main() -> None:
    parser = option_parser(__doc__)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--data-dir")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--start", type=float, default=0.0, help="where on the segment the pieces start")
    parser.add_argument("--layers-at", type=float, default=1e-3, help="width at which the layers are listed")
    parser.add_argument("--options", default="{}", help="of the model, as JSON")
    parser.add_argument("--name", required=True)
    args = parse(parser)
    module, line, inputs, targets = endpoints(args)
    layers, units = Layers(module.eval()), torch.arange(args.samples)
    enclosure = Untried(line, Evaluator(module, F.cross_entropy, inputs, targets))
    evaluator = Evaluator(module, F.cross_entropy, inputs, targets, dtype=torch.float64)
    rows: list[dict[str, Any]] = []
    listed: list[dict[str, Any]] = []
    for width in WIDTHS:
        row = {"width": width}
        for name, precise in (("radius_float32", False), ("radius_float64", True)):
            enclosure.bounds(0, args.start, args.start + width, units, precise=precise)
            row[name] = layers.forms["output"]["radius"]
        deviation = deviations(layers, evaluator, line, args.start, width)
        rows.append({name: rounded(value) for name, value in {**row, "deviation": deviation["output"]}.items()})
        if width == args.layers_at:
            listed = table(layers.forms, deviation)
        print(rows[-1])
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    about = {"samples": args.samples, "start": args.start, "torch": torch.__version__, "commit": commit()}
    save_json(RESULT, {**results, args.name: {"about": about, "widths": rows, "layers": listed}})


def table(forms: dict[str, dict[str, float]], deviation: dict[str, float]) -> list[dict[str, Any]]:
    """A row for each layer with a finite radius."""
    finite = itertools.takewhile(lambda name: math.isfinite(forms[name]["radius"]), forms)
    return [
        {"layer": name, **{key: rounded(x) for key, x in forms[name].items()}, "deviation": rounded(deviation[name])}
        for name in finite
        if name != "output"
    ]


def rounded(value: Any) -> Any:
    """Three digits of a number; None for one that is not finite, which JSON has not."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.3g}") if math.isfinite(value) else None


if __name__ == "__main__":
    main()
