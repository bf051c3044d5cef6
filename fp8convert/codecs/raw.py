"""Tensors that are not coded: their bytes are their value, and they pass untouched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..dtypes import DTYPES
from ..header import numel
from .base import Codec, Findings, Grid, Rect, Span, Stored

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
        """[elements, 1]; the rows it has, if a layout has cut it across them."""
        part = parts[0]
        columns = max(numel(part.shape[1:]), 1) if part.pieces and part.axis == 1 else 1
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

    def to_dict(self) -> dict[str, Any]:
        """``{"codec": "raw"}``."""
        return {"codec": self.name}


def _width(part: Stored) -> int:
    return max(DTYPES[part.dtype].bits // 8, 1)
