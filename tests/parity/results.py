"""Results of parity runs, as the command makes them: small, and large ones by number of layers."""

from __future__ import annotations

import math
from typing import Any

NONE = dict.fromkeys(("max_abs", "max_rms", "max_kl", "max_kl_mean", "min_top1", "min_top5"))


def head(name: str = "logits", **changes: Any) -> dict[str, Any]:
    """Measures of a head that is the same on both sides."""
    same = {"max_abs": 0.0, "relative_rms": 0.0, "kl_mean": 0.0, "kl_max": 0.0, "top1": 1.0}
    return {"name": name, **same, "top5": 1.0, "finite": True, "failed": [], **changes}


def layer(name: str, kind: str, relative_rms: float, **changes: Any) -> dict[str, Any]:
    """The hidden state after a layer."""
    errors = {"max_abs": 3 * relative_rms, "relative_rms": relative_rms, "ref_rms": 1.25}
    return {"name": name, "kind": kind, **errors, **changes}


def same(**changes: Any) -> dict[str, Any]:
    """A run of three layers without any difference."""
    side = {"path": "/m/ref", "architecture": "deepseek_v3", "ranks": 1, "scheme": "fp8-block"}
    kinds = ("dense", "dense", "moe")
    values = [math.sin(i) * 8 for i in range(40)]
    plain = {
        "format": 1,
        "tool": "fp8convert 1.2.3",
        "reference": side,
        "candidate": {**side, "path": "/m/cand", "scheme": "bf16"},
        "compute": "bf16",
        "device": "cpu",
        "tokens": {"batch": 2, "length": 16, "source": "seed 0"},
        "layers": [0, 1, 2],
        "profile": "identical",
        "thresholds": {**NONE, "max_abs": 0.0},
        "heads": [head()],
        "hidden": [layer(f"layer {i}", kind, 0.0) for i, kind in enumerate(kinds)],
        "starts": None,
        "weights": [weights("attention", 18, 0, 0.0), weights("routed experts", 48, 0, 0.0)],
        "scatter": {"head": "logits", "reference": values, "candidate": list(values)},
        "control": control(),
        "memory": {
            "peak_rss_bytes": 1288490189,
            "largest_band_bytes": 2**25,
            "read_bytes": 1_300_000_000,
        },
        "seconds": {"reference": 2.5, "candidate": 3.25, "control": 1.125},
        "notes": [],
        "verdict": "pass",
        "reasons": [],
    }
    return {**plain, **changes}


def control(**changes: Any) -> dict[str, Any]:
    """A control that was seen."""
    return {
        "weight": "model.layers.2.self_attn.o_proj.weight",
        "rows": [0, 128],
        "columns": [128, 256],
        "factor": 2.0,
        "detected": True,
        "failed": ["max_abs 0.75, at most 0.0"],
        "tried": [2.0],
        **changes,
    }


def weights(of: str, count: int, different: int, relative_rms: float) -> dict[str, Any]:
    """The weights of a class."""
    errors = {"relative_rms": relative_rms, "max_abs": relative_rms / 4}
    return {"class": of, "weights": count, "different": different, **errors}


def failing(**changes: Any) -> dict[str, Any]:
    """A deep run that is beyond its limits."""
    errors = {"max_abs": 2.1, "relative_rms": 0.08, "kl_mean": 0.004}
    found = {
        "heads": [
            head(**errors, kl_max=0.31, top1=0.93, failed=["kl_max 0.31, at most 0.1"]),
            head("mtp", **errors, kl_max=0.03, top1=0.85, failed=["top1 0.85, at least 0.9"]),
        ],
        "hidden": [layer(f"layer {i}", "moe" if i > 2 else "dense", 6e-4 * 1.1**i)
                   for i in range(61)],
        "starts": "layer 54",
        "verdict": "fail",
        "reasons": ["logits: kl_max 0.31, at most 0.1", "mtp: top1 0.85, at least 0.9"],
    }  # fmt: skip
    return deep(**{**found, **changes})


def deep(layers: int = 61, **changes: Any) -> dict[str, Any]:
    """A requantized run of many layers and an MTP head; the first two are the same."""
    hidden = [
        layer(f"layer {i}", "dense" if i < 3 else "moe", 0.0 if i < 2 else 2e-4 * 1.09**i)
        for i in range(layers)
    ]
    reference = [math.sin(i * i) * 12 for i in range(2000)]
    candidate = [v + math.cos(7 * i) * 0.3 for i, v in enumerate(reference)]
    judged = {"max_kl": 0.1, "max_kl_mean": 0.01, "max_rms": 0.1, "min_top1": 0.9}
    errors = {"max_abs": 0.3, "relative_rms": 0.0276, "kl_mean": 0.0012, "kl_max": 0.031}
    found = {
        "profile": "requantized",
        "layers": list(range(layers)),
        "thresholds": {**NONE, **judged},
        "heads": [head(**errors, top1=0.97, top5=0.981), head("mtp", **errors, top1=0.95)],
        "hidden": [*hidden, layer("mtp", "mtp", 0.041)],
        "starts": None,
        "weights": [
            weights("attention", 183, 183, 0.0263),
            weights("dense mlp", 9, 9, 0.0258),
            weights("embedding", 1, 0, 0.0),
            weights("routed experts", 44544, 44544, 0.0261),
            weights("shared experts", 174, 174, 0.00021),
        ],
        "scatter": {"head": "logits", "reference": reference, "candidate": candidate},
    }
    return same(**{**found, **changes})


def broken(**changes: Any) -> dict[str, Any]:
    """A run that fails, with values that are not finite, and names that are not text."""
    evil = "</script><script>alert(1)</script>\"'&\x1b[2J\x00\u202e\udcff"
    nan, inf = float("nan"), float("inf")
    kinds = ("dense", "moe", "moe", "moe")
    errors = (0.0, 1e-3, nan, inf)
    found = {
        "candidate": {"path": evil, "architecture": evil, "ranks": 2, "scheme": evil},
        "heads": [
            head(max_abs=nan, relative_rms=nan, kl_max=inf, kl_mean=nan, top1=0.5, finite=False,
                 failed=["max_abs nan, at most 0.0", "logits are not finite"])
        ],
        "hidden": [layer(f"layer {i}", kinds[i], errors[i]) for i in range(4)],
        "starts": "layer 1",
        "weights": [
            weights("attention", 6, 1, nan), weights(evil, 2, 2, inf), weights("head", 1, 0, 0.0),
        ],
        "scatter": {"head": evil, "reference": [1.0, nan, -inf, 3.0, nan],
                    "candidate": [1.5, 2.0, inf, 3.0, nan]},
        "control": control(weight=evil, detected=False, failed=[], factor=64.0,
                           tried=[2.0, 8.0, 64.0]),
        "verdict": "fail",
        "reasons": [f"logits: max_abs nan, at most 0.0 {evil}", "the control was not detected"],
    }  # fmt: skip
    return same(**{**found, **changes})
