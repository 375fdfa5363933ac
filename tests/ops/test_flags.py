"""One set of integers in three languages: ``ops/flags.py`` is the source, Triton's and C++'s copies must agree."""

from __future__ import annotations

import re
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest

from llpf_fast.ops import Destination, SegmentFlag

HEADER = Path(__file__).parents[2] / "csrc" / "core" / "flags.h"
KINDS: list[type[IntFlag] | type[IntEnum]] = [SegmentFlag, Destination]


def members(kind: type[IntFlag] | type[IntEnum]) -> dict[str, int]:
    return {name: int(value) for name, value in kind.__members__.items() if name != "NONE"}


def test_flags_are_single_bits() -> None:
    bits = members(SegmentFlag).values()
    assert all(bit > 0 and bit & (bit - 1) == 0 for bit in bits)
    assert len(set(bits)) == len(bits)


@pytest.mark.parametrize("kind", KINDS)
def test_triton_has_the_same_values(kind: type[IntFlag] | type[IntEnum]) -> None:
    pytest.importorskip("triton")
    from llpf_fast.kernels import flags

    assert {name: getattr(flags, name).value for name in members(kind)} == members(kind)


@pytest.mark.skipif(not HEADER.exists(), reason=f"no C++ sources beside this installation ({HEADER})")
@pytest.mark.parametrize("kind", KINDS)
def test_cpp_has_the_same_values(kind: type[IntFlag] | type[IntEnum]) -> None:
    name = "Flag" if kind is SegmentFlag else "Destination"
    body = re.search(rf"enum (?:class )?{name}\b[^{{]*{{([^}}]*)}}", HEADER.read_text())
    assert body, f"{HEADER} has no enum {name}"
    found = {key.upper(): int(value) for key, value in re.findall(r"\bk(\w+)\s*=\s*(\d+)", body[1])}
    assert found == {key.replace("_", ""): value for key, value in members(kind).items()}
