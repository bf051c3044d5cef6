"""Tiles of weights that are encoded: groups of whole blocks, cut into chunks that fit a scratch.

A tile holds whole rows of blocks of the output, however long they are: a plan says how large a tile
must be at least. What is read for them may be larger than a worker's buffer, and is then read
chunk by chunk, twice.
"""

from __future__ import annotations

from collections.abc import Iterator

from .codecs.base import Rect
from .encoding.band import SCRATCH
from .encoding.encoder import Encoding
from .plan import Item
from .schemes.weight import Weight
from .tile import READ_SLACK, Chunk, Coding, Cut, Measure, Spooled, Tile, cost, reads

Group = tuple[Chunk, ...]


def coded(item: Item, encoding: Encoding, cut: Cut, measured: set[str]) -> Iterator[Tile]:
    """Tiles of the codes of ``item``; before them those that measure what its scale depends on."""
    if encoding.members and encoding.shared not in measured:
        measured.add(encoding.shared)
        if cut.tile.nbytes:
            yield cut.full()
        yield from _measures(encoding, cut, trial=False)
        if encoding.encoder.search and encoding.encoder.one_scale:
            yield from _measures(encoding, cut, trial=True)
    row = item.nbytes // item.weight.shape[0]
    for group in groups(
        item.weight, encoding.encoder.row_step(item.weight.shape), cut.limit // row
    ):
        nbytes = row * (group[-1].rect.r1 - group[0].rect.r0)
        needed = sum(cost(c.reads) for c in group)
        if cut.tile.nbytes and not (cut.tile.nbytes + nbytes <= cut.limit and cut.has_room(needed)):
            yield cut.full()
        cut.tile.piecemeal |= not cut.has_room(needed)
        _append(cut.tile, item, item.begin + row * group[0].rect.r0, nbytes, group)
        cut.tile.end += nbytes
        cut.tile.read_bytes += needed


def _append(tile: Tile, item: Item, begin: int, nbytes: int, group: Group) -> None:
    last = tile.codings[-1] if tile.codings else None
    if last and last.item is item:
        joined = last._replace(nbytes=last.nbytes + nbytes, groups=(*last.groups, group))
        tile.codings[-1] = joined
    else:
        tile.codings.append(Coding(item, begin, nbytes, (group,)))


def _measures(encoding: Encoding, cut: Cut, trial: bool) -> Iterator[Tile]:
    for weight in encoding.members:
        for chunk, *_ in groups(weight, 1, weight.shape[0]):
            tile = cut.full()  # an empty one
            tile.measure = Measure(encoding, weight, chunk, trial)
            tile.read_bytes = cost(chunk.reads)
            yield tile


def groups(weight: Weight, step: int, most: int) -> Iterator[Group]:
    """Multiples of ``step`` rows, no more than ``most``, as chunks that each fit a scratch."""
    rows, columns = weight.shape
    fit = max(SCRATCH // columns, 1)
    size = max(min(fit, most) // step, 1) * step
    for r0 in range(0, rows, size):
        end = min(r0 + size, rows)
        yield tuple(
            Chunk(rect := Rect(r, min(r + fit, end), 0, columns), reads(weight, rect))
            for r in range(r0, end, fit)
        )


def spooled(item: Item, cut: Cut) -> Iterator[Tile]:
    """Tiles of a part that is taken from the spool."""
    done = 0
    while done < item.nbytes:
        if cut.tile.nbytes == cut.limit:
            yield cut.full()
        nbytes = min(cut.limit - cut.tile.nbytes, item.nbytes - done)
        cut.tile.spooled.append(Spooled(item.begin + done, nbytes))
        cut.tile.end += nbytes
        done += nbytes


def least_tile(item: Item) -> int:
    """Bytes that a tile must have at least to hold a group of ``item``, or what a chunk reads."""
    assert item.encoding
    group = next(groups(item.weight, item.encoding.encoder.row_step(item.weight.shape), 1))
    rows = group[-1].rect.r1 - group[0].rect.r0
    written = item.nbytes // item.weight.shape[0] * rows
    return max(written, max(cost(c.reads) for c in group) - READ_SLACK)
