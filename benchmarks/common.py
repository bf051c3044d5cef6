"""What the benchmarks share: alternating timing, bounds, and the printed and JSON report.

Machines differ and drift, so nothing is compared across runs: both sides take turns within one
run, each repeat gives one ratio, and the figure is the median of those with min..max as noise.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True)
class Env:
    """Where inputs and outputs go, and how thorough to be."""

    data: Path
    repeats: int
    quick: bool

    def fresh(self, name: str = "out") -> Path:
        """A path for an output that does not exist, on a disk that has settled.

        What was there is deleted and the deletion committed, outside of any timing.
        """
        path = self.data / "scratch" / name
        clear(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def clear(path: Path) -> None:
    """Remove an output folder and wait until the disk has done so."""
    if path.exists():
        shutil.rmtree(path)
        os.sync()


def timed(action: Callable[[], object]) -> float:
    """Seconds that ``action`` takes."""
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def alternate(
    sides: Mapping[str, Callable[[], float]], repeats: int
) -> dict[str, tuple[float, ...]]:
    """What each side returns, ``repeats`` times over, the sides taking turns: A B, B A, A B ...

    Every other round is mirrored, so that neither side is always the one that runs first.
    """
    order = list(sides)
    found: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(repeats):
        for name in order:
            found[name].append(sides[name]())
        order.reverse()
    return {name: tuple(values) for name, values in found.items()}


@dataclass(frozen=True)
class Bound:
    """``at_most`` or ``at_least`` something; both None is a figure for information."""

    at_most: float | None = None
    at_least: float | None = None

    def holds(self, value: float) -> bool:
        """Whether ``value`` is within the bound."""
        above = self.at_most is not None and value > self.at_most
        return not above and not (self.at_least is not None and value < self.at_least)

    def __str__(self) -> str:
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return f">= {self.at_least:g}" if self.at_least is not None else "none"


FREE = Bound()


@dataclass(frozen=True)
class Values:
    """What one side measured, a value a repeat."""

    label: str
    values: Sequence[float]
    unit: str = "s"

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        return f"{median(self.values):9.4g} {self.unit}  ({low:.4g}..{high:.4g})  {self.label}"


@dataclass
class Report:
    """Prints each finding as it comes and remembers it for ``--json`` and the exit code."""

    benchmark: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)

    def ratio(self, title: str, top: Values, bottom: Values, bound: Bound = FREE) -> None:
        """``top / bottom``, repeat by repeat; also of the fastest turns, where noise is least."""
        ratios = [a / b for a, b in zip(top.values, bottom.values, strict=True)]
        sides = {v.label: list(v.values) for v in (top, bottom)}
        best = max if top.unit.endswith("/s") else min
        label = f"ratio; {best(top.values) / best(bottom.values):.4g} of the best turns"
        self._judge(title, (top, bottom), Values(label, ratios, "x"), bound, sides)

    def figure(self, title: str, found: Values, bound: Bound = FREE) -> None:
        """A quantity by itself; its median is held to the bound."""
        self._judge(title, (), found, bound, {found.label: list(found.values)})

    def fact(self, title: str, holds: bool, detail: str) -> None:
        """Something that has to be so."""
        self._keep(title, {"detail": detail, "status": "ok" if holds else "MISSED"})
        print(f"    {detail}: {self.records[-1]['status']}", flush=True)

    def skip(self, title: str, why: str) -> None:
        """Something that could not be measured here: neither passed nor missed."""
        self._keep(title, {"detail": why, "status": "skipped"})
        print(f"    SKIPPED, not measured: {why}", flush=True)

    def _judge(
        self,
        title: str,
        sides: Sequence[Values],
        found: Values,
        bound: Bound,
        measured: dict[str, list[float]],
    ) -> None:
        value = median(found.values)
        status = "info" if bound == FREE else "ok" if bound.holds(value) else "MISSED"
        low, high = min(found.values), max(found.values)
        facts = {"unit": found.unit, "value": value, "min": low, "max": high, "sides": measured}
        self._keep(title, {**facts, "bound": str(bound), "status": status})
        for side in sides:
            print(f"    {side}")
        print(f"    {found}, bound {bound}: {status}", flush=True)

    def _keep(self, title: str, facts: dict[str, Any]) -> None:
        print(f"  {title}")
        self.records.append({"benchmark": self.benchmark, "title": title, **facts})
