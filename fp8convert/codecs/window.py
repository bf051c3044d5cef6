"""A slice of a matrix that cuts through its blocks, or through its words of zero points.

It is read, not written: what keeps such a slice must be decoded, or encoded anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..dtypes import DTYPES
from .base import Codec, Findings, Grid, Rect, Span, Stored
from .blocks import Blocks
from .coded import Coded
from .elements import Element

if TYPE_CHECKING:
    from .base import Array, Bytes


@dataclass(frozen=True)
class Window(Blocks):
    """Codes of a slice [o, i]; the other parts of the larger slice of ``of`` around it.

    That begins ``top`` rows above and ``left`` columns before, where ``of`` may be cut. Places in
    messages count from the window's first row and column, and from its first blocks.
    """

    of: Blocks
    top: int
    left: int

    name = "window"
    rule = "as the codec of the whole weight"

    @property
    def roles(self) -> tuple[str, ...]:
        """Those of the codec."""
        return self.of.roles

    @property
    def element(self) -> Element:
        """That of the codec."""
        return self.of.element

    def check(self, parts: Sequence[Stored]) -> str | None:
        """As the codec: the parts around the window are whole."""
        return self.of.check(self._whole(parts))

    def block_of(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The codec's. The first may be cut off at its top and left."""
        rows, columns = shape
        return self.of.block_of((self.top + rows, self.left + columns))

    @property
    def phase(self) -> tuple[int, int]:
        """Rows and columns of the first block that are not seen."""
        return self.top, self.left

    def grid(self, parts: Sequence[Stored]) -> Grid:
        """Cut anywhere."""
        rows, columns = self.shape(parts)
        return Grid(rows, columns, 1, self.unit, 0, self.unit)

    def _whole(self, parts: Sequence[Stored]) -> tuple[Stored, ...]:
        """The parts as if the codes were there of all that is around them."""
        rows, columns = self.shape(parts)
        rows, columns = self.top + rows, self.left + columns
        step = self.of.steps((rows, columns))[1]
        per = DTYPES[parts[0].dtype].bits // self.element.bits
        return parts[0]._replace(shape=(rows, -(-columns // step) * step // per)), *parts[1:]

    def _place(self, rect: Rect) -> Rect:
        """``rect``, counted from where the other parts begin."""
        top, left = self.top, self.left
        return Rect(rect.r0 + top, rect.r1 + top, rect.c0 + left, rect.c1 + left)

    def spans(self, parts: Sequence[Stored], rect: Rect) -> tuple[Span, ...]:
        """The codes of ``rect``; what the codec needs beside them."""
        codes = self.codes_span(rect, self.shape(parts)[1])
        return codes, *self.of.spans(self._whole(parts), self._place(rect))[1:]

    def grids(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes]
    ) -> tuple[Array, Array | None]:
        """As the codec."""
        return self.of.grids(self._whole(parts), self._place(rect), data)

    def piece(self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes]) -> Coded:
        """As the codec; but for where it is."""
        found = self.of.piece(self._whole(parts), self._place(rect), data)
        return found._replace(row=rect.r0, column=rect.c0)

    def decode_piece(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], piece: Coded, out: Array,
        target: str,
    ) -> Findings:  # fmt: skip
        """As the codec."""
        whole, place = self._whole(parts), self._place(rect)
        return self.of.decode_piece(whole, place, data, piece, out, target)

    def odd(self, parts: Sequence[Stored], data: Sequence[Bytes]) -> str | None:
        """As the codec."""
        return self.of.odd(parts, data)

    def step(self, parts: Sequence[Stored], axis: int) -> int:
        """A window is no form to be stored."""
        return 0

    def cut(
        self, parts: Sequence[Stored], axis: int, begin: int, end: int
    ) -> tuple[Codec, tuple[Stored, ...]]:
        """A smaller window."""
        if (begin, end) == (0, self.shape(parts)[axis]):
            return self, tuple(parts)
        whole, before = self._whole(parts), self.left if axis else self.top
        skip = (before + begin) % self.of.steps(self.of.shape(whole))[axis]
        of, kept = self.of.around(whole, axis, before + begin - skip, before + end)
        codes = self.codes_cut(parts[0], axis, begin, end)
        return Window(of, *((self.top, skip) if axis else (skip, self.left))), (codes, *kept)

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "window", "of": {...}, "top": 5, "left": 0}``."""
        return {"codec": self.name, "of": self.of.to_dict(), "top": self.top, "left": self.left}


def whole_codec(codec: Codec) -> Codec:
    """The codec of the weight that a window is of; ``codec`` itself if it is none."""
    return codec.of if isinstance(codec, Window) else codec
