"""A task cut into tiles: bounded pieces of the output file, in file order, that never overlap.

A tile is a run of output bytes and the source bytes it is decoded from. Cuts fall on block
boundaries wherever a row of blocks fits into a tile, so each source byte is read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .codecs.base import Grid, Rect
from .codetiles import coded, spooled
from .errors import Fp8ConvertError, shown
from .plan import Item, Task
from .teams import bands
from .tile import Cut, Literal, Piece, Shared, Tile, cost, reads

ALONE: Mapping[str, Shared] = {}


def tiles(task: Task, limit: int, shared: Mapping[str, Shared] = ALONE) -> Iterator[Tile]:
    """The tiles of ``task``, each of at most ``limit`` output bytes, covering the whole file.

    Items that are ``shared``, by name, are cut as all files of the team cut them.
    """
    cut = Cut(limit)
    header = memoryview(task.header)
    for lo in range(0, len(header), limit):
        if cut.tile.end:
            yield cut.full()
        data = header[lo : lo + limit]
        cut.tile = Tile(lo, lo + len(data), [Literal(lo, data)])
    measured: set[str] = set()
    for item in task.items:
        if item.nbytes == 0:
            continue
        of = shared.get(item.name)
        if item.part:
            yield from spooled(item, cut)
        elif item.encoding:
            yield from coded(item, item.encoding, cut, measured, of)
        elif of:
            yield from _banded(item, of, cut)
        else:
            yield from _decoded(item, cut)
    if cut.tile.nbytes:
        yield cut.tile


def _banded(item: Item, of: Shared, cut: Cut) -> Iterator[Tile]:
    if cut.tile.nbytes:
        yield cut.full()
    for rect in bands(item, of):
        row = item.nbytes // item.weight.codec.grid(item.weight.parts).rows
        nbytes = (rect.r1 - rect.r0) * row
        needed = reads(item.weight, rect)
        _append(Piece(item, rect, item.begin + rect.r0 * row, nbytes, needed), cut)
        yield cut.band(of, rect.r0)


def _decoded(item: Item, cut: Cut) -> Iterator[Tile]:
    grid = item.weight.codec.grid(item.weight.parts)
    width = item.nbytes // (grid.rows * grid.columns)
    at = 0  # elements done
    while at < grid.rows * grid.columns:
        piece = _next_piece(item, grid, at, cut)
        if piece is None:
            yield cut.full()
            continue
        _append(piece, cut)
        at += piece.nbytes // width


def _append(piece: Piece, cut: Cut) -> None:
    cut.tile.pieces.append(piece)
    cut.tile.end += piece.nbytes
    cut.tile.read_bytes += cost(piece.reads)


def _next_piece(item: Item, grid: Grid, at: int, cut: Cut) -> Piece | None:
    """The largest legal piece from element ``at`` that the tile has room for, and its reader.

    None if only a new tile can hold one. A new tile always can: of a codec that reads more than
    it writes it takes less.
    """
    width, alone = item.nbytes // (grid.rows * grid.columns), not cut.tile.nbytes
    room = (cut.limit - cut.tile.nbytes) // width
    while rect := _next_rect(grid, at, room, alone):
        begin = item.begin + (rect.r0 * grid.columns + rect.c0) * width
        nbytes = (rect.r1 - rect.r0) * (rect.c1 - rect.c0) * width
        if not nbytes:  # no tile can hold one element's sources: the codec asks too much
            raise Fp8ConvertError(f"weight {shown(item.weight.name)}: too much to read at once")
        piece = Piece(item, rect, begin, nbytes, reads(item.weight, rect))
        if cut.has_room(cost(piece.reads)):
            return piece
        if not alone:
            return None
        room //= 2
    return None


def _next_rect(grid: Grid, at: int, room: int, alone: bool) -> Rect | None:
    """The largest legal rectangle of at most ``room`` elements from element ``at``.

    None if only a new tile can hold a legal one. In a tile of its own (``alone``) a weight whose
    row of blocks does not fit is cut between rows, and one whose row does not fit within it.
    """
    columns, step = grid.columns, grid.column_step
    r, c = divmod(at, columns)
    if c == 0:
        fit = min(room // columns, grid.period_end(r) - r)
        legal = grid.row_cut(r, fit) - r
        if legal > 0:
            return Rect(r, r + legal, 0, columns)
        if not alone:
            return None
        if fit > 0:
            return Rect(r, r + fit, 0, columns)
    elif not alone:
        return None
    # Never across a block edge from within a block: a codec sees a rectangle's first column as one.
    fit = min(room, columns - c, step - c % step if c % step else columns)
    legal = fit if c + fit == columns else (c + fit) // step * step - c
    return Rect(r, r + 1, c, c + (legal if legal > 0 else fit // grid.unit * grid.unit))
