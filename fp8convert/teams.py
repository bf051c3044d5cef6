"""Teams: files written together because they are made of the same bytes of the source.

A rank's columns of a matrix are a piece of every row of it: read rank by rank, each page would be
read once for each. So such an item is shared: all files of a team cut it into the same bands of
rows, and a band is read once for all of them. So are items that are the same in several files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from .codecs.base import Grid, Rect, Stored
from .header import ALIGN as PAGE
from .origin import Wanted
from .places import Places
from .plan import MOST_TOGETHER, Item, Task
from .tile import READ_SLACK, Shared, reads

WORTH = 256 << 10  # bytes of less than this are read again for each file: tiles of them are small
LONG = 64 << 10  # bytes of runs that each file reads without the others
MOST_TILE = 16 << 20  # bytes: 128 rows of 64 thousand BF16
AT_ONCE = 4  # tiles of the usual size: as much work as a band may be, all files together

Owned = tuple[int, Item]  # number of a task, and one of its items


def teams(tasks: Sequence[Task]) -> Iterator[list[Task]]:
    """Tasks to be written together: of a large team some at a time; others alone."""
    for team, found in groupby(tasks, key=lambda t: t.team):
        members = list(found)
        count = -(-len(members) // MOST_TOGETHER) if team >= 0 else len(members)
        for n in range(count):  # of nearly equal numbers
            yield members[n * len(members) // count : (n + 1) * len(members) // count]


def wanted(tasks: Sequence[Task]) -> Iterator[Wanted]:
    """What is written together, in order, and the shards it is made of."""
    for team in teams(tasks):
        yield Wanted(tuple(t.file for t in team), frozenset(s for t in team for s in t.reads))


def sharing(tasks: Sequence[Task], limit: int) -> list[dict[str, Shared]]:
    """The items that each of ``tasks``, a team, shares, by name, for tiles of ``limit`` bytes."""
    found: list[dict[str, Shared]] = [{} for _ in tasks]
    known: dict[object, int] = {}  # rows of a band: most items are like others
    for group in _groups(tasks):
        items = [item for _, item in group]
        key = _key(items)
        if key not in known:
            known[key] = band(items, limit)
        if known[key]:
            shared = Shared(known[key], len(group))
            for n, item in group:
                found[n][item.name] = shared
    return found


def least_tile(tasks: Sequence[Task]) -> int:
    """Bytes that a tile must have at least, or rows of blocks that are encoded are not shared.

    A plan asks for it as it does for what it cannot do without; but not for rows so long that it
    is more than MOST_TILE. Those are read by each file of a team.
    """
    known: dict[object, int] = {}
    for group in (g for team in teams(tasks) for g in _groups(team) if g[0][1].encoding):
        items = [item for _, item in group]
        key = _key(items)
        if key not in known:
            known[key] = _least(items)
    return max((least for least in known.values() if least <= MOST_TILE), default=0)


def _least(items: Sequence[Item]) -> int:
    rows = _step(items[0])
    each = max(item.nbytes // _grid(item).rows for item in items)
    return max(rows * each, _need(items, rows) - READ_SLACK)


def band(items: Sequence[Item], limit: int) -> int:
    """Rows of a band of ``items``; 0 if none is small enough, or they do not go together.

    Legal cuts of the codec if possible. From shapes alone: the same wherever the bytes lie.
    """
    grids = [_grid(item) for item in items]
    grid, step = grids[0], _step(items[0])
    if any((g.rows, g.row_step, g.period) != (grid.rows, grid.row_step, grid.period)
           for g in grids):  # fmt: skip
        return 0
    each = [item.nbytes // grid.rows for item in items]

    def fits(rows: int) -> bool:
        return rows * max(each) <= limit and _need(items, rows) <= limit + READ_SLACK

    rows = min(AT_ONCE * limit // sum(each), grid.period or grid.rows)
    while rows and not fits(rows):
        rows //= 2
    if rows < step and fits(step):
        return step
    return rows - rows % step if rows >= step or items[0].encoding else rows


def bands(item: Item, of: Shared) -> Iterator[Rect]:
    """Those of ``item``."""
    grid, r0 = _grid(item), 0
    while r0 < grid.rows:
        legal = grid.row_cut(r0, of.rows)
        r1 = legal if legal > r0 else r0 + of.rows
        yield Rect(r0, r1, 0, grid.columns)
        r0 = r1


def _groups(tasks: Sequence[Task]) -> Iterator[list[Owned]]:
    """The items of a team that are worth to be shared, and by whom."""
    owned: dict[str, list[Owned]] = {}
    for n, task in enumerate(tasks if len(tasks) > 1 else ()):
        for item in task.items:
            if not item.part and item.nbytes * len(tasks) >= WORTH:
                owned.setdefault(item.name, []).append((n, item))
    for found in owned.values():
        if len(found) > 1 and all(_by_rows(item) for _, item in found):
            yield from _worthy(found)


def _worthy(owned: list[Owned]) -> Iterator[list[Owned]]:
    """Of one weight's items: all, if they are columns of it; or those that are the same."""
    if all(any(map(_strided, item.weight.parts)) for _, item in owned):
        if sum(item.nbytes for _, item in owned) >= WORTH:
            yield owned
        return
    same: dict[object, list[Owned]] = {}
    for n, item in owned:
        if item.nbytes >= WORTH:
            same.setdefault((item.weight.codec, item.weight.parts), []).append((n, item))
    yield from (group for group in same.values() if len(group) > 1)


def _strided(part: Stored) -> bool:
    """Whether it has less than whole rows of a stored tensor."""
    return any(map(_strided, part.pieces)) or 0 < part.run < LONG


def _by_rows(item: Item) -> bool:
    """Whether a row lies together in its parts: not where codes are stored transposed."""
    rect = Rect(0, 1, 0, _grid(item).columns)
    return all(s.times == 1 for s in item.weight.codec.spans(item.weight.parts, rect))


def _grid(item: Item) -> Grid:
    """Where the item may be cut."""
    if item.encoding is None:
        return item.weight.codec.grid(item.weight.parts)
    rows, columns = item.weight.shape
    return Grid(rows, columns, item.encoding.encoder.row_step(item.weight.shape), columns)


def _step(item: Item) -> int:
    grid = _grid(item)
    return min(grid.row_step, grid.period or grid.rows)


def _need(items: Sequence[Item], rows: int) -> int:
    """Bytes of a buffer that so many rows of all ``items`` take, wherever in the files they lie."""
    found = [reads(i.weight, Rect(0, rows, 0, _grid(i).columns)) for i in items]
    places = Places(found)
    return places.need + PAGE * (len(places.extents) + len(places.gathered))


def _key(items: Sequence[Item]) -> object:
    """What their bands depend on."""
    return frozenset(map(_facts, items)), len(items)


def _facts(item: Item) -> object:
    parts = tuple(map(_form, item.weight.parts))
    encoder = item.encoding.encoder if item.encoding else None
    return item.weight.codec, encoder, item.nbytes, parts


def _form(part: Stored) -> object:
    pieces = tuple(map(_form, part.pieces))
    return part.dtype, part.shape, part.run, part.pitch, part.axis, pieces
