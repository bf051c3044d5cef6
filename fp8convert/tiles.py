"""A task cut into tiles: bounded pieces of the output file, in file order, that never overlap.

A tile is a run of output bytes and the source bytes it is decoded from. Cuts fall on block
boundaries wherever a row of blocks fits into a tile, so each source byte is read once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from .codecs.base import Grid, Rect, Span
from .errors import Fp8ConvertError, shown
from .header import ALIGN as PAGE
from .pieces import Source, sources
from .plan import Item, Task

READ_SLACK = 1 << 20  # room in a worker's read buffer beyond a tile: scales, and page rounding


class Literal(NamedTuple):
    """Output bytes known from the plan: the header."""

    begin: int
    data: memoryview


class Read(NamedTuple):
    """What one part of a weight gives to a piece: its span, and the byte ranges that hold it."""

    span: Span
    sources: tuple[Source, ...]


class Piece(NamedTuple):
    """A rectangle of one weight: output bytes from ``begin``, decoded from a read of each part."""

    item: Item
    rect: Rect
    begin: int
    nbytes: int
    reads: tuple[Read, ...]


@dataclass(slots=True)
class Tile:
    """Output bytes ``[begin, end)`` of a task's file."""

    begin: int
    end: int
    literals: list[Literal] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    read_bytes: int = 0  # page-rounded, at most

    @property
    def nbytes(self) -> int:
        """Output bytes."""
        return self.end - self.begin


def tiles(task: Task, limit: int) -> Iterator[Tile]:
    """The tiles of ``task``, each of at most ``limit`` output bytes, covering the whole file."""
    tile = Tile(0, 0)
    header = memoryview(task.header)
    for lo in range(0, len(header), limit):
        if tile.end:
            yield tile
        data = header[lo : lo + limit]
        tile = Tile(lo, lo + len(data), [Literal(lo, data)])
    for item in task.items:
        grid = item.weight.codec.grid(item.weight.parts)
        if item.nbytes == 0:
            continue
        width = item.nbytes // (grid.rows * grid.columns)
        at = 0  # elements done
        while at < grid.rows * grid.columns:
            piece = _next_piece(item, grid, at, limit, tile)
            if piece is None:
                yield tile
                tile = Tile(tile.end, tile.end)
                continue
            tile.pieces.append(piece)
            tile.end += piece.nbytes
            tile.read_bytes += _cost(piece)
            at += piece.nbytes // width
    yield tile


def _next_piece(item: Item, grid: Grid, at: int, limit: int, tile: Tile) -> Piece | None:
    """The largest legal piece from element ``at`` that ``tile`` has room for, and its reader.

    None if only a new tile can hold one. A new tile always can: of a codec that reads more than
    it writes it takes less.
    """
    width, alone = item.nbytes // (grid.rows * grid.columns), not tile.nbytes
    room = (limit - tile.nbytes) // width
    while rect := _next_rect(grid, at, room, alone):
        piece = _piece(item, rect, grid.columns, width)
        if not piece.nbytes:  # no tile can hold one element's sources: the codec asks too much
            raise Fp8ConvertError(f"weight {shown(item.weight.name)}: too much to read at once")
        if tile.read_bytes + _cost(piece) <= limit + READ_SLACK:
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


def _piece(item: Item, rect: Rect, columns: int, width: int) -> Piece:
    begin = item.begin + (rect.r0 * columns + rect.c0) * width
    nbytes = (rect.r1 - rect.r0) * (rect.c1 - rect.c0) * width
    parts = item.weight.parts
    spans = item.weight.codec.spans(parts, rect)
    reads = tuple(Read(s, sources(p, s)) for p, s in zip(parts, spans, strict=True))
    return Piece(item, rect, begin, nbytes, reads)


def _cost(piece: Piece) -> int:
    """Bytes read for ``piece``, in whole pages."""
    return sum(room_for(s) for read in piece.reads for s in read.sources)


def room_for(source: Source) -> int:
    """Bytes of a buffer that ``source`` takes, in whole pages; runs are read without their gaps."""
    first = source.begin % PAGE if source.times == 1 else 0
    return -(-(first + source.nbytes) // PAGE) * PAGE
