"""Every wrong argument is refused before anything is read or written, and the message has both values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llpf_fast import ops
from llpf_fast.flat.table import SegmentTable
from llpf_fast.ops import scratch_numel

from .comparison import same_bits

pytestmark = pytest.mark.usefixtures("backend")

TABLE = SegmentTable.from_lengths([20, 10])
N, S, C = TABLE.numel, 2, 2
NEED = scratch_numel(1, C, S)
F32, F64 = torch.float32, torch.float64
Arguments = dict[str, Any]

GOOD: dict[str, Callable[[], Arguments]] = {
    "moments": lambda: {"p": torch.randn(N), "d": torch.randn(N), **table(), "scratch": TABLE.scratch()},
    "coefficients": lambda: {
        "moments": torch.rand(S, 5, dtype=F64),
        "segments": TABLE.segments.clone(),
        **rule(),
        **OPTIONS,
    },
    "affine_": lambda: {
        "p": torch.randn(N),
        "d": torch.randn(N),
        "coefficients": torch.rand(S, 5, dtype=F64),
        **table(),
    },
    "tick_": lambda: {
        "p": torch.randn(N),
        "d": torch.randn(N),
        **table(),
        **rule(),
        "moments_in": None,
        "waypoint": torch.randn(N),
        "scratch": TABLE.scratch(),
        **OPTIONS,
    },
    "sgd_": lambda: {
        "p": torch.randn(N),
        "g": torch.randn(N),
        "momentum_buffer": torch.randn(N),
        "lr": torch.tensor(0.1, dtype=F64),
        **table(),
        "gate": torch.ones(1, 2, dtype=F64),
        "d": torch.randn(N),
        "moments_out": torch.zeros(S, 5, dtype=F64),
        "scratch": TABLE.scratch(),
        "momentum": 0.9,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "nesterov": False,
    },
    "loss_gate_": lambda: {
        "state": ops.gate_state(3),
        "loss": torch.tensor(1.0),
        "threshold": 0.1,
        "min_rounds": 3,
        "max_rounds": 9,
    },
    "draw_": lambda: {
        "out": torch.zeros(2, 5, dtype=torch.int64),
        "key": torch.tensor(7),
        "first": torch.tensor(3),
        "gate": ops.gate_state(3),
        "bounds": [100, 9],
    },
}
OPTIONS: Arguments = {
    "destination": 0,
    "epsilon": 0.0,
    "combine_sum": True,
    "clamp": True,
    "project_first": True,
}


def table() -> Arguments:
    return {"segments": TABLE.segments.clone(), "chunks": TABLE.chunks.clone()}


def rule() -> Arguments:
    return {
        "target_variance": torch.ones(S, dtype=F64),
        "step": torch.zeros(2, dtype=F64),
        "gate": torch.ones(1, dtype=F64),
        "radius": None,
    }


def strided(value: torch.Tensor) -> torch.Tensor:
    """The same shape, every second element of a larger tensor."""
    wide = torch.zeros(*value.shape[:-1], 2 * value.shape[-1], dtype=value.dtype)
    return wide[..., ::2]


def without(name: str) -> Callable[[Arguments], None]:
    return lambda arguments: arguments.update({name: None})


def change(name: str, make: Callable[[Any], Any]) -> Callable[[Arguments], None]:
    return lambda arguments: arguments.update({name: make(arguments[name])})


def shifted(name: str, other: str = "p") -> Callable[[Arguments], None]:
    """``name`` overlaps ``other``, eight elements later."""

    def spoil(arguments: Arguments) -> None:
        both = torch.randn(2 * N)
        arguments[other], arguments[name] = both[:N], both[8 : 8 + N]

    return spoil


def alias(name: str, other: str = "p") -> Callable[[Arguments], None]:
    return lambda arguments: arguments.update({name: arguments[other]})


def to_sphere(radius: torch.Tensor | None) -> Callable[[Arguments], None]:
    def spoil(arguments: Arguments) -> None:
        arguments |= {"destination": 4, "radius": radius}
        if "d" in arguments:
            arguments["d"] = None

    return spoil


#: op, what is wrong, how to spoil the arguments, what the message must name ("|": in one spelling or another).
Bad = tuple[str, str, Callable[[Arguments], None], list[str]]


def bad() -> list[Bad]:
    out: list[Bad] = []

    def add(op: str, what: str, spoil: Callable[[Arguments], None], *says: str) -> None:
        out.append((op, what, spoil, [op, *says]))

    for op in ("moments", "affine_", "tick_", "sgd_"):
        add(op, "p of three dimensions", change("p", lambda p: p.reshape(1, 1, -1)), "p must", f"[1, 1, {N}]")
        add(op, "p of no dimension", change("p", lambda p: p[0]), "p must", "[]")
        add(op, "p of integers", change("p", lambda p: p.int()), "p must be float32", "torch.int32|Int|int32")
        add(op, "p with strides", change("p", strided), "p must be contiguous", "[2]")
        add(op, "d too short", change("d", lambda d: d[:-1].clone()), "d must", f"[{N}]", f"[{N - 1}]")
        add(op, "d of two rows for one", change("d", lambda d: torch.stack([d, d])), "d must", f"[2, {N}]")
        add(op, "d of float64", change("d", lambda d: d.double()), "d must", "32", "64")
        add(op, "d with strides", change("d", strided), "d must be contiguous", "[2]")
        add(op, "d elsewhere", change("d", lambda d: d.to("meta")), "d", "device", "cpu", "meta")
        for name, columns in (("segments", 5), ("chunks", 3)):
            add(op, f"{name} of four columns", change(name, lambda t: t[:, [0, 0, 0, 0]]), name, str(columns), "4]")
            add(op, f"{name} flat", change(name, lambda t: t.reshape(-1)), name, f"[{2 * columns}]")
            add(op, f"{name} of int32", change(name, lambda t: t.int()), name, "int64", "int32|Int")
            add(op, f"{name} with strides", change(name, lambda t: t.t().contiguous().t()), name, "contiguous")
            add(op, f"{name} elsewhere", change(name, lambda t: t.to("meta")), name, "device", "meta")
    for op in ("affine_", "tick_", "sgd_"):
        add(op, "d overlaps p", shifted("d"), "p and d overlap")
    for op in ("moments", "tick_", "sgd_"):
        short = lambda s: s[: NEED - 1].clone()
        add(op, "scratch too small", change("scratch", short), "scratch", str(NEED), str(NEED - 1))
        add(op, "scratch of float32", change("scratch", lambda s: s.float()), "scratch", "float64", "float32|Float")
        add(op, "scratch with strides", change("scratch", strided), "scratch", "contiguous")
        add(op, "scratch elsewhere", change("scratch", lambda s: s.to("meta")), "scratch", "device", "meta")
    for op in ("coefficients", "tick_"):
        for name, value in (("target_variance", torch.ones(S + 1, dtype=F64)), ("step", torch.zeros(3, dtype=F64))):
            add(op, f"{name} too long", change(name, lambda _, v=value: v), name, "[2]", "[3]")
            add(op, f"{name} of float32", change(name, lambda v: v.float()), name, "float64", "float32|Float")
            add(op, f"{name} with strides", change(name, strided), name, "contiguous", "[2]")
            add(op, f"{name} elsewhere", change(name, lambda v: v.to("meta")), name, "device", "meta")
            add(op, f"{name} of two paths", change(name, lambda v: torch.stack([v, v])), name, "[2, 2]")
        add(op, "unknown destination", change("destination", lambda _: 6), "destination", "6", "5")
        add(op, "radius for a point", change("radius", lambda _: torch.ones(S, dtype=F64)), "radius", "0")
        add(op, "no radius for a sphere", to_sphere(None), "radius", "4")
        add(op, "radius too long", to_sphere(torch.ones(S + 1, dtype=F64)), "radius", "[2]", "[3]")
    for op in ("coefficients", "tick_", "sgd_"):
        add(op, "gate of float32", change("gate", lambda g: g.float()), "gate", "float64", "float32|Float")
        add(op, "empty gate", change("gate", lambda g: g.reshape(-1)[:0]), "gate", "1 row", "[0]")
        add(
            op,
            "gate with strides",
            change("gate", lambda _: strided(torch.ones(1, 2, dtype=F64))),
            "gate",
            "contiguous",
        )
        add(op, "gate elsewhere", change("gate", lambda g: g.to("meta")), "gate", "device", "meta")
    add("coefficients", "four moments", change("moments", lambda m: m[:, :4].clone()), "moments", "[2, 5]", "[2, 4]")
    add("coefficients", "moments of float32", change("moments", lambda m: m.float()), "moments", "float64")
    add(
        "affine_",
        "three columns",
        change("coefficients", lambda c: c[:, :3].clone()),
        "coefficients",
        "[2, 5]",
        "[2, 3]",
    )
    add("affine_", "too many rows", change("coefficients", lambda c: torch.cat([c, c])), "coefficients", "[4, 5]")
    add("affine_", "float32 maps", change("coefficients", lambda c: c.float()), "coefficients", "float64")
    add("tick_", "d missing", without("d"), "d belongs to destination POINT", "0")
    add("tick_", "d for the origin", change("destination", lambda _: 1), "d belongs to destination POINT", "1")
    add("tick_", "waypoint too short", change("waypoint", lambda w: w[1:].clone()), "waypoint", f"[{N}]", f"[{N - 1}]")
    add("tick_", "waypoint of float64", change("waypoint", lambda w: w.double()), "waypoint", "32", "64")
    add("tick_", "waypoint with strides", change("waypoint", strided), "waypoint", "contiguous", "[2]")
    add("tick_", "waypoint is p", alias("waypoint"), "waypoint must not be p")
    add("tick_", "waypoint overlaps p", shifted("waypoint"), "p and waypoint overlap")
    add(
        "tick_", "three moments in", lambda a: a.update(moments_in=torch.zeros(3, 5, dtype=F64)), "moments_in", "[3, 5]"
    )
    add("sgd_", "g too short", change("g", lambda g: g[1:].clone()), "g must", f"[{N}]", f"[{N - 1}]")
    add("sgd_", "g of float64", change("g", lambda g: g.double()), "g must", "32", "64")
    add("sgd_", "g with strides", change("g", strided), "g must be contiguous", "[2]")
    add("sgd_", "g overlaps p", shifted("g"), "p and g overlap")
    add("sgd_", "buffer overlaps p", shifted("momentum_buffer"), "p and momentum_buffer overlap")
    add("sgd_", "buffer overlaps g", shifted("momentum_buffer", "g"), "momentum_buffer and g overlap")
    add("sgd_", "buffer overlaps d", shifted("momentum_buffer", "d"), "momentum_buffer and d overlap")
    add("sgd_", "buffer of float64", change("momentum_buffer", lambda b: b.double()), "momentum_buffer", "32", "64")
    add("sgd_", "no buffer", without("momentum_buffer"), "momentum_buffer", "0.9", "missing")
    add("sgd_", "buffer without momentum", lambda a: a.update(momentum=0.0), "momentum_buffer", "given")
    plain = lambda a: a.update(momentum=0.0, momentum_buffer=None, nesterov=True)
    add("sgd_", "nesterov without momentum", plain, "nesterov", "momentum")
    add("sgd_", "three rates", lambda a: a.update(lr=torch.ones(3, dtype=F64)), "lr", "[3]")
    add("sgd_", "rate of float32", lambda a: a.update(lr=torch.ones((), dtype=F32)), "lr", "float64", "float32|Float")
    add("sgd_", "moments_out of one row", change("moments_out", lambda m: m[:1]), "moments_out", "[2, 5]", "[1, 5]")
    add("sgd_", "moments_out without scratch", without("scratch"), "moments_out needs scratch")
    add("loss_gate_", "state too wide", change("state", lambda s: torch.cat([s, s])), "state", "[7]", "[14]")
    add("loss_gate_", "state of float32", change("state", lambda s: s.float()), "state", "float64", "float32|Float")
    add("loss_gate_", "two losses", change("loss", lambda _: torch.ones(2)), "loss", "1", "[2]")
    add("loss_gate_", "loss of integers", change("loss", lambda _: torch.tensor(1)), "loss", "int64|Long")
    add("loss_gate_", "loss elsewhere", change("loss", lambda loss: loss.to("meta")), "loss", "device", "meta")
    add("loss_gate_", "no rounds", lambda a: a.update(min_rounds=0), "min_rounds", "0", "9")
    add("loss_gate_", "rounds crossed", lambda a: a.update(max_rounds=2), "max_rounds", "3", "2")
    add("draw_", "out of int32", change("out", lambda o: o.int()), "out", "int64", "int32|Int")
    add("draw_", "out of one row", change("out", lambda o: o[0]), "out", "[R, B]", "[5]")
    add("draw_", "out with gaps", change("out", lambda o: o[:, ::2]), "out", "contiguous")
    add("draw_", "two keys", change("key", lambda k: k.repeat(2)), "key", "1", "[2]")
    add("draw_", "a round of float64", change("first", lambda f: f.double()), "first", "int64", "float64|Double")
    add("draw_", "key elsewhere", change("key", lambda k: k.to("meta")), "key", "device", "meta")
    add("draw_", "gate of two columns", change("gate", lambda g: g[:2]), "gate", "[2]")
    add("draw_", "one bound", lambda a: a.update(bounds=[100]), "bounds", "2", "[100]")
    add("draw_", "bound of 0", lambda a: a.update(bounds=[100, 0]), "bounds", "1", "[100, 0]")
    add("draw_", "bound beyond 2^31", lambda a: a.update(bounds=[1 << 32, 9]), "bounds", "2^31")
    return out


@pytest.mark.parametrize("op", GOOD)
def test_the_unspoilt_arguments_are_accepted(op: str) -> None:
    getattr(torch.ops.llpf_fast, op)(**GOOD[op]())


@pytest.mark.parametrize(("op", "spoil", "says"), [pytest.param(o, f, s, id=f"{o}-{w}") for o, w, f, s in bad()])
def test_refused(op: str, spoil: Callable[[Arguments], None], says: list[str]) -> None:
    arguments = GOOD[op]()
    spoil(arguments)
    tensors = {n: v for n, v in arguments.items() if isinstance(v, torch.Tensor) and v.device.type == "cpu"}
    before = {n: v.clone() for n, v in tensors.items()}
    with pytest.raises((ValueError, RuntimeError)) as caught:
        getattr(torch.ops.llpf_fast, op)(**arguments)
    message = str(caught.value)
    for words in says:
        assert any(word in message for word in words.split("|")), f"{words!r} missing in: {message}"
    for name, value in tensors.items():
        assert same_bits(value, before[name]), f"{name} was written before the refusal"


@pytest.mark.parametrize("backend", ["cpp"], indirect=True)
@pytest.mark.parametrize("op", ["moments", "affine_", "tick_", "sgd_"])
@pytest.mark.parametrize(
    ("name", "row", "column", "value"),
    [
        ("segments", 1, 0, N - 9),
        ("segments", 0, 0, -1),
        ("segments", 1, 1, 1 << 62),
        ("segments", 0, 1, -1),
        ("chunks", 0, 0, 2),
        ("chunks", 1, 0, 0),
        ("chunks", 0, 0, -1),
        ("chunks", 1, 1, 0),
        ("chunks", 1, 2, 11),
        ("chunks", 1, 2, 1 << 62),
    ],
)
def test_a_table_that_leaves_the_buffer(op: str, name: str, row: int, column: int, value: int) -> None:
    """C++ on the CPU looks; the others trust SegmentTable, since a look would cost a GPU a synchronisation."""
    arguments = GOOD[op]()
    arguments[name][row, column] = value
    with pytest.raises(RuntimeError, match=rf"{op}: (segments|chunks): .*buffer of {N} elements"):
        getattr(torch.ops.llpf_fast, op)(**arguments)
