"""torch.library.opcheck: schema, fake kernel and autograd registration of each op, on each implementation."""

from __future__ import annotations

import pytest
import torch

from .examples import OPS, examples

pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str) -> None:
    for arguments in examples(op):
        torch.library.opcheck(getattr(torch.ops.llpf_fast, op).default, (), arguments)


def test_opcheck_notices_a_wrong_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check itself works: an op whose fake kernel has another shape is refused."""
    with torch.library._scoped_library("llpf_fast_test", "DEF") as library:
        library.define("wrong(Tensor x) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
        library.impl("wrong", lambda x: x * 2, "CompositeExplicitAutograd")
        torch.library.register_fake("llpf_fast_test::wrong", lambda x: x.new_empty(3), lib=library)
        with pytest.raises(torch.testing._internal.optests.generate_tests.OpCheckError):
            torch.library.opcheck(torch.ops.llpf_fast_test.wrong.default, (torch.ones(5),))
