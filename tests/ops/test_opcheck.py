"""torch.library.opcheck: schema, fake kernel and autograd registration of each op, on each implementation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .test_rejections import GOOD, N, S

pytestmark = pytest.mark.usefixtures("backend")


def variants(op: str) -> list[dict[str, Any]]:
    """The full arguments; those with every optional left out; and K paths of 16-bit values."""
    full = GOOD[op]()
    bare = dict(full)
    if op == "tick_":
        bare |= {"d": None, "destination": 1, "gate": None, "waypoint": None}
    elif op == "sgd_":
        bare |= dict.fromkeys(("momentum_buffer", "gate")) | {"momentum": 0.0}
    elif op in ("moments", "affine_"):
        bare |= {"d": None}
    elif op == "coefficients":
        bare |= {"gate": None, "destination": 5, "radius": torch.ones(S, dtype=torch.float64)}
    many = GOOD[op]()
    for name, value in many.items():
        if name in ("p", "g", "momentum_buffer", "waypoint", "d"):
            many[name] = torch.randn(3, N).bfloat16()
        elif name in ("moments", "coefficients", "gate"):
            many[name] = value.expand(3, *value.shape[-2:]).contiguous() if value.dim() > 1 else value.repeat(3)
        elif name == "scratch":
            many[name] = value.repeat(3)
    if op == "loss_gate_":
        many |= {"state": full["state"].repeat(2, 1), "loss": torch.ones(2)}
    elif op == "draw_":
        bare |= {"gate": None}
        many |= {name: full[name].repeat(3, *[1] * full[name].dim()) for name in ("out", "gate")}
        many |= {"key": torch.arange(3), "first": torch.arange(3)}
    return [full, bare, many]


@pytest.mark.parametrize("variant", range(3), ids=["full", "bare", "paths"])
@pytest.mark.parametrize("op", GOOD)
def test_opcheck(op: str, variant: int) -> None:
    torch.library.opcheck(getattr(torch.ops.llpf_fast, op).default, (), variants(op)[variant])


def test_opcheck_notices_a_wrong_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself works: an op whose fake kernel has another shape is refused."""
    with torch.library._scoped_library("llpf_fast_test", "DEF") as library:
        library.define("wrong(Tensor x) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
        library.impl("wrong", lambda x: x * 2, "CompositeExplicitAutograd")
        torch.library.register_fake("llpf_fast_test::wrong", lambda x: x.new_empty(3), lib=library)
        with pytest.raises(torch.testing._internal.optests.generate_tests.OpCheckError):
            torch.library.opcheck(torch.ops.llpf_fast_test.wrong.default, (torch.ones(5),))
