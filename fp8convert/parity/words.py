"""Numbers, sizes and judged measures in words, for the summary, the page and the test cases.

``result`` is the dict of a parity run everywhere; its floats may be NaN or infinite, or the strings
that JSON has for these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

# Field of a head, field of its threshold, which side of it is fine, name with unit.
MEASURES = (
    ("max_abs", "max_abs", "at most", "max abs difference"),
    ("relative_rms", "max_rms", "at most", "relative RMS"),
    ("kl_max", "max_kl", "at most", "KL max (nats)"),
    ("kl_mean", "max_kl_mean", "at most", "KL mean (nats)"),
    ("top1", "min_top1", "at least", "top-1 agreement"),
    ("top5", "min_top5", "at least", "top-5 agreement"),
)


class Measured(NamedTuple):
    """One measure of one head; ``limit`` is None where it is not judged."""

    head: str
    key: str
    label: str
    value: float
    sense: str
    limit: float | None

    @property
    def failed(self) -> bool:
        """Whether it is beyond its limit; NaN is."""
        if self.limit is None:
            return False
        return not (
            self.value <= self.limit if self.sense == "at most" else self.value >= self.limit
        )

    def words(self) -> tuple[str, str]:
        """The value and the limit, digits enough to tell them apart: ``0.5``, ``at most 0``."""
        if self.limit is None:
            return number(self.value), "not judged"
        digits = next((d for d in range(4, 17) if self._differ(d)), 17)
        return number(self.value, digits), f"{self.sense} {number(self.limit, digits)}"

    def _differ(self, digits: int) -> bool:
        return self.value == self.limit or number(self.value, digits) != number(self.limit, digits)


def measured(result: Mapping[str, Any]) -> list[Measured]:
    """Every measure of every head, heads in the order of ``result``."""
    limits = {key: limit_of(result, key) for _, key, _, _ in MEASURES}
    return [
        Measured(head["name"], field, label, float(head[field]), sense, limits[key])
        for head in result["heads"]
        for field, key, sense, label in MEASURES
    ]


def passed(result: Mapping[str, Any]) -> bool:
    """The verdict; a run whose control went unseen shows nothing, so it never reads as a pass."""
    return result["verdict"] == "pass" and bool(result["control"]["detected"])


def limit_of(result: Mapping[str, Any], key: str) -> float | None:
    """A threshold; None where it is not judged."""
    found = result["thresholds"].get(key)
    return None if found is None else float(found)


def number(value: Any, digits: int = 4) -> str:
    """``0.001234``, ``1.234e-7``, ``0``, ``NaN``, ``-inf``; None is ``-``."""
    if value is None:
        return "-"
    value = float(value)
    if math.isnan(value):
        return "NaN"
    mantissa, e, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def binary(nbytes: float) -> str:
    """``1.2 GiB``, ``32 MiB``: as memory is counted."""
    return _size(nbytes, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def decimal(nbytes: float) -> str:
    """``1.3 GB``: as disks are counted."""
    return _size(nbytes, 1000, ("B", "kB", "MB", "GB", "TB"))


def _size(nbytes: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while power < len(units) - 1 and nbytes >= base:
        nbytes, power = nbytes / base, power + 1
    return f"{nbytes:.1f}".removesuffix(".0") + f" {units[power]}"


def runs(numbers: list[int]) -> str:
    """``0 to 2, 60`` of [0, 1, 2, 60]."""
    spans: list[list[int]] = []
    for n in numbers:
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in spans) or "none"


def tokens(result: Mapping[str, Any]) -> str:
    """``2 x 16, seed 0``."""
    t = result["tokens"]
    return f"{t['batch']} x {t['length']}, {t['source']}"


def start(result: Mapping[str, Any]) -> str:
    """Where the hidden states begin to differ."""
    if result["starts"] is None:
        what = "is beyond the limit" if limit_of(result, "max_rms") else "differs"
        return f"no layer's hidden state {what}"
    rms = [h["relative_rms"] for h in result["hidden"] if h["name"] == result["starts"]]
    found = f", relative RMS {number(rms[0])}" if rms else ""
    what = "is first beyond the limit" if limit_of(result, "max_rms") else "first differs"
    return f"the hidden state {what} at {result['starts']}{found}"


def worst(hidden: list[dict[str, Any]]) -> int:
    """Which layer has the largest relative RMS error, NaN before all; the first of equals."""
    errors = [float(h["relative_rms"]) for h in hidden]
    return max(range(len(errors)), key=lambda i: (math.isnan(errors[i]), errors[i], -i))


def block(control: Mapping[str, Any]) -> str:
    """``rows 0 to 127, columns 0 to 127``: what the control changed; ends are exclusive."""
    (r0, r1), (c0, c1) = control["rows"], control["columns"]
    return f"rows {r0} to {r1 - 1}, columns {c0} to {c1 - 1}"
