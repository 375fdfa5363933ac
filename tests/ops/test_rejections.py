"""Every wrong argument is refused by an LLPFError before anything is written; the message has both values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from llpf_fast import ops
from llpf_fast.errors import LLPFError
from llpf_fast.flat.table import SegmentTable
from llpf_fast.modes import Destination
from llpf_fast.ops import scratch_numel

from .comparison import same_bits
from .examples import F64, OPS, TABLE, Arguments, N, S, example, writes

pytestmark = pytest.mark.usefixtures("backend")

NEED = scratch_numel(1, len(TABLE.chunks), S)
F32 = torch.float32


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
        for name, columns in (("segments", 5), ("chunks", 3)):
            add(op, f"{name} of four columns", change(name, lambda t: t[:, [0, 0, 0, 0]]), name, str(columns), "4]")
            add(op, f"{name} flat", change(name, lambda t: t.reshape(-1)), name, f"[{2 * columns}]")
            add(op, f"{name} of int32", change(name, lambda t: t.int()), name, "int64", "int32|Int")
            add(op, f"{name} with strides", change(name, lambda t: t.t().contiguous().t()), name, "contiguous")
            add(op, f"{name} elsewhere", change(name, lambda t: t.to("meta")), name, "device", "meta")
        if op == "sgd_":
            continue
        add(op, "d too short", change("d", lambda d: d[:-1].clone()), "d must", f"[{N}]", f"[{N - 1}]")
        add(op, "d of two rows for one", change("d", lambda d: torch.stack([d, d])), "d must", f"[2, {N}]")
        add(op, "d of float64", change("d", lambda d: d.double()), "d must", "32", "64")
        add(op, "d with strides", change("d", strided), "d must be contiguous", "[2]")
        add(op, "d elsewhere", change("d", lambda d: d.to("meta")), "d", "device", "cpu", "meta")
    for op in ("affine_", "tick_"):
        add(op, "d overlaps p", shifted("d"), "p and d overlap")
    for op in ("moments", "tick_"):
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
        add(
            op,
            "unknown destination",
            change("destination", lambda _: len(Destination)),
            "destination",
            str(len(Destination)),
        )
        add(op, "radius for a point", change("radius", lambda _: torch.ones(S, dtype=F64)), "radius", "0")
        add(op, "no radius for a sphere", to_sphere(None), "radius", "4")
        add(op, "radius too long", to_sphere(torch.ones(S + 1, dtype=F64)), "radius", "[2]", "[3]")
    for op in ("coefficients", "tick_", "sgd_"):
        add(op, "active of float32", change("active", lambda g: g.float()), "active", "float64", "float32|Float")
        add(op, "empty active", change("active", lambda g: g.reshape(-1)[:0]), "active", "1 row", "[0]")
        add(
            op,
            "active with strides",
            change("active", lambda _: strided(torch.ones(1, 2, dtype=F64))),
            "active",
            "contiguous",
        )
        add(op, "active elsewhere", change("active", lambda g: g.to("meta")), "active", "device", "meta")
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
    add("sgd_", "buffer of float64", change("momentum_buffer", lambda b: b.double()), "momentum_buffer", "32", "64")
    add("sgd_", "no buffer", without("momentum_buffer"), "momentum_buffer", "0.9", "missing")
    add("sgd_", "buffer without momentum", lambda a: a.update(momentum=0.0), "momentum_buffer", "given")
    plain = lambda a: a.update(momentum=0.0, momentum_buffer=None, nesterov=True)
    add("sgd_", "nesterov without momentum", plain, "nesterov", "momentum")
    add("sgd_", "three rates", lambda a: a.update(lr=torch.ones(3, dtype=F64)), "lr", "[3]")
    add("sgd_", "rate of float32", lambda a: a.update(lr=torch.ones((), dtype=F32)), "lr", "float64", "float32|Float")
    add("loss_gate_", "state too wide", change("state", lambda s: torch.cat([s, s])), "state", "[7]", "[14]")
    add("loss_gate_", "state of float32", change("state", lambda s: s.float()), "state", "float64", "float32|Float")
    add("loss_gate_", "two losses", change("loss", lambda _: torch.ones(2)), "loss", "1", "[2]")
    add("loss_gate_", "loss of integers", change("loss", lambda _: torch.tensor(1)), "loss", "int64|Long")
    add("loss_gate_", "loss elsewhere", change("loss", lambda loss: loss.to("meta")), "loss", "device", "meta")
    add("loss_gate_", "no window", lambda a: a.update(window=0), "window", "0", "9")
    add("loss_gate_", "window and steps crossed", lambda a: a.update(max_steps=2), "max_steps", "3", "2")
    add("counter_randint_", "out of int32", change("out", lambda o: o.int()), "out", "int64", "int32|Int")
    add("counter_randint_", "out of one row", change("out", lambda o: o[0]), "out", "[R, B]", "[5]")
    add("counter_randint_", "out with gaps", change("out", lambda o: o[:, ::2]), "out", "contiguous")
    add("counter_randint_", "two keys", change("key", lambda k: k.repeat(2)), "key", "1", "[2]")
    add(
        "counter_randint_",
        "a round of float64",
        change("first", lambda f: f.double()),
        "first",
        "int64",
        "float64|Double",
    )
    add("counter_randint_", "key elsewhere", change("key", lambda k: k.to("meta")), "key", "device", "meta")
    add("counter_randint_", "state of two columns", change("state", lambda s: s[:2]), "state", "[2]")
    add("counter_randint_", "one bound", lambda a: a.update(bounds=[100]), "bounds", "2", "[100]")
    add("counter_randint_", "bound of 0", lambda a: a.update(bounds=[100, 0]), "bounds", "1", "[100, 0]")
    add("counter_randint_", "bound beyond 2^31", lambda a: a.update(bounds=[1 << 32, 9]), "bounds", "2^31")
    op = "relu_pool_bounds"
    add(op, "left of integers", change("left", lambda v: v.int()), "left must be float32 or float64", "int32|Int")
    add(op, "left with strides", change("left", strided), "left must be contiguous", "[180, 60, 12, 2]")
    for name in ("right", "radius"):
        add(op, f"{name} too small", change(name, lambda v: v[..., 1:].clone()), name, "[2, 3, 5, 6]", "[2, 3, 5, 5]")
        add(op, f"{name} of float64", change(name, lambda v: v.double()), name, "32", "64")
        add(op, f"{name} with strides", change(name, strided), f"{name} must be contiguous")
        add(op, f"{name} elsewhere", change(name, lambda v: v.to("meta")), name, "device", "cpu", "meta")
    add(
        op,
        "radius of one channel",
        change("radius", lambda v: v[:, :1].clone()),
        "radius",
        "[2, 3, 5, 6]",
        "[2, 1, 5, 6]",
    )
    add(op, "radius of three dimensions", change("radius", lambda v: v[0]), "radius", "[2, 3, 5, 6]", "[3, 5, 6]")
    for slope in (-0.1, 1.1, 2.0**-101, float("nan")):
        add(
            op,
            f"slope {slope:g}",
            lambda a, s=slope: a.update(slope=s),
            "slope must be 0, or 2^-100 to 1",
            f"{slope:g}",
        )
    for name, least in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
        says = f"{name} must be two integers of at least {least}"
        add(op, f"{name} too small", lambda a, n=name, v=least: a.update({n: [1, v - 1]}), says, f"[1, {least - 1}]")
        add(op, f"{name} of three", lambda a, n=name: a.update({n: [1, 1, 1]}), says, "[1, 1, 1]")
    add(op, "much padding", lambda a: a.update(padding=[1, 2]), "padding", "half", "[1, 2]", "[2, 2]")
    add(op, "large kernel", lambda a: a.update(kernel=[2, 7]), "does not fit", "[2, 7]", "[2, 3, 5, 6]")
    pool_rows = lambda a: a.update({name: a[name].flatten(1) for name in ("left", "right", "radius")})
    add(op, "pooling of rows", pool_rows, "[N, C, H, W]", "[2, 2]", "[2, 90]")
    return out


@pytest.mark.parametrize("op", OPS)
def test_the_unspoilt_arguments_are_accepted(op: str) -> None:
    getattr(torch.ops.llpf_fast, op)(**example(op))


@pytest.mark.parametrize(("op", "spoil", "says"), [pytest.param(o, f, s, id=f"{o}-{w}") for o, w, f, s in bad()])
def test_refused(op: str, spoil: Callable[[Arguments], None], says: list[str]) -> None:
    arguments = example(op)
    spoil(arguments)
    tensors = {n: v for n, v in arguments.items() if isinstance(v, torch.Tensor) and v.device.type == "cpu"}
    before = {n: v.clone() for n, v in tensors.items()}
    with pytest.raises(LLPFError) as caught:
        getattr(ops, op)(**arguments)
    message = str(caught.value)
    assert "\n" not in message
    for words in says:
        assert any(word in message for word in words.split("|")), f"{words!r} missing in: {message}"
    for name, value in tensors.items():
        assert same_bits(value, before[name]), f"{name} was written before the refusal"


# ---- memory that arguments share

#: The pairs of which the second, an argument that is read, may be the first itself.
MAY_BE = {("affine_", "p", "d"), ("tick_", "p", "d"), ("sgd_", "p", "g")}


def full(op: str) -> Arguments:
    """Every argument given."""
    arguments = example(op)
    if op == "tick_":
        arguments["moments_in"] = torch.rand(S, 5, dtype=F64)
    return arguments


def pairs() -> list[tuple[str, str, str]]:
    out = []
    for op in OPS:
        written = writes(op)
        tensors = [name for name, value in full(op).items() if isinstance(value, torch.Tensor)]
        for first in written:
            others = [name for name in tensors if name != first and (name not in written or name > first)]
            out += [(op, first, other) for other in others]
    return [*out, ("tick_", "p", "radius"), ("tick_", "waypoint", "radius"), ("tick_", "scratch", "radius")]


def laid(value: torch.Tensor, memory: torch.Tensor, at: int) -> torch.Tensor:
    """The same values in ``memory`` (bytes) from byte ``at`` on."""
    size = value.numel() * value.element_size()
    out = memory[at : at + size].view(value.dtype).reshape(value.shape)
    return out.copy_(value)


@pytest.mark.parametrize("where", ["the last bytes", "the first bytes", "the whole"])
@pytest.mark.parametrize(("op", "first", "second"), pairs())
def test_arguments_that_share_memory(op: str, first: str, second: str, where: str) -> None:
    """One element at either end, or both beginning at one place."""
    arguments = full(op)
    if second == "radius":
        arguments |= {"radius": torch.ones(S, dtype=F64), "destination": 4, "d": None}
    if where == "the whole" and (op, first, second) in MAY_BE:
        pytest.skip("each element is read before it is written")
    here, there = arguments[first], arguments[second]
    sizes = [-(-value.numel() * value.element_size() // 8) * 8 for value in (here, there)]
    memory = torch.zeros(sum(sizes), dtype=torch.uint8)
    places = {"the last bytes": (0, sizes[0] - 8), "the first bytes": (sizes[1] - 8, 0), "the whole": (0, 0)}[where]
    values = here.clone(), there.clone()
    arguments |= {first: laid(values[0], memory, places[0]), second: laid(values[1], memory, places[1])}
    before = memory.clone()
    with pytest.raises(LLPFError, match=rf"^{op}: ") as caught:
        getattr(ops, op)(**arguments)
    assert {first, second} <= set(str(caught.value).replace(";", " ").split()), str(caught.value)
    assert torch.equal(memory, before)


@pytest.mark.parametrize(("op", "first", "second"), sorted(MAY_BE))
def test_what_may_be_p_itself(op: str, first: str, second: str) -> None:
    arguments = example(op)
    arguments[first] = arguments[second]
    apart = {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}
    getattr(ops, op)(**arguments)
    getattr(ops, op)(**apart)
    assert same_bits(arguments[first], apart[first])


@pytest.mark.parametrize("op", [op for op in OPS if writes(op)])
def test_arguments_may_be_neighbours(op: str) -> None:
    """All of them in one piece of memory, one right after the other."""
    arguments = full(op)
    tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
    sizes = [-(-value.numel() * value.element_size() // 8) * 8 for value in tensors.values()]
    memory, at = torch.zeros(sum(sizes), dtype=torch.uint8), 0
    for (name, value), size in zip(tensors.items(), sizes, strict=True):
        arguments[name], at = laid(value, memory, at), at + size
    getattr(ops, op)(**arguments)


# ---- tables


@pytest.mark.parametrize("op", ["moments", "affine_", "tick_", "sgd_"])
@pytest.mark.parametrize(
    ("name", "row", "column", "value", "says"),
    [
        ("segments", 1, 0, N - 9, "a row leaves the buffer"),
        ("segments", 0, 0, -1, "a row leaves the buffer"),
        ("segments", 1, 1, 1 << 62, "a row leaves the buffer"),
        ("segments", 0, 1, -1, "a row leaves the buffer"),
        ("segments", 1, 0, 16, "a row overlaps another"),
        ("segments", 0, 4, 64, "a row has a flag that no op knows"),
        ("segments", 0, 4, -1, "a row has a flag that no op knows"),
        ("segments", 0, 1, 19, "chunks: a row leaves its segment"),
        ("segments", 0, 1, 21, "a row is not covered by its chunks"),
        ("chunks", 0, 0, 2, "names no segment"),
        ("chunks", 1, 0, 0, "a row leaves its segment"),
        ("chunks", 0, 0, -1, "names no segment"),
        ("chunks", 1, 1, 0, "a row leaves its segment"),
        ("chunks", 1, 2, 11, "a row leaves its segment"),
        ("chunks", 1, 2, 1 << 62, "a row leaves its segment"),
        ("chunks", 1, 2, 0, "a row is empty"),
        ("chunks", 1, 2, 9, "segments: a row is not covered by its chunks"),
    ],
)
def test_a_wrong_table(op: str, name: str, row: int, column: int, value: int, says: str) -> None:
    """Every implementation checks tables of CPU tensors, where reading them waits for no device."""
    arguments = example(op)
    arguments[name][row, column] = value
    with pytest.raises(LLPFError, match=rf"^{op}: (segments|chunks): .*buffer of {N} elements") as caught:
        getattr(ops, op)(**arguments)
    assert says in str(caught.value)


CUT = SegmentTable.from_lengths([20, 10, 5, 7], chunk=4)


@pytest.mark.parametrize(
    ("chunks", "says"),
    [
        (lambda c: c[1:], "chunks: a row leaves a gap to the row before it (row 0"),
        (lambda c: torch.cat([c[:2], c[3:]]), "chunks: a row leaves a gap to the row before it (row 2"),
        (lambda c: c[:-1], "segments: a row is not covered by its chunks (row 3"),
        (lambda c: c[c[:, 0] != 1], "segments: a row is not covered by its chunks (row 1"),
        (lambda c: c[:0], "segments: a row is not covered by its chunks (row 0"),
        (lambda c: torch.cat([c[:2], c[1:]]), "chunks: the rows of a segment overlap or are not in order (row 2"),
        (lambda c: c[[1, 0, *range(2, len(c))]], "chunks: a row leaves a gap to the row before it (row 0"),
        (lambda c: c.flip(0), "chunks: a row leaves a gap to the row before it (row 0"),
    ],
)
def test_chunks_that_do_not_cover_their_segments(chunks: Callable[[torch.Tensor], torch.Tensor], says: str) -> None:
    p = torch.randn(CUT.numel)
    with pytest.raises(LLPFError) as caught:
        ops.moments(p, None, CUT.segments, chunks(CUT.chunks).contiguous(), CUT.scratch(2))
    assert says in str(caught.value)


@pytest.mark.parametrize("kind", ["distance", "variance"])
@pytest.mark.parametrize("labels", [[0, 1, 0, 2], [5, 5, 3, 5], [-1, 9, 2, 9]])
def test_split_groups(kind: str, labels: list[int]) -> None:
    segments = CUT.segments.clone()
    segments[:, 2 if kind == "distance" else 3] = torch.tensor(labels)
    p, one = torch.randn(CUT.numel), torch.ones(4, dtype=F64)
    row = len(labels) - 1 - labels[::-1].index(labels[0] if kind and labels[0] in labels[1:] else labels[-1])
    says = rf"the members of a {kind} group must be neighbours, and a row is apart \(row {row}"
    with pytest.raises(LLPFError, match=says):
        ops.moments(p, None, segments, CUT.chunks, CUT.scratch())
    with pytest.raises(LLPFError, match=says):
        ops.coefficients(torch.rand(4, 5, dtype=F64), segments, one, torch.zeros(2, dtype=F64))
    segments[:, 2:4] = torch.tensor([[7, 7], [7, 3], [-2, 3], [-5, 1]])
    ops.moments(p, None, segments, CUT.chunks, CUT.scratch())


def test_segments_in_any_order_may_be_apart() -> None:
    segments = torch.tensor([[30, 10, 0, 0, 0], [0, 20, 1, 1, 0], [20, 10, 2, 2, 0]])
    chunks = torch.tensor([[0, 30, 10], [1, 0, 20], [2, 20, 10]])
    scratch, p = torch.empty(scratch_numel(1, 3, 3), dtype=F64), torch.randn(40)
    ops.moments(p, None, segments, chunks, scratch)
    segments[2, 0] = chunks[2, 1] = 15
    with pytest.raises(LLPFError, match=r"a row overlaps another \(row 2"):
        ops.moments(p, None, segments, chunks, scratch)


# ---- values

NAN, INF = float("nan"), float("inf")


def values_of(op: str, paths: int | None = None, **given: Any) -> None:
    """Call ``coefficients`` or ``tick_`` on CUT with these arguments of the rule."""
    shape = () if paths is None else (paths,)
    arguments = {"target_variance": torch.ones(4, dtype=F64), "step": torch.zeros(2, dtype=F64)} | given
    if op == "tick_":
        p = torch.randn(*shape, CUT.numel)
        d = torch.randn(CUT.numel) if given.get("destination", 0) == 0 else None
        ops.tick_(p, d, CUT.segments, CUT.chunks, **arguments)
    else:
        segments = arguments.pop("segments", CUT.segments)
        ops.coefficients(torch.rand(*shape, 4, 5, dtype=F64), segments, **arguments)


@pytest.mark.parametrize("op", ["coefficients", "tick_"])
@pytest.mark.parametrize("value", [-1.0, -1e-300, NAN, INF, -INF])
@pytest.mark.parametrize("name", ["target_variance", "radius", "step", "epsilon"])
def test_values_that_no_rule_has(op: str, name: str, value: float) -> None:
    if name == "epsilon":
        if value != INF:
            with pytest.raises(LLPFError, match=f"^{op}: epsilon must be at least 0, got {value:g}"):
                values_of(op, epsilon=value)
        return
    if name == "step" and value == INF:
        return
    tensor = torch.ones(2 if name == "step" else 4, dtype=F64)
    tensor[1] = value
    sphere = {"destination": 5} if name == "radius" else {}
    says = rf"^{op}: {name}\[1\] must be at least 0 and finite, got {value:g}"
    with pytest.raises(LLPFError, match=says):
        values_of(op, **{name: tensor}, **sphere)
    if name != "radius":
        active = torch.tensor([[0.0], [1.0], [1.0]], dtype=F64)
        both = torch.ones(3, *tensor.shape, dtype=F64)
        both[0, 1] = value
        values_of(op, 3, **{name: both}, active=active)
        both[2, 1] = value
        with pytest.raises(LLPFError, match=says.replace("1", "2, 1", 1)):
            values_of(op, 3, **{name: both}, active=active)


def test_values_that_nobody_reads_may_be_anything() -> None:
    """A masked layer, one that is not projected, a layer of one element: none of them has a target."""
    flags = [ops.SegmentFlag.MASKED, ops.SegmentFlag.FREE, ops.SegmentFlag.NONE, ops.SegmentFlag.NONE]
    table = SegmentTable.from_lengths([5, 5, 1, 5], flags=flags)
    target = torch.tensor([NAN, -1.0, NAN, 1.0], dtype=F64)
    radius = torch.tensor([NAN, 1.0, NAN, 1.0], dtype=F64)
    p = torch.randn(table.numel)
    ops.tick_(p, None, table.segments, table.chunks, target, torch.ones(2, dtype=F64), radius=radius, destination=4)
    assert p[:5].isfinite().all()
    with pytest.raises(LLPFError, match=r"radius\[2\] must be at least 0 and finite, got nan"):
        ops.tick_(p, None, table.segments, table.chunks, target, torch.ones(2, dtype=F64), radius=radius, destination=5)


@pytest.mark.parametrize("op", ["coefficients", "tick_", "sgd_"])
def test_active_that_is_no_number(op: str) -> None:
    arguments = example(op)
    arguments["active"] = torch.tensor([NAN], dtype=F64)
    with pytest.raises(LLPFError, match=rf"^{op}: active\[0, 0\] must be a number, got nan"):
        getattr(ops, op)(**arguments)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"momentum": -0.5}, "momentum must be at least 0, got -0.5"),
        ({"momentum": NAN}, "momentum must be at least 0, got nan"),
        ({"weight_decay": -1e-4}, "weight_decay must be at least 0, got -0.0001"),
        ({"lr": torch.tensor(-0.1, dtype=F64)}, r"lr\[0\] must be at least 0 and finite, got -0.1"),
        ({"lr": torch.tensor([0.1, -0.1], dtype=F64)}, r"lr\[1\] must be at least 0 and finite, got -0.1"),
        ({"lr": torch.tensor([[0.1, -0.1]], dtype=F64)}, r"lr\[0, 1\] must be at least 0 and finite, got -0.1"),
    ],
)
def test_values_that_no_descent_has(change: Arguments, says: str) -> None:
    arguments = example("sgd_") | change
    with pytest.raises(LLPFError, match=f"^sgd_: {says}"):
        ops.sgd_(**arguments)


# ---- no paths, no segments


@pytest.mark.parametrize("op", [op for op in OPS if op != "relu_pool_bounds"])
def test_no_paths(op: str) -> None:
    """A batch of none: nothing to do, and the result has the shape that it promises."""
    arguments = example(op)
    rows = {"p": (0, N), "g": (0, N), "momentum_buffer": (0, N), "waypoint": (0, N), "moments": (0, S, 5)}
    rows |= {"coefficients": (0, S, 5), "out": (0, 2, 5), "key": (0,), "first": (0,)}
    rows |= {"state": (0, 7), "loss": (0,), "active": (0, 7)}
    for name, shape in rows.items():
        if isinstance(arguments.get(name), torch.Tensor):
            arguments[name] = torch.zeros(shape, dtype=arguments[name].dtype)
    for extra in ({}, {"lr": torch.zeros(0, S, dtype=F64)}, {"step": torch.zeros(0, 2, dtype=F64)}):
        given = arguments | {name: value for name, value in extra.items() if name in arguments}
        result = getattr(ops, op)(**given)
    assert result is None or result.shape == (0, S, 5)


@pytest.mark.parametrize("paths", [None, 2])
@pytest.mark.parametrize("op", ["moments", "coefficients", "affine_", "tick_", "sgd_"])
def test_no_segments(op: str, paths: int | None) -> None:
    arguments = example(op)
    lead = () if paths is None else (paths,)
    shapes = {"p": (*lead, N), "g": (*lead, N), "momentum_buffer": (*lead, N), "waypoint": (*lead, N)}
    shapes |= dict.fromkeys(("moments", "coefficients"), (*lead, 0, 5))
    shapes |= {"segments": (0, 5), "chunks": (0, 3), "target_variance": (0,), "active": (paths or 1, 2)}
    for name, shape in shapes.items():
        if isinstance(arguments.get(name), torch.Tensor):
            arguments[name] = torch.ones(shape, dtype=arguments[name].dtype)
    for lr in (torch.ones(()), torch.ones(0), torch.ones(paths or 1, 0)):
        given = arguments | ({"lr": lr.double()} if "lr" in arguments else {})
        result = getattr(ops, op)(**given)
    assert result is None or result.shape == (*lead, 0, 5)
    if "p" in arguments:
        assert bool((arguments["p"] == 1).all())
