"""Where the bytes of a stored tensor are, also when a layout has cut it over several files.

A codec asks for bytes of a tensor; here they become byte ranges of shards, and, once those are
read, the bytes the codec asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from .codecs.base import COPIES, Span, Stored
from .dtypes import DTYPES
from .errors import DataError, Fp8ConvertError, shown
from .header import numel

if TYPE_CHECKING:
    from .codecs.base import Bytes


class Source(NamedTuple):
    """``times`` runs of bytes of shard number ``shard``, the first ``[begin, end)``."""

    shard: int
    begin: int
    end: int
    times: int = 1
    stride: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all runs."""
        return (self.end - self.begin) * self.times


def sources(part: Stored, span: Span) -> tuple[Source, ...]:
    """The bytes of shards that hold ``span`` of ``part``, in the order of :func:`joined`."""
    if not part.pieces:
        return (_source(part, span),)
    if span.times > 1:
        raise Fp8ConvertError(f"{shown(part.name)}: runs of a tensor that is cut over files")
    if part.axis == COPIES:
        return tuple(_source(p, span) for p in part.pieces)
    found, at = [], 0  # bytes before a piece, in the part or, cut by columns, in each row
    rows = _whole_rows(part, span)
    for piece in part.pieces:
        if part.axis == 0:
            size, begin, end = piece.end - piece.begin, span.begin - at, span.end - at
        elif rows:
            size = _row(piece)
            found.append(_source(piece, Span(rows[0] * size, rows[1] * size)))
            continue
        else:  # within one row
            row, column = divmod(span.begin, _row(part))
            size = _row(piece)
            begin, end = column - at, column - at + span.end - span.begin
        at += size
        begin, end = max(begin, 0), min(end, size)
        if begin < end:
            first = 0 if part.axis == 0 else row * size
            found.append(_source(piece, Span(first + begin, first + end)))
    return tuple(found)


def joined(part: Stored, span: Span, data: Sequence[Bytes]) -> Bytes:
    """The bytes of ``span``, from those of its :func:`sources`. DataError if copies differ."""
    import numpy as np

    if len(data) == 1:
        return data[0]
    if part.axis == COPIES:
        for piece, copy in zip(part.pieces, data, strict=True):
            if not np.array_equal(copy, data[0]):
                raise DataError(
                    f"tensor {shown(part.name)} differs between the shards that should have the "
                    f"same of it: shard number {part.pieces[0].shard} and {piece.shard}"
                )
        return data[0]
    if not data:
        return np.empty(0, np.uint8)
    if part.axis == 0 or not (rows := _whole_rows(part, span)):
        return np.concatenate(data)
    return np.concatenate([d.reshape(rows[1] - rows[0], -1) for d in data], axis=1).reshape(-1)


def _source(stored: Stored, span: Span) -> Source:
    begin = stored.begin
    return Source(stored.shard, begin + span.begin, begin + span.end, span.times, span.stride)


def _whole_rows(part: Stored, span: Span) -> tuple[int, int] | None:
    """The rows of the first axis that ``span`` is, if it is whole rows."""
    size = _row(part)
    if not size or span.begin % size or span.end % size:
        return None
    return span.begin // size, span.end // size


def _row(stored: Stored) -> int:
    """Bytes of one row of the first axis."""
    return numel(stored.shape[1:]) * DTYPES[stored.dtype].bits // 8
