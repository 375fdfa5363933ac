"""C++ repeats the integers of ``ops/flags.py`` and ``modes.py``; the copies must agree."""

from __future__ import annotations

import re
from enum import IntEnum, IntFlag
from pathlib import Path

import pytest

from llpf_fast.ops import Destination, SegmentFlag

CORE = Path(__file__).parents[2] / "csrc" / "core"
HEADERS = {"Flag": CORE / "table.h", "Destination": CORE / "coefficients.h"}
KINDS: list[type[IntFlag] | type[IntEnum]] = [SegmentFlag, Destination]


def members(kind: type[IntFlag] | type[IntEnum]) -> dict[str, int]:
    return {name: int(value) for name, value in kind.__members__.items() if name != "NONE"}


def test_flags_are_single_bits() -> None:
    bits = members(SegmentFlag).values()
    assert all(bit > 0 and bit & (bit - 1) == 0 for bit in bits)
    assert len(set(bits)) == len(bits)


@pytest.mark.skipif(not CORE.exists(), reason=f"no C++ sources beside this installation ({CORE})")
@pytest.mark.parametrize("kind", KINDS)
def test_cpp_has_the_same_values(kind: type[IntFlag] | type[IntEnum]) -> None:
    name = "Flag" if kind is SegmentFlag else "Destination"
    body = re.search(rf"enum (?:class )?{name}\b[^{{]*{{([^}}]*)}}", HEADERS[name].read_text())
    assert body, f"{HEADERS[name]} has no enum {name}"
    values = {key.upper(): int(value) for key, value in re.findall(r"\bk(\w+)\s*=\s*(\d+)", body[1])}
    assert values == {key.replace("_", ""): value for key, value in members(kind).items()}
