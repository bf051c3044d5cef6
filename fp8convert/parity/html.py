"""The report of a parity run as one HTML page: no script, nothing fetched, the same bytes.

Whatever comes from a checkpoint or a path is escaped (:mod:`.markup`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .figures import layers, logits, weights
from .markup import cell, code, escaped, fails, num, table, tag
from .style import CSS
from .words import (
    Measured,
    binary,
    block,
    decimal,
    measured,
    number,
    passed,
    runs,
    start,
    tokens,
)

Result = Mapping[str, Any]
NOTHING = "default-src 'none'; style-src 'unsafe-inline'"  # what the page may load or run


def report(result: Result) -> str:
    """The page, to be written as UTF-8. ``result`` is the dict of a run; NaN is shown as such."""
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{NOTHING}">',
        tag("title", escaped(f"Parity: {_verdict(result)}")),
        tag("style", CSS),
    ]
    parts = (_top, _measures, _compared, _control, layers, logits, weights, _cost)
    body = [part for of in parts for part in of(result)]
    page = ['<!DOCTYPE html>\n<html lang="en">', *head, "<body>", *body, "</body></html>"]
    return "\n".join(page) + "\n"


def _verdict(result: Result) -> str:
    return f"{'PASS' if passed(result) else 'FAIL'} ({result['profile']})"


def _top(result: Result) -> Iterable[str]:
    a, b = result["reference"], result["candidate"]
    yield "<h1>Parity of two checkpoints</h1>"
    reasons = [tag("li", escaped(r)) for r in result["reasons"]]
    yield tag(
        "div",
        tag("strong", "✓ PASS" if passed(result) else "✗ FAIL"),
        tag("p", f"Profile {tag('code', escaped(result['profile']))}. ", _sentence(result)),
        tag("ul", *reasons) if reasons else "",
        class_="verdict" if passed(result) else "verdict fail",
    )
    said = f"{tag('code', escaped(b['path']))} against {tag('code', escaped(a['path']))}."
    yield tag("p", f"{said} {escaped(result['tool'])}.", class_="dim")


def _sentence(result: Result) -> str:
    first = start(result)
    words = f"{first[0].upper()}{first[1:]}. "
    seen = result["control"]["detected"]
    return escaped(words + f"The broken control was {'detected' if seen else 'NOT detected'}.")


def _measures(result: Result) -> Iterable[str]:
    yield "<h2>Measures and limits</h2>"
    rows = [_measure(m) for m in measured(result)]
    rows += [
        [cell(h["name"]), cell("finite logits"), num("yes" if h["finite"] else "no"),
         num("required"), _mark(not h["finite"])]
        for h in result["heads"]
    ]  # fmt: skip
    yield table(["head", "measure", "#measured", "#limit", ""], rows)


def _measure(m: Measured) -> list[str]:
    value, limit = m.words()
    judged = cell("") if m.limit is None else _mark(m.failed)
    return [cell(m.head), cell(m.label), num(value), num(limit), judged]


def _mark(failed: bool) -> str:
    return fails("✗ fails") if failed else cell("✓")


def _compared(result: Result) -> Iterable[str]:
    yield "<h2>What was compared</h2>"
    sides = result["reference"], result["candidate"]
    keys = ("path", "architecture", "ranks", "scheme")
    rows = [[cell(key), *(code(side[key]) for side in sides)] for key in keys]
    yield table(["", "reference", "candidate"], rows)
    words = f"Computed in {result['compute']} on {result['device']}, tokens {tokens(result)}, "
    yield tag("p", escaped(f"{words}layers {runs(list(result['layers']))}."))
    yield from (tag("p", escaped(f"Note: {note}.")) for note in result["notes"])


def _control(result: Result) -> Iterable[str]:
    c = result["control"]
    yield "<h2>Broken control</h2>"
    words = f"{block(c)} of {tag('code', escaped(c['weight']))} of the candidate, multiplied by "
    words += f"{number(c['factor'])}"
    tried = f" (tried: {', '.join(map(number, c['tried']))})" if len(c["tried"]) > 1 else ""
    seen = (
        "<p>Detected, as it must be:</p>"
        if c["detected"]
        else "<p><strong>✗ NOT DETECTED.</strong> The comparison cannot see this fault, so its "
        "verdict proves nothing.</p>"
    )
    found = tag("ul", *(tag("li", escaped(f)) for f in c["failed"])) if c["detected"] else ""
    kind = "control" if c["detected"] else "control fail"
    yield tag("div", tag("p", f"Changed: {words}{tried}."), seen, found, class_=kind)


def _cost(result: Result) -> Iterable[str]:
    yield "<h2>Memory and time</h2>"
    m, s = result["memory"], result["seconds"]
    rows = [
        ("peak memory of the process", binary(m["peak_rss_bytes"])),
        ("most of a weight decoded at once", binary(m["largest_band_bytes"])),
        ("read from disk", decimal(m["read_bytes"])),
        *((f"time of the {side}", f"{number(s[side])} s") for side in s),
    ]
    yield table(["", "#"], [[cell(what), num(much)] for what, much in rows])
