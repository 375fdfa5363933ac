"""What the figures have to reach: the table of issue "Speed", CPU part, as data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .cases.correction import PASSES
from .cases.tick import PLAIN
from .harness.case import Row

Figure = Callable[[Row], "float | None"]


@dataclass(frozen=True)
class Goal:
    """One line of the table: which row's figure, and what it must be."""

    what: str
    where: dict[str, Any]
    figure: Figure
    bound: float
    at_most: bool = False
    unit: str = ""

    def of(self, rows: list[Row]) -> list[tuple[Row, float]]:
        """Every row that it is about, with the figure."""
        figures = [(row, self.figure(row)) for row in rows if all(row.get(k) == v for k, v in self.where.items())]
        return [(row, value) for row, value in figures if value is not None]

    def met(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound

    @property
    def wanted(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}{self.unit}"


def _share(row: Row) -> float | None:
    return row["share_of_floor"]["median"] if "share_of_floor" in row else None


def _slower(name: str) -> Figure:
    return lambda row: row["slower"][name]["median"] if name in row["slower"] else None


def _time(row: Row) -> float:
    return float(row["time_us"]["median"])


def _overhead(row: Row) -> float:
    """Share of an iteration that is neither forward nor backward."""
    return 1.0 - float(row["slower"][PASSES]["median"])


def _tick(size: str, variant: str = "", **more: Any) -> dict[str, Any]:
    return {"op": "tick_", "size": size, "dtype": "float32", "variant": variant, "backend": "cpp"} | more


def goals() -> list[Goal]:
    listed: list[Goal] = []
    for threads in (1, 2):
        for size in ("ResNet18", "100M"):
            at = f"{size}, {threads} thread{'s' if threads > 1 else ''}"
            cold: dict[str, Any] = {"cache": "cold", "threads": threads}
            listed.append(Goal(f"tick_, {at}: share of the 5-word floor", _tick(size, **cold), _share, 0.93))
    warm: dict[str, Any] = {"cache": "warm", "threads": 1}
    listed.append(Goal("tick_, LeNet5, warm, whole call", _tick("LeNet5", **warm), _time, 35, at_most=True, unit=" µs"))
    # The same goal whatever the machine's speed at the moment: 35 us beside the 20 us of a plain loop.
    what = "plain C++ arithmetic / tick_, LeNet5, warm, whole call"
    listed.append(Goal(what, _tick("LeNet5", **warm), _slower(PLAIN), round(20 / 35, 3), unit="×"))
    for size, cache, bound in (("LeNet5", "warm", 60), ("ResNet18", "cold", 9), ("ResNet50", "cold", 8)):
        where = _tick(size, cache=cache, threads=1)
        listed.append(Goal(f"per-layer eager / tick_, {size}", where, _slower("per-layer eager"), bound, unit="×"))
    where = _tick("100M", cache="cold", threads=1)
    listed.append(Goal("torch.compile, flat / tick_, 100M", where, _slower("torch.compile, flat"), 1.8, unit="×"))
    for size, cache, at_least in (("ResNet18", "cold", 1.0), ("LeNet5", "warm", 3.0)):
        where = _tick(size, cache=cache, threads=1) | {"op": "sgd_"}
        figure = _slower("torch.optim.SGD(fused)")
        listed.append(Goal(f"torch.optim.SGD(fused) / sgd_, momentum, {size}", where, figure, at_least, unit="×"))
    for variant in ("", "momentum"):
        where = {"op": "correction", "size": "LeNet5", "variant": variant, "backend": "cpp", "threads": 1}
        with_momentum = ", momentum" if variant else ""
        what = f"engine's share of a correction iteration, LeNet5{with_momentum}"
        listed.append(Goal(what, where, _overhead, 0.10, at_most=True))
    return listed
