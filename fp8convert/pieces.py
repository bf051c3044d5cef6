"""Where the bytes of a stored tensor are, also when they are in several files or runs.

A codec asks for bytes of a tensor; here they become byte ranges of shards, and, once those are
read, the bytes the codec asked for. A tensor of pieces is seen as rows of the axis that they lie
along, and so is a slice, whose rows are its runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .codecs.base import COPIES, Span, Stored, runs
from .dtypes import DTYPES
from .errors import DataError, shown
from .header import numel

if TYPE_CHECKING:
    from .codecs.base import Bytes


class Source(NamedTuple):
    """``times`` runs of bytes of shard number ``shard``, the first ``[begin, end)``.

    If ``shard`` is negative, nothing is read: all bytes are ``~shard``.
    """

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
    if not part.pieces and not part.run:
        begin = part.begin
        return (Source(part.shard, begin + span.begin, begin + span.end, span.times, span.stride),)
    return tuple(_sources(part, span))


def joined(part: Stored, span: Span, data: Sequence[Bytes]) -> Bytes:
    """The bytes of ``span``, from those of its :func:`sources`. DataError if copies differ."""
    return data[0] if len(data) == 1 else _joined(part, span, iter(data))


def _sources(part: Stored, span: Span) -> Iterator[Source]:
    if part.pieces:
        for piece, of in _split(part, span)[1]:
            yield from _sources(piece, of)
    elif part.run:
        for s in _by_rows(span, part.run):
            row, begin = divmod(s.begin, part.run)
            begin += part.begin + row * part.pitch
            stride = s.stride // part.run * part.pitch if s.stride >= part.run else s.stride
            yield Source(part.shard, begin, begin + s.end - s.begin, s.times, stride)
    else:
        yield from sources(part, span)


def _joined(part: Stored, span: Span, data: Iterator[Bytes]) -> Bytes:
    import numpy as np

    rows, found = 1, []
    if part.pieces:
        rows, pieces = _split(part, span)
        found = [_joined(piece, of, data) for piece, of in pieces]
    else:
        count = len(_by_rows(span, part.run)) if part.run else 1
        found = [next(data) for _ in range(count)]
    if part.pieces and part.axis == COPIES and found:
        _check_equal(part, found)
        return found[0]
    if len(found) == 1:
        return found[0]
    if not found:
        return np.empty(0, np.uint8)
    return np.concatenate([d.reshape(rows, -1) for d in found], axis=1).reshape(-1)


def _check_equal(part: Stored, found: Sequence[Bytes]) -> None:
    import numpy as np

    for piece, copy in zip(part.pieces, found, strict=True):
        if not np.array_equal(copy, found[0]):
            raise DataError(
                f"tensor {shown(part.name)} differs between the shards that should have the "
                f"same of it: shard number {part.pieces[0].shard} and {piece.shard}"
            )


def _split(part: Stored, span: Span) -> tuple[int, list[tuple[Stored, Span]]]:
    """What ``span`` is made of: spans of pieces, or smaller ones of ``part`` itself.

    Each gives so many rows (the number before them), which lie side by side.
    """
    if not span.nbytes:
        return 1, []
    if part.axis == COPIES:
        return 1, [(piece, span) for piece in part.pieces]
    row = _row(part, part.axis)
    simple = _by_rows(span, row)
    if len(simple) > 1:
        return 1, [(part, s) for s in simple]
    span = simple[0]
    if span.stride >= row or span.times == 1:
        return span.times, list(_columns(part, span, row))
    within = list(_columns(part, Span(span.begin, _reach(span)), row))
    if len(within) > 1:
        return 1, [(part, half) for half in _halves(span)]
    ((piece, of),) = within
    end = of.begin + span.end - span.begin
    return 1, [(piece, Span(of.begin, end, span.times, span.stride))]


def _columns(part: Stored, span: Span, row: int) -> Iterator[tuple[Stored, Span]]:
    """What pieces give to ``span``, whose runs lie in the same columns of one row or several."""
    first, begin = divmod(span.begin, row)
    end, step = begin + span.end - span.begin, span.stride // row
    for piece in part.pieces:
        size = _row(piece, part.axis)
        lo, hi = max(begin, 0), min(end, size)
        if lo < hi:
            yield piece, runs(first * size + lo, hi - lo, span.times, step * size)
        begin, end = begin - size, end - size


def _by_rows(span: Span, row: int) -> list[Span]:
    """``span`` as spans whose runs lie within one row, or in the same columns of several."""
    if not span.nbytes:
        return []
    begin, end = span.begin, span.end
    if begin // row == (_reach(span) - 1) // row:
        return [span]
    if span.times > 1:
        if not span.stride % row and begin % row + end - begin <= row:
            return [span]
        return [s for half in _halves(span) for s in _by_rows(half, row)]
    r0, r1 = -(-begin // row), end // row  # whole rows
    found = (
        Span(begin, r0 * row),
        Span(r0 * row, r0 * row + row, r1 - r0, row if r1 - r0 > 1 else 0),
        Span(r1 * row, end),
    )
    return [s for s in found if s.nbytes]


def _halves(span: Span) -> tuple[Span, Span]:
    half, length = span.times // 2, span.end - span.begin
    return (
        runs(span.begin, length, half, span.stride),
        runs(span.begin + half * span.stride, length, span.times - half, span.stride),
    )


def _reach(span: Span) -> int:
    """The end of the last run."""
    return span.end + (span.times - 1) * span.stride


def _row(stored: Stored, axis: int) -> int:
    """Bytes of the elements that an element of the axes before ``axis`` has."""
    return numel(stored.shape[axis:]) * DTYPES[stored.dtype].bits // 8
