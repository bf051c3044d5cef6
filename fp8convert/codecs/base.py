"""The contract of a codec: how stored parts encode a weight. A codec opens no file.

A weight is seen as a matrix [rows, columns]. The engine asks for rectangles of it that lie
contiguously in the output (whole rows, or a run within one row), cut at the codec's steps wherever
they fit; the codec says which bytes of each part such a rectangle needs and decodes exactly those.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Bytes = npt.NDArray[np.uint8]


COPIES = -1  # an axis: the pieces are equal


class Stored(NamedTuple):
    """A stored tensor: bytes ``[begin, end)`` of shard number ``shard``.

    One that a layout has cut over files has ``pieces``, in order along ``axis`` (or equal, if that
    is COPIES); ``shape`` is the whole's, and ``begin`` is 0. A slice of columns of one has ``run``
    bytes every ``pitch``, the first at ``begin``; ``end - begin`` counts the runs alone. A negative
    ``shard`` is no file: all bytes are ``~shard``. See :mod:`.slices`, :mod:`fp8convert.pieces`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    begin: int
    end: int
    pieces: tuple[Stored, ...] = ()
    axis: int = 0
    run: int = 0
    pitch: int = 0


class Grid(NamedTuple):
    """A weight as a matrix, and where it may be cut.

    Rows: always at multiples of ``period`` (the rows of one expert; 0 if there is only one), and
    counted anew from there at multiples of ``row_step``. Columns: at multiples of ``column_step``.
    Where a row of blocks does not fit into a tile, anywhere between rows, or at any multiple of
    ``unit`` in a row.
    """

    rows: int
    columns: int
    row_step: int
    column_step: int
    period: int = 0
    unit: int = 1

    def period_end(self, row: int) -> int:
        """Where the expert that ``row`` is in ends: no rectangle goes beyond."""
        return row - row % self.period + self.period if self.period else self.rows

    def row_cut(self, row: int, fit: int) -> int:
        """The last legal cut within ``fit`` rows from ``row`` on; ``row`` if there is none."""
        end = self.period_end(row)
        if row + fit >= end:
            return end
        start = row - row % self.period if self.period else 0
        return max(start + (row + fit - start) // self.row_step * self.row_step, row)

    def split(self, rect: Rect) -> Iterator[Rect]:
        """``rect`` expert by expert."""
        r0 = rect.r0
        while r0 < rect.r1:
            r1 = min(self.period_end(r0), rect.r1)
            yield rect._replace(r0=r0, r1=r1)
            r0 = r1


class Rect(NamedTuple):
    """Rows ``[r0, r1)`` and columns ``[c0, c1)`` of a weight."""

    r0: int
    r1: int
    c0: int
    c1: int


class Span(NamedTuple):
    """Bytes of one part, relative to its first: ``[begin, end)``, and that again ``times`` times,
    each ``stride`` after the last. Decoding sees the runs joined."""

    begin: int
    end: int
    times: int = 1
    stride: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all runs."""
        return (self.end - self.begin) * self.times


def runs(begin: int, length: int, count: int, stride: int) -> Span:
    """``count`` runs of ``length`` bytes; one run where they touch."""
    if count == 1 or length == stride:
        return Span(begin, begin + length * count)
    return Span(begin, begin + length, count, stride)


@dataclass(slots=True)
class Findings:
    """What decoding met. ``damage`` (if set) says why no correct checkpoint has these bytes."""

    overflowed: int = 0  # finite code and scale, product beyond the target dtype
    damage: str | None = None

    def add(self, other: Findings) -> None:
        """Count in what another piece of the same rectangle met; the first damage stays."""
        self.damage = self.damage or other.damage
        self.overflowed += other.overflowed


class Codec(ABC):
    """How one or more stored tensors encode a weight. Instances are frozen and hashable."""

    name: ClassVar[str]
    rule: ClassVar[str]  # the numerical rule, for the manifest
    coded: ClassVar[bool]  # whether decoding changes the bytes

    @property
    @abstractmethod
    def roles(self) -> tuple[str, ...]:
        """What the parts are, in order."""

    @abstractmethod
    def check(self, parts: Sequence[Stored]) -> str | None:
        """Why dtypes and shapes of ``parts`` do not fit (expected and found), or None."""

    @abstractmethod
    def shape(self, parts: Sequence[Stored]) -> tuple[int, ...]:
        """The weight's shape."""

    @abstractmethod
    def out_dtype(self, parts: Sequence[Stored], target: str) -> str:
        """The safetensors dtype of the decoded weight when ``target`` is asked for."""

    @abstractmethod
    def grid(self, parts: Sequence[Stored]) -> Grid:
        """The weight as a matrix."""

    @abstractmethod
    def spans(self, parts: Sequence[Stored], rect: Rect) -> tuple[Span, ...]:
        """The bytes of each part that decoding ``rect`` needs."""

    @abstractmethod
    def decode(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], out: Array, target: str
    ) -> Findings:
        """Decode ``rect`` from ``data`` (its spans) into ``out``, 1-D, of ``target``'s bits."""

    def step(self, parts: Sequence[Stored], axis: int) -> int:
        """The weight may be cut along ``axis`` at multiples of this, and at its ends, so that its
        parts are cut with it; 0: at its ends only."""
        raise NotImplementedError

    def cut(
        self, parts: Sequence[Stored], axis: int, begin: int, end: int
    ) -> tuple[Codec, tuple[Stored, ...]]:
        """The slice ``[begin, end)`` of the weight along ``axis``: its codec and its parts.

        Where a step is cut through, a codec that reads such a slice, but is not a form to be
        stored. SchemeError if there is none.
        """
        raise NotImplementedError

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The codec as JSON, with a ``codec`` field holding its name."""
