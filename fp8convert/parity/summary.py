"""A parity run in plain text: the summary that the command prints, and its cases for JUnit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import shown
from ..junit import Case
from .markup import printable
from .profiles import differing
from .words import (
    Measured,
    binary,
    block,
    decimal,
    limit_of,
    measured,
    number,
    passed,
    runs,
    start,
    tokens,
    worst,
)

Result = Mapping[str, Any]
MOST_LAYERS = 12  # more are shown by the first, the worst and the last


def lines(result: Result) -> list[str]:
    """The summary, a line each, the verdict last; what would not show is escaped."""
    found = [
        *_sides(result),
        "",
        *_columns(_measures(result), "llrll"),
        "",
        start(result),
        *layer_lines(result),
        _control(result),
        _memory(result),
        *(f"note: {note}" for note in result["notes"]),
        *(f"fails: {reason}" for reason in result["reasons"]),
        f"verdict: {'PASS' if passed(result) else 'FAIL'} ({result['profile']})",
    ]
    return [printable(line) for line in found]


def _sides(result: Result) -> Iterable[str]:
    for side in ("reference", "candidate"):
        s = result[side]
        ranks = f"{s['ranks']} rank{'s' if s['ranks'] != 1 else ''}"
        yield f"{side}: {shown(s['path'])} ({s['architecture']}, {s['scheme']}, {ranks})"
    where = f"{result['compute']} on {result['device']}"
    layers = runs(list(result["layers"]))
    yield f"computed: {where}, tokens {tokens(result)}, layers {layers}"


def _measures(result: Result) -> list[list[str]]:
    rows = [["head", "measure", "measured", "limit", ""]]
    for m in measured(result):
        judged = "" if m.limit is None else "FAILS" if m.failed else "ok"
        rows.append([m.head, m.label, *m.words(), judged])
    for h in result["heads"]:
        finite = ["yes", "required", "ok"] if h["finite"] else ["no", "required", "FAILS"]
        rows.append([h["name"], "finite logits", *finite])
    return rows


def layer_lines(result: Result) -> list[str]:
    """Hidden-state error by layer: of all, or of the first, the worst and the last of many."""
    hidden = result["hidden"]
    few = sorted({0, worst(hidden), len(hidden) - 1}) if len(hidden) > MOST_LAYERS else []
    chosen = few or range(len(hidden))
    rows = [["layer", "kind", "relative RMS", "max abs"]]
    for i in chosen:
        h = hidden[i]
        errors = [number(h["relative_rms"]), number(h["max_abs"])]
        rows.append([h["name"], h.get("kind", ""), *errors])
    left = len(hidden) - len(chosen)
    more = [f"({left} more layers; these are the first, the worst and the last)"] if left else []
    return [*_columns(rows, "llrr"), *more] if hidden else []


def _columns(rows: list[list[str]], sides: str) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(w) if side == "r" else cell.ljust(w)
            for cell, w, side in zip(row, widths, sides, strict=True)
        ).rstrip()
        for row in rows
    ]


def _control(result: Result) -> str:
    c = result["control"]
    what = f"{block(c)} of {shown(c['weight'])} times {number(c['factor'])}"
    if c["detected"]:
        return f"control: {what}: detected ({'; '.join(c['failed'])})"
    return f"control: {what}: NOT DETECTED, so this comparison proves nothing"


def _memory(result: Result) -> str:
    m = result["memory"]
    return (
        f"memory: peak RSS {binary(m['peak_rss_bytes'])}, "
        f"at most {binary(m['largest_band_bytes'])} of a weight decoded at once, "
        f"{decimal(m['read_bytes'])} read"
    )


def cases(result: Result) -> list[Case]:
    """A case for each judged measure of each head, finite logits, weights, control and verdict.

    The last has the error by layer as its detail, and fails whenever the run does.
    """
    judged = [_case(m) for m in measured(result) if m.limit is not None]
    finite = [
        Case(f"{h['name']}: finite", None if h["finite"] else "NaN or infinite logits")
        for h in result["heads"]
    ]
    return [*judged, *finite, *_weights(result), *_whole(result)]


def _case(m: Measured) -> Case:
    said = f"{m.label}: {', '.join(m.words())}"
    return Case(f"{m.head}: {m.key}", said if m.failed else None, detail=said)


def _weights(result: Result) -> Iterable[Case]:
    """One, if they were compared and must not differ."""
    if result["weights"] and limit_of(result, "max_abs") == 0:
        found = differing(result["weights"], {"max_abs": 0.0})
        yield Case("weights", "; ".join(found) or None)


def _whole(result: Result) -> Iterable[Case]:
    seen, seconds, said = result["control"]["detected"], result["seconds"], _control(result)
    yield Case("control", None if seen else said, detail=said, seconds=seconds["control"])
    why = None if passed(result) else "; ".join(result["reasons"]) or said
    detail = "\n".join([start(result), *layer_lines(result)])
    yield Case("verdict", why, detail=detail, seconds=seconds["reference"] + seconds["candidate"])
