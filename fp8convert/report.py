"""What a manifest says of the weights: how many were decoded, copied, encoded; with which error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from .classes import group
from .encoding.band import Errors, joined
from .encoding.carried import CARRIED
from .journal import Record
from .options import Quantize, ShardForTp
from .plan import Plan


def counts(plan: Plan) -> dict[str, int]:
    """Weights and tensors, by what was done to them; on several ranks they count once."""
    every = {i.name: i for t in plan.tasks for i in t.items if not i.part}
    items = every.values()
    coded = [i for i in items if i.weight.codec.coded and not isinstance(i.weight.codec, CARRIED)]
    decoded = [i.weight for i in coded if not i.encoding]
    encoded = sum(i.encoding is not None for i in items)
    done = {"weights_encoded": encoded, "weights_copied": len(plan.copied)}
    copies = sum(isinstance(i.weight.codec, CARRIED) for i in items if not i.encoding)
    return {
        **(done if scheme_of(plan) else {}),
        "weights_decoded": len(decoded),
        "tensors_kept": len(items) - len(decoded) - encoded - copies,
        "parts_dropped": sum(len(w.parts) - 1 + len(w.dropped) for w in decoded)
        + len(plan.dropped),
    }


def scheme_of(plan: Plan) -> str | None:
    """What weights are encoded by, if any are."""
    options = plan.options
    to = options.to if isinstance(options, ShardForTp) else options
    if isinstance(to, Quantize):
        return to.scheme
    encoded = any(i.encoding for t in plan.tasks for i in t.items)
    return "as the source" if encoded else None


def figures(plan: Plan, records: Sequence[Record]) -> dict[str, Any]:
    """``scheme``, its rules, and how exact each weight and each class of them is.

    Empty where nothing is encoded. What ranks have of a weight is taken together.
    """
    if (scheme := scheme_of(plan)) is None:
        return {}
    found: dict[str, list[Errors]] = {}
    for record in records:
        for name, e in record.errors.items():
            found.setdefault(name, []).append(Errors(*e))
    errors = {name: joined(of) for name, of in found.items()}
    encoders = {i.encoding.encoder for t in plan.tasks for i in t.items if i.encoding}
    quantized: dict[str, Any] = {name: {"exact": True, "copied": True} for name in plan.copied}
    quantized |= {name: said(e) for name, e in errors.items()}
    return {
        "scheme": scheme,
        "encoders": sorted((e.to_dict() for e in encoders), key=str),
        "by_class": _by_class(plan.copied, errors),
        "quantized": dict(sorted(quantized.items())),
    }


def said(e: Errors) -> dict[str, Any]:
    """Error in words: ``max_abs`` absolute, ``relative_rms`` of the weight's own, ``snr_db``."""
    if not e.top:
        return {"exact": True}
    ratio = e.squares / e.power if e.squares and e.power else None  # None: beyond float64
    return {
        "exact": False,
        "max_abs": _short(e.top),
        "relative_rms": _short(math.sqrt(ratio)) if ratio else None,
        "snr_db": round(-10 * math.log10(ratio), 2) if ratio else None,
    }


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _by_class(copied: Iterable[str], errors: dict[str, Errors]) -> dict[str, dict[str, Any]]:
    """Of the weights of a class together; ``exact`` counts those that are, copies among them."""
    classes: dict[str, list[Errors]] = {}
    for name, e in (*((name, Errors()) for name in copied), *sorted(errors.items())):
        classes.setdefault(group(name), []).append(e)
    return {
        of: {
            "weights": len(found),
            "exact_weights": sum(not e.top for e in found),
            **said(joined(found)),
        }
        for of, found in sorted(classes.items())
    }
