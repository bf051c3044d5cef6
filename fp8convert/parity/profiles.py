"""What two runs may differ by: named sets of thresholds. docs/parity.md has the measurements.

``identical``: no logit differs, nor any weight that was looked at: of a table these tokens use but
some rows. Both sides decode to the same BF16 weights and run the same operations in the same order,
so anything else is a fault: FP8 and its BF16 copy, a copy in other shards, a lossless
requantization.

``reduction-order``: the same weights, summed in another order, as ranks do. Float32 sums differ in
their last bits, which stays so in fp32. In bf16 and fp8 such a bit moves a rounding of an
activation, by 2^-8 of it, and every layer adds to that.

``requantized``: other weights, near the first ones, as exact as the bits of the coarser side allow.
It finds a model that is broken, not a weight that is a little worse than it could be: what is
within the error of an encoding cannot be told from it by logits. ``verify --against`` can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError
from .words import MEASURES, measured

Limits = dict[str, "float | None"]

NONE: Limits = dict.fromkeys((key for _, key, _, _ in MEASURES), None)
_SUMS: Limits = NONE | {"max_rms": 0.05, "max_kl_mean": 0.005}
REDUCTION_ORDER: dict[str, Limits] = {
    "bf16": _SUMS,
    "fp8": _SUMS,
    "fp32": NONE | {"max_rms": 1e-4, "max_kl": 1e-6},
}
REQUANTIZED: dict[int, Limits] = {  # by the bits of an element
    8: NONE | {"max_rms": 0.2, "max_kl_mean": 0.02},
    4: NONE | {"max_rms": 0.6, "max_kl_mean": 0.2},
}
PROFILES = ("identical", "reduction-order", "requantized")


def limits(
    profile: str, compute: str, bits: int, own: Mapping[str, float | None] | None = None
) -> Limits:
    """The thresholds of ``profile``; those in ``own`` that are not None replace them.

    ``bits`` are those of an element where weights have fewest. UsageError on unknown names.
    """
    if profile not in PROFILES:
        raise UsageError(f"profile {profile!r}, expected one of {', '.join(PROFILES)}")
    given = {key: value for key, value in (own or {}).items() if value is not None}
    if unknown := given.keys() - NONE.keys():
        raise UsageError(f"threshold {sorted(unknown)[0]!r}, expected one of {', '.join(NONE)}")
    if profile == "identical":
        return NONE | {"max_abs": 0.0} | given
    if profile == "reduction-order":
        return REDUCTION_ORDER[compute] | given
    return REQUANTIZED[8 if bits >= 8 else 4] | given


def failures(head: Mapping[str, Any], thresholds: Limits) -> list[str]:
    """Which measures of a head are beyond their threshold: ``max_abs 0.5, at most 0``."""
    found = measured({"heads": [head], "thresholds": thresholds})
    return [f"{m.key} {', '.join(m.words())}" for m in found if m.failed]


def differing(weights: Sequence[Mapping[str, Any]], thresholds: Limits) -> list[str]:
    """By class how many weights are not the same, where no logit may differ: such a difference is
    one that these tokens do not show."""
    if thresholds["max_abs"] != 0:
        return []
    return [
        f"weights: {w['different']} of {w['weights']} in {w['class']} differ, expected none"
        for w in weights
        if w["different"]
    ]
