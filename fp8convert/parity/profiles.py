"""What two runs may differ by: named sets of thresholds. docs/parity.md has the measurements.

``identical``: no logit differs. Both sides decode to the same BF16 weights and run the same
operations in the same order, so anything else is a fault: FP8 and its BF16 copy, a re-sharded
copy, a lossless requantization.

``reduction-order``: the same weights, summed in another order, as ranks do. Float32 sums differ in
their last bits; in BF16 such a bit moves a rounding, by 2^-8 of an element.

``requantized``: other weights, near the first. Thresholds are far above what the encodings with
four bits do and far below what a wrong model does; for a finer bound give thresholds of your own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from .words import MEASURES, measured

Limits = dict[str, "float | None"]

NONE: Limits = dict.fromkeys((key for _, key, _, _ in MEASURES), None)
_ANY = ("bf16", "fp32", "fp8")
PROFILES: dict[str, dict[str, Limits]] = {
    "identical": dict.fromkeys(_ANY, NONE | {"max_abs": 0.0}),
    "reduction-order": dict.fromkeys(_ANY, NONE | {"max_rms": 0.02, "max_kl": 0.01}),
    "requantized": dict.fromkeys(_ANY, NONE | {"max_rms": 0.5, "max_kl_mean": 0.1}),
}


def limits(profile: str, compute: str, own: Mapping[str, float | None]) -> Limits:
    """The thresholds of ``profile``; those in ``own`` that are not None replace them."""
    if profile not in PROFILES:
        raise UsageError(f"profile {profile!r}, expected one of {', '.join(PROFILES)}")
    if unknown := own.keys() - NONE.keys():
        raise UsageError(f"threshold {sorted(unknown)[0]!r}, expected one of {', '.join(NONE)}")
    return PROFILES[profile][compute] | {k: v for k, v in own.items() if v is not None}


def failures(head: Mapping[str, Any], thresholds: Limits) -> list[str]:
    """Which measures of a head are beyond their threshold: ``max_abs 0.5, at most 0``."""
    found = measured({"heads": [head], "thresholds": thresholds})
    return [f"{m.key} {', '.join(m.words())}" for m in found if m.failed]
