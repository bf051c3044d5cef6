"""Tiles of weights that are encoded: groups of whole blocks, cut into chunks that fit a scratch.

A tile holds whole rows of blocks of the output, however long they are: a plan says how large a tile
must be at least. What is read for them may be larger than a worker's buffer, and is then read
chunk by chunk, twice.
"""

from __future__ import annotations

from collections.abc import Iterator

from .codecs.base import Rect
from .encoding.band import CHUNK, GRIDS, TRIED
from .encoding.encoder import Encoding
from .header import ALIGN as PAGE
from .plan import Item
from .schemes.weight import Weight
from .tile import (
    MIN_TILE,
    READ_SLACK,
    Chunk,
    Coding,
    Cut,
    Measure,
    Shared,
    Spooled,
    Tile,
    cost,
    reads,
)

Group = tuple[Chunk, ...]


def coded(
    item: Item, encoding: Encoding, cut: Cut, measured: set[str], of: Shared | None = None
) -> Iterator[Tile]:
    """Tiles of the codes of ``item``; before them those that measure what its scale depends on."""
    if encoding.members and encoding.shared not in measured:
        measured.add(encoding.shared)
        if cut.tile.nbytes:
            yield cut.full()
        yield from _measures(encoding, cut, trial=False)
        if encoding.encoder.search and encoding.encoder.one_scale:
            yield from _measures(encoding, cut, trial=True)
    weight, step = item.weight, encoding.encoder.row_step(item.weight.shape)
    if of:
        yield from _banded(item, step, of, cut)
        return
    row = item.nbytes // weight.shape[0]
    for group in groups(weight, step, cut.limit // row, cut.limit):
        nbytes = row * (group[-1].rect.r1 - group[0].rect.r0)
        needed = sum(cost(c.reads) for c in group)
        if cut.tile.nbytes and not (cut.tile.nbytes + nbytes <= cut.limit and cut.has_room(needed)):
            yield cut.full()
        _add(cut, item, nbytes, needed, group)


def _banded(item: Item, step: int, of: Shared, cut: Cut) -> Iterator[Tile]:
    if cut.tile.nbytes:
        yield cut.full()
    weight, row = item.weight, item.nbytes // item.weight.shape[0]
    for r0 in range(0, weight.shape[0], of.rows):
        for group in groups(weight, step, of.rows, cut.limit, (r0, r0 + of.rows)):
            nbytes = row * (group[-1].rect.r1 - group[0].rect.r0)
            _add(cut, item, nbytes, sum(cost(c.reads) for c in group), group)
        yield cut.band(of, r0)


def _add(cut: Cut, item: Item, nbytes: int, needed: int, group: Group) -> None:
    row = item.nbytes // item.weight.shape[0]
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
        # The smallest limit, whatever this run's is: a trial's sums are the same in every run.
        for chunk, *_ in groups(weight, 1, weight.shape[0], min(cut.limit, MIN_TILE)):
            tile = cut.full()  # an empty one
            tile.measure = Measure(encoding, weight, chunk, trial)
            tile.read_bytes = cost(chunk.reads)
            yield tile


def groups(
    weight: Weight, step: int, most: int, limit: int, within: tuple[int, int] | None = None
) -> Iterator[Group]:
    """Multiples of ``step`` rows, no more than ``most``, as chunks that fit a scratch each, and the
    buffer of a worker whose tiles have ``limit`` bytes. All rows, or those ``within`` a range."""
    rows, columns = weight.shape
    first, rows = (within[0], min(within[1], rows)) if within else (0, rows)
    fit = _fit(weight, limit)
    size = max(min(fit, most) // step, 1) * step
    for r0 in range(first, rows, size):
        end = min(r0 + size, rows)
        yield tuple(
            Chunk(rect := Rect(r, min(r + fit, end), 0, columns), reads(weight, rect))
            for r in range(r0, end, fit)
        )


def _fit(weight: Weight, limit: int) -> int:
    """Rows of a chunk: one at least, which :func:`least_tile` sees to."""
    fit = min(max(CHUNK // weight.shape[1], 1), weight.shape[0])
    while fit > 1 and _most_read(weight, fit) > limit + READ_SLACK:
        fit = -(-fit // 2)
    return fit


def _most_read(weight: Weight, rows: int) -> int:
    """Bytes of a buffer that ``rows`` rows take, wherever in the file they lie."""
    needed = reads(weight, Rect(0, rows, 0, weight.shape[1]))
    return cost(needed) + PAGE * sum(len(read.sources) for read in needed)


def spooled(item: Item, cut: Cut) -> Iterator[Tile]:
    """Tiles of a part that is taken from the spool."""
    done = 0
    while done < item.nbytes:
        if cut.tile.nbytes >= cut.limit:
            yield cut.full()
        nbytes = min(cut.limit - cut.tile.nbytes, item.nbytes - done)
        cut.tile.spooled.append(Spooled(item.begin + done, nbytes))
        cut.tile.end += nbytes
        done += nbytes


def least_tile(item: Item) -> int:
    """Bytes that a tile must have at least: a row of blocks of ``item``, a row of what it reads."""
    assert item.encoding
    step = item.encoding.encoder.row_step(item.weight.shape)
    written = item.nbytes // item.weight.shape[0] * min(step, item.weight.shape[0])
    read = max(_most_read(w, 1) for w in (item.weight, *item.encoding.members))
    return max(written, read - READ_SLACK)


def grid_bytes(item: Item) -> int:
    """Bytes of the arrays of numbers that a group of ``item`` needs while it is encoded."""
    assert item.encoding
    encoder, shape = item.encoding.encoder, item.weight.shape
    step = encoder.row_step(shape)
    rows = min(max(CHUNK // shape[1] // step, 1) * step, shape[0])
    br, bc = encoder.block_of(shape, rows)
    return -(-rows // br) * -(-shape[1] // bc) * (GRIDS + TRIED * encoder.search)
