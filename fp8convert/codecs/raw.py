"""Tensors that are not coded: their bytes are their value, and they pass untouched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..dtypes import DTYPES
from ..header import numel
from .base import Codec, Findings, Grid, Rect, Span, Stored
from .slices import sliced

if TYPE_CHECKING:
    from .base import Array, Bytes


@dataclass(frozen=True)
class Raw(Codec):
    """One part; decoding is a copy. Seen as a column of elements (of bytes, below 8 bits)."""

    name = "raw"
    rule = "bytes kept"
    roles = ("data",)
    coded = False

    def check(self, parts: Sequence[Stored]) -> str | None:
        """Anything fits."""
        return None

    def shape(self, parts: Sequence[Stored]) -> tuple[int, ...]:
        """The stored shape."""
        return parts[0].shape

    def out_dtype(self, parts: Sequence[Stored], target: str) -> str:
        """The stored dtype, whatever ``target`` is."""
        return parts[0].dtype

    def grid(self, parts: Sequence[Stored]) -> Grid:
        """[elements, 1]; the rows it has, if those are what lies together in its files."""
        part = parts[0]
        columns = _columns(part) if part.pieces or part.run else 1
        return Grid((part.end - part.begin) // _width(part) // columns, columns, 1, 1)

    def spans(self, parts: Sequence[Stored], rect: Rect) -> tuple[Span, ...]:
        """The elements' own bytes."""
        width, columns = _width(parts[0]), self.grid(parts).columns
        count = (rect.r1 - rect.r0) * (rect.c1 - rect.c0)
        first = rect.r0 * columns + rect.c0
        return (Span(first * width, (first + count) * width),)

    def decode(
        self, parts: Sequence[Stored], rect: Rect, data: Sequence[Bytes], out: Array, target: str
    ) -> Findings:
        """Copy."""
        out.view("uint8")[:] = data[0]
        return Findings()

    def step(self, parts: Sequence[Stored], axis: int) -> int:
        """Anywhere, but between bytes."""
        part = parts[0]
        bits = DTYPES[part.dtype].bits
        return 1 if bits >= 8 else 8 // math.gcd(8, bits * numel(part.shape[axis + 1 :]))

    def cut(
        self, parts: Sequence[Stored], axis: int, begin: int, end: int
    ) -> tuple[Codec, tuple[Stored, ...]]:
        """A slice of the part."""
        return self, (sliced(parts[0], axis, begin, end),)

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "raw"}``."""
        return {"codec": self.name}


def _columns(part: Stored) -> int:
    """Elements of a row that is whole in all runs and across all pieces."""
    bits = numel(part.shape[_row_axis(part) :]) * DTYPES[part.dtype].bits
    return max(bits // 8 // _width(part), 1)


def _row_axis(part: Stored) -> int:
    """The axis from which on elements lie together; none of them do in a tensor that is whole."""
    if part.pieces:
        inner = min(map(_row_axis, part.pieces))
        return min(inner, part.axis) if part.axis > 0 else inner
    axis, row = len(part.shape), DTYPES[part.dtype].bits
    while row < 8 * part.run:
        axis -= 1
        row *= part.shape[axis]
    return axis


def _width(part: Stored) -> int:
    return max(DTYPES[part.dtype].bits // 8, 1)
