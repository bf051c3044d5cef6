"""The sections of the report that have a plot: each with a table of the same numbers below it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import layerplot, plots
from .markup import cell, escaped, fails, num, short, table, tag
from .words import number


def layers(result: Mapping[str, Any]) -> Iterable[str]:
    """The hidden states: plot and table."""
    yield "<h2>Error by layer</h2>"
    if not (hidden := result["hidden"]):
        yield "<p>No hidden states were compared.</p>"
        return
    caption = "Logarithmic; relative to the RMS of the reference. A layer without error is at 0."
    yield _figure(layerplot.layers(result), caption)
    rows = [
        [short(h["name"]), short(h.get("kind", "")),
         *(num(number(h[key])) for key in ("relative_rms", "max_abs", "ref_rms")),
         fails("← starts") if h["name"] == result["starts"] else cell("")]
        for h in hidden
    ]  # fmt: skip
    yield table(["layer", "kind", "#relative RMS", "#max abs", "#reference RMS", ""], rows)


def logits(result: Mapping[str, Any]) -> Iterable[str]:
    """The sampled logits: a plot."""
    yield "<h2>Logits</h2>"
    found = result["scatter"]
    if not found["reference"]:
        yield "<p>No logits were sampled.</p>"
        return
    words = f"{len(found['reference'])} pairs sampled from head {found['head']}; equal ones lie "
    words += "on the line. A ring is around the largest difference, a cross is not finite."
    yield _figure(plots.scatter(result), words)


def weights(result: Mapping[str, Any]) -> Iterable[str]:
    """The weights of both sides by class: plot and table."""
    yield "<h2>Weights by class</h2>"
    if not (found := result["weights"]):
        yield "<p>No weights were compared.</p>"
        return
    yield _figure(plots.weights(result), "Logarithmic; relative to the RMS of the reference.")
    rows = [
        [cell(w["class"]), *(num(str(w[key])) for key in ("weights", "different")),
         *(num(number(w[key])) for key in ("relative_rms", "max_abs"))]
        for w in found
    ]  # fmt: skip
    yield table(["class", "#weights", "#different", "#relative RMS", "#max abs"], rows)


def _figure(plot: str, caption: str) -> str:
    return tag("figure", plot, tag("figcaption", escaped(caption)))
