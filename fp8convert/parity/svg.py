"""Pictures and axes: what the plots are made of.

Positions are SVG user units, x to the right and y down. Plots are drawn to be read on a phone too,
where the style sheet makes letters larger: labels stand above what they name, not beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .markup import LONGEST, escaped, plain, tag
from .words import number

HUGE = 1e300  # beyond it, differences leave float64
MOST_TICKS = 7
WIDTH, LEFT = 640, 80  # of a plot; where what is drawn begins, right of labels
CROSS = "M-5 -5L5 5M5 -5L-5 5"  # of what is not finite

Tick = tuple[float, str]  # position, label


def picture(width: int, height: int, label: str, *body: str, kind: str = "wide") -> str:
    """A whole SVG, as wide as its place; ``label`` says in words what it shows."""
    return tag(
        "svg",
        *body,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=label[:LONGEST],
        class_=kind,
    )


def label(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    """A text; ``kind`` is a class of the style sheet."""
    return tag("text", escaped(words), x=x, y=y, text_anchor=anchor, class_=kind)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A line of a class of the style sheet."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def mark(x: float, y: float, path: str, kind: str, title: str) -> str:
    """A mark drawn around its point, with a tooltip."""
    place = f"translate({plain(float(x))} {plain(float(y))})"
    return tag("path", tag("title", escaped(title)), d=path, transform=place, class_=f"mark {kind}")


@dataclass(frozen=True)
class LogAxis:
    """Whole decades from ``low`` at ``start`` to ``high`` at ``end``; 0 and what is not finite
    have positions of their own, so that nothing is dropped."""

    low: int
    high: int
    start: float
    end: float
    zero: float
    beyond: float

    def at(self, value: float) -> float:
        """The position of a value of 0 or more, NaN or infinity."""
        if not math.isfinite(value):
            return self.beyond
        if value <= 0:
            return self.zero
        return self._place(math.log10(value))

    def _place(self, decades: float) -> float:
        share = (decades - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, values: Iterable[float]) -> list[Tick]:
        """Decades, with 2 and 5 within them where they are few; 0 and NaN where ``values`` go."""
        span = self.high - self.low
        step = next(s for s in (1, 2, 3, 5, 10, 20, 50, 100, 200) if span / s < MOST_TICKS)
        found = [(self.zero, "0")]
        found += [
            (self._place(d), f"1e{d}") for d in range(self.low, self.high + 1) if not d % step
        ]
        if span <= 2:
            fine = [(d, n) for d in range(self.low, self.high) for n in (2, 5)]
            found += [(self._place(d + math.log10(n)), f"{n}e{d}") for d, n in fine]
        strange = any(not math.isfinite(v) for v in values)
        return found + [(self.beyond, "NaN/∞")] * strange


def decades(values: Iterable[float]) -> tuple[int, int]:
    """The whole decades around all values that a logarithm has; some where there is none."""
    logs = [math.log10(v) for v in values if math.isfinite(v) and v > 0]
    if not logs:
        return -6, 0
    low = math.floor(min(logs))
    return low, max(math.ceil(max(logs)), low + 1)


@dataclass(frozen=True)
class LinearAxis:
    """``low`` at ``start`` to ``high`` at ``end``; what is not finite lies on the edge."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The position of any value; NaN is at ``start``, as -inf is."""
        kept = min(max(value, self.low), self.high) if value == value else self.low
        return self.start + (kept - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[Tick]:
        """Round values, 1, 2 or 5 times a power of ten apart."""
        least = (self.high - self.low) / (MOST_TICKS - 1)
        power = 10.0 ** math.floor(math.log10(least))
        step = next(n * power for n in (1, 2, 5, 10) if n * power >= least * (1 - 1e-9))
        every = range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
        return [(self.at(i * step), number(i * step)) for i in every]


def span(values: Iterable[float]) -> tuple[float, float]:
    """A range around all finite values with a margin, wide enough for ticks to differ."""
    finite = [v for v in values if abs(v) < HUGE]  # NaN is not
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    top = max(abs(low), abs(high))
    least = top * 0.1 if top > 1e-30 else 1.0
    margin = max((high - low) * 0.04, (least - (high - low)) / 2)
    return low - margin, high + margin
