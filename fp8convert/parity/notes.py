"""What a run left out, and what its verdict should be read with."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from ..declared import experts_in
from ..reference.ranks import EXPERT
from .sides import Side
from .walk import BLOCK, ranks, used

SIDES = ("reference", "candidate")


def notes(sides: tuple[Side, Side], length: int, mtp: bool, compute: str) -> Iterator[str]:
    """Of a run that is done, over tokens of ``length``; ``mtp`` says whether that head was wanted.

    Each is a sentence without its full stop.
    """
    if os.path.samefile(*(s.path for s in sides)):
        yield "REF and CANDIDATE are the same folder"
    if mtp:
        yield from _heads([s.model.mtp for s in sides], length)
    if compute == "fp8" and len({_rounds(s.model) for s in sides}) > 1:
        yield (
            "in fp8 activations are rounded where weights are FP8, which is on one side only: "
            "bf16 runs the same function on both"
        )
    yield from _experts(sides[0].model)


def _heads(layers: list[int], length: int) -> Iterator[str]:
    have = list(map(bool, layers))
    if any(have) and not all(have):
        yield f"only the {SIDES[have.index(True)]} has an MTP head"
    elif all(have) and length < 2:
        yield "the MTP head was not run: it predicts from two tokens"
    elif max(layers) > 1:
        yield f"of {max(layers)} MTP layers the first was run"


def _rounds(model: Any) -> bool:
    """Whether some weight that was used is one that activations are rounded to FP8 for."""
    w = ranks(model)[0]
    coded = (name for name in sorted(w.used) if w.source.coded(name) and len(w.shape(name)) == 2)
    first = ((name, slice(0, min(BLOCK, w.shape(name)[0]))) for name in coded)
    return any(w.source.blocks(name, rows) is not None for name, rows in first)


def _experts(model: Any) -> Iterator[str]:
    reached: dict[str, set[str]] = defaultdict(set)
    for name in used(model):
        if match := EXPERT.fullmatch(name):
            reached[match[1]].add(match[2])
    _, count = experts_in(model.config.found)
    every, run = count * len(reached), sum(map(len, reached.values()))
    if run < every:
        yield (
            f"the tokens went to {run:,} of {every:,} routed experts: of the others weights were "
            "compared, not what they compute"
        )
