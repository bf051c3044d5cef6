"""The plots of logits against logits and of weight errors by class, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .markup import escaped, tag
from .svg import (
    CROSS,
    HUGE,
    LEFT,
    WIDTH,
    LinearAxis,
    LogAxis,
    decades,
    label,
    line,
    mark,
    picture,
    span,
)
from .words import number

Pair = tuple[float, float]
RING = "M-8 0a8 8 0 1 0 16 0a8 8 0 1 0 -16 0z"


def scatter(result: Mapping[str, Any]) -> str:
    """Candidate logits over reference logits, with the line on which both are equal."""
    found = result["scatter"]
    both = zip(found["reference"], found["candidate"], strict=True)
    pairs = [(float(a), float(b)) for a, b in both]
    fine = [p for p in pairs if all(abs(v) < HUGE for v in p)]
    strange = [p for p in pairs if not all(abs(v) < HUGE for v in p)]
    low, high = span(v for p in fine for v in p)
    across, up = LinearAxis(low, high, LEFT + 16, 600), LinearAxis(low, high, 540, 36)
    words = f"{len(pairs)} sampled pairs of the head {found['head']}"
    dots = "".join(f"M{across.at(a):.1f} {up.at(b):.1f}h0" for a, b in fine)
    body = [
        label(0, 18, "candidate logit", kind="axis"),
        *(line(LEFT, y, 600, y, "grid") + label(LEFT - 8, y + 5, t, "end") for y, t in up.ticks()),
        *(line(x, 36, x, 556, "grid") + label(x, 578, t, "middle") for x, t in across.ticks()),
        label(340, 604, "reference logit", "middle", "axis"),
        line(across.start, up.start, across.end, up.end, "identity"),
        tag("path", tag("title", escaped(words)), d=dots, class_="dots"),
        *_strange(strange, across, up),
        *_widest(fine, across, up),
    ]
    said = f"{words}, candidate over reference; equal ones on the line."
    return picture(WIDTH, 616, said, *body, kind="square")


def _strange(pairs: list[Pair], across: LinearAxis, up: LinearAxis) -> list[str]:
    """Crosses at the edge; equal ones once, so that a thousand NaN are one."""
    titles = (f"{number(a)} became {number(b)}" for a, b in pairs)
    marks = (
        mark(across.at(a), up.at(b), CROSS, "strange", title)
        for (a, b), title in zip(pairs, titles, strict=True)
    )
    return list(dict.fromkeys(marks))


def _widest(pairs: list[Pair], across: LinearAxis, up: LinearAxis) -> list[str]:
    a, b = max(pairs, key=lambda p: abs(p[0] - p[1]), default=(0.0, 0.0))
    if a == b:
        return []
    title = f"largest difference of the sample: {number(a, 6)} became {number(b, 6)}"
    return [mark(across.at(a), up.at(b), RING, "widest", title)]


def weights(result: Mapping[str, Any]) -> str:
    """Relative RMS error of each class of weights as bars on a logarithmic axis."""
    found = result["weights"]
    errors = [float(w["relative_rms"]) for w in found]
    low, high = decades(errors)
    axis = LogAxis(low, high, start=76, end=524, zero=24, beyond=594)
    bottom = 40 + 48 * len(found)
    body = [
        label(0, 18, "relative RMS error of the weights", kind="axis"),
        *(line(x, 32, x, bottom, "grid") for x, _ in axis.ticks(errors)),
        *(label(x, bottom + 22, t, "middle") for x, t in axis.ticks(errors)),
        *(_bar(52 + 48 * i, axis, w) for i, w in enumerate(found)),
    ]
    said = ", ".join(f"{w['class']} {number(w['relative_rms'])}" for w in found)
    return picture(WIDTH, bottom + 34, f"Relative RMS error of weights by class: {said}.", *body)


def _bar(y: float, axis: LogAxis, of: Mapping[str, Any]) -> str:
    error = float(of["relative_rms"])
    name, differ = str(of["class"])[:24], f"{of['different']} of {of['weights']} differ"
    title = (
        f"{of['class']}: relative RMS {number(error)}, max abs {number(of['max_abs'])}, {differ}"
    )
    x, words = axis.at(error), f"{name} ({differ})"
    shape = (
        mark(x, y + 16, CROSS, "strange", title)
        if not math.isfinite(error)
        else mark(axis.zero, y + 8, f"M0 0H{max(x - axis.zero, 4):.2f}V16H0z", "bar", title)
    )
    text = label(axis.zero, y, words) + label(628, y, number(error), "end")
    return text + shape
