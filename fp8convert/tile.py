"""A tile: a bounded run of output bytes, and the source bytes that it is made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from .codecs.base import Rect, Span
from .encoding.encoder import Encoding
from .header import ALIGN as PAGE
from .pieces import Source, sources
from .plan import Item
from .schemes.weight import Weight

MIN_TILE = 256 << 10
READ_SLACK = 1 << 20  # room in a worker's read buffer beyond a tile: scales, and page rounding


class Literal(NamedTuple):
    """Output bytes known from the plan: the header."""

    begin: int
    data: memoryview


class Read(NamedTuple):
    """What one part of a weight gives to a piece: its span, and the byte ranges that hold it."""

    span: Span
    sources: tuple[Source, ...]


class Chunk(NamedTuple):
    """A rectangle of a weight that is decoded at once, and a read of each part."""

    rect: Rect
    reads: tuple[Read, ...]


class Piece(NamedTuple):
    """A rectangle of one weight: output bytes from ``begin``, decoded from a read of each part."""

    item: Item
    rect: Rect
    begin: int
    nbytes: int
    reads: tuple[Read, ...]


class Coding(NamedTuple):
    """Rows of one weight to be encoded: codes from byte ``begin``; in groups of whole blocks."""

    item: Item
    begin: int
    nbytes: int
    groups: tuple[tuple[Chunk, ...], ...]


class Spooled(NamedTuple):
    """Bytes of a part that came of encoding; all codes of the file lie before them."""

    begin: int
    nbytes: int


class Measure(NamedTuple):
    """Rows of one of the weights that decide the tensor's scale of ``encoding``.

    First their largest magnitude; then, in a ``trial``, the errors of the scales to choose from.
    """

    encoding: Encoding
    weight: Weight
    chunk: Chunk
    trial: bool


@dataclass(frozen=True, eq=False)
class Shared:
    """How ``files`` files of a team cut one of their items: into bands of the same ``rows``, each
    band a tile of its own, so that what they read of the source is read once for all."""

    rows: int
    files: int


@dataclass(slots=True)
class Tile:
    """Output bytes ``[begin, end)`` of a task's file; none, if it only measures.

    ``piecemeal``: what it reads does not fit into a worker's buffer, and is read chunk by chunk.
    ``band``: it is the one of these rows, and to be read together with those of the other files.
    """

    begin: int
    end: int
    literals: list[Literal] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    codings: list[Coding] = field(default_factory=list)
    spooled: list[Spooled] = field(default_factory=list)
    measure: Measure | None = None
    piecemeal: bool = False
    band: tuple[Shared, int] | None = None
    read_bytes: int = 0  # page-rounded, at most

    @property
    def nbytes(self) -> int:
        """Output bytes."""
        return self.end - self.begin

    def reads(self) -> Iterator[Read]:
        """Every read."""
        yield from (r for p in self.pieces for r in p.reads)
        yield from (r for c in self.codings for g in c.groups for k in g for r in k.reads)
        yield from self.measure.chunk.reads if self.measure else ()


class Cut:
    """A file being cut: ``tile`` is the one being filled, of at most ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.tile = limit, Tile(0, 0)

    def full(self) -> Tile:
        """The tile so far; the next one begins."""
        done, self.tile = self.tile, Tile(self.tile.end, self.tile.end)
        return done

    def band(self, of: Shared, row: int) -> Tile:
        """The tile so far, which is a band from ``row`` on; the next one begins."""
        self.tile.band = of, row
        return self.full()

    def has_room(self, cost: int) -> bool:
        """Whether a worker's buffer holds ``cost`` bytes more."""
        return self.tile.read_bytes + cost <= self.limit + READ_SLACK


def reads(weight: Weight, rect: Rect) -> tuple[Read, ...]:
    """What decoding ``rect`` of ``weight`` needs."""
    spans = weight.codec.spans(weight.parts, rect)
    return tuple(Read(s, sources(p, s)) for p, s in zip(weight.parts, spans, strict=True))


def cost(needed: tuple[Read, ...]) -> int:
    """Bytes read, in whole pages."""
    return sum(room_for(s) for read in needed for s in read.sources)


def room_for(source: Source) -> int:
    """Bytes of a buffer that ``source`` takes, in whole pages; runs are read without their gaps."""
    first = source.begin % PAGE if source.times == 1 else 0
    return -(-(first + source.nbytes) // PAGE) * PAGE
