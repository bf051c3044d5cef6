"""How far the weights of both sides are apart, by class, as the run used them, and those of experts
that no token went to.

All elements are compared where a class has few; of many, one band each of weights that are spread
over the class. ``verify --against`` compares every one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..classes import group
from ..declared import experts_in
from ..header import numel
from ..reference.ranks import EXPERT
from ..reference.source import Named
from ..reference.weights import Weights
from .measures import Sums

MOST = 1 << 26  # elements of a class
BAND = 1 << 20  # of one weight at a time
Rows = tuple[int, int]


class Bands(Weights):
    """Weights that are looked at, a band of rows at a time."""

    def band(self, name: str, lo: int, hi: int) -> Tensor:
        """Rows of a weight as the compute dtype has them, in float32."""
        return self._band(name, lo, hi)


def opened(source: Named, like: Weights) -> Bands:
    """The weights of ``source`` as ``like`` has its own."""
    return Bands(source, like.compute, like.device)


def with_experts(used: set[str], config: dict[str, Any]) -> set[str]:
    """Names of weights that a run used, and the same of every other expert of these layers.

    As many as the config counts: the router that sent tokens to them has a row for each.
    """
    _, count = experts_in(config)
    found = [match for name in used if (match := EXPERT.fullmatch(name))]
    ends = {(match[1], match[0][match.end(2) :]) for match in found}
    return used | {f"{module}.{n}{end}" for module, end in ends for n in range(count)}


def by_class(reference: Bands, candidate: Bands, names: set[str]) -> list[dict[str, Any]]:
    """As the JSON of a run has it. Of the ``names`` that both sides have, ``total`` in a class,
    ``weights`` were looked at, and ``different`` have an element that differs."""
    classes: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        both = reference.has(name) and candidate.has(name)
        if both and candidate.shape(name) == reference.shape(name):
            classes[group(name)].append(name)
    return [_class(of, reference, candidate, found) for of, found in sorted(classes.items())]


def _class(of: str, reference: Bands, candidate: Bands, names: list[str]) -> dict[str, Any]:
    sums, different, seen = Sums(), set(), set()
    for name, (lo, hi) in _chosen(reference, names):
        seen.add(name)
        bands = reference.band(name, lo, hi), candidate.band(name, lo, hi)
        sums.add(*bands)
        if not _equal(*bands):
            different.add(name)
    found = sums.difference()
    return {
        "class": of,
        "total": len(names),
        "weights": len(seen),
        "different": len(different),
        "relative_rms": found.relative_rms,
        "max_abs": found.max_abs,
    }


def _equal(a: Tensor, b: Tensor) -> bool:
    """NaN is NaN here, and -0 is 0."""
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


def _chosen(w: Weights, names: list[str]) -> Iterator[tuple[str, Rows]]:
    """Weights and bands of their rows: all, or of evenly spaced weights one each, ever further
    down."""
    if sum(numel(w.shape(name)) for name in names) <= MOST:
        for name in names:
            yield from ((name, rows) for rows in _rows(w.shape(name)))
        return
    step = -(-len(names) * BAND // MOST)
    for k, name in enumerate(names[::step]):
        bands = list(_rows(w.shape(name)))
        yield name, bands[k % len(bands)]


def _rows(shape: tuple[int, ...]) -> Iterator[Rows]:
    count = shape[0] if shape else 1
    step = max(1, BAND * count // max(1, numel(shape)))
    return ((lo, min(count, lo + step)) for lo in range(0, count, step))
