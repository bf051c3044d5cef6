"""The plot of hidden-state error by layer, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .svg import CROSS, LEFT, WIDTH, LogAxis, Tick, decades, label, line, mark, picture
from .words import limit_of, number, worst

RIGHT = 616
SHAPES = {  # of a layer's kind; around 0, 0
    "dense": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    "moe": "M-4.6 -4.6h9.2v9.2h-9.2z",
}
TRIANGLE = "M0 -6L5.6 4.6H-5.6z"


def layers(result: Mapping[str, Any]) -> str:
    """Relative RMS error of the hidden state after each layer, on a logarithmic axis."""
    hidden = result["hidden"]
    errors = [float(h["relative_rms"]) for h in hidden]
    limit = limit_of(result, "max_rms") or 0.0
    low, high = decades([*errors, limit])
    axis = LogAxis(low, high, start=266, end=116, zero=294, beyond=88)
    xs = [LEFT + (i + 0.5) * (RIGHT - LEFT) / len(hidden) for i in range(len(hidden))]
    body = [
        label(0, 18, "relative RMS error of the hidden state", kind="axis"),
        *_rows(axis.ticks(errors)),
        line(LEFT, 306, RIGHT, 306, "edge"),
        *(label(x, 328, words, "middle") for x, words in _numbers(hidden, xs)),
        label((LEFT + RIGHT) / 2, 354, "layer", "middle", "axis"),
        *_legend([_kind(h) for h in hidden]),
        *_start(result, xs),
        *(line(x, 306, x, axis.at(e), "stem") for x, e in zip(xs, errors, strict=True)),
        *(_layer(x, axis, h) for x, h in zip(xs, hidden, strict=True)),
        *_limit(axis, limit),
    ]
    return picture(WIDTH, 364, _said(result), *body)


def _rows(ticks: list[Tick]) -> list[str]:
    return [
        line(LEFT, y, RIGHT, y, "grid") + label(LEFT - 8, y + 5, words, "end") for y, words in ticks
    ]


def _kind(hidden: Mapping[str, Any]) -> str:
    return str(hidden.get("kind", hidden["name"]))


def _style(kind: str) -> str:
    return kind if kind in SHAPES else "other"


def _layer(x: float, axis: LogAxis, hidden: Mapping[str, Any]) -> str:
    error, kind = float(hidden["relative_rms"]), _kind(hidden)
    title = f"{hidden['name']} ({kind}): relative RMS {number(error)}, "
    title += f"max abs {number(hidden['max_abs'])}, reference RMS {number(hidden['ref_rms'])}"
    if not math.isfinite(error):
        return mark(x, axis.beyond, CROSS, "strange", title)
    return mark(x, axis.at(error), SHAPES.get(kind, TRIANGLE), _style(kind), title)


def _numbers(hidden: list[Mapping[str, Any]], xs: list[float]) -> list[Tick]:
    """Labels of as many layers as have room, the last always."""
    last = len(hidden) - 1
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**6) if last / s <= 10)
    shown = [i for i in range(0, last, step) if last - i > step / 2] + [last]
    return [(xs[i], str(hidden[i]["name"]).removeprefix("layer ")[:8]) for i in shown]


def _legend(kinds: list[str]) -> list[str]:
    found, x = [], LEFT + 8
    for kind in dict.fromkeys(kinds):
        found.append(mark(x, 40, SHAPES.get(kind, TRIANGLE), _style(kind), kind))
        found.append(label(x + 12, 45, kind[:12]))
        x += 40 + 11 * len(kind[:12])
    return found


def _limit(axis: LogAxis, limit: float) -> list[str]:
    if not limit:
        return []
    y = axis.at(limit)
    words = label(LEFT + 6, y - 5, f"limit {number(limit)}", kind="bad")
    return [line(LEFT, y, RIGHT, y, "limit"), words]


def _start(result: Mapping[str, Any], xs: list[float]) -> list[str]:
    names = [h["name"] for h in result["hidden"]]
    if result["starts"] not in names:
        return []
    x = xs[names.index(result["starts"])]
    aside, anchor = (6, "start") if x < (LEFT + RIGHT) / 2 else (-6, "end")
    words = label(x + aside, 68, f"starts at {result['starts']}", anchor, "bad")
    return [line(x, 58, x, 306, "start"), words]


def _said(result: Mapping[str, Any]) -> str:
    hidden, starts = result["hidden"], result["starts"]
    top = hidden[worst(hidden)]
    words = f"Relative RMS error of the hidden state after each of {len(hidden)} layers: the "
    words += f"largest is {number(top['relative_rms'])} at {top['name']}."
    return words + (f" Differences start at {starts}." if starts else "")
